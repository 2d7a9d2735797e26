#!lua flags=allow-oom
--[[
operator_ack.lua: acknowledge entries on an operator's word, with a way back.

KEYS  1 lane stream   2 due zset of the family   3 failures hash of the family   4 trash stream of the batch
      5 sessions zset   6 journal stream   7 revoked set
ARGV  1 min age ms   2 '1' to take entries from a live lease (force)   3 trash PX ms   4 member prefix (`p<0-3>|`)
      5 lane name   6 journal blob   7.. entry ids (<= 512)
Returns per id `acked` | `leased` | `missing` | `too_young`.
Invariant: age and lease are judged here, by Redis's clock, not at the preview: an entry leased in between is skipped.
      The entry moves to the trash in the same call. A forced entry is also put into `revoked`, so that its handler's
      completion is refused and it can't get two outcomes.
]]
local lane, due_of, failures, trash, sessions, journal, revoked =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local min_age, force, px, prefix, name, blob = tonumber(ARGV[1]), ARGV[2] == '1', ARGV[3], ARGV[4], ARGV[5], ARGV[6]
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

for arg = 7, #ARGV do
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
    local leased = false
    if row and string.sub(row[2], 1, 1) ~= '~' then
      local lease = redis.call('ZSCORE', sessions, row[2])
      leased = lease and tonumber(lease) > now
    end
    if leased and not force then
      result = 'leased'
    else
      if leased then
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
  redis.call('PEXPIRE', trash, px)
  redis.call('XADD', journal, '*', 'b', blob, 's', table.concat(results, '\n'))
end
return results
