#!lua flags=allow-oom
--[[
resume.lua: let a family go on.

KEYS  1 pauses hash   2 pause-expiry zset   3 journal stream
      4 the observer's memory (hash: family -> JSON, see `observe_apply.lua`)
ARGV  1 family   2 source `manual` | `observer`   3 control channel   4 journal blob (applied)   5 blob (rejected)
Returns {'ok', previous record} | {'refused', 'not_paused' | 'manual_pause_active', standing record or ''}
Invariant: hash, zset and journal record change together. An unreadable record is removed by a manual resume.
]]
local pauses, expiry, journal, memory = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local family, source, channel, applied, rejected = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local standing = redis.call('HGET', pauses, family)
local standing_until = tonumber(redis.call('ZSCORE', expiry, family) or 0)
if not standing or standing_until <= now then
  redis.call('XADD', journal, '*', 'b', rejected)
  return {'refused', 'not_paused', ''}
end
local readable, old = pcall(cjson.decode, standing)
if source == 'observer' and (not readable or old.source ~= 'observer') then
  redis.call('XADD', journal, '*', 'b', rejected)
  return {'refused', 'manual_pause_active', standing}
end
redis.call('HDEL', pauses, family)
redis.call('ZREM', expiry, family)
if readable and old.source == 'observer' then
  -- The operator's word stands: the observer leaves the family alone for a while.
  local known, own = pcall(cjson.decode, redis.call('HGET', memory, family) or '')
  if not known or type(own) ~= 'table' then own = {} end
  own.pauses = own.pauses or {}
  local last = own.pauses[#own.pauses]
  if last and last[2] > now then last[2] = now end
  own.at, own.by = now, source
  redis.call('HSET', memory, family, cjson.encode(own))
end
redis.call('XADD', journal, '*', 'b', applied, 'c', standing)
redis.call('PUBLISH', channel, 'resume ' .. family)
return {'ok', standing}
