-- Places of concurrency limits that jobs give back or keep. Comes before settle.lua and renew.lua.
--
-- KEYS   after the job keys: the hash of each concurrency limit, as in limits.lua
-- A code 'n,n' names hashes by their number, from 1.

local changes = {}

-- Note that one more job of a token gives back, or keeps, its places.
local function change(code, token)
  local tokens = changes[code]
  if not tokens then
    tokens = {}
    changes[code] = tokens
  end
  tokens[token] = (tokens[token] or 0) + 1
end

-- Return for each hash how many jobs of which token change in it.
local function by_hash()
  local counts = {}
  for code, tokens in pairs(changes) do
    for number in code:gmatch('%d+') do
      local of = counts[number] or {}
      counts[number] = of
      for token, count in pairs(tokens) do
        of[token] = (of[token] or 0) + count
      end
    end
  end
  return counts
end

-- Change what tokens have in each hash. `edit` gets how many jobs of a token change, the places and the end, in ms,
-- that it has there, if it has any; it returns those that it has from now on.
local function changed(jobs, edit)
  for number, of in pairs(by_hash()) do
    local key, fields = KEYS[jobs + number], { '' }
    for token in pairs(of) do
      fields[#fields + 1] = token
    end
    local kept = redis.call('HMGET', key, unpack(fields))
    local sum, written, gone = tonumber(kept[1] or 0), {}, {}
    for i = 2, #fields do
      local places, ends = (kept[i] or ''):match('^(%d+) (%d+)$')
      places = tonumber(places or 0)
      local after, until_ms = edit(of[fields[i]], places, tonumber(ends))
      sum = sum + after - places
      if after > 0 then
        written[#written + 1] = fields[i]
        written[#written + 1] = string.format('%d %.0f', after, until_ms)
      elseif places > 0 then
        gone[#gone + 1] = fields[i]
      end
    end
    if sum <= 0 then
      redis.call('DEL', key)
    else
      redis.call('HSET', key, '', sum, unpack(written))
      if #gone > 0 then
        redis.call('HDEL', key, unpack(gone))
      end
    end
  end
end
