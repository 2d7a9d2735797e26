--[[
schedule.lua: from an event to a run, in the order of the protocol: pause, batch, rate limit, debounce, singleton, run,
then throttle and limits. Stands behind limits.lua, before start.lua and fire.lua.

A run to create is a MessagePack map:
  id fn fid app lane cause corr?    evs, eids: lists of JSON texts and public ids of its events
  at?         where its event stands in the log, ms
  st? ft?     start and finish timeout, ms      log    history entry      keep   how long a skipped run is kept, ms
  tr          its span, traceparent       tp    the span that its event was dispatched in, hex, or ''
  cancels     list of {place of the event, value for the index of waits}          pr?    priority, s
  lim? thr?   as run:<id> holds them
  batch?      {g, n, ms, bytes, k, v}   rate? {g, n, ms}   deb? {g, ms, max?, ts, k, v}   single? {g, cancel?}

After `<tag>:fn:`
  paused         hash    `fn:<slug>`, `app:<name>` -> who paused it and why, JSON
  took:<fn>      zset    runs that events would have made, had they not gone into a batch or a debounce, or been dropped
                         -> when, ms: so that an event which is dispatched again does nothing twice; a day
  rate:<group>   zset    runs of the last period -> when, ms
  deb:<group>    hash    run (the map of the last event), ts, first: when the debounce began, ms
  batch:<group>  list    the maps of its events; the first is the run that it becomes
  bytes:<group>  string  their size
  again:<event>  set     runs that repeat what the event started
  alias:<run>    string  the run of the batch that an event went into, by the run it would have made alone
  single:<group> string  the live run
]]
local DAY_MS = 86400000

local function record(new, status)
  redis.call('HSET', F .. 'run:' .. new.id, 'fn', new.fn, 'fid', new.fid, 'app', new.app, 'lane', new.lane,
    'ev', '[' .. table.concat(new.evs, ',') .. ']', 'eids', table.concat(new.eids, ','), 'corr', new.corr or '',
    'cause', new.cause, 'tr', new.tr, 'tp', new.tp, 'q', now, 'st', status, 'rv', '-1', 'fp', '0', 'ft', new.ft or '', 'size', 0)
  redis.call('ZADD', F .. 'runs', now, new.id)
  redis.call('ZADD', F .. 'runs:fn:' .. new.fn, now, new.id)
  index(new.id, nil, status)
  if new.cause == 'rerun' or new.cause == 'replay' then
    for _, event in ipairs(new.eids) do
      redis.call('SADD', F .. 'again:' .. event, new.id)
      redis.call('PEXPIRE', F .. 'again:' .. event, new.keep)
    end
  end
end

local function skip(new, why, by)
  local hash = F .. 'run:' .. new.id
  record(new, 'SKIPPED')
  redis.call('HSET', hash, 'e', now, 'why', why)
  note(new.id, cjson.encode({type = 'FunctionSkipped', reason = why, run = by}))
  for _, kind in ipairs({'run:', 'log:'}) do redis.call('PEXPIRE', F .. kind .. new.id, new.keep) end
  return 'skipped|' .. why .. '|' .. (by or '')
end

local function create(new)
  if new.single then
    local key = F .. 'single:' .. new.single.g
    local holder = redis.call('GET', key)
    local status = holder and holder ~= new.id and redis.call('HGET', F .. 'run:' .. holder, 'st')
    if status == 'QUEUED' or status == 'RUNNING' then
      if new.single.cancel then return 'busy|' .. holder end
      return skip(new, 'singleton', holder)
    end
    redis.call('SET', key, new.id)
  end
  local hash, live = F .. 'run:' .. new.id, F .. 'live:' .. new.id
  record(new, 'QUEUED')
  -- To the thousandth, so that events of one millisecond keep their order. An old event goes before nobody.
  local place = now + time[2] % 1000 / 1000
  if new.at and new.at < place and new.at > now - 10000 then place = new.at end
  redis.call('HSET', hash, 'sc', string.format('%.3f', place - (new.pr or 0) * 1000))
  if new.lim then redis.call('HSET', hash, 'lim', cjson.encode(new.lim)) end
  if new.thr then redis.call('HSET', hash, 'thr', cjson.encode(new.thr)) end
  if new.single then redis.call('HSET', hash, 'sg', new.single.g) end
  if new.st then redis.call('ZADD', timers, now + new.st, 'S|' .. new.id .. '|') end
  for n, cancel in ipairs(new.cancels) do
    redis.call('HSET', live, 'c:' .. n, cancel[1])
    add_wait(cancel[1], new.id .. '|c:' .. n, cancel[2])
  end
  local is_bound = new.lim or new.thr
  local entry = is_bound and queue(new.id, 'd', new.lane) or enqueue(new.id, 'd', new.lane)
  keep_thread(live, 'd', {attempt = 0, generation = 0, entry = entry})
  note(new.id, new.log)
  return 'new'
