--[[
limits.lua: who may call now. Stands behind lib.lua, before the scripts that start, end or queue calls.

After `<tag>:fn:`
  slots:<group>   set     `<run>|<thread>` (or `<run>`, of a limit that holds the run) that holds a slot
  line:<group>    zset    `<run>|<thread>` that waits -> its place, ms; lowest first
  line:held:<fn>  zset    the same, of a paused function: it holds no slot of others meanwhile
  held            set     functions with such a line
  tat:<group>     string  throttle: the theoretical arrival time of the next start, ms
  limits:<fn>     hash    scope and key of a limit -> slots, as registered now; a run's own number is that of its creation
  groups          hash    group -> what it stands for, JSON {fn, k, v}; while anything holds or waits

A thread waits in one line at a time: that of the first limit that does not admit it. Whoever gives a slot back calls
the line of its group. So a group with a free slot and a line exists only while `timers` holds `G|<group>` for it.
]]
local timers = F .. 'timers'

-- What admission has to know of a run; nil for one without limits.
local function bounds(run)
  local row = redis.call('HMGET', F .. 'run:' .. run, 'lim', 'thr', 'sc', 'fn', 'lane', 'app')
  if not row[1] and not row[2] then return nil end
  return {
    lim = row[1] and cjson.decode(row[1]) or {}, thr = row[2] and cjson.decode(row[2]) or nil,
    sc = tonumber(row[3]), fn = row[4], lane = row[5], app = row[6],
  }
end

-- By its family's pause, or by a mark of the function or its app.
local function is_paused(family, fn, app)
  if redis.call('HEXISTS', T .. ':pauses', family) == 1 then return true end
  local marks = redis.call('HMGET', F .. 'paused', 'fn:' .. fn, 'app:' .. app)
  return (marks[1] or marks[2]) and true or false
end

local function slots_of(fn, limit)
  return tonumber(redis.call('HGET', F .. 'limits:' .. fn, limit.k) or limit.n)
end

local function label(group, fn, of)
  redis.call('HSETNX', F .. 'groups', group, cjson.encode({fn = fn, k = of.k, v = of.v}))
end

local function wait_in(line, member, b, of)
  redis.call('ZADD', F .. 'line:' .. line, b.sc, member)
  if of then label(line, b.fn, of) end
  return '~' .. line
end

-- Whether a start is due (GCRA: `n + burst` from idle, then one per ms / n); else when it will be.
local function may_start(thr)
  local interval = thr.ms / thr.n
  local tat = tonumber(redis.call('GET', F .. 'tat:' .. thr.g) or '0')
  if tat < now then tat = now end
  local at = tat - interval * (thr.n + thr.burst - 1)
  if at > now then return false, math.ceil(at) end
  return true, tat + interval
end

-- Gives a thread its slots and a lane entry, or a place in a line. Returns what its state holds as entry.
local function admit(run, thread, b)
  local member = run .. '|' .. thread
  if is_paused(string.sub(b.lane, 1, -4), b.fn, b.app) then
    redis.call('SADD', F .. 'held', b.fn)
    return wait_in('held:' .. b.fn, member, b)
  end
  for _, limit in ipairs(b.lim) do
    local slots, holder = F .. 'slots:' .. limit.g, limit.r and run or member
    if redis.call('SISMEMBER', slots, holder) == 0 and redis.call('SCARD', slots) >= slots_of(b.fn, limit) then
      return wait_in(limit.g, member, b, limit)
    end
  end
  if b.thr then
    local line = F .. 'line:' .. b.thr.g
    local ok, at = may_start(b.thr)
    local first = redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')
    if not ok or (first[2] and tonumber(first[2]) < b.sc) then
      redis.call('ZADD', timers, ok and now or at, 'T|' .. b.thr.g .. '|')
      return wait_in(b.thr.g, member, b, b.thr)
    end
    redis.call('SET', F .. 'tat:' .. b.thr.g, at, 'PX', math.ceil(at - now) + 1000)
    redis.call('HDEL', F .. 'run:' .. run, 'thr')
    b.thr = nil
  end
  for _, limit in ipairs(b.lim) do
    redis.call('SADD', F .. 'slots:' .. limit.g, limit.r and run or member)
    label(limit.g, b.fn, limit)
  end
  return enqueue(run, thread, b.lane)
end

-- A thread's first lane entry, or the next after a wait.
local function queue(run, thread, lane)
  local b = bounds(run)
  if not b then return enqueue(run, thread, lane) end
  return admit(run, thread, b)
end

local function forget_group(group)
  if redis.call('EXISTS', F .. 'slots:' .. group, F .. 'line:' .. group) == 0 then
    redis.call('HDEL', F .. 'groups', group)
  end
end

