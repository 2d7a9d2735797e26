--[[
begin.lua: take up a thread of a run under a lane entry, with everything that the call of its function needs.

ARGV  3 run   4 thread   5 lane entry   6 history entry for the first begin   7 steps too ('1') or run only ('')
      8 how long a call whose caller is gone may go on in the app, ms; 0 when the caller knows that none does
Returns {'gone'} when the entry has nothing to bring on (the run ended, or another entry carries the thread),
      {'wait', ms} while a call of this thread, begun by a process that ended, may still hold its slot, else
      {'ok', now, thread, attempt, generation, stack (list), steps (flat list), HGETALL of the run}.
Invariant: the generation rises with every call of the run, so an answer to an earlier one is known to be outdated. Stack and steps
      are of one moment.
]]
local run, entry = ARGV[3], ARGV[5]
local hash, live = F .. 'run:' .. run, F .. 'live:' .. run
local thread = ARGV[4]
local state = thread_of(live, thread)
if not state or state.entry ~= entry then
  thread = redis.call('HGET', live, 'a:' .. entry)
  state = thread and thread_of(live, thread)
  if not state or state.entry ~= entry then return {'gone'} end
end
local lim = redis.call('HGET', hash, 'lim')
if lim then
  local began = redis.call('HGET', live, 'b:' .. thread)
  local left = began and began + ARGV[8] - now or 0
  if left > 0 and ARGV[8] ~= '0' then return {'wait', left} end
  for _, limit in ipairs(cjson.decode(lim)) do
    redis.call('SADD', F .. 'slots:' .. limit.g, limit.r and run or run .. '|' .. thread)
  end
  redis.call('HSET', live, 'b:' .. thread, now)
end
state.generation = next_generation(live)
keep_thread(live, thread, state)
if redis.call('HGET', hash, 'st') == 'QUEUED' then
  index(run, 'QUEUED', 'RUNNING')
  redis.call('HSET', hash, 'st', 'RUNNING', 's', now)
  redis.call('ZREM', F .. 'timers', 'S|' .. run .. '|')
  local finish_ms = redis.call('HGET', hash, 'ft')
  if finish_ms and finish_ms ~= '' then redis.call('ZADD', F .. 'timers', now + finish_ms, 'F|' .. run .. '|') end
  note(run, ARGV[6])
  if blob ~= '' then redis.call('XADD', journal, '*', 'b', blob) end
end
local stack, steps = {}, {}
if ARGV[7] == '1' then
  stack = redis.call('LRANGE', F .. 'stack:' .. run, 0, -1)
  steps = redis.call('HGETALL', F .. 'steps:' .. run)
end
return {'ok', now, thread, state.attempt, state.generation, stack, steps, redis.call('HGETALL', hash)}
