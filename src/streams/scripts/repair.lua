#!lua flags=allow-oom
--[[
repair.lua: mend one piece of damage that `queue fsck` found.

KEYS  1 lane stream   2 due zset (family -> earliest)   3 due zset of the family   4 failures hash   5 dead stream
      6 journal stream   7 lanes hash   8 later zset   9 later:data hash
ARGV  1 kind   2 lane name   3 family   4 member prefix   5 entry id, dead id or member   6 journal blob (one fact)
      7 record of an orphaned dead letter
      kinds: `pending_without_due`  a pending entry of ~retry or ~handback with no due member: due now
             `due_without_entry`    a due member whose entry is not pending any more: the member goes
             `failures_without_entry`  failures kept for an entry that is not pending any more: they go
             `due_index`            the family's earliest due time is wrong in the index: set again
             `trimmed_pending`      pending, but no longer in the stream: acknowledged, the event is lost
             `orphaned_dead`        a dead letter without its record or its envelope: quarantined as it is, with a
                                    record saying so (ARGV 7), so that it can be inspected and dropped
             `missing_group`        a lane without its group: created at 0
             `unknown_lane`         a lane stream missing in the lanes hash: entered
             `later_without_data`   a scheduled time without its event: goes
             `data_without_later`   a scheduled event without its time: due now
             `stranded`             delivered, not pending, without an outcome: appended again, the old entry goes
             `lost`                 nowhere any more: only journaled
Returns {changed (1 | 0), new entry id of `stranded` and `orphaned_dead` or ''}.
Invariant: every kind is judged again here, since the finding may be old; what the journal alone knows (`stranded`,
      `lost`) is the caller's to confirm. The repair and its record are one call.
]]
local lane, due, due_of, failures, dead, journal = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local lanes, later, later_data = KEYS[7], KEYS[8], KEYS[9]
local kind, name, family, prefix, id, blob = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function index()
  local next = redis.call('ZRANGE', due_of, 0, 0, 'WITHSCORES')
  local have = redis.call('ZSCORE', due, family)
  if next[1] then redis.call('ZADD', due, next[2], family) else redis.call('ZREM', due, family) end
  return (next[2] or false) ~= have
end
local function pending()
  local rows = redis.pcall('XPENDING', lane, 'drainer', id, id, 1)
  return not rows.err and rows[1] or nil
end
-- pcall: a scheduled event's id is no entry id.
local function stored()
  local rows = redis.pcall('XRANGE', lane, id, id)
  return not rows.err and rows[1] or nil
end
local function is_delivered()
  local groups = redis.pcall('XINFO', 'GROUPS', lane)
  if groups.err then return false end
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  ms, seq = tonumber(ms), tonumber(seq)
  for _, group in ipairs(groups) do
    local info = {}
    for j = 1, #group, 2 do info[group[j]] = group[j + 1] end
    if info.name == 'drainer' then
      local cursor_ms, cursor_seq = string.match(info['last-delivered-id'], '^(%d+)-(%d+)$')
      cursor_ms, cursor_seq = tonumber(cursor_ms), tonumber(cursor_seq)
      return ms < cursor_ms or (ms == cursor_ms and seq <= cursor_seq)
    end
  end
  return false
end

local changed, new = false, ''
if kind == 'pending_without_due' then
  local row = pending()
  if row and string.sub(row[2], 1, 1) == '~' and not redis.call('ZSCORE', due_of, prefix .. id) then
    redis.call('ZADD', due_of, now, prefix .. id)
    index()
    changed = true
  end
elseif kind == 'due_without_entry' then
  if not pending() and redis.call('ZREM', due_of, prefix .. id) == 1 then
    redis.call('HDEL', failures, prefix .. id)
    index()
    changed = true
  end
elseif kind == 'failures_without_entry' then
  changed = not pending() and redis.call('HDEL', failures, prefix .. id) == 1
elseif kind == 'due_index' then
  changed = index()
elseif kind == 'trimmed_pending' then
  if pending() and not stored() then
    redis.call('XACK', lane, 'drainer', id)
    redis.call('ZREM', due_of, prefix .. id)
    redis.call('HDEL', failures, prefix .. id)
    index()
    changed = true
  end
elseif kind == 'orphaned_dead' then
  local letter = redis.call('XRANGE', dead, id, id)[1]
  if letter then
    local fields = {}
    for j = 1, #letter[2], 2 do fields[letter[2][j]] = letter[2][j + 1] end
    redis.call('XDEL', dead, id)
    new = redis.call('XADD', dead, '*', 'e', fields.e or '', 'r', ARGV[7])
    changed = true
  end
elseif kind == 'missing_group' then
  local made = redis.pcall('XGROUP', 'CREATE', lane, 'drainer', '0', 'MKSTREAM')
  changed = not made.err
elseif kind == 'unknown_lane' then
  changed = redis.call('HSETNX', lanes, name, string.format('%.0f,%.0f', now, now)) == 1
elseif kind == 'later_without_data' then
  changed = redis.call('HEXISTS', later_data, id) == 0 and redis.call('ZREM', later, id) == 1
elseif kind == 'data_without_later' then
  changed = redis.call('HEXISTS', later_data, id) == 1 and redis.call('ZADD', later, 'NX', now, id) == 1
elseif kind == 'stranded' then
  local entry = stored()
  if entry and is_delivered() and not pending() then
    redis.call('XDEL', lane, id)
    new = redis.call('XADD', lane, '*', unpack(entry[2]))
    changed = true
  end
elseif kind == 'lost' then
  changed = not stored()
else
  return redis.error_reply('BADCALL unknown damage ' .. kind)
end
if changed then redis.call('XADD', journal, '*', 'b', blob, 's', new ~= '' and new or '1') end
return {changed and 1 or 0, new}
