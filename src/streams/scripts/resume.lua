#!lua flags=allow-oom
--[[
resume.lua: let a family go on, at once or at a rate.

KEYS  1 pauses hash   2 pause-expiry zset   3 journal stream
      4 the observer's memory (hash: family -> JSON, see `observe_apply.lua`)
      5 steering hash   6 steering-expiry zset   7 pace hash   8 meta hash (counter `rev`)
ARGV  1 family   2 source `manual` | `observer`   3 control channel   4 journal blob (applied)   5 blob (rejected)
      6 field of its pace in 5   7 the trickle (JSON without times, with `ttlMs`) or ''
Returns {'ok', previous record} | {'trickled', the trickle that was} when it was not paused but trickled
        | {'refused', 'not_paused' | 'manual_pause_active', standing record or ''}
Invariant: hash, zset and journal record change together. An unreadable record is removed by a manual resume.
]]
local pauses, expiry, journal, memory = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local steering, steering_expiry, pace, meta = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local family, source, channel, applied, rejected = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local field, trickle = ARGV[6], ARGV[7]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local standing = redis.call('HGET', pauses, family)
local standing_until = tonumber(redis.call('ZSCORE', expiry, family) or 0)

local function let_through()
  if trickle == '' then
    -- At once means at once: a trickle from before the pause ends with it.
    local known, old = pcall(cjson.decode, redis.call('HGET', steering, field) or '')
    if known and type(old) == 'table' and old.kind == 'trickle_family' then
      redis.call('HDEL', steering, field)
      redis.call('ZREM', steering_expiry, field)
      redis.call('HDEL', pace, family)
    end
    return
  end
  local record = cjson.decode(trickle)
  record.appliedAtMs, record.expiresAtMs, record.rev = now, now + record.ttlMs, redis.call('HINCRBY', meta, 'rev', 1)
  redis.call('HSET', steering, field, cjson.encode(record))
  redis.call('ZADD', steering_expiry, now + record.ttlMs, field)
end

if not standing or standing_until <= now then
  local paced = redis.call('HGET', steering, field)
  local known, old = pcall(cjson.decode, paced or '')
  if source == 'manual' and known and type(old) == 'table' and old.kind == 'trickle_family'
    and tonumber(redis.call('ZSCORE', steering_expiry, field) or 0) > now then
    redis.call('HDEL', steering, field)
    redis.call('ZREM', steering_expiry, field)
    redis.call('HDEL', pace, family)
    let_through()
    redis.call('XADD', journal, '*', 'b', applied, 'c', cjson.encode({previous = old}))
    redis.call('PUBLISH', channel, 'steer ' .. family)
    return {'trickled', paced}
  end
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
let_through()
local note = standing
if readable then
  local told = cjson.decode(standing)
  told.previous = old
  note = cjson.encode(told)
end
redis.call('XADD', journal, '*', 'b', applied, 'c', note)
redis.call('PUBLISH', channel, 'resume ' .. family)
return {'ok', standing}
