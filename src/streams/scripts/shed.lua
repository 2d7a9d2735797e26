#!lua flags=allow-oom
--[[
shed.lua: move open entries to the dead letters on an operator's word.

KEYS  1 lane stream   2 due zset of the family   3 failures hash of the family   4 dead stream   5 sessions zset
      6 journal stream   7 due zset (family -> earliest)
ARGV  1 member prefix (`p<0-3>|`)   2 family   3 journal blob, one row per id
      4.. pairs: entry id, dead record (MessagePack); at most 512
Returns per id `acked` (it is a dead letter now) | `leased` | `missing`.
Invariant: an entry is in its lane or a dead letter, never in both or in none; one that a live session works on stays.
      Redriving brings it back. allow-oom: shedding is what makes room.
]]
local lane, due_of, failures, dead, sessions, journal, due = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local prefix, family, blob = ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local cursor_ms, cursor_seq = 0, 0
local groups = redis.pcall('XINFO', 'GROUPS', lane)
if not groups.err then
  for _, group in ipairs(groups) do
    local info = {}
    for j = 1, #group, 2 do info[group[j]] = group[j + 1] end
    if info.name == 'drainer' then
      local ms, seq = string.match(info['last-delivered-id'], '^(%d+)-(%d+)$')
      cursor_ms, cursor_seq = tonumber(ms), tonumber(seq)
    end
  end
end
local results, any = {}, false
for arg = 4, #ARGV, 2 do
  local id, record = ARGV[arg], ARGV[arg + 1]
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  ms, seq = tonumber(ms), tonumber(seq)
  local entry = redis.call('XRANGE', lane, id, id)[1]
  local pending = redis.pcall('XPENDING', lane, 'drainer', id, id, 1)
  local row = not pending.err and pending[1] or nil
  local waiting = ms > cursor_ms or (ms == cursor_ms and seq > cursor_seq)
  local result
  if not entry or (not row and not waiting) then
    result = 'missing'
  elseif row and string.sub(row[2], 1, 1) ~= '~' and tonumber(redis.call('ZSCORE', sessions, row[2]) or 0) > 0 then
    -- Overdue but not fenced counts as alive: that process may still come back and report.
    result = 'leased'
  else
    local e = ''
    for j = 1, #entry[2], 2 do
      if entry[2][j] == 'e' then e = entry[2][j + 1] end
    end
    redis.call('XADD', dead, '*', 'e', e, 'r', record)
    if row then redis.call('XACK', lane, 'drainer', id) end
    redis.call('XDEL', lane, id)
    redis.call('ZREM', due_of, prefix .. id)
    redis.call('HDEL', failures, prefix .. id)
    result, any = 'acked', true
  end
  results[#results + 1] = result
end
if any then
  local next = redis.call('ZRANGE', due_of, 0, 0, 'WITHSCORES')
  if next[1] then redis.call('ZADD', due, next[2], family) else redis.call('ZREM', due, family) end
  redis.call('XADD', journal, '*', 'b', blob, 's', table.concat(results, '\n'))
end
return results
