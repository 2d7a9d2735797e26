#!lua flags=allow-oom
--[[
complete.lua: end dispatches. Acknowledge what is done, schedule retries, write dead letters, hand back.

KEYS  1 sessions zset   2 journal stream   3 dead stream   4 due zset (family -> earliest)   5 revoked set
      6.. per lane: lane stream, due zset of its family, failures hash of its family
ARGV  1 session   2 journal blob or ''   3 n lanes   4.. per lane: lane name, family, member prefix (`p<0-3>|`),
      n done, done entry ids..; then per other outcome, to the end:
      'r', lane index, entry id, delay ms, failures record        retry
      'd', lane index, entry id, dead record                      dead letter
      'h', lane index, entry id, delivery count to leave behind   hand back, due now
      'c', lane index, entry id                                   forget the failures of a done entry
Returns the refused `<lane>|<entry id>`: taken away by an operator's force. Error FENCED when the session is over.
Invariant: only a live session changes anything, so a late finisher can't complete over a newer lease; every outcome
      is written with its journal record. Retry, dead letter and hand back need the lease itself: a batch repeated
      after a lost answer neither takes an entry from its next holder nor writes a second dead letter. One XACK per lane; allow-oom because completing frees memory.
Crash note: a script that Redis stops midway leaves acknowledgements behind journal or due; `queue fsck` finds both.
]]
local sessions, journal, dead, due, revoked = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session, blob, n_lanes = ARGV[1], ARGV[2], tonumber(ARGV[3])

local lease = redis.call('ZSCORE', sessions, session)
if not lease or tonumber(lease) <= 0 then return redis.error_reply('FENCED the session was taken over') end

local check_revoked = redis.call('SCARD', revoked) > 0
local refused = {}
local function is_revoked(lane, id)
  if not check_revoked then return false end
  local member = lane .. '|' .. id
  if redis.call('SREM', revoked, member) == 1 then
    refused[#refused + 1] = member
    return true
  end
  return false
end

local names, family_of, prefix_of = {}, {}, {}
local arg = 4
for i = 1, n_lanes do
  local lane = KEYS[6 + 3 * (i - 1)]
  names[i], family_of[i], prefix_of[i] = ARGV[arg], ARGV[arg + 1], ARGV[arg + 2]
  local n = tonumber(ARGV[arg + 3])
  arg = arg + 4
  if n > 0 then
    if check_revoked then
      for j = arg, arg + n - 1 do
        if not is_revoked(names[i], ARGV[j]) then redis.call('XACK', lane, 'drainer', ARGV[j]) end
      end
    else
      redis.call('XACK', lane, 'drainer', unpack(ARGV, arg, arg + n - 1))
    end
    arg = arg + n
  end
end

local now
if ARGV[arg] then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local function holds(lane, id)
  local rows = redis.pcall('XPENDING', lane, 'drainer', id, id, 1)
  return not rows.err and rows[1] and rows[1][2] == session
end
local function wait_until(i, id, ms)
  local due_of = KEYS[7 + 3 * (i - 1)]
  redis.call('ZADD', due_of, ms, prefix_of[i] .. id)
  local earliest = redis.call('ZSCORE', due, family_of[i])
  if not earliest or tonumber(earliest) > ms then redis.call('ZADD', due, ms, family_of[i]) end
end
while ARGV[arg] do
  local kind, i, id = ARGV[arg], tonumber(ARGV[arg + 1]), ARGV[arg + 2]
  local lane, failures = KEYS[6 + 3 * (i - 1)], KEYS[8 + 3 * (i - 1)]
  local member = prefix_of[i] .. id
  if kind == 'c' then
    redis.call('HDEL', failures, member)
    arg = arg + 3
  elseif kind == 'r' then
    if not is_revoked(names[i], id) and holds(lane, id) then
      -- JUSTID leaves the delivery count, which is the attempt number, as it was.
      redis.call('XCLAIM', lane, 'drainer', '~retry', 0, id, 'JUSTID')
      wait_until(i, id, now + tonumber(ARGV[arg + 3]))
      redis.call('HSET', failures, member, ARGV[arg + 4])
    end
    arg = arg + 5
  elseif kind == 'h' then
    if not is_revoked(names[i], id) and holds(lane, id) then
      redis.call('XCLAIM', lane, 'drainer', '~handback', 0, id, 'RETRYCOUNT', ARGV[arg + 3], 'JUSTID')
      wait_until(i, id, now)
    end
    arg = arg + 4
  elseif kind == 'd' then
    if not is_revoked(names[i], id) and holds(lane, id) then
      local entry = redis.call('XRANGE', lane, id, id)[1]
      local e = ''
      if entry then
        local fields = entry[2]
        for j = 1, #fields, 2 do
          if fields[j] == 'e' then e = fields[j + 1] end
        end
        if e == '' then e = cmsgpack.pack(fields) end
      end
      redis.call('XACK', lane, 'drainer', id)
      redis.call('XADD', dead, '*', 'e', e, 'r', ARGV[arg + 3])
      redis.call('HDEL', failures, member)
    end
    arg = arg + 4
  else
    return redis.error_reply('BADCALL unknown outcome ' .. tostring(kind))
  end
end

if blob ~= '' then
  if #refused > 0 then
    redis.call('XADD', journal, '*', 'b', blob, 'x', table.concat(refused, '\n'))
  else
    redis.call('XADD', journal, '*', 'b', blob)
  end
end
return refused
