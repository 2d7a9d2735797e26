--[[
tick.lua: a schedule's time has come: create its run and set the next tick.

ARGV  3 name of the schedule: `<hash>|<function>`   4 the tick that the caller saw   5 the next tick   6 when it fires,
      ms   7 the run to create (see schedule.lua), or '' for a tick that is left out
Returns 'moved' when the schedule is gone or another server took the tick; else the result as start.lua, or 'left out'.
Invariant: a tick is taken by one server, and taking it, creating its run and setting the next one are one step.
]]
local name, packed = ARGV[3], ARGV[7]
if redis.call('HGET', F .. 'crons', name) ~= ARGV[4] then return 'moved' end
local result = 'left out'
if packed ~= '' then
  result = schedule(packed)
  -- A singleton's holder has to be ended first: then the tick is taken once more.
  if string.sub(result, 1, 5) == 'busy|' then return result end
end
redis.call('HSET', F .. 'crons', name, ARGV[5])
redis.call('ZADD', timers, ARGV[6], 'C|' .. name)
if blob ~= '' then redis.call('XADD', journal, '*', 'b', blob, 's', result) end
return result
