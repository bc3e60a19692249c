-- Extend leases, each only if its token still holds the job, and keep their places.
-- Follows clock.lua, ledger.lua and places.lua in one script.
--
-- KEYS   job key of each lease, then as in places.lua
-- ARGV   1 clock in microseconds, empty for Redis TIME (only tests give one)
--        2 lease in ms   3 marker retention in ms   4 number of leases, then per lease: token; then, if there are
--        places, per lease: code as in places.lua
-- Returns one digit per lease: 1 extended, 0 the lease was lost and nothing changed
--
-- Caveats: a missing key (the ledger was flushed) is held by nobody, so the lease is written again, with the
-- lowest fence, and so are its places. A lease that ran out, but that nobody took over, is extended: somebody else may
-- have its places by then, and one job more than the limit allows runs.

local lease, marker, count = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local lease_ends = now_ms + lease
local lease_text = string.format('%.0f', lease_ends)

local stored = redis.call('MGET', unpack(KEYS, 1, count))
local digits, written = {}, {}
for i = 1, count do
  local key, token = KEYS[i], ARGV[4 + i]
  local value = written[key] or stored[i]
  local holder, crashes, fence = token, '0', ''
  if value then
    holder, crashes, fence = value:match('^l(%S*) %d+ (%d+) (.*)$')
  end
  if holder == token then
    written[key] = 'l' .. token .. ' ' .. lease_text .. ' ' .. crashes .. ' ' .. fence
    redis.call('SET', key, written[key], 'PX', marker)
    if #KEYS > count then
      change(ARGV[4 + count + i], token)
    end
    digits[i] = '1'
  else
    digits[i] = '0'
  end
end
changed(count, function(kept, places, ends)
  -- Places whose leases have run out are gone, whether or not anybody has looked.
  return ends and ends > now_ms and places or kept, lease_ends
end)
for i = count + 1, #KEYS do
  redis.call('PEXPIRE', KEYS[i], marker)
end
return table.concat(digits)
