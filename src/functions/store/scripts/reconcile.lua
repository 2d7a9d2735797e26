--[[
reconcile.lua: look whether something will bring a run on by itself, and repair it where nothing will.

ARGV  3 run   4 history entry for a repair   5 a run younger than this is left alone, ms
Returns 'ended', 'going', 'repaired' or 'lost' (repaired three times already: the caller ends it).
Invariant: a thread counts as alive only when its lane entry is still undelivered or pending, its retry is in the timers,
      or it stands in its line.
]]
local run = ARGV[3]
local hash, live = F .. 'run:' .. run, F .. 'live:' .. run
local row = redis.call('HMGET', hash, 'st', 'lane', 'q')
local status, lane = row[1], row[2]
if status ~= 'QUEUED' and status ~= 'RUNNING' then return 'ended' end
if now - tonumber(row[3] or '0') < tonumber(ARGV[5]) then return 'going' end
local stream = T .. ':lane:' .. lane

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function is_held(entry)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  if groups.err then return true end
  local last
  for _, group in ipairs(groups) do
    local fields = {}
    for i = 1, #group, 2 do fields[group[i]] = group[i + 1] end
    if fields.name == 'drainer' then last = fields['last-delivered-id'] end
  end
  local exists = #redis.call('XRANGE', stream, entry, entry) == 1
  if not last then return exists end
  local ms, seq = parts(entry)
  local last_ms, last_seq = parts(last)
  if ms > last_ms or (ms == last_ms and seq > last_seq) then return exists end
  return #redis.call('XPENDING', stream, 'drainer', entry, entry, 1) == 1
end

local going, broken = false, {}
local fields = redis.call('HGETALL', live)
for i = 1, #fields, 2 do
  local kind, name, value = string.sub(fields[i], 1, 2), string.sub(fields[i], 3), fields[i + 1]
  if kind == 't:' then
    local entry = string.match(value, '^%d+|%d+|(.*)$')
    local alive
    local line = string.match(entry, '^~(.*)$')
    if line then
      alive = redis.call('ZSCORE', F .. 'line:' .. line, run .. '|' .. name) and true or false
    elseif entry == '' then
      alive = redis.call('ZSCORE', timers, 't|' .. run .. '|' .. name) and true or false
    else
      alive = is_held(entry)
    end
    if alive then going = true else broken[#broken + 1] = name end
  elseif kind == 's:' then
    local what = string.match(value, '^%a+')
    if what == 'plan' then
      if redis.call('HEXISTS', live, 't:' .. name) == 0 then broken[#broken + 1] = name end
    elseif redis.call('ZSCORE', timers, 's|' .. run .. '|' .. name) then
      going = true
    else
      -- A wait without its timer: due now, so that it ends as it would have.
      redis.call('ZADD', timers, now, 's|' .. run .. '|' .. name)
      going = true
    end
  end
end
if #broken == 0 and going then return 'going' end
if #broken == 0 then broken[1] = 'd' end
if redis.call('HINCRBY', hash, 'repairs', 1) > 3 then return 'lost' end
for _, thread in ipairs(broken) do
  local state = thread_of(live, thread) or {attempt = 0, generation = 0}
  redis.call('ZREM', timers, 't|' .. run .. '|' .. thread)
  state.generation, state.entry = 0, queue(run, thread, lane)
  keep_thread(live, thread, state)
end
note(run, ARGV[4])
if blob ~= '' then redis.call('XADD', journal, '*', 'b', blob) end
return 'repaired'
