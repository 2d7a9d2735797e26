#!lua flags=allow-oom
--[[
reap.lua: take over what an ended session holds in one lane.

KEYS  1 sessions zset   2 lane stream   3 failures hash of the family
ARGV  1 ended session   2 own session   3 count (<= 512)   4 member prefix (`p<0-3>|`)
Returns {'live'} when the other session isn't over (our own, `~retry` and `~handback` never are), else {'ok', entries, more} with entries as
      {entry id, delivery count, fields, failures record or ''}. Error FENCED when our own session is over.
Invariant: acts only if the other session is absent, fenced, or past its expiry by Redis's clock, and fences it in the
      same call: from here on its completions are refused. Its consumer is deleted only with nothing pending
      (XGROUP DELCONSUMER would drop pending entries for good).
]]
local sessions, lane, failures = KEYS[1], KEYS[2], KEYS[3]
local ended, own, count, prefix = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
if ended == own or string.sub(ended, 1, 1) == '~' then return {'live'} end
local lease = redis.call('ZSCORE', sessions, own)
if not lease or tonumber(lease) <= 0 then return redis.error_reply('FENCED the session was taken over') end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local score = redis.call('ZSCORE', sessions, ended)
if score then
  if tonumber(score) > now then return {'live'} end
  redis.call('ZADD', sessions, 0, ended)
end
local pending = redis.pcall('XPENDING', lane, 'drainer', '-', '+', count, ended)
if pending.err then return {'ok', {}, 0} end
local entries = {}
for _, row in ipairs(pending) do
  local id = row[1]
  local entry = redis.call('XCLAIM', lane, 'drainer', own, 0, id)[1]
  if entry then
    local member = prefix .. id
    entries[#entries + 1] = {id, row[4] + 1, entry[2], redis.call('HGET', failures, member) or ''}
  end
end
local left = redis.call('XPENDING', lane, 'drainer', '-', '+', 1, ended)
if #left == 0 then redis.call('XGROUP', 'DELCONSUMER', lane, 'drainer', ended) end
return {'ok', entries, #left}
