#!lua flags=allow-oom
--[[
kill_switch.lua: throw the observer's kill switch, or take it back.

KEYS  1 kill switch (string: who threw it and why, JSON)   2 journal stream
ARGV  1 its text, or '' to take it back   2 how long it lasts, ms, or '' for good   3 journal blob
Returns the journal entry's id.
Invariant: the switch and its record change together; the record first, since only it can be refused (a key of another
      type). allow-oom: an operator must be able to stop the observer when Redis is full.
]]
local text, lasts = ARGV[1], ARGV[2]
local id = redis.call('XADD', KEYS[2], '*', 'b', ARGV[3])
if text == '' then
  redis.call('DEL', KEYS[1])
elseif lasts == '' then
  redis.call('SET', KEYS[1], text)
else
  redis.call('SET', KEYS[1], text, 'PX', lasts)
end
return id
