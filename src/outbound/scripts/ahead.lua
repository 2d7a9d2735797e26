#!lua flags=allow-oom
--[[
ahead.lua: note up to where the events of lanes were fanned out before they were dispatched.

KEYS  1 ahead: lane -> entry id
ARGV  pairs: lane, entry id
Returns nothing.
Invariant: a mark never moves back, whatever order two processes write in.
]]
local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
for i = 1, #ARGV, 2 do
  local known = redis.call('HGET', KEYS[1], ARGV[i])
  local ms, seq = parts(ARGV[i + 1])
  local is_later = true
  if known then
    local known_ms, known_seq = parts(known)
    is_later = ms > known_ms or (ms == known_ms and seq > known_seq)
  end
  if is_later then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
