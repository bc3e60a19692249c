-- How the ledger is read. Comes before the scripts that use it.
--
-- A job key holds   d<token>                                  done
--                   w<token> <crashes> <fence>                waiting for that fence or a greater one
--                   l<token> <until, ms> <crashes> <fence>    leased

-- Return the values of keys, false for those that are missing; in parts, as Lua passes at most 8,000 at a time.
local function values_of(keys)
  if #keys <= 4000 then
    return redis.call('MGET', unpack(keys))
  end
  local values = {}
  for first = 1, #keys, 4000 do
    local last = math.min(first + 3999, #keys)
    for i, value in ipairs(redis.call('MGET', unpack(keys, first, last))) do
      values[first + i - 1] = value
    end
  end
  return values
end

-- Compare fences by byte: Lua compares strings by the server's locale.
local function less(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = a:byte(i), b:byte(i)
    if x ~= y then
      return x < y
    end
  end
  return #a < #b
end
