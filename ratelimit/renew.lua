-- Extend leases, each only if its token still holds the job.
--
-- KEYS   job key of each lease
-- ARGV   1 clock in microseconds, empty for Redis TIME (only tests give one)
--        2 lease in ms   3 marker retention in ms, then per lease: token
-- Returns one digit per lease: 1 extended, 0 the lease was lost and nothing changed
--
-- The values of a job key are described in admission.lua.
--
-- Caveats: a missing key (the ledger was flushed) is held by nobody, so the lease is written again, with the
-- lowest fence. A lease that ran out, but that nobody took over, is extended.

local now, lease, marker = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local lease_ends = string.format('%.0f', math.floor(now / 1000) + lease)

local stored = redis.call('MGET', unpack(KEYS))
local digits, written = {}, {}
for i, key in ipairs(KEYS) do
  local token = ARGV[3 + i]
  local value = written[key] or stored[i]
  local holder, crashes, fence = token, '0', ''
  if value then
    holder, crashes, fence = value:match('^l(%S*) %d+ (%d+) (.*)$')
  end
  if holder == token then
    written[key] = 'l' .. token .. ' ' .. lease_ends .. ' ' .. crashes .. ' ' .. fence
    redis.call('SET', key, written[key], 'PX', marker)
    digits[i] = '1'
  else
    digits[i] = '0'
  end
end
return table.concat(digits)
