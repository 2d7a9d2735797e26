--[[
mark.lua: mark a function or an app as paused, or take the mark off.

ARGV  3 `fn:<slug>` or `app:<name>`   4 who and why (JSON), or '' to take it off
Returns the mark that was there, or ''.
Invariant: mark, revision and journal record change together: every server knows within a second.
]]
local before = redis.call('HGET', F .. 'paused', ARGV[3]) or ''
if ARGV[4] == '' then
  if before == '' then return '' end
  redis.call('HDEL', F .. 'paused', ARGV[3])
else
  redis.call('HSET', F .. 'paused', ARGV[3], ARGV[4])
end
if blob ~= '' then redis.call('XADD', journal, '*', 'b', blob) end
redis.call('INCR', F .. 'rev')
redis.call('PUBLISH', T .. ':ctl', 'functions')
return before
