#!lua
--[[
undo_ack.lua: bring operator-acknowledged entries back into their lanes.

KEYS  1 trash stream   2 journal stream   3 lanes hash   4 families set   5 ready set   6 wake list
ARGV  1 tag   2 control channel   3 lanes above which `ready` is kept   4 journal blob, one row per id
      5.. ids in the trash (<= 512)
Returns per id the `<lane>|<old entry id>|<new entry id>`, or '' when it is back already or its time is over.
Invariant: append and removal from the trash are one call. The envelope keeps its event id; the first append's time and
      all deliveries so far travel in field `u` (`<entry id> <count>`), which wait and aging use.
`revoked` stays as it is: a handler that still runs the old entry must not end the new one.
Without allow-oom: on a full Redis the entries stay in the trash.
]]
local trash, journal, lanes, families, ready, wake = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local tag, channel, ready_above, blob = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local results, any = {}, false
for arg = 5, #ARGV do
  local row = redis.call('XRANGE', trash, ARGV[arg], ARGV[arg])[1]
  local result = ''
  if row then
    -- The first three fields are operator_ack.lua's, the rest is the entry as it was.
    local lane, old, count, first = row[2][2], row[2][4], tonumber(row[2][6]), row[2][4]
    local fields = {}
    for j = 7, #row[2], 2 do
      local name, value = row[2][j], row[2][j + 1]
      if name == 'u' then
        local before, earlier = string.match(value, '^(%S+) (%d+)$')
        if before then first, count = before, count + tonumber(earlier) end
      else
        fields[#fields + 1] = name
        fields[#fields + 1] = value
      end
    end
    local key = tag .. ':lane:' .. lane
    if not redis.call('HGET', lanes, lane) then
      redis.pcall('XGROUP', 'CREATE', key, 'drainer', '0', 'MKSTREAM')
      redis.call('SADD', families, string.match(lane, '^(.*):p%d$'))
      redis.call('HSET', lanes, lane, now .. ',' .. now)
      redis.call('PUBLISH', channel, 'lane ' .. lane)
    end
    local id = redis.call('XADD', key, '*', 'u', first .. ' ' .. count, unpack(fields))
    redis.call('XDEL', trash, ARGV[arg])
    if redis.call('HLEN', lanes) > ready_above then
      redis.call('SADD', ready, lane)
      if redis.call('LLEN', wake) < 64 then redis.call('LPUSH', wake, '1') end
    end
    result = lane .. '|' .. old .. '|' .. id
    any = true
  end
  results[#results + 1] = result
end
if any then redis.call('XADD', journal, '*', 'b', blob, 's', table.concat(results, '\n')) end
return results
