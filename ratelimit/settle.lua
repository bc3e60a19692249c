-- Write how runs ended, each only if its token still holds the job, and give their places back.
-- Follows ledger.lua and places.lua in one script.
--
-- KEYS   job key of each mark, then as in places.lua
-- ARGV   1 marker retention in ms   2 number of marks, then per mark: token, and 'd' done, 'r' released or
--        'w<fence>' waiting; then, if there are places, per mark: code as in places.lua
-- Returns one digit per mark: 1 written, 0 the lease was lost and nothing changed
-- Clock  none: a lease that ran out, but that nobody took over, still settles.
--
-- Caveats: a missing key (the ledger was flushed) is held by nobody, so the mark is written. A mark that is
-- already there under the same token is the same call repeated, so 1. A stored fence never goes back.

local marker, count = ARGV[1], tonumber(ARGV[2])
local stored = redis.call('MGET', unpack(KEYS, 1, count))
local value_of, digits = {}, {}
for i = 1, count do
  value_of[KEYS[i]] = stored[i]
end

-- Return the value that the mark turns this one into, the same one if it is there already, or nil if refused.
local function settled(value, token, mark)
  local kind, holder = 'l', token
  local crashes, fence = '0', ''
  if value then
    kind, holder = value:match('^(.)(%S*)')
  end
  if holder ~= token then
    return nil
  end
  local done = 'd' .. token
  if kind == 'd' then
    return mark == 'd' and value or nil
  elseif kind == 'w' then
    local waits = mark:sub(1, 1) == 'w' and not less(value:match('^w%S* %d+ (.*)$'), mark:sub(2))
    return (mark == 'r' or waits) and value or nil
  elseif mark == 'd' then
    return done
  end
  if value then
    crashes, fence = value:match('^l%S* %d+ (%d+) (.*)$')
  end
  if mark == 'r' then
    return value and 'w' .. token .. ' ' .. crashes .. ' ' .. fence or ''
  end
  local later = mark:sub(2)
  if less(later, fence) then
    later = fence
  end
  return 'w' .. token .. ' 0 ' .. later
end

for i = 1, count do
  local key = KEYS[i]
  local before = value_of[key]
  local after = settled(before, ARGV[1 + 2 * i], ARGV[2 + 2 * i])
  if after and after ~= before and after ~= '' then
    redis.call('SET', key, after, 'PX', marker)
    value_of[key] = after
  end
  if #KEYS > count and after and before and before:sub(1, 1) == 'l' then
    change(ARGV[2 + 2 * count + i], ARGV[1 + 2 * i])
  end
  digits[i] = after and '1' or '0'
end
changed(count, function(given_back, places, ends)
  return places - math.min(given_back, places), ends
end)
return table.concat(digits)
