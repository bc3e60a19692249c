-- Keep what operators say, each with a version of its own, greater than all before it.
--
-- KEYS   1 sorted set: name by version   2 hash: name to '<version> <end in ms or 0> <value>', the value with a
--        leading '=', or '-' when what was said is taken back   3 sorted set: name by its end in ms
--        4 stream of what was changed: at, by, name, was, is
-- ARGV   1 clock in microseconds, empty for Redis TIME (only tests give one)
--        2 how long it is kept, in ms, or 0 for always   3 most that are forgotten in one call
--        4 who says it, or empty: then it is not kept in the stream   5 most that the stream keeps, roughly
--        then per change: name, value as in the hash
--
-- Versions are instants in microseconds: after the keys were lost, those that follow are still greater than those
-- that readers have seen. They are doubles, exact until the year 2255.
--
-- Caveats: what has ended goes when something else is said; until then readers see it with its end.

local now, keep, by = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[4]
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local now_ms = math.floor(now / 1000)
local ends = keep > 0 and string.format('%.0f', now_ms + keep) or '0'

for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now_ms, 'LIMIT', 0, ARGV[3])) do
  redis.call('ZREM', KEYS[1], name)
  redis.call('HDEL', KEYS[2], name)
  redis.call('ZREM', KEYS[3], name)
end

local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
local version = math.max(now, tonumber(last or 0) + 1)
for i = 6, #ARGV, 2 do
  local name, at = ARGV[i], string.format('%.0f', version)
  if by ~= '' then
    local before = redis.call('HGET', KEYS[2], name)
    local was = before and before:match('^%d+ %d+ (.*)$') or '-'
    redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[5], '*',
      'at', string.format('%.0f', now), 'by', by, 'name', name, 'was', was, 'is', ARGV[i + 1])
  end
  redis.call('ZADD', KEYS[1], at, name)
  redis.call('HSET', KEYS[2], name, at .. ' ' .. ends .. ' ' .. ARGV[i + 1])
  if keep > 0 then
    redis.call('ZADD', KEYS[3], ends, name)
  else
    redis.call('ZREM', KEYS[3], name)
  end
  version = version + 1
end
