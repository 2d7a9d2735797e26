--[[
start.lua: create the runs that one event starts.

ARGV  3 n runs; then per run: run id, function slug, function uuid, app, lane, events (JSON array), event ids (joined by
      commas), correlation id or '', cause, start timeout ms or '', finish timeout ms or '', history entry,
      n cancels; per cancel: event name, value for the index of waits
Returns per run '1' created or '0' known.
Invariant: a run's id follows from function and event, so an event that is dispatched twice makes no second run.
      A full Redis refuses before anything is written (no allow-oom): the event is tried again.
]]
local results, arg = {}, 4
for i = 1, tonumber(ARGV[3]) do
  local run, slug, lane = ARGV[arg], ARGV[arg + 1], ARGV[arg + 4]
  local hash, live = F .. 'run:' .. run, F .. 'live:' .. run
  local cancels = tonumber(ARGV[arg + 12])
  if redis.call('EXISTS', hash) == 1 then
    results[i] = '0'
  else
    results[i] = '1'
    redis.call('HSET', hash, 'fn', slug, 'fid', ARGV[arg + 2], 'app', ARGV[arg + 3], 'lane', lane, 'ev', ARGV[arg + 5],
      'eids', ARGV[arg + 6], 'corr', ARGV[arg + 7], 'cause', ARGV[arg + 8], 'q', now, 'st', 'QUEUED', 'rv', '-1',
      'fp', '0', 'ft', ARGV[arg + 10], 'size', 0)
    redis.call('ZADD', F .. 'runs', now, run)
    redis.call('ZADD', F .. 'runs:fn:' .. slug, now, run)
    index(run, nil, 'QUEUED')
    if ARGV[arg + 9] ~= '' then redis.call('ZADD', F .. 'timers', now + ARGV[arg + 9], 'S|' .. run .. '|') end
    for n = 1, cancels do
      local event, value = ARGV[arg + 11 + 2 * n], ARGV[arg + 12 + 2 * n]
      redis.call('HSET', live, 'c:' .. n, event)
      redis.call('HSET', F .. 'wait:' .. event, run .. '|c:' .. n, value)
      redis.call('HSETNX', F .. 'waited', event, now)
    end
    keep_thread(live, 'd', {attempt = 0, generation = 0, entry = enqueue(run, 'd', lane)})
    note(run, ARGV[arg + 11])
  end
  arg = arg + 13 + 2 * cancels
end
if blob ~= '' then redis.call('XADD', journal, '*', 'b', blob, 's', table.concat(results, '\n')) end
return results
