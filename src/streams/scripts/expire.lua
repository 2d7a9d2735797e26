#!lua flags=allow-oom
--[[
expire.lua: end pauses whose time has come.

KEYS  1 pauses hash   2 pause-expiry zset   3 journal stream
ARGV  1 control channel   2 limit (<= 64)
Returns {expired families.., next expiry ms or ''}.
Invariant: whoever notices first removes the pause and writes the one `expired` record (journal field `q`: one line
      per pause, `<expired at ms> <record>`). A pause that was replaced meanwhile has a later score and survives.
]]
local pauses, expiry, journal = KEYS[1], KEYS[2], KEYS[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local families = redis.call('ZRANGEBYSCORE', expiry, '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))
local lines = {}
for _, family in ipairs(families) do
  local record = redis.call('HGET', pauses, family)
  redis.call('HDEL', pauses, family)
  redis.call('ZREM', expiry, family)
  if record then lines[#lines + 1] = string.format('%.0f', now) .. ' ' .. family .. ' ' .. record end
  redis.call('PUBLISH', ARGV[1], 'resume ' .. family)
end
if #lines > 0 then redis.call('XADD', journal, '*', 'q', table.concat(lines, '\n')) end
local next = redis.call('ZRANGE', expiry, 0, 0, 'WITHSCORES')
return {families, next[2] or ''}
