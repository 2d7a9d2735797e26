#!lua flags=allow-oom
--[[
pause.lua: hold a family.

KEYS  1 pauses hash   2 pause-expiry zset   3 journal stream   4 meta hash (counter `rev`)
      5 the observer's memory (hash: family -> JSON, see `observe_apply.lua`)
ARGV  1 family   2 ttl ms   3 record without times (JSON object)   4 source `manual` | `observer`
      5 '1' to replace a longer manual pause   6 control channel   7 journal blob
Returns {'ok', record, replaced record or ''} | {'refused', reason, standing record}
      reasons: `manual_pause_active` `already_paused` (observer), `shorter_than_manual` (manual without 5).
Invariant: hash and zset change together, with the journal record; times are Redis's; a manual pause beats the
      observer's. An unreadable standing record counts as a pause. allow-oom: a full Redis must still be pausable.
]]
local pauses, expiry, journal, meta, memory = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local family, ttl, record, source, force, channel, blob =
  ARGV[1], tonumber(ARGV[2]), cjson.decode(ARGV[3]), ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local standing = redis.call('HGET', pauses, family)
local standing_until = tonumber(redis.call('ZSCORE', expiry, family) or 0)
if standing and standing_until > now then
  local readable, old = pcall(cjson.decode, standing)
  local manual = not readable or old.source ~= 'observer'
  if source == 'observer' then
    local reason = manual and 'manual_pause_active' or 'already_paused'
    redis.call('XADD', journal, '*', 'b', blob, 'c', cjson.encode({outcome = 'rejected', error = reason, at = now}))
    return {'refused', reason, standing}
  end
  if manual and readable and force ~= '1' and now + ttl < standing_until then
    return {'refused', 'shorter_than_manual', standing}
  end
else
  standing = nil
end
record.appliedAtMs = now
record.expiresAtMs = now + ttl
record.ttlMs = ttl
record.rev = redis.call('HINCRBY', meta, 'rev', 1)
-- cjson writes large numbers as floats; these stay below 2^53 and keep their digits with this format.
local text = cjson.encode(record)
for _, key in ipairs({'appliedAtMs', 'expiresAtMs', 'ttlMs', 'rev'}) do
  text = string.gsub(text, '("' .. key .. '":)[^,}]+', '%1' .. string.format('%.0f', record[key]))
end
redis.call('HSET', pauses, family, text)
redis.call('ZADD', expiry, now + ttl, family)
-- An observer's pause that is replaced ends here, for its budget too.
local readable, own = pcall(cjson.decode, redis.call('HGET', memory, family) or '')
if readable and type(own) == 'table' and own.pauses then
  local last = own.pauses[#own.pauses]
  if last and last[2] > now then last[2] = now end
  redis.call('HSET', memory, family, cjson.encode(own))
end
local known, replaced = pcall(cjson.decode, standing or '')
if known then record.previous = replaced end
redis.call('XADD', journal, '*', 'b', blob, 'c', known and cjson.encode(record) or text)
redis.call('PUBLISH', channel, 'pause ' .. family)
return {'ok', text, standing or ''}
