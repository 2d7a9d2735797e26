#!lua flags=allow-oom
--[[
instance.lua: name this data set, once.

KEYS  1 meta hash
ARGV  1 proposed instance id   2 key schema of who proposes
Returns the instance id in force.
Invariant: the first proposal stands for ever. allow-oom: a drainer must be able to start on a full Redis.
]]
local time = redis.call('TIME')
if redis.call('HSETNX', KEYS[1], 'instanceId', ARGV[1]) == 1 then
  redis.call('HSETNX', KEYS[1], 'schema', ARGV[2])
  redis.call('HSETNX', KEYS[1], 'createdAt', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
end
return redis.call('HGET', KEYS[1], 'instanceId')
