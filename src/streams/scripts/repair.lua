#!lua flags=allow-oom
--[[
repair.lua: mend one piece of damage that `queue fsck` found.

KEYS  1 lane stream   2 due zset (family -> earliest)   3 due zset of the family   4 failures hash   5 dead stream
      6 journal stream   7 lanes hash
ARGV  1 kind   2 lane name   3 family   4 member prefix   5 entry id or dead id   6 journal blob
      kinds: `pending_without_due`  a pending entry of ~retry or ~handback with no due member: due now
             `due_without_entry`    a due member whose entry is not pending any more: the member goes
             `orphaned_dead`        a dead letter without its record or its envelope: quarantined as it is, with a
                                    record saying so (ARGV 7), so that it can be inspected and dropped
             `missing_group`        a lane without its group: created at 0
             `unknown_lane`         a lane stream missing in the lanes hash: entered
             `due_index`            the family's earliest due time is wrong in the index: set again
Returns 1 when something was changed, 0 when the damage was gone already. Judged again here: the finding may be old.
]]
local lane, due, due_of, failures, dead, journal, lanes = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local kind, name, family, prefix, id, blob = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function index()
  local next = redis.call('ZRANGE', due_of, 0, 0, 'WITHSCORES')
  if next[1] then redis.call('ZADD', due, next[2], family) else redis.call('ZREM', due, family) end
end
local function pending()
  local rows = redis.pcall('XPENDING', lane, 'drainer', id, id, 1)
  return not rows.err and rows[1] or nil
end
local changed = 0
if kind == 'pending_without_due' then
  local row = pending()
  if row and string.sub(row[2], 1, 1) == '~' and not redis.call('ZSCORE', due_of, prefix .. id) then
    redis.call('ZADD', due_of, now, prefix .. id)
    index()
    changed = 1
  end
elseif kind == 'due_without_entry' then
  if not pending() and redis.call('ZREM', due_of, prefix .. id) == 1 then
    redis.call('HDEL', failures, prefix .. id)
    index()
    changed = 1
  end
elseif kind == 'orphaned_dead' then
  local letter = redis.call('XRANGE', dead, id, id)[1]
  if letter then
    local fields = {}
    for j = 1, #letter[2], 2 do fields[letter[2][j]] = letter[2][j + 1] end
    redis.call('XDEL', dead, id)
    redis.call('XADD', dead, '*', 'e', fields.e or '', 'r', ARGV[7])
    changed = 1
  end
elseif kind == 'missing_group' then
  local made = redis.pcall('XGROUP', 'CREATE', lane, 'drainer', '0', 'MKSTREAM')
  if not made.err then changed = 1 end
elseif kind == 'unknown_lane' then
  changed = redis.call('HSETNX', lanes, name, string.format('%.0f,%.0f', now, now))
elseif kind == 'due_index' then
  index()
  changed = 1
end
if changed == 1 then redis.call('XADD', journal, '*', 'b', blob) end
return changed
