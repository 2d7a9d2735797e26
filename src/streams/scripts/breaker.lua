#!lua flags=allow-oom
--[[
breaker.lua: change the circuit breaker of one family, if it is still as the caller saw it.

KEYS  1 breaker hash   2 journal stream   3 meta hash (counter `rev`)
ARGV  1 family   2 revision that was seen, 0 for none   3 the new circuit (JSON) or '' to close it   4 control channel
      5 journal blob or ''
Returns {'ok', the circuit as stored or ''} | {'changed', the circuit as it is or ''}
Invariant: a circuit changes only from the state that its change was computed from, so two drainers can't both hold the
      one probe, and a late result can't close what was opened again. allow-oom.
]]
local breaker, journal, meta = KEYS[1], KEYS[2], KEYS[3]
local family, seen, text, channel, blob = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local standing = redis.call('HGET', breaker, family)
local rev = 0
if standing then
  local readable, circuit = pcall(cjson.decode, standing)
  rev = readable and type(circuit) == 'table' and tonumber(circuit.rev) or 0
end
if rev ~= seen then return {'changed', standing or ''} end
if text == '' then
  redis.call('HDEL', breaker, family)
else
  local circuit = cjson.decode(text)
  circuit.rev = redis.call('HINCRBY', meta, 'rev', 1)
  text = cjson.encode(circuit)
  redis.call('HSET', breaker, family, text)
end
if blob ~= '' then redis.call('XADD', journal, '*', 'b', blob) end
redis.call('PUBLISH', channel, 'breaker ' .. family)
return {'ok', text}
