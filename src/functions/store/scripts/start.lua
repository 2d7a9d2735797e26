--[[
start.lua: hand one event to the functions that it triggers.

ARGV  3.. runs to create, one MessagePack map each (see schedule.lua)
Returns per run: 'new' | 'known|<status or ''>|<why>' | 'skipped|<why>|<live run or ''>' | 'limited' | 'batched' |
      'debounced|<correlation of an invoke that lost its run or ''>' | 'busy|<run>': a singleton that cancels: end that
      run, then offer this one again; nothing was written for it.
Invariant: a run's id follows from function and event, so an event that is dispatched twice makes no second run.
      A full Redis refuses before anything is written (no allow-oom): the event is tried again.
]]
local results, lines = {}, {}
for i = 3, #ARGV do
  local result = schedule(ARGV[i])
  results[i - 2] = result
  -- Two facts a run: that it was created, and what became of the event instead.
  local what = string.match(result, '^%a+')
  lines[#lines + 1] = what == 'new' and '1' or '0'
  lines[#lines + 1] = (what == 'new' or what == 'known' or what == 'busy') and '0' or result
end
if blob ~= '' then redis.call('XADD', journal, '*', 'b', blob, 's', table.concat(lines, '\n')) end
return results
