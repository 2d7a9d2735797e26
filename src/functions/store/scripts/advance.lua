--[[
advance.lua: bring a run on, in one piece: memoize what completed, schedule what was found, decide what is called next.

ARGV  3 run
      4 guard: 'thread' (an answer to the call of this thread and generation), 'step' (a step that is still open, of this
        kind), 'timer' (a member of the timers), 'any' (an operator, a reconciler)
      5 thread, step or timer member   6 generation or kind   7 lane entry that the caller holds, or ''
      8 request version to set if none is known, or ''   9 pending ops of the answer (its fan-out) or 0
      10 '1' when one of them waits for something   11 flags: k the call goes on (checkpoint), d discover,
         e the answer was empty   12 step limit   13 state limit, bytes   14 how long an ended run is kept, ms
      15.. commands:
        'fan', n, step..                                the steps of a fan-out
        'memo', step, value, history                    a step completed; the first value stands
        'plan', step, race, history                     call this step
        'sleep', step, race, ms, history
        'wait', step, race, place, value, ms, history   place and value for the index of waits
        'invoke', step, race, ms, lane, envelope, history
        'signal', step, race, name, replace, ms, history
        'retry', ms, history                            this thread again, one attempt later
        'again', ms, history                            this thread again, the attempt not counted
        'requeue', thread                               its retry is due
        'note', history
        'end', status, output, error, why, n, lane, envelope.. (n times), history
Returns {'stale'} | {'ended'} | {'limit', 'steps' or 'state'} | {'conflict', signal} | {'stuck'}, nothing written; or
      {'ok', now, next thread or '', its generation, request version, '1' if plans are forced, length of the stack}.
Invariant: memo, follow-up work, timers, indexes, history and journal are written together or not at all; what was done
      before does nothing a second time. At most one discovery of a run is under way.
]]
local run, guard, subject, detail, entry = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local hash, live, steps = F .. 'run:' .. run, F .. 'live:' .. run, F .. 'steps:' .. run
local stack = F .. 'stack:' .. run
local flags, keep_ms = ARGV[11], ARGV[14]
local checkpoint = string.find(flags, 'k', 1, true)

local row = redis.call('HMGET', hash, 'st', 'lane', 'rv', 'size', 'lim', 'sc', 'fn', 'app')
local status, lane, version, size = row[1], row[2], tonumber(row[3] or '-1'), tonumber(row[4] or '0')
local limits, place = row[5] and cjson.decode(row[5]) or {}, tonumber(row[6] or '0')
if not status or (status ~= 'QUEUED' and status ~= 'RUNNING') then
  if guard == 'timer' then redis.call('ZREM', timers, subject) end
  return {'ended'}
end

local state
if guard == 'thread' then
  state = thread_of(live, subject)
  if not state or state.generation ~= tonumber(detail) or (entry ~= '' and state.entry ~= entry) then
    return {'stale'}
  end
elseif guard == 'step' then
  local value = redis.call('HGET', live, 's:' .. subject)
  if not value or string.match(value, '^%a+') ~= detail then return {'stale'} end
elseif guard == 'timer' then
  local due = redis.call('ZSCORE', timers, subject)
  if not due or tonumber(due) > now then return {'stale'} end
end

-- Read: what the commands would add.
local adds, bytes, empty = 0, 0, true
local widths = {memo = 4, plan = 4, sleep = 5, wait = 7, invoke = 7, signal = 7, retry = 3, again = 3, requeue = 2, note = 2}
local arg = 15
while ARGV[arg] do
  local command = ARGV[arg]
  if command == 'memo' and redis.call('HEXISTS', steps, ARGV[arg + 1]) == 0 then
    adds, bytes = adds + 1, bytes + #ARGV[arg + 2]
  elseif command == 'plan' then
    adds = adds + 1
  elseif command == 'signal' and ARGV[arg + 4] ~= '1' then
    local waiter = redis.call('HGET', F .. 'signals', ARGV[arg + 3])
    if waiter and waiter ~= run .. '|' .. ARGV[arg + 1] then return {'conflict', ARGV[arg + 3]} end
  end
  if command ~= 'note' and command ~= 'fan' then empty = false end
  if command == 'fan' then
    arg = arg + 2 + tonumber(ARGV[arg + 1])
  elseif command == 'end' then
    adds, bytes = 0, 0
    arg = arg + 7 + 2 * tonumber(ARGV[arg + 5])
  else
    arg = arg + widths[command]
  end
