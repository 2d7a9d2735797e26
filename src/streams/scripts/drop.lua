#!lua flags=allow-oom
--[[
drop.lua: remove dead letters for good.

KEYS  1 dead stream   2 journal stream
ARGV  1 journal blob, one row per id   2.. dead ids (<= 512)
Returns per id 1 when it was removed, 0 when it was gone already.
Invariant: removal and record are one call; the record's `s` says which ids were really removed.
]]
local results, any = {}, false
for arg = 2, #ARGV do
  local n = redis.call('XDEL', KEYS[1], ARGV[arg])
  results[#results + 1] = n
  any = any or n == 1
end
if any then redis.call('XADD', KEYS[2], '*', 'b', ARGV[1], 's', table.concat(results, '\n')) end
return results
