-- Return what was said after a version, in its order.
--
-- KEYS   1 and 2 as in control.lua
-- ARGV   1 version   2 most that is returned
-- Returns { } or { names, values }, the values as the hash has them
-- Clock  none: what has ended and was not forgotten yet is among them.

local names = redis.call('ZRANGE', KEYS[1], '(' .. ARGV[1], '+inf', 'BYSCORE', 'LIMIT', 0, ARGV[2])
if #names == 0 then
  return {}
end
return { names, redis.call('HMGET', KEYS[2], unpack(names)) }
