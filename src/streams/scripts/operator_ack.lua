#!lua flags=allow-oom
--[[
operator_ack.lua: acknowledge entries on an operator's word, with a way back.

KEYS  1 lane stream   2 due zset of the family   3 failures hash of the family   4 trash stream of the batch
      5 sessions zset   6 journal stream   7 revoked set   8 due zset (family -> earliest)
ARGV  1 min age ms   2 '1' to take entries from a live lease (force)   3 trash PX ms   4 member prefix (`p<0-3>|`)
      5 lane name   6 family   7 journal blob, one row per id   8.. entry ids (<= 512)
Returns per id `acked` | `leased` | `missing` | `too_young`.
Invariant: age and lease are judged here, by Redis's clock, not at the preview: an entry leased in between is skipped.
      The entry moves to the trash in the same call. One taken from a session that is not fenced is also put into
      `revoked`, so that its handler's completion is refused and it can't get two outcomes.
]]
local lane, due_of, failures, trash, sessions, journal, revoked, due =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local min_age, force, px, prefix, name = tonumber(ARGV[1]), ARGV[2] == '1', ARGV[3], ARGV[4], ARGV[5]
local family, blob = ARGV[6], ARGV[7]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local results, any = {}, false

-- What the group has read up to: everything after it is waiting, everything before it and not pending is done.
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

for arg = 8, #ARGV do
  local id = ARGV[arg]
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  ms, seq = tonumber(ms), tonumber(seq)
  local entry = redis.call('XRANGE', lane, id, id)[1]
  local pending = redis.pcall('XPENDING', lane, 'drainer', id, id, 1)
  local row = not pending.err and pending[1] or nil
  local result
  local waiting = ms > cursor_ms or (ms == cursor_ms and seq > cursor_seq)
  if not entry or (not row and not waiting) then
    result = 'missing'
  elseif now - ms < min_age then
    result = 'too_young'
  else
    local lease = row and tonumber(redis.call('ZSCORE', sessions, row[2]) or 0) or 0
    local leased = lease > now
    if leased and not force then
      result = 'leased'
    else
      -- Overdue but not fenced: that process may still come back and report.
      if lease > 0 then
        redis.call('SADD', revoked, name .. '|' .. id)
        redis.call('EXPIRE', revoked, 86400)
      end
      local fields = {}
      for _, field in ipairs(entry[2]) do fields[#fields + 1] = field end
      redis.call('XADD', trash, '*', 'lane', name, 'id', id, 'count', row and row[4] or 0, unpack(fields))
      if row then redis.call('XACK', lane, 'drainer', id) end
      redis.call('XDEL', lane, id)
      redis.call('ZREM', due_of, prefix .. id)
      redis.call('HDEL', failures, prefix .. id)
      result = 'acked'
      any = true
    end
  end
  results[#results + 1] = result
end
if any then
  local next = redis.call('ZRANGE', due_of, 0, 0, 'WITHSCORES')
  if next[1] then redis.call('ZADD', due, next[2], family) else redis.call('ZREM', due, family) end
  redis.call('PEXPIRE', trash, px)
  redis.call('XADD', journal, '*', 'b', blob, 's', table.concat(results, '\n'))
end
return results
