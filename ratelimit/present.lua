-- Say that a worker lives, and return those that live. Follows clock.lua.
--
-- KEYS   1 sorted set: workers, by the instant in ms until which they count as alive
-- ARGV   1 clock in microseconds, empty for Redis TIME (only tests give one)   2 worker   3 for how long, in ms, or 0
--        for a worker that leaves

redis.call('ZADD', KEYS[1], string.format('%.0f', now_ms + ARGV[3]), ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now_ms))
if tonumber(ARGV[3]) > 0 then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return redis.call('ZRANGE', KEYS[1], 0, -1)
