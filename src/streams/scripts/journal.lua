#!lua flags=allow-oom
--[[
journal.lua: write journal records that belong to no other change (started, stopped, stalled, unrouted).

KEYS  1 journal stream
ARGV  1 journal blob
Returns the journal entry's id. allow-oom: the record of a stall or a stop matters most when Redis is full.
]]
return redis.call('XADD', KEYS[1], '*', 'b', ARGV[1])
