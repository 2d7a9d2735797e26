#!lua
--[[
undo_ack.lua: bring operator-acknowledged entries back into their lanes.

KEYS  1 trash stream   2 journal stream   3 revoked set
ARGV  1 tag   2 journal blob   3 limit (<= 512)
Returns the `<lane>|<old entry id>|<new entry id>` of what came back; empty when the batch is unknown or its time is over.
Invariant: append and removal from the trash are one call. The envelope keeps its event id; the old entry's append
      time and delivery count travel in field `u` (`<old entry id> <count>`), which wait and aging use.
]]
local trash, journal, revoked = KEYS[1], KEYS[2], KEYS[3]
local rows = redis.call('XRANGE', trash, '-', '+', 'COUNT', tonumber(ARGV[3]))
local results = {}
for _, row in ipairs(rows) do
  local lane, old, count
  local fields = {}
  for j = 1, #row[2], 2 do
    local name, value = row[2][j], row[2][j + 1]
    if name == 'lane' then lane = value
    elseif name == 'id' then old = value
    elseif name == 'count' then count = value
    elseif name ~= 'u' then
      fields[#fields + 1] = name
      fields[#fields + 1] = value
    end
  end
  local key = ARGV[1] .. ':lane:' .. lane
  local id = redis.call('XADD', key, '*', 'u', old .. ' ' .. count, unpack(fields))
  redis.call('XDEL', trash, row[1])
  redis.call('SREM', revoked, lane .. '|' .. old)
  results[#results + 1] = lane .. '|' .. old .. '|' .. id
end
if #results > 0 then redis.call('XADD', journal, '*', 'b', ARGV[2], 's', table.concat(results, '\n')) end
return results
