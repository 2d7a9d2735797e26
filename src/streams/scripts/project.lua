#!lua flags=allow-oom
--[[
project.lua: what reads the journal moves its cursor, together with what it made of the batches up to there.

KEYS  1 cursors hash   2 lease string   3 state string   4 journal stream   5.. minute hashes
ARGV  1 name   2 owner   3 lease ms   4 cursor it read from ('' only asks for the lease)   5 cursor it read to
      6 state ('' leaves it)   7 '1' when retention must wait for this reader   8 batches between 4 and 5
      9 '1' when there was nothing behind 5
      then per minute hash: expiry (ms since the epoch), '1' to empty it first, number of fields, field, value, …
Returns {'held', owner} | {'moved', cursor} | {'ok', cursor, state}
A cursor's row: <id>,<required>,<seconds>,<batches of the journal up to it, '' where that is not known>. The last tells how
far behind a reader is without reading what it has not read; it is set right whenever a reader is at the end.
Invariant: output, state and cursor change together, and only from the cursor that the caller read from: a batch is
      counted once, however often it is read. The lease only saves work; the cursor alone keeps two readers apart.
allow-oom: retention waits for cursors, so a full Redis needs them to move.
]]
local cursors, lease, state_key = KEYS[1], KEYS[2], KEYS[3]
local name, owner, lease_ms, from, to, state, required, batches, is_at_end =
  ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local holder = redis.call('GET', lease)
if holder and holder ~= owner then return {'held', holder} end
redis.call('SET', lease, owner, 'PX', lease_ms)
local stored = redis.call('HGET', cursors, name)
local cursor = stored and string.match(stored, '^[^,]+') or '0-0'
if from == '' then return {'ok', cursor, redis.call('GET', state_key) or ''} end
if cursor ~= from then return {'moved', cursor} end
local arg = 10
for i = 5, #KEYS do
  local expiry, is_fresh, fields = ARGV[arg], ARGV[arg + 1], tonumber(ARGV[arg + 2])
  arg = arg + 3
  if is_fresh == '1' then redis.call('DEL', KEYS[i]) end
  for _ = 1, fields do
    redis.call('HSET', KEYS[i], ARGV[arg], ARGV[arg + 1])
    arg = arg + 2
  end
  if fields > 0 then redis.call('PEXPIREAT', KEYS[i], expiry) end
end
if state ~= '' then redis.call('SET', state_key, state) end
local time = redis.call('TIME')
local passed = tonumber(stored and string.match(stored, '([^,]*)$') or '')
if stored and not string.match(stored, '^[^,]*,[^,]*,[^,]*,') then passed = nil end
if passed then passed = passed + batches end
if not passed or is_at_end == '1' then
  local info, journal = redis.call('XINFO', 'STREAM', KEYS[4]), {}
  for i = 1, #info, 2 do journal[info[i]] = info[i + 1] end
  if journal['last-generated-id'] == to then
    passed = journal['entries-added']
  elseif not passed and from == '0-0' then
    passed = journal['entries-added'] - journal['length'] + batches
  end
end
local row = { to, required, time[1], passed and string.format('%d', passed) or '' }
redis.call('HSET', cursors, name, table.concat(row, ','))
return {'ok', to, ''}
