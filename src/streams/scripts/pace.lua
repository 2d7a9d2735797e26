#!lua flags=allow-oom
--[[
pace.lua: permits to start events of a family that has a pace.

KEYS  1 steering hash   2 steering-expiry zset   3 pace hash (family -> `<revision of the pace> <window began, ms> <used>`)
ARGV  1 family   2 how many are asked for
Returns {granted, when the next window begins, ms} | {} when no pace is in force.
Invariant: of all processes together at most `max` are granted per window of `everyMs`; windows follow each other from the
      moment the pace was set. Permits of a process that dies are lost with their window: it errs to the slow side.
]]
local family, asked = ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local field = 'pace|' .. family
local readable, record = pcall(cjson.decode, redis.call('HGET', KEYS[1], field) or '')
if not readable or type(record) ~= 'table' then return {} end
if tonumber(redis.call('ZSCORE', KEYS[2], field) or 0) <= now then return {} end
local every, most = tonumber(record.everyMs), tonumber(record.max)
local rev, began, used = string.match(redis.call('HGET', KEYS[3], family) or '', '^(%d+) (%d+) (%d+)$')
began, used = tonumber(began), tonumber(used)
if not began or tonumber(rev) ~= tonumber(record.rev) then began, used = tonumber(record.appliedAtMs), 0 end
if now >= began + every then
  began, used = now - (now - began) % every, 0
end
local granted = math.max(0, math.min(asked, most - used))
local state = string.format('%.0f %.0f %.0f', tonumber(record.rev), began, used + granted)
redis.call('HSET', KEYS[3], family, state)
return {granted, began + every}