end

local function take(new)
  local key = F .. 'took:' .. new.fn
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now - DAY_MS)
  redis.call('ZADD', key, now, new.id)
  redis.call('PEXPIRE', key, DAY_MS)
end

-- The map of the first event with the events of all. By the run that an event alone would have made, that of all is found.
local function whole_batch(group)
  local whole
  for _, packed in ipairs(redis.call('LRANGE', F .. 'batch:' .. group, 0, -1)) do
    local one = cmsgpack.unpack(packed)
    if not whole then
      whole = one
    else
      redis.call('SET', F .. 'alias:' .. one.id, whole.id, 'PX', one.keep)
      for n, event in ipairs(one.evs) do
        whole.evs[#whole.evs + 1], whole.eids[#whole.eids + 1] = event, one.eids[n]
      end
      if one.corr then whole.corr = whole.corr and whole.corr .. ',' .. one.corr or one.corr end
    end
  end
  return whole
end

local function flush_batch(group)
  local whole = whole_batch(group)
  redis.call('DEL', F .. 'batch:' .. group, F .. 'bytes:' .. group)
  redis.call('ZREM', timers, 'B|' .. group .. '|')
  redis.call('HDEL', F .. 'groups', group)
  return whole and create(whole) or 'gone', whole
end

local function batch(new, packed)
  local group = new.batch.g
  take(new)
  local bytes = redis.call('INCRBY', F .. 'bytes:' .. group, #packed)
  local n = redis.call('RPUSH', F .. 'batch:' .. group, packed)
  if n == 1 then
    redis.call('ZADD', timers, now + new.batch.ms, 'B|' .. group .. '|')
    label(group, new.fn, new.batch)
  end
  if n >= new.batch.n or bytes >= new.batch.bytes then return (flush_batch(group)) end
  return 'batched'
end

local function debounce(new, packed)
  local key, group = F .. 'deb:' .. new.deb.g, new.deb.g
  local row = redis.call('HMGET', key, 'first', 'ts', 'run')
  take(new)
  if row[1] and tonumber(row[2]) > new.deb.ts then return 'debounced|' .. (new.corr or '') end
  local first, lost = tonumber(row[1] or now), row[3] and cmsgpack.unpack(row[3]).corr or ''
  local due = now + new.deb.ms
  if new.deb.max and due > first + new.deb.max then due = first + new.deb.max end
  redis.call('HSET', key, 'first', first, 'ts', new.deb.ts, 'run', packed)
  redis.call('ZADD', timers, due, 'D|' .. group .. '|')
  label(group, new.fn, new.deb)
  return 'debounced|' .. lost
end

local function is_over_rate(new)
  local key = F .. 'rate:' .. new.rate.g
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now - new.rate.ms)
  if redis.call('ZCARD', key) >= new.rate.n then return true end
  redis.call('ZADD', key, now, new.id)
  redis.call('PEXPIRE', key, new.rate.ms)
  return false
end

-- What becomes of an event for one function.
local function schedule(packed)
  local new = cmsgpack.unpack(packed)
  local known = redis.call('HMGET', F .. 'run:' .. new.id, 'st', 'why')
  if known[1] then return 'known|' .. known[1] .. '|' .. (known[2] or '') end
  local shaped = new.batch or new.deb or new.rate
  if shaped and redis.call('ZSCORE', F .. 'took:' .. new.fn, new.id) then return 'known||' end
  local paused = redis.call('HMGET', F .. 'paused', 'fn:' .. new.fn, 'app:' .. new.app)
  if paused[1] or paused[2] then return skip(new, 'paused') end
  if new.batch then return batch(new, packed) end
  if new.rate and is_over_rate(new) then
    take(new)
    return 'limited'
  end
  if new.deb then return debounce(new, packed) end
  return create(new)
end
