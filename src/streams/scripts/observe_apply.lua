#!lua flags=allow-oom
--[[
observe_apply.lua: apply one decision of the observer, if every gate lets it pass.

KEYS  1 pauses hash   2 pause-expiry zset   3 journal stream   4 meta hash (counter `rev`)   5 breaker hash
      6 kill switch   7 memory hash (family -> JSON)   8 applied hash   9 lease   10.. the family's lanes
ARGV  1 lease token   2 application key `<snapshot id>:<index>`   3 kind, 'pause_family' | 'resume_family' | one that is
      refused by 13   4 family
      5 ttl ms   6 record without times (JSON)   7 revision that the snapshot saw, '' when none   8 captured at, ms
      9 limits (JSON: snapshotMs maxTtlMs manualQuietMs resumeDwellMs pauseDwellMs perFamily inAll holdMs)
      10 control channel   11 journal blob   12 '1' when a resume goes through the breaker's half-open state
      13 reason and 14 message of a refusal that needs no look at Redis, or ''
Returns {'applied', record, previous record or ''} | {'rejected', reason, message, standing record or ''}
        | {'lost'} when the lease is no longer the caller's: nothing was changed or journaled.
        Repeated with the same application key it answers the same again and changes nothing.
Invariant: gates, change, memory and journal record are one call; an operator who acts in between is seen. allow-oom.
      The memory of a family is what budget and dwell times are judged by: {pauses: [[start, end]..], at, by} with the
      last resume's time and source; `pause.lua` and `resume.lua` keep it too.
]]
local pauses, expiry, journal, meta, breaker, kill, memory, done, lease =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local token, key, kind, family, ttl, seen = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[7]
local captured, limits, channel, blob = tonumber(ARGV[8]), cjson.decode(ARGV[9]), ARGV[10], ARGV[11]
local earlier = redis.call('HGET', done, key)
if earlier then return cjson.decode(earlier) end
if redis.call('GET', lease) ~= token then return {'lost'} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local standing = redis.call('HGET', pauses, family)
local ends = tonumber(redis.call('ZSCORE', expiry, family) or 0)
if not standing or ends <= now then standing = nil end
if not standing then
  -- A pause of a beginning of names is an operator's, and holds this family too.
  for _, name in ipairs(redis.call('HKEYS', pauses)) do
    local prefix = string.match(name, '^(.*)%*$')
    if prefix and string.sub(family, 1, #prefix) == prefix and tonumber(redis.call('ZSCORE', expiry, name) or 0) > now then
      standing = redis.call('HGET', pauses, name)
    end
  end
end
local old = {}
if standing then
  local readable, record = pcall(cjson.decode, standing)
  old = readable and type(record) == 'table' and record or {source = 'unreadable'}
end

local function recall(name)
  local text = redis.call('HGET', memory, name)
  local readable, value = pcall(cjson.decode, text or '')
  if not readable or type(value) ~= 'table' then value = {} end
  value.pauses = value.pauses or {}
  return value
end
local own = recall(family)

local function has_depth()
  for i = 10, #KEYS do
    local groups = redis.pcall('XINFO', 'GROUPS', KEYS[i])
    if groups.err == nil then
      local last = redis.call('XREVRANGE', KEYS[i], '+', '-', 'COUNT', 1)[1]
      for _, group in ipairs(groups) do
        local info = {}
        for j = 1, #group, 2 do info[group[j]] = group[j + 1] end
        if info.name == 'drainer' then
          if tonumber(info.pending) > 0 then return true end
          if last then
            local ms, seq = string.match(last[1], '^(%d+)-(%d+)$')
            local cursor_ms, cursor_seq = string.match(info['last-delivered-id'], '^(%d+)-(%d+)$')
            ms, seq, cursor_ms, cursor_seq = tonumber(ms), tonumber(seq), tonumber(cursor_ms), tonumber(cursor_seq)
            if ms > cursor_ms or (ms == cursor_ms and seq > cursor_seq) then return true end
          end
        end
      end
    end
  end
  return false
end

local function refusal()
  if ARGV[13] ~= '' then return ARGV[13], ARGV[14] end
  local switched = redis.call('GET', kill)
  if switched then return 'kill_switch', 'the kill switch is on' end
  if now - captured > limits.snapshotMs then return 'stale_snapshot', 'the snapshot is ' .. math.floor((now - captured) / 1000) .. ' s old' end
  if kind == 'resume_family' and not standing then return 'not_paused', 'No active pause existed for ' .. family end
  if standing and old.source ~= 'observer' then return 'manual_pause_active', 'an operator paused ' .. family end
  if kind == 'pause_family' and standing then return 'already_paused', family .. ' is paused already' end
  if kind == 'resume_family' and seen ~= '' and tonumber(old.rev or 0) ~= tonumber(seen) then
    return 'state_changed', 'the pause of ' .. family .. ' is not the one that the snapshot saw'
  end
  if kind == 'resume_family' then
    local since = tonumber(old.appliedAtMs)
    if not since or now - since < limits.pauseDwellMs then return 'dwell', family .. ' was paused less than ' .. math.floor(limits.pauseDwellMs / 1000) .. ' s ago' end
    return nil
  end
  if not has_depth() then return 'empty_family', 'nothing of ' .. family .. ' waits' end
  if own.at then
    local ago = now - own.at
    if own.by == 'manual' then
      if ago < limits.manualQuietMs then return 'manual_quiet', 'an operator resumed ' .. family .. ' ' .. math.floor(ago / 1000) .. ' s ago' end
    elseif ago < limits.resumeDwellMs then
      return 'dwell', family .. ' was resumed ' .. math.floor(ago / 1000) .. ' s ago'
    end
  end
  local used, all, held = 0, 0, 0
  for _, name in ipairs(redis.call('HKEYS', memory)) do
    for _, span in ipairs(recall(name).pauses) do
      if span[1] > now - 3600000 then
        all = all + 1
        if name == family then used = used + 1 end
      end
      if name == family then held = held + math.max(0, math.min(span[2], now) - math.max(span[1], now - 7200000)) end
    end
  end
  if used >= limits.perFamily or all >= limits.inAll then
    return 'budget_exhausted', used .. ' pauses of ' .. family .. ' and ' .. all .. ' in all in the last hour'
  end
  if held + math.min(ttl, limits.maxTtlMs) > limits.holdMs then
    return 'hold_limit', family .. ' was held for ' .. math.floor(held / 1000) .. ' s in the last 120 minutes'
  end
  return nil
end

local function remember(answer)
  redis.call('HSET', done, key, cjson.encode(answer))
  redis.call('PEXPIRE', done, 86400000)
  return answer
end

local reason, message = refusal()
if reason then
  local note = cjson.encode({outcome = 'rejected', error = message, reason = reason, message = message})
  redis.call('XADD', journal, '*', 'b', blob, 'c', note)
  return remember({'rejected', reason, message, standing or ''})
end

if kind == 'pause_family' then
  local record = cjson.decode(ARGV[6])
  if ttl > limits.maxTtlMs then
    record.ttlClampedFrom = ttl
    ttl = limits.maxTtlMs
  end
  record.ttlMs, record.appliedAtMs, record.expiresAtMs = ttl, now, now + ttl
  record.rev = redis.call('HINCRBY', meta, 'rev', 1)
  local text = cjson.encode(record)
  redis.call('HSET', pauses, family, text)
  redis.call('ZADD', expiry, now + ttl, family)
  local kept = {}
  for _, span in ipairs(own.pauses) do
    if span[2] > now - 7200000 then kept[#kept + 1] = span end
  end
  kept[#kept + 1] = {now, now + ttl}
  own.pauses = kept
  redis.call('HSET', memory, family, cjson.encode(own))
  redis.call('XADD', journal, '*', 'b', blob, 'c', text)
  redis.call('PUBLISH', channel, 'pause ' .. family)
  return remember({'applied', text, ''})
end

redis.call('HDEL', pauses, family)
redis.call('ZREM', expiry, family)
local last = own.pauses[#own.pauses]
if last and last[2] > now then last[2] = now end
own.at, own.by = now, 'observer'
redis.call('HSET', memory, family, cjson.encode(own))
local rev = redis.call('HINCRBY', meta, 'rev', 1)
if ARGV[12] == '1' then
  -- One event first: what is downstream may still be away.
  local readable, circuit = pcall(cjson.decode, redis.call('HGET', breaker, family) or '')
  if not readable or type(circuit) ~= 'table' then circuit = {n = 0, failures = 0, attempts = 0, lastError = ''} end
  if circuit.state ~= 'forced_open' and circuit.state ~= 'forced_closed' then
    circuit.state, circuit.since, circuit.openUntil, circuit.successes = 'half_open', now, nil, 0
    circuit.holder, circuit.holderUntil, circuit.rev = nil, nil, rev
    redis.call('HSET', breaker, family, cjson.encode(circuit))
  end
end
redis.call('XADD', journal, '*', 'b', blob, 'c', cjson.encode({rev = rev, previous = old}))
redis.call('PUBLISH', channel, 'resume ' .. family)
return remember({'applied', standing, standing})