-- Calls those who wait in a line, in their order, as far as limits admit them.
local function call_line(line)
  local key, place, calls = F .. 'line:' .. line, 0, 0
  while true do
    local head = redis.call('ZRANGE', key, place, place)[1]
    if not head then break end
    if calls == 64 then
      redis.call('ZADD', timers, now, 'G|' .. line .. '|')
      break
    end
    calls = calls + 1
    local run, thread = string.match(head, '^([^|]*)|(.*)$')
    local live, b = F .. 'live:' .. run, bounds(run)
    local state = thread_of(live, thread)
    if not b or not state or state.entry ~= '~' .. line then
      redis.call('ZREM', key, head)
    else
      local throttle = b.thr and '~' .. b.thr.g
      redis.call('ZREM', key, head)
      state.entry = admit(run, thread, b)
      keep_thread(live, thread, state)
      if state.entry == '~' .. line or state.entry == throttle then
        -- Those behind fare no better, but for another function's: its limit may be wider, or it has no throttle.
        local is_shared = false
        for _, limit in ipairs(b.lim) do is_shared = is_shared or (limit.s and limit.g == line) end
        if state.entry == '~' .. line then place = place + 1 end
        if not is_shared or calls == 8 then break end
      end
    end
  end
  if string.sub(line, 1, 5) ~= 'held:' then
    forget_group(line)
  elseif redis.call('EXISTS', key) == 0 then
    redis.call('SREM', F .. 'held', string.sub(line, 6))
  end
end

-- A thread calls no more: its slots go to those who wait.
local function release(run, thread, limits)
  local freed = {}
  for _, limit in ipairs(limits) do
    if not limit.r and redis.call('SREM', F .. 'slots:' .. limit.g, run .. '|' .. thread) == 1 then
      freed[#freed + 1] = limit.g
    end
  end
  for _, group in ipairs(freed) do call_line(group) end
end

-- Hands a run's slots from one of its threads to the next. Not where somebody who comes before the run waits for one.
local function pass_on(run, from, to, limits, sc)
  for _, limit in ipairs(limits) do
    if not limit.r then
      local first = redis.call('ZRANGE', F .. 'line:' .. limit.g, 0, 0, 'WITHSCORES')
      if first[2] and tonumber(first[2]) < sc then return false end
      if redis.call('SISMEMBER', F .. 'slots:' .. limit.g, run .. '|' .. from) == 0 then return false end
    end
  end
  for _, limit in ipairs(limits) do
    if not limit.r and from ~= to then
      redis.call('SREM', F .. 'slots:' .. limit.g, run .. '|' .. from)
      redis.call('SADD', F .. 'slots:' .. limit.g, run .. '|' .. to)
    end
  end
  return true
end

-- The end of a run, once: state, indexes, everything that would have brought it on.
local function finish(run, status, output, err, why, keep_ms)
  local hash, live = F .. 'run:' .. run, F .. 'live:' .. run
  index(run, redis.call('HGET', hash, 'st'), status)
  redis.call('HSET', hash, 'st', status, 'e', now, 'out', output, 'err', err, 'why', why)
  local fields = redis.call('HGETALL', live)
  local freed, lim = {}, redis.call('HGET', hash, 'lim')
  for i = 1, #fields, 2 do
    local kind, name = string.sub(fields[i], 1, 2), string.sub(fields[i], 3)
    if kind == 's:' then forget_step(run, live, name, fields[i + 1]) end
    if kind == 't:' then
      redis.call('ZREM', timers, 't|' .. run .. '|' .. name)
      local line = string.match(fields[i + 1], '^%d+|%d+|~(.*)$')
      if line then
        redis.call('ZREM', F .. 'line:' .. line, run .. '|' .. name)
        freed[line] = true
      end
    end
    if kind == 'c:' then drop_wait(fields[i + 1], run .. '|c:' .. name) end
  end
  redis.call('ZREM', timers, 'S|' .. run .. '|', 'F|' .. run .. '|')
  redis.call('DEL', live)
  if lim then
    for _, limit in ipairs(cjson.decode(lim)) do
      freed[limit.g] = true
      redis.call('SREM', F .. 'slots:' .. limit.g, run)
      for i = 1, #fields, 2 do
        if string.sub(fields[i], 1, 2) == 't:' then
          redis.call('SREM', F .. 'slots:' .. limit.g, run .. '|' .. string.sub(fields[i], 3))
        end
      end
    end
  end
  local single = redis.call('HGET', hash, 'sg')
  if single and redis.call('GET', F .. 'single:' .. single) == run then redis.call('DEL', F .. 'single:' .. single) end
  for line in pairs(freed) do call_line(line) end
  for _, kind in ipairs({'run:', 'steps:', 'stack:', 'log:'}) do redis.call('PEXPIRE', F .. kind .. run, keep_ms) end
end
