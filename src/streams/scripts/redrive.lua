#!lua flags=allow-oom
--[[
redrive.lua: send dead letters round again.

KEYS  1 dead stream   2 journal stream   3 lanes hash   4 families set   5 ready set   6 wake list
ARGV  1 tag   2 control channel   3 lanes above which `ready` is kept   4 journal blob
      5.. fours: dead id, lane name, redrive record (MessagePack: redrives, dead id), edited envelope or ''
Returns per dead id the new entry id, or '' when the dead letter is gone already.
Invariant: the append and the removal are one call, so two operators can't redrive one letter twice, and it is never
      in both places or in none. The envelope travels unchanged unless edited; `r` beside it tells the drainer the redrive count.
]]
local dead, journal, lanes, families, ready, wake = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local tag, channel, ready_above, blob = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local results, moved = {}, false
for arg = 5, #ARGV, 4 do
  local id, lane, record, envelope = ARGV[arg], ARGV[arg + 1], ARGV[arg + 2], ARGV[arg + 3]
  local letter = redis.call('XRANGE', dead, id, id)[1]
  local result = ''
  if letter then
    if envelope == '' then
      for j = 1, #letter[2], 2 do
        if letter[2][j] == 'e' then envelope = letter[2][j + 1] end
      end
    end
    local key = tag .. ':lane:' .. lane
    if not redis.call('HGET', lanes, lane) then
      redis.pcall('XGROUP', 'CREATE', key, 'drainer', '0', 'MKSTREAM')
      redis.call('SADD', families, string.match(lane, '^(.*):p%d$'))
      redis.call('HSET', lanes, lane, now .. ',' .. now)
      redis.call('PUBLISH', channel, 'lane ' .. lane)
    end
    redis.call('XDEL', dead, id)
    result = redis.call('XADD', key, '*', 'e', envelope, 'r', record)
    if redis.call('HLEN', lanes) > ready_above then
      redis.call('SADD', ready, lane)
      if redis.call('LLEN', wake) < 64 then redis.call('LPUSH', wake, '1') end
    end
    moved = true
  end
  results[#results + 1] = result
end
if moved then redis.call('XADD', journal, '*', 'b', blob, 's', table.concat(results, '\n')) end
return results
