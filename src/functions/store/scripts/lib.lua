--[[
lib.lua: what the scripts of runs share. It stands before each of them (see ../scripts.rs).

KEYS  1 journal stream; every other key is built from the tag, so all are in one slot
      2 a key that shifts the clock, ms: only where a test moves time
ARGV  1 tag   2 journal blob (MessagePack records) or ''

A run's keys, after `<tag>:fn:`
  run:<id>    hash    fn fid app lane ev eids corr cause tr tp q s e st rv fp ft out err why size
                      sc   its place among those who wait: creation less priority, ms
                      lim  limits of what runs at once, JSON: [{g group, n slots, k scope and key as registered, v value
                           of the key, r held by the run, s shared by functions}]
                      thr  throttle of its start, JSON {g, n, burst, ms, k, v}; gone once it started
                      sg   the singleton it holds
  steps:<id>  hash    step hash -> memoized value, JSON
  stack:<id>  list    step hashes in the order of completion
  live:<id>   hash    what keeps the run going; deleted at its end:
                      t:<thread>  attempt|generation|lane entry ('' while a retry waits, `~<line>` while it waits in a
                                  line); the thread of discovery is `d`, that of a targeted call is its step hash
                      b:<thread>  when its call began, ms; of runs with limits only
                      a:<entry>   the thread that goes on under a lane entry which names another one
                      s:<step>    kind|race|detail of a step that was reported and has no value yet
                      p:<step>    it is one of a fan-out, `pn` counts them
                      c:<n>       place of an event that cancels the run
                      g           the last generation that was given
                      dirty       something completed while a discovery was under way
  log:<id>    stream  history
]]
local journal, T, blob = KEYS[1], ARGV[1], ARGV[2]
local F = T .. ':fn:'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if KEYS[2] then now = now + tonumber(redis.call('GET', KEYS[2]) or '0') end

local function note(run, json)
  if json ~= '' then redis.call('XADD', F .. 'log:' .. run, 'MAXLEN', '~', 2000, '*', 'j', json) end
end

-- Appends to a lane as append.lua does, but for the checks, which are of events from outside.
local function append(lane, envelope)
  local lanes, key = T .. ':lanes', T .. ':lane:' .. lane
  local seen = redis.call('HGET', lanes, lane)
  -- A new lane gets its group before any reader can meet it.
  if not seen then redis.pcall('XGROUP', 'CREATE', key, 'drainer', '0', 'MKSTREAM') end
  local id = redis.call('XADD', key, '*', 'e', envelope)
  if not seen then
    redis.call('SADD', T .. ':families', string.sub(lane, 1, -4))
    redis.call('HSET', lanes, lane, now .. ',' .. now)
    redis.call('PUBLISH', T .. ':ctl', 'lane ' .. lane)
  else
    local comma = string.find(seen, ',', 1, true)
    if now - tonumber(string.sub(seen, comma + 1)) > 60000 then
      redis.call('HSET', lanes, lane, string.sub(seen, 1, comma) .. now)
    end
  end
  if redis.call('HLEN', lanes) > 128 then
    redis.call('SADD', T .. ':ready', lane)
    if redis.call('LLEN', T .. ':wake') < 64 then redis.call('LPUSH', T .. ':wake', '1') end
  end
  return id
end

local function enqueue(run, thread, lane)
  local span = redis.call('HGET', F .. 'run:' .. run, 'tr')
  return append(lane, cmsgpack.pack({
    v = 1, trace = span and '{"traceparent":"' .. span .. '"}' or nil, id = run .. '/' .. thread, name = string.sub(lane, 1, -4), source = 'functions', ts = now,
    data = '{"run":"' .. run .. '","thread":"' .. thread .. '"}', priority = tonumber(string.sub(lane, -1)),
  }))
end

local function thread_of(live, thread)
  local value = redis.call('HGET', live, 't:' .. thread)
  if not value then return nil end
  local attempt, generation, entry = string.match(value, '^(%d+)|(%d+)|(.*)$')
  return {attempt = tonumber(attempt), generation = tonumber(generation), entry = entry}
end

local function keep_thread(live, thread, state)
  redis.call('HSET', live, 't:' .. thread, state.attempt .. '|' .. state.generation .. '|' .. state.entry)
end

-- Rises over all calls of the run, so that a call long gone is never taken for a later one of the same thread.
local function next_generation(live) return redis.call('HINCRBY', live, 'g', 1) end

-- Whether anything will bring the run on by itself, beside the threads in `except`.
local function is_going(live, except)
  for _, field in ipairs(redis.call('HKEYS', live)) do
    local kind = string.sub(field, 1, 2)
    if kind == 's:' or (kind == 't:' and string.sub(field, 3) ~= except) then return true end
  end
  return false
end

-- A wait is kept at a place: `<event>`, or `<event>\n<path>\n<value>` (see ../waits.rs).
local function event_of(place) return string.match(place, '^[^\n]*') end

-- True when nobody waited for the event yet.
local function add_wait(place, member, value)
  local event, path = event_of(place), string.match(place, '\n([^\n]*)\n')
  if redis.call('HSET', F .. 'wait:' .. place, member, value) == 1 then redis.call('HINCRBY', F .. 'waitn', event, 1) end
  if path then redis.call('SADD', F .. 'paths:' .. event, path) end
  return redis.call('HSETNX', F .. 'waited', event, now) == 1
end

local function drop_wait(place, member)
  local event = event_of(place)
  if redis.call('HDEL', F .. 'wait:' .. place, member) == 1 and redis.call('HINCRBY', F .. 'waitn', event, -1) <= 0 then
    redis.call('HDEL', F .. 'waitn', event)
  end
end

local function forget_step(run, live, step, value)
  local kind, detail = string.match(value, '^(%a+)|%d|(.*)$')
  if kind == 'sleep' or kind == 'wait' or kind == 'invoke' or kind == 'signal' then
    redis.call('ZREM', F .. 'timers', 's|' .. run .. '|' .. step)
  end
  if kind == 'wait' then drop_wait(detail, run .. '|' .. step) end
  if kind == 'signal' and redis.call('HGET', F .. 'signals', detail) == run .. '|' .. step then
    redis.call('HDEL', F .. 'signals', detail)
  end
  redis.call('HDEL', live, 's:' .. step)
end

local function index(run, from, to)
  if from then redis.call('ZREM', F .. 'runs:st:' .. from, run) end
  redis.call('ZADD', F .. 'runs:st:' .. to, redis.call('HGET', F .. 'run:' .. run, 'q'), run)
end

