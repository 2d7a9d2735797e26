#!lua
--[[
later.lua: move scheduled events into their lanes when their time has come.

KEYS  1 later zset   2 later:data hash   3 journal stream   4 lanes hash   5 families set   6 ready set   7 wake list
ARGV  1 tag   2 control channel   3 limit (<= 512)   4 lanes above which `ready` is kept
Returns {moved `<lane>|<event id>`.., next due ms or ''}.
Invariant: the append and the removal are one call: a scheduled event is in `later` or in its lane, never both or
      neither. Lane keys come from the data (`<lane>|<event id>`); they share the tag, hence the slot.
Without allow-oom: on a full Redis a scheduled event stays where it is.
]]
local later, data, journal, lanes, families, ready, wake =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local tag, channel, limit, ready_above = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local members = redis.call('ZRANGEBYSCORE', later, '-inf', now, 'LIMIT', 0, limit)
local moved, records = {}, {}
for _, member in ipairs(members) do
  local lane = string.match(member, '^([^|]*)|')
  local envelope = redis.call('HGET', data, member)
  if envelope then
    local key = tag .. ':lane:' .. lane
    if not redis.call('HGET', lanes, lane) then
      redis.pcall('XGROUP', 'CREATE', key, 'drainer', '0', 'MKSTREAM')
      redis.call('SADD', families, string.match(lane, '^(.*):p%d$'))
      redis.call('HSET', lanes, lane, now .. ',' .. now)
      redis.call('PUBLISH', channel, 'lane ' .. lane)
    end
    local id = redis.call('XADD', key, '*', 'e', envelope)
    if redis.call('HLEN', lanes) > ready_above then
      redis.call('SADD', ready, lane)
      if redis.call('LLEN', wake) < 64 then redis.call('LPUSH', wake, '1') end
    end
    records[#records + 1] = member .. '|' .. id
  end
  redis.call('ZREM', later, member)
  redis.call('HDEL', data, member)
  moved[#moved + 1] = member
end
-- `p` = promoted: one line per event, `<lane>|<event id>|<entry id>`.
if #records > 0 then redis.call('XADD', journal, '*', 'p', table.concat(records, '\n')) end
local next = redis.call('ZRANGE', later, 0, 0, 'WITHSCORES')
return {moved, next[2] or ''}
