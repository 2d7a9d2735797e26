#!lua flags=no-writes
--[[
minute.lua: one minute of a projection and the cursor it stands at, at one moment.

KEYS  1 cursors hash   2.. minute hashes
ARGV  1 name of the projection
Returns {cursor or '0-0', {field, value, …} per minute hash}.
]]
local stored = redis.call('HGET', KEYS[1], ARGV[1])
local answer = {stored and string.match(stored, '^[^,]+') or '0-0'}
for i = 2, #KEYS do answer[i] = redis.call('HGETALL', KEYS[i]) end
return answer
