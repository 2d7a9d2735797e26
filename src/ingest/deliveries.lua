#!lua
--[[
deliveries.lua: note deliveries that were answered, and forget old ones.

KEYS  1 log stream   2 its size, bytes
ARGV  1 entries at most   2 ms that one is kept   3 bytes at most   4.. pairs (<= 64): record, body or ''
Returns entries forgotten.
Invariant: the size is the sum of what the stream's entries hold, so the limit on bytes is kept to an entry; a call
      forgets at most 512 entries. Not `allow-oom`: the log is the first that a full Redis does without.
]]
local log, size = KEYS[1], KEYS[2]
local count_max, keep_ms, bytes_max = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
for i = 4, #ARGV, 2 do
  redis.call('XADD', log, '*', 'd', ARGV[i], 'b', ARGV[i + 1])
  redis.call('INCRBY', size, #ARGV[i] + #ARGV[i + 1])
end
local time = redis.call('TIME')
local oldest = time[1] * 1000 + math.floor(time[2] / 1000) - keep_ms
local count, bytes, forgotten = redis.call('XLEN', log), tonumber(redis.call('GET', size) or '0'), 0
while forgotten < 512 and count > 0 do
  local entry = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  local ms = tonumber(string.match(entry[1], '^%d+'))
  if count <= count_max and bytes <= bytes_max and ms >= oldest then break end
  local held = #entry[2][2] + #entry[2][4]
  redis.call('XDEL', log, entry[1])
  redis.call('DECRBY', size, held)
  count, bytes, forgotten = count - 1, bytes - held, forgotten + 1
end
return forgotten
