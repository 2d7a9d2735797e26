--[[
register.lua: replace what one app serves.

ARGV  3 app   4 app record (JSON)   5 n functions; per function: slug, record (JSON)   then n removed slugs, slug..
Returns the registry's new revision.
Invariant: an app's functions change together. A function that is gone is marked, not deleted: its runs end with it.
]]
local arg = 6
for _ = 1, tonumber(ARGV[5]) do
  redis.call('HSET', F .. 'functions', ARGV[arg], ARGV[arg + 1])
  arg = arg + 2
end
local n = tonumber(ARGV[arg])
for i = arg + 1, arg + n do
  local record = redis.call('HGET', F .. 'functions', ARGV[i])
  if record then
    local decoded = cjson.decode(record)
    if decoded.app == ARGV[3] then redis.call('HSET', F .. 'archived', ARGV[i], now) end
  end
end
arg = 6
for _ = 1, tonumber(ARGV[5]) do
  redis.call('HDEL', F .. 'archived', ARGV[arg])
  arg = arg + 2
end
if ARGV[4] == '' then redis.call('HDEL', F .. 'apps', ARGV[3]) else redis.call('HSET', F .. 'apps', ARGV[3], ARGV[4]) end
if blob ~= '' then redis.call('XADD', journal, '*', 'b', blob) end
local revision = redis.call('INCR', F .. 'rev')
redis.call('PUBLISH', T .. ':ctl', 'functions')
return revision
