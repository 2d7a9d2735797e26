#!lua
--[[
append.lua: append events to their lanes, once per id, dedup key and delivery.

KEYS  1 call (answers of this call)   2 lanes hash   3 families set   4 journal stream   5 ready set   6 wake list
      7 later zset   8 later:data hash   9.. the distinct lanes' streams, then the distinct dedup keys
ARGV  1 tag (prefix of seen:<day>)   2 control channel   3 journal blob (MessagePack, one row per event)
      4 call PX, ms   5 seen window, s (0 = off)   6 max families   7 lanes above which `ready` is kept
      8 n lanes   9 n events   10 mode   11.. per lane: name, family, and its number of events (modes 1 and 2);
      then per event, the events of one lane together in modes 1 and 2:
      mode 1 (nothing to check)      envelope
      mode 2 (ids to check, no two   envelope, `<family>|<event id>` or '' where it isn't checked, data hash
              alike in the call)
      mode 3 (anything to check)     lane index, envelope, event id, '1' to check the id or '', dedup key index or '',
                                     dedup PX, once key index or '', once PX, data hash, at ms or ''
Returns lines, joined by newlines, one per event: `<entry id>` appended | `L` scheduled
      | `i<lane>|<entry id or L>` id seen before | `w<event id>|<lane>|<entry id or L>` window hit;
      a trailing `!` on an `i` line says that the data differed. In mode 1 a line stands for a run of events whose
      sequence numbers follow each other: `<first entry id>*<events>`. Error TOOMANYFAMILIES <family>.
Invariant: all or nothing. Everything is read first; the first write is XADD, so a full Redis refuses the call
      before anything is stored (no allow-oom). A repeated call token is answered from `call`.
Cost: mode 1, one XADD per event and nothing else: each further argument or command per event shows (ARCHITECTURE.md).
]]
local call, lanes, families, journal, ready, wake = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local later, later_data = KEYS[7], KEYS[8]
local tag, channel, blob = ARGV[1], ARGV[2], ARGV[3]
local call_px, seen_s, max_families, ready_above = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local n_lanes, n_events, mode = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local lane_args, event_args = 11, 11 + 3 * n_lanes
local redis_call = redis.call

local known = redis.call('GET', call)
if known then return known end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Read: are these lanes known, and is there room for new families?
local lane_names = {}
for i = 1, n_lanes do lane_names[i] = ARGV[lane_args + 3 * (i - 1)] end
local lane_seen = redis.call('HMGET', lanes, unpack(lane_names))
local new_families, n_new = {}, 0
for i = 1, n_lanes do
  if not lane_seen[i] then
    local family = ARGV[lane_args + 3 * (i - 1) + 1]
    if not new_families[family] and redis.call('SISMEMBER', families, family) == 0 then
      new_families[family] = true
      n_new = n_new + 1
      if redis.call('SCARD', families) + n_new > max_families then
        return redis.error_reply('TOOMANYFAMILIES ' .. family)
      end
    end
  end
end

-- Read: which ids were seen in the last two days?
local results, seen_value, seen_marks, dedup_marks = {}, {}, {}, {}
local today
local checked_field = {}
if mode > 1 and seen_s > 0 then
  local fields, events = {}, {}
  local n = 0
  for i = 1, n_events do
    local field
    if mode == 2 then
      field = ARGV[event_args + 3 * i - 2]
    else
      local arg = event_args + 10 * (i - 1)
      field = ARGV[arg + 3] == '1' and ARGV[lane_args + 3 * (ARGV[arg] - 1) + 1] .. '|' .. ARGV[arg + 2] or ''
    end
    if field ~= '' then
      n = n + 1
      checked_field[i], fields[n], events[n] = field, field, i
    end
  end
  local day = math.floor(time[1] / 86400)
  today = tag .. ':seen:' .. day
  local function look(key)
    if #fields == 0 or redis.call('EXISTS', key) == 0 then return end
    local values = redis.call('HMGET', key, unpack(fields))
    for j = 1, #fields do
      if values[j] then seen_value[events[j]] = values[j] end
    end
  end
  look(tag .. ':seen:' .. (day - 1))
  look(today)
end
-- Value: <ms when first seen>|<data hash>|<lane>|<entry id or L>. The window is not renewed by a hit.
local function duplicate_of(value, hash)
  if not value then return nil end
  local ms, seen_hash, where = string.match(value, '^(%d+)|([^|]*)|(.*)$')
  if now - tonumber(ms) >= seen_s * 1000 then return nil end
  return 'i' .. where .. (seen_hash ~= hash and '!' or '')
end

-- Write: new lanes get their group before any reader can meet them, so no reader ever sees NOGROUP.
for i = 1, n_lanes do
  local name = lane_names[i]
  if not lane_seen[i] then
    redis.pcall('XGROUP', 'CREATE', KEYS[8 + i], 'drainer', '0', 'MKSTREAM')
    redis.call('SADD', families, ARGV[lane_args + 3 * (i - 1) + 1])
    redis.call('HSET', lanes, name, now .. ',' .. now)
    redis.call('PUBLISH', channel, 'lane ' .. name)
  else
    local comma = string.find(lane_seen[i], ',', 1, true)
    local first, last = string.sub(lane_seen[i], 1, comma - 1), tonumber(string.sub(lane_seen[i], comma + 1))
    if now - last > 60000 then redis.call('HSET', lanes, name, first .. ',' .. now) end
  end
