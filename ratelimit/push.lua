-- Shut a gate for a while. Follows clock.lua.
--
-- KEYS   1 gate: the instant until which it is shut, in microseconds
-- ARGV   1 clock in microseconds, empty for Redis TIME (only tests give one)   2 for how long, in microseconds
--
-- Caveats: one that is shut for longer stays so.

local wait = tonumber(ARGV[2])
local shut = tonumber(redis.call('GET', KEYS[1]) or 0)
if now + wait > shut then
  redis.call('SET', KEYS[1], string.format('%.0f', now + wait), 'PX', math.ceil(wait / 1000) + 1)
end
