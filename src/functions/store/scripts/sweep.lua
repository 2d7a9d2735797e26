--[[
sweep.lua: look after one group of a limit: slots whose holder is gone, a line that nobody calls.

ARGV  3 group
Returns how many slots were freed.
Invariant: a slot is held by a live thread that has a lane entry, or by a live run.
]]
local group, freed = ARGV[3], 0
local slots = F .. 'slots:' .. group
for _, member in ipairs(redis.call('SRANDMEMBER', slots, 1024)) do
  local run, thread = string.match(member, '^([^|]*)|(.*)$')
  local is_held
  if run then
    local state = thread_of(F .. 'live:' .. run, thread)
    is_held = state and state.entry ~= '' and string.sub(state.entry, 1, 1) ~= '~'
  else
    local status = redis.call('HGET', F .. 'run:' .. member, 'st')
    is_held = status == 'QUEUED' or status == 'RUNNING'
  end
  if not is_held then freed = freed + redis.call('SREM', slots, member) end
end
call_line(group)
return freed
