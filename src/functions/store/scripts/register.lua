--[[
register.lua: replace what one app serves.

ARGV  3 app   4 app record (JSON)
      5 n functions; per function: slug, record (JSON), its limits and schedules (MessagePack):
        {lim = {{k, n}, ..}, cron = {{hash, next tick, when it fires}, ..}}; times in ms
      then n removed slugs, slug..
Returns the registry's new revision.
Invariant: an app's functions change together, and their schedules with them: a series that is gone does not tick any
      more, one that stays keeps its next tick. A function that is gone is marked, not deleted: its runs end with it.
]]
local arg = 6
local before, after = {}, {}
for _, cron in ipairs(redis.call('HKEYS', F .. 'crons')) do before[cron] = true end
for _ = 1, tonumber(ARGV[5]) do
  local slug, more = ARGV[arg], cmsgpack.unpack(ARGV[arg + 2])
  redis.call('HSET', F .. 'functions', slug, ARGV[arg + 1])
  redis.call('DEL', F .. 'limits:' .. slug)
  for _, limit in ipairs(more.lim) do redis.call('HSET', F .. 'limits:' .. slug, limit[1], limit[2]) end
  for _, cron in ipairs(more.cron) do
    local name = cron[1] .. '|' .. slug
    after[name] = true
    if not before[name] then
      redis.call('HSET', F .. 'crons', name, cron[2])
      redis.call('ZADD', F .. 'timers', cron[3], 'C|' .. name)
    end
  end
  after[slug] = true
  arg = arg + 3
end
local n = tonumber(ARGV[arg])
for i = arg + 1, arg + n do
  after[ARGV[i]] = true
  local record = redis.call('HGET', F .. 'functions', ARGV[i])
  if record then
    local decoded = cjson.decode(record)
    if decoded.app == ARGV[3] then redis.call('HSET', F .. 'archived', ARGV[i], now) end
  end
end
for name in pairs(before) do
  local slug = string.match(name, '^%x+|(.*)$')
  if after[slug] and not after[name] then
    redis.call('HDEL', F .. 'crons', name)
    redis.call('ZREM', F .. 'timers', 'C|' .. name)
  end
end
arg = 6
for _ = 1, tonumber(ARGV[5]) do
  redis.call('HDEL', F .. 'archived', ARGV[arg])
  arg = arg + 3
end
if ARGV[4] == '' then redis.call('HDEL', F .. 'apps', ARGV[3]) else redis.call('HSET', F .. 'apps', ARGV[3], ARGV[4]) end
if blob ~= '' then redis.call('XADD', journal, '*', 'b', blob) end
local revision = redis.call('INCR', F .. 'rev')
redis.call('PUBLISH', T .. ':ctl', 'functions')
return revision
