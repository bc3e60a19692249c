-- The instant of a script, in microseconds: ARGV[1], or Redis TIME where that is empty. Comes first in a script.
-- Instants are doubles, exact to the microsecond until the year 2255.

local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local now_ms = math.floor(now / 1000)
