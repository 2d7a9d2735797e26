#!lua flags=allow-oom
--[[
observer.lua: which process runs the next pass of the observer, and when.

KEYS  1 lease (string, PX: `<owner>:<fence>`)   2 last run (string, ms)   3 open pass (string)   4 fence (counter)
      5 last result (string, JSON)   6 journal stream
ARGV  1 'claim'    2 owner   3 lease ms   4 interval ms   5 how much too early is on time, ms
      1 'renew'    2 token   3 lease ms
      1 'decided'  2 token   3 lease ms   4 the pass with its decision (JSON)
      1 'end'      2 token   3 last run to set or ''   4 result (JSON) or ''   5 journal blob or ''
Returns claim: {'run', token, now, last run or '', open pass or ''} | {'early', next ms, last run} | {'held', owner}
        others: {'ok'} | {'lost'} when the lease is no longer the caller's.
Invariant: at most one process has the lease, and a pass begins at most once per interval (a cron that fires
      every 60 s allows 2 s: it must not lose every second pass to a gap of 59.9 s). A pass that was begun and not ended is open: whoever
      claims after the lease's end goes on with it, whatever the cadence says, and is given the decision if one was stored.
      A pass ends once: the records that tell of its end are written with it.
]]
local lease, last_run, open, fence, result, journal = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local op = ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local holder = redis.call('GET', lease)
if op == 'claim' then
  if holder then return {'held', holder} end
  local interval = tonumber(ARGV[4])
  local last = tonumber(redis.call('GET', last_run) or '')
  local unfinished = redis.call('GET', open)
  if last and last <= now and now - last < interval - tonumber(ARGV[5]) and not unfinished then
    return {'early', string.format('%.0f', last + interval), string.format('%.0f', last)}
  end
  local token = ARGV[2] .. ':' .. redis.call('INCR', fence)
  redis.call('SET', lease, token, 'PX', ARGV[3])
  redis.call('SET', last_run, string.format('%.0f', now))
  redis.call('SET', open, unfinished or 'begun')
  return {'run', token, string.format('%.0f', now), last and string.format('%.0f', last) or '', unfinished or ''}
end
if holder ~= ARGV[2] then return {'lost'} end
if op == 'end' then
  redis.call('DEL', lease, open)
  if ARGV[3] ~= '' then redis.call('SET', last_run, ARGV[3]) end
  if ARGV[4] ~= '' then redis.call('SET', result, ARGV[4]) end
  if ARGV[5] ~= '' then redis.call('XADD', journal, '*', 'b', ARGV[5]) end
  return {'ok'}
end
redis.call('PEXPIRE', lease, ARGV[3])
if op == 'decided' then redis.call('SET', open, ARGV[4]) end
return {'ok'}
