#!lua flags=allow-oom
--[[
due.lua: claim retries and handed-back entries of one family whose time has come.

KEYS  1 sessions zset   2 due zset (family -> earliest)   3 due zset of the family   4 failures hash of the family
      5..8 the family's lanes p0..p3
ARGV  1 session   2 family   3 limit (<= 512)
Returns per entry {priority, entry id, delivery count, fields, failures record or ''}. Error FENCED as complete.lua.
Invariant: a claimed entry leaves `due` in the same call, so two drainers never get the same one. An entry that no
      longer exists (trimmed or deleted by hand) leaves `due` too, as does a member that names no entry; nothing else
      is skipped. A paused family is not
      asked at all: that is the caller's rule.
]]
local sessions, due, due_of, failures = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local session, family, limit = ARGV[1], ARGV[2], tonumber(ARGV[3])
local lease = redis.call('ZSCORE', sessions, session)
if not lease or tonumber(lease) <= 0 then return redis.error_reply('FENCED the session was taken over') end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local members = redis.call('ZRANGEBYSCORE', due_of, '-inf', now, 'LIMIT', 0, limit)
local claimed = {}
for _, member in ipairs(members) do
  local priority, id = string.match(member, '^p(%d)|(.*)$')
  local lane = priority and KEYS[5 + priority]
  -- pcall: a lane deleted by hand has no group, and one such member must not hold up the family.
  local entry = lane and redis.pcall('XCLAIM', lane, 'drainer', session, 0, id)
  entry = entry and not entry.err and entry[1]
  if entry then
    local pending = redis.call('XPENDING', lane, 'drainer', id, id, 1)[1]
    claimed[#claimed + 1] = {
      tonumber(priority), id, pending[4], entry[2], redis.call('HGET', failures, member) or '',
    }
  else
    redis.call('HDEL', failures, member)
  end
  redis.call('ZREM', due_of, member)
end
local next = redis.call('ZRANGE', due_of, 0, 0, 'WITHSCORES')
if next[1] then redis.call('ZADD', due, next[2], family) else redis.call('ZREM', due, family) end
return claimed