end
if adds > 0 then
  if redis.call('HLEN', steps) + adds > tonumber(ARGV[12]) then return {'limit', 'steps'} end
  if size + bytes > tonumber(ARGV[13]) then return {'limit', 'state'} end
end
if string.find(flags, 'e', 1, true) and empty and not redis.call('HGET', live, 'dirty') and not is_going(live, subject)
then
  if redis.call('HINCRBY', live, 'empty', 1) > 3 then return {'stuck'} end
  flags = flags .. 'd'
end

-- Write.
if ARGV[8] ~= '' and version < 0 then
  version = tonumber(ARGV[8])
  redis.call('HSET', hash, 'rv', version)
end
if tonumber(ARGV[9]) >= 2 then redis.call('HSET', hash, 'fp', '1') end

local discover = string.find(flags, 'd', 1, true) and true or false
local plans, retried, ended, appended = {}, false, false, {}

local function is_known(step)
  return redis.call('HEXISTS', steps, step) == 1 or redis.call('HEXISTS', live, 's:' .. step) == 1
end

local function open(step, kind, race, about)
  redis.call('HSET', live, 's:' .. step, kind .. '|' .. race .. '|' .. about)
end

local function memoize(step, value)
  local opened = redis.call('HGET', live, 's:' .. step)
  if opened then forget_step(run, live, step, opened) end
  if redis.call('HSETNX', steps, step, value) == 0 then return false end
  redis.call('RPUSH', stack, step)
  redis.call('HINCRBY', hash, 'size', #value)
  if checkpoint then return true end
  local race = opened and string.match(opened, '^%a+|(%d)') == '1'
  if redis.call('HDEL', live, 'p:' .. step) == 1 and version >= 2 then
    local left = redis.call('HINCRBY', live, 'pn', -1)
    if left <= 0 then redis.call('HSET', hash, 'fp', '0') end
    if left <= 0 or race then discover = true end
  else
    discover = true
  end
  return true
end

arg = 15
while ARGV[arg] do
  local command, step = ARGV[arg], ARGV[arg + 1]
  if command == 'fan' then
    local n = tonumber(step)
    for _, field in ipairs(redis.call('HKEYS', live)) do
      if string.sub(field, 1, 2) == 'p:' then redis.call('HDEL', live, field) end
    end
    local left = 0
    for i = arg + 2, arg + 1 + n do
      if redis.call('HEXISTS', steps, ARGV[i]) == 0 then
        left = left + redis.call('HSET', live, 'p:' .. ARGV[i], '1')
      end
    end
    redis.call('HSET', live, 'pn', left)
    arg = arg + 2 + n
  elseif command == 'memo' then
    if memoize(step, ARGV[arg + 2]) then note(run, ARGV[arg + 3]) end
    arg = arg + 4
  elseif command == 'plan' then
    if not is_known(step) then
      open(step, 'plan', ARGV[arg + 2], '')
      plans[#plans + 1] = step
      note(run, ARGV[arg + 3])
    end
    arg = arg + 4
  elseif command == 'sleep' then
    if not is_known(step) then
      open(step, 'sleep', ARGV[arg + 2], '')
      redis.call('ZADD', timers, now + ARGV[arg + 3], 's|' .. run .. '|' .. step)
      note(run, ARGV[arg + 4])
    end
    arg = arg + 5
  elseif command == 'wait' then
    if not is_known(step) then
      local place = ARGV[arg + 3]
      open(step, 'wait', ARGV[arg + 2], place)
      if add_wait(place, run .. '|' .. step, ARGV[arg + 4]) then redis.call('INCR', F .. 'rev') end
      redis.call('ZADD', timers, now + ARGV[arg + 5], 's|' .. run .. '|' .. step)
      note(run, ARGV[arg + 6])
    end
    arg = arg + 7
  elseif command == 'invoke' then
    if not is_known(step) then
      open(step, 'invoke', ARGV[arg + 2], '')
      redis.call('ZADD', timers, now + ARGV[arg + 3], 's|' .. run .. '|' .. step)
      appended[#appended + 1] = append(ARGV[arg + 4], ARGV[arg + 5])
      note(run, ARGV[arg + 6])
    else
      appended[#appended + 1] = ''
    end
    arg = arg + 7
  elseif command == 'signal' then
    if not is_known(step) then
      open(step, 'signal', ARGV[arg + 2], ARGV[arg + 3])
      redis.call('HSET', F .. 'signals', ARGV[arg + 3], run .. '|' .. step)
      redis.call('ZADD', timers, now + ARGV[arg + 5], 's|' .. run .. '|' .. step)
      note(run, ARGV[arg + 6])
    end
    arg = arg + 7
  elseif command == 'retry' or command == 'again' then
    retried = true
    if command == 'retry' then state.attempt = state.attempt + 1 end
    state.entry = ''
    keep_thread(live, subject, state)
    redis.call('ZADD', timers, now + step, 't|' .. run .. '|' .. subject)
    note(run, ARGV[arg + 2])
    arg = arg + 3
  elseif command == 'requeue' then
    local waiting = thread_of(live, step)
    if waiting and waiting.entry == '' then
      waiting.generation, waiting.entry = 0, queue(run, step, lane)
      keep_thread(live, step, waiting)
    end
    arg = arg + 2
  elseif command == 'note' then
    note(run, step)
    arg = arg + 2
  else
    ended = true
    local n = tonumber(ARGV[arg + 5])
    note(run, ARGV[arg + 6 + 2 * n])
    finish(run, step, ARGV[arg + 2], ARGV[arg + 3], ARGV[arg + 4], keep_ms)
    for i = 1, n do appended[#appended + 1] = append(ARGV[arg + 4 + 2 * i], ARGV[arg + 5 + 2 * i]) end
    break
  end
end

local next_thread, generation = '', 0
if guard == 'timer' then redis.call('ZREM', timers, subject) end
if not ended then
  if guard == 'thread' then
    if checkpoint then
      state.attempt = 0
      keep_thread(live, subject, state)
    else
      if not retried then redis.call('HDEL', live, 't:' .. subject) end
      redis.call('HDEL', live, 'b:' .. subject, 'a:' .. entry)
      if subject == 'd' and redis.call('HDEL', live, 'dirty') == 1 then discover = true end
    end
  end
  if discover then
    if redis.call('HEXISTS', live, 't:d') == 1 then
      redis.call('HSET', live, 'dirty', '1')
    else
      table.insert(plans, 1, 'd')
    end
  end
  -- The caller goes on with the first of them under its lane entry and its slots, unless the function is paused or
  -- somebody who comes before it waits for a slot.
  local calls_again = #plans > 0 and entry ~= '' and not checkpoint
    and not is_paused(string.sub(lane, 1, -4), row[7], row[8])
    and pass_on(run, subject, plans[1], limits, place)
  if calls_again then
    next_thread, generation = table.remove(plans, 1), next_generation(live)
    keep_thread(live, next_thread, {attempt = 0, generation = generation, entry = entry})
    redis.call('HSET', live, 'a:' .. entry, next_thread)
    if limits[1] then redis.call('HSET', live, 'b:' .. next_thread, now) end
  elseif guard == 'thread' and not checkpoint then
    release(run, subject, limits)
  end
  for _, thread in ipairs(plans) do
    keep_thread(live, thread, {attempt = 0, generation = 0, entry = queue(run, thread, lane)})
  end
end
if blob ~= '' then
  if #appended > 0 then
    redis.call('XADD', journal, '*', 'b', blob, 's', table.concat(appended, '\n'))
  else
    redis.call('XADD', journal, '*', 'b', blob)
  end
end
return {'ok', now, next_thread, generation, version, redis.call('HGET', hash, 'fp') or '0', redis.call('LLEN', stack)}
