#!lua flags=allow-oom
--[[
trim.lua: remove done entries past their retention from one lane, and retire a lane nobody uses.

KEYS  1 lane stream   2 lanes hash   3 ready set
ARGV  1 retain ms (age)   2 max entries (0 = no limit)   3 limit per call (<= 1000)   4 lane name   5 retire after ms
Returns {removed, 1 when more may be removed, 1 when the lane was retired}.
Invariant: never past the group's cursor, never past a pending entry: an entry that was not completed is not removed,
      however old. Without a group nothing is removed.
]]
local lane, lanes, ready = KEYS[1], KEYS[2], KEYS[3]
local retain, max_entries, limit, name, retire = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local cursor
local groups = redis.pcall('XINFO', 'GROUPS', lane)
if groups.err then return {0, 0, 0} end
for _, group in ipairs(groups) do
  local info = {}
  for j = 1, #group, 2 do info[group[j]] = group[j + 1] end
  if info.name == 'drainer' then cursor = info['last-delivered-id'] end
end
if not cursor then return {0, 0, 0} end
local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function before(a, b)
  local a_ms, a_seq = parts(a)
  local b_ms, b_seq = parts(b)
  return a_ms < b_ms or (a_ms == b_ms and a_seq < b_seq)
end

-- The first id that must stay: the smallest pending one, else the one after the cursor.
local cursor_ms, cursor_seq = parts(cursor)
local stay = string.format('%.0f-%.0f', cursor_ms, cursor_seq + 1)
local pending = redis.call('XPENDING', lane, 'drainer')
if pending[2] and before(pending[2], stay) then stay = pending[2] end

local length = redis.call('XLEN', lane)
local bound = string.format('%.0f-0', math.max(0, now - retain))
if max_entries > 0 and length > max_entries then
  local excess = math.min(length - max_entries, limit)
  local rows = redis.call('XRANGE', lane, '-', '+', 'COUNT', excess)
  local last_ms, last_seq = parts(rows[#rows][1])
  local by_count = string.format('%.0f-%.0f', last_ms, last_seq + 1)
  if before(bound, by_count) then bound = by_count end
end
if before(stay, bound) then bound = stay end

-- Exact, but never more than `limit` entries in one call: a lane's old entries go over several calls.
local rows = redis.call('XRANGE', lane, '-', '(' .. bound, 'COUNT', limit)
local removed = 0
if #rows > 0 then
  local last_ms, last_seq = parts(rows[#rows][1])
  removed = redis.call('XTRIM', lane, 'MINID', string.format('%.0f-%.0f', last_ms, last_seq + 1))
end
local retired = 0
if redis.call('XLEN', lane) == 0 and pending[1] == 0 then
  local seen = redis.call('HGET', lanes, name)
  local last = seen and tonumber(string.match(seen, ',(%d+)$')) or now
  if now - last > retire then
    redis.call('DEL', lane)
    redis.call('HDEL', lanes, name)
    redis.call('SREM', ready, name)
    retired = 1
  end
end
return {removed, #rows >= limit and 1 or 0, retired}
