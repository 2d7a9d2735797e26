#!lua flags=allow-oom
--[[
session.lua: open, renew or close a session, the lease that covers everything one process holds.

KEYS  1 sessions zset (session -> heartbeat expiry, ms; 0 = fenced)   2 session details string
ARGV  1 session   2 lease ms   3 'open' | 'renew' | 'close' | 'abandon' | 'forget'   4 details (JSON)
      renew also takes 5.. the ordered families' lock keys this session holds or wants
Returns {'ok' | 'lost', expired session ids (<= 16).., } with the ordered locks held as a third element.
Invariant: a fenced session (score 0, or no member) never comes back: its process must drop its results and open a
      new one. `abandon` leaves an expired member behind, for others to take over at once. `forget` removes the member of a fenced session after every lane it held was taken over.
Race closed: renewing and fencing are both judged here, by Redis's clock, so a session can't be renewed and taken
      over at once.
]]
local sessions, details = KEYS[1], KEYS[2]
local session, lease_ms, what = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local score = redis.call('ZSCORE', sessions, session)
if what == 'forget' then
  if score and tonumber(score) == 0 then redis.call('ZREM', sessions, session) end
  return {'ok', {}, {}}
end
if what == 'abandon' then
  redis.call('ZADD', sessions, 'XX', 1, session)
  redis.call('DEL', details)
  return {'ok', {}, {}}
end
if what == 'close' then
  redis.call('ZREM', sessions, session)
  redis.call('DEL', details)
  return {'ok', {}, {}}
end
if (what == 'renew' and not score) or (score and tonumber(score) <= 0) then return {'lost', {}, {}} end
redis.call('ZADD', sessions, now + lease_ms, session)
redis.call('SET', details, ARGV[4], 'PX', lease_ms * 4)
local held = {}
for i = 5, #ARGV do
  local key = ARGV[i]
  local holder = redis.call('GET', key)
  if not holder or holder == session then
    redis.call('SET', key, session, 'PX', lease_ms)
    held[#held + 1] = key
  else
    -- A dead holder's lock must not outlive it.
    local holder_lease = redis.call('ZSCORE', sessions, holder)
    if not holder_lease or tonumber(holder_lease) <= 0 then
      redis.call('SET', key, session, 'PX', lease_ms)
      held[#held + 1] = key
    end
  end
end
local expired = redis.call('ZRANGEBYSCORE', sessions, '-inf', now, 'LIMIT', 0, 16)
return {'ok', expired, held}