end

if mode == 1 then
  -- A line per run instead of one per event: journal, `call` and answer are a third shorter for it.
  local function parts(id)
    local dash = string.find(id, '-', 1, true)
    return string.sub(id, 1, dash - 1), tonumber(string.sub(id, dash + 1))
  end
  local arg = event_args
  for lane = 1, n_lanes do
    local key, n, ids = KEYS[8 + lane], tonumber(ARGV[lane_args + 3 * (lane - 1) + 2]), {}
    for i = 1, n do ids[i] = redis_call('XADD', key, '*', 'e', ARGV[arg + i - 1]) end
    arg = arg + n
    local from = 1
    while from <= n do
      local ms, seq = parts(ids[from])
      -- Ids rise, so the last one of this millisecond is found by halving; no gap means a run.
      local low, high = from, n
      while low < high do
        local middle = math.ceil((low + high) / 2)
        local other_ms, other_seq = parts(ids[middle])
        if other_ms == ms and other_seq - seq == middle - from then low = middle else high = middle - 1 end
      end
      results[#results + 1] = ids[from] .. '*' .. (low - from + 1)
      from = low + 1
    end
  end
elseif mode == 2 then
  local i, arg, marks, prefix = 1, event_args, 0, now .. '|'
  for lane = 1, n_lanes do
    local key, suffix = KEYS[8 + lane], '|' .. lane_names[lane] .. '|'
    for _ = 1, ARGV[lane_args + 3 * (lane - 1) + 2] do
      local field, hash = checked_field[i], ARGV[arg + 2]
      local duplicate = field and seen_value[i] and duplicate_of(seen_value[i], hash)
      if duplicate then
        results[i] = duplicate
      else
        local id = redis_call('XADD', key, '*', 'e', ARGV[arg])
        results[i] = id
        if field then
          seen_marks[marks + 1], seen_marks[marks + 2] = field, prefix .. hash .. suffix .. id
          marks = marks + 2
        end
      end
      i, arg = i + 1, arg + 3
    end
  end
else
  local in_batch, in_window = {}, {}
  for i = 1, n_events do
    local arg = event_args + 10 * (i - 1)
    local lane_index, envelope, id = tonumber(ARGV[arg]), ARGV[arg + 1], ARGV[arg + 2]
    local hash, at = ARGV[arg + 8], ARGV[arg + 9]
    local name, field = lane_names[lane_index], checked_field[i]
    local duplicate = field and duplicate_of(in_batch[field] or seen_value[i], hash)
    local by_id = duplicate
    for slot = 4, 6, 2 do
      local key_index = ARGV[arg + slot]
      if not duplicate and key_index ~= '' then
        local first = in_window[key_index] or redis.call('GET', KEYS[8 + n_lanes + key_index])
        if first then duplicate = 'w' .. first end
      end
    end
    local where
    if duplicate then
      results[i] = duplicate
      where = string.match(duplicate, '([^|]*|[^|]*)$')
    else
      if at ~= '' and tonumber(at) > now then
        local member = name .. '|' .. id
        redis.call('ZADD', later, at, member)
        redis.call('HSET', later_data, member, envelope)
        results[i] = 'L'
      else
        results[i] = redis.call('XADD', KEYS[8 + lane_index], '*', 'e', envelope)
      end
      where = name .. '|' .. results[i]
      for slot = 4, 6, 2 do
        local key_index = ARGV[arg + slot]
        if key_index ~= '' then
          in_window[key_index] = id .. '|' .. where
          dedup_marks[#dedup_marks + 1] = {KEYS[8 + n_lanes + key_index], id .. '|' .. where, ARGV[arg + slot + 1]}
        end
      end
    end
    -- The second id of a window hit is remembered too: its retry gets the same answer.
    if field and not by_id then
      local value = now .. '|' .. hash .. '|' .. where
      in_batch[field] = value
      seen_marks[#seen_marks + 1] = field
      seen_marks[#seen_marks + 1] = value
    end
  end
end

-- Marks come after the appends: a crash of the script in between costs a duplicate check, never an event.
if #seen_marks > 0 then
  redis.call('HSET', today, unpack(seen_marks))
  redis.call('EXPIRE', today, 2 * 86400 + 3600, 'NX')
end
for _, mark in ipairs(dedup_marks) do redis.call('SET', mark[1], mark[2], 'PX', mark[3], 'NX') end
local answer = table.concat(results, '\n')
redis.call('XADD', journal, '*', 'b', blob, 's', answer)
redis.call('SET', call, answer, 'PX', call_px)
if redis.call('HLEN', lanes) > ready_above then
  redis.call('SADD', ready, unpack(lane_names))
  if redis.call('LLEN', wake) < 64 then redis.call('LPUSH', wake, '1') end
end
return answer
