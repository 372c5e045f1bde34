#!lua flags=no-writes,allow-oom
-- A stream's head and some of its events, as of one moment; see Store::read.
-- A script rather than MULTI, which is refused when memory is full.
-- KEYS 1 state hash, 2 log stream; ARGV 1 first seq, 2 how many. Reply: {head, first}, entries.
local kept = redis.call('HMGET', KEYS[1], 'h', 'f')
local from = ARGV[1]
-- The log may still hold some events before the first one kept.
if kept[2] and tonumber(kept[2]) > tonumber(from) then from = kept[2] end
return { kept, redis.call('XRANGE', KEYS[2], from .. '-0', '+', 'COUNT', ARGV[2]) }
