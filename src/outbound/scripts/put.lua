#!lua flags=allow-oom
--[[
put.lua: make, change or remove an endpoint, or its being disabled.

KEYS  1 endpoints   2 disabled   3 health of the endpoint   4 revision   5 journal
ARGV  1 endpoint id   2 the record as the caller read it, '' when there was none   3 the new record, '' removes it
      4 '' leaves its being disabled as it is | 'enable' | the new record of why it is disabled   5 journal blob
Returns 1, or 0 when the record is not what the caller read: then nothing is changed.
Invariant: two operators can't undo each other without knowing; an endpoint that is enabled starts with a clean health.
]]
local id = ARGV[1]
if (redis.call('HGET', KEYS[1], id) or '') ~= ARGV[2] then return 0 end
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], id)
  redis.call('HDEL', KEYS[2], id)
  redis.call('DEL', KEYS[3])
else
  redis.call('HSET', KEYS[1], id, ARGV[3])
  if ARGV[4] == 'enable' then
    redis.call('HDEL', KEYS[2], id)
    redis.call('HDEL', KEYS[3], 'failingSince', 'failures')
  elseif ARGV[4] ~= '' then
    redis.call('HSET', KEYS[2], id, ARGV[4])
  end
end
redis.call('INCR', KEYS[4])
redis.call('XADD', KEYS[5], '*', 'b', ARGV[5])
return 1
