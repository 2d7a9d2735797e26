#!lua flags=allow-oom
--[[
steer.lua: give a family another priority or a pace, or take that back.

KEYS  1 steering hash   2 steering-expiry zset   3 journal stream   4 meta hash (counter `rev`)   5 pace hash
ARGV  1 'set'     2 field `<priority|pace>|<family>`   3 family   4 control channel   5 journal blob
                  6 ttl ms   7 record without times (JSON object)
      1 'clear'   2..5 as above   6 revision that must stand, '' for any   7 journal blob of the refusal, or ''
Returns set: {'ok', record, replaced record or ''}   clear: {'ok', record} | {'none'}
Invariant: hash and zset change together, with the journal record; times are Redis's. A new pace begins a new window.
      allow-oom: a full Redis must still be steerable.
]]
local steering, expiry, journal, meta, pace = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local op, field, family, channel, blob = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local standing = redis.call('HGET', steering, field)
if standing and tonumber(redis.call('ZSCORE', expiry, field) or 0) <= now then standing = nil end
local rev = redis.call('HINCRBY', meta, 'rev', 1)

if op == 'clear' then
  local readable, old = pcall(cjson.decode, standing or '')
  local is_meant = ARGV[6] == '' or (readable and type(old) == 'table' and tonumber(old.rev) == tonumber(ARGV[6]))
  if not standing or not is_meant then
    if ARGV[7] ~= '' then redis.call('XADD', journal, '*', 'b', ARGV[7]) end
    return {'none'}
  end
  redis.call('HDEL', steering, field)
  redis.call('ZREM', expiry, field)
  redis.call('HDEL', pace, family)
  redis.call('XADD', journal, '*', 'b', blob, 'c', cjson.encode({rev = rev, previous = readable and old or nil}))
  redis.call('PUBLISH', channel, 'steer ' .. family)
  return {'ok', standing}
end

local ttl, record = tonumber(ARGV[6]), cjson.decode(ARGV[7])
record.ttlMs, record.appliedAtMs, record.expiresAtMs, record.rev = ttl, now, now + ttl, rev
local text = cjson.encode(record)
redis.call('HSET', steering, field, text)
redis.call('ZADD', expiry, now + ttl, field)
redis.call('XADD', journal, '*', 'b', blob, 'c', text)
redis.call('PUBLISH', channel, 'steer ' .. family)
return {'ok', text, standing or ''}
