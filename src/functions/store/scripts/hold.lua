--[[
hold.lua: a function was paused or resumed: what waits for it gives up its slots, or is called again.

ARGV  3 function   4 family of its work items   5 groups that its runs may hold a slot of, joined by line feeds; ''
      looks at none   6 its app
Returns how many threads were moved.
Invariant: only threads whose call has not begun give up their slots; their lane entries bring nothing on any more.
]]
local fn, family, moved = ARGV[3], ARGV[4], 0
if not is_paused(family, fn, ARGV[6]) then
  local before = redis.call('ZCARD', F .. 'line:held:' .. fn)
  call_line('held:' .. fn)
  for group in string.gmatch(ARGV[5], '[^\n]+') do call_line(group) end
  return before - redis.call('ZCARD', F .. 'line:held:' .. fn)
end
for group in string.gmatch(ARGV[5], '[^\n]+') do
  for _, member in ipairs(redis.call('SRANDMEMBER', F .. 'slots:' .. group, 512)) do
    local run, thread = string.match(member, '^([^|]*)|(.*)$')
    local b = run and bounds(run)
    local live = run and F .. 'live:' .. run
    local state = b and b.fn == fn and thread_of(live, thread)
    -- Generation 0: no call of it has begun.
    if state and state.generation == 0 then
      state.entry = admit(run, thread, b)
      keep_thread(live, thread, state)
      release(run, thread, b.lim)
      if redis.call('HGET', F .. 'run:' .. run, 'st') == 'QUEUED' then
        for _, limit in ipairs(b.lim) do
          if limit.r and redis.call('SREM', F .. 'slots:' .. limit.g, run) == 1 then call_line(limit.g) end
        end
      end
      moved = moved + 1
    end
  end
end
return moved
