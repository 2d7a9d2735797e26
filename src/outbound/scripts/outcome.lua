#!lua flags=allow-oom
--[[
outcome.lua: note how a delivery to an endpoint ended; disable an endpoint that is gone or that only fails.

KEYS  1 endpoints   2 disabled   3 health of the endpoint   4 revision   5 journal
ARGV  1 endpoint id   2 'ok' | 'failed' | 'gone'   3 status or ''   4 error
      5 ms of nothing but failures after which it is disabled, '' for never
      6 record of its being disabled as `gone` without its time   7 the same as `failing`
      8, 9 journal blobs of the two
Returns '' or the reason for which this call disabled it.
Invariant: one call disables it, whatever other processes see at the same time; an endpoint that is removed gets no
      health back. One failure never disables: it may be days since the last delivery.
]]
local id, how = ARGV[1], ARGV[2]
if redis.call('HEXISTS', KEYS[1], id) == 0 then return '' end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', KEYS[3], 'lastStatus', ARGV[3])
if how == 'ok' then
  redis.call('HSET', KEYS[3], 'lastSuccess', now)
  redis.call('HDEL', KEYS[3], 'failingSince', 'failures', 'lastError')
  return ''
end
redis.call('HSET', KEYS[3], 'lastFailure', now, 'lastError', ARGV[4])
redis.call('HSETNX', KEYS[3], 'failingSince', now)
local failures = redis.call('HINCRBY', KEYS[3], 'failures', 1)
local since = tonumber(redis.call('HGET', KEYS[3], 'failingSince'))
local reason, record, blob
if how == 'gone' then
  reason, record, blob = 'gone', ARGV[6], ARGV[8]
elseif ARGV[5] ~= '' and failures > 1 and tonumber(now) - since >= tonumber(ARGV[5]) then
  reason, record, blob = 'failing', ARGV[7], ARGV[9]
end
if not reason then return '' end
record = string.gsub(record, '"atMs":0', '"atMs":' .. now, 1)
if redis.call('HSETNX', KEYS[2], id, record) == 0 then return '' end
redis.call('INCR', KEYS[4])
redis.call('XADD', KEYS[5], '*', 'b', blob)
return reason
