--[[
fire.lua: a timer of flow control is due.

ARGV  3 member of the timers: 'D|<group>|' a debounce ends, 'B|<group>|' a batch is old enough, 'T|<group>|' a throttled
      start may go, 'G|<group>|' a line was not called to its end
Returns {'early'} | {'gone'} | {'called'} | {<result as start.lua>, run}
Invariant: a timer leaves the set in the script that does its work, and only when it is due: of two servers one does it.
]]
local member = ARGV[3]
local kind, group = string.match(member, '^(%a)|(.*)|$')
local due = redis.call('ZSCORE', timers, member)
if not due or tonumber(due) > now then return {'early'} end
if kind == 'T' or kind == 'G' then
  redis.call('ZREM', timers, member)
  call_line(group)
  return {'called'}
end
local result, new
if kind == 'D' then
  local packed = redis.call('HGET', F .. 'deb:' .. group, 'run')
  new = packed and cmsgpack.unpack(packed)
  result = new and create(new) or 'gone'
  -- A singleton's holder has to be ended first: then the timer is fired once more.
  if string.sub(result, 1, 5) ~= 'busy|' then
    redis.call('DEL', F .. 'deb:' .. group)
    redis.call('ZREM', timers, member)
    redis.call('HDEL', F .. 'groups', group)
  end
else
  result, new = flush_batch(group)
end
if blob ~= '' and result ~= 'gone' then
  redis.call('XADD', journal, '*', 'b', blob, 's', result == 'new' and 'new ' .. new.id or result)
end
return {result, new and new.id or '', new and new.corr or ''}
