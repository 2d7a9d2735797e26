#!lua flags=allow-oom
--[[
trim_journal.lua: remove old journal batches, never past the slowest reader that retention must wait for.

KEYS  1 journal stream   2 cursors hash
ARGV  1 keep ms (age)   2 max batches   3 '1' to go past readers all the same
Returns {removed, name of the reader that held it back or ''}.
Invariant: a batch that a required reader has not passed stays, unless the caller forces it.
]]
local journal, cursors = KEYS[1], KEYS[2]
local keep, max, force = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function before(a, b)
  local a_ms, a_seq = parts(a)
  local b_ms, b_seq = parts(b)
  return a_ms < b_ms or (a_ms == b_ms and a_seq < b_seq)
end
local slowest, name
local rows = redis.call('HGETALL', cursors)
for i = 1, #rows, 2 do
  local cursor, required = string.match(rows[i + 1], '^([^,]+),(%d)')
  if required == '1' and (not slowest or before(cursor, slowest)) then slowest, name = cursor, rows[i] end
end
if force == '1' then slowest = nil end
local bound = string.format('%.0f-0', math.max(0, now - keep))
local length = redis.call('XLEN', journal)
if length > max then
  -- One step a call: the first id that may stay, found without reading what goes.
  local excess = math.min(length - max, 1000)
  local oldest = redis.call('XRANGE', journal, '-', '+', 'COUNT', excess + 1)
  local stays = oldest[#oldest][1]
  if before(bound, stays) then bound = stays end
end
local held = ''
if slowest and before(slowest, bound) then bound, held = slowest, name end
-- Without a reader in the way Redis may trim by whole nodes; else exactly, for a node may reach past the cursor.
local removed
if held == '' then
  removed = redis.call('XTRIM', journal, 'MINID', '~', bound)
else
  removed = redis.call('XTRIM', journal, 'MINID', bound)
end
return {removed, held}
