#!lua flags=no-writes,allow-oom
-- A stream's head and some of its events, as of one moment; see Store::read.
-- A script rather than MULTI, which is refused when memory is full.
-- KEYS 1 state hash, 2 log stream; ARGV 1 first entry id, 2 how many. Reply: {head, first}, entries.
return {
  redis.call('HMGET', KEYS[1], 'h', 'f'),
  redis.call('XRANGE', KEYS[2], ARGV[1], '+', 'COUNT', ARGV[2]),
}
