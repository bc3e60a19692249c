-- What the limits of a batch have left, and taking from them. Follows clock.lua, and comes before admission.lua.
--
-- A limit is a table: number, key, interval, capacity, and
--   left     what still fits now: of a rate so many units, of a concurrency so many places, of a gate all or nothing
--   demand   what the whole batch asks of it. A limit that has that much left refuses nobody, so it is only counted
--   held     of a concurrency: how many places are held, and `own` how many of them by this batch's token
-- A plan is what some jobs of the batch are held to alike: its limits, their cost, the scarce ones among them, and
-- how many jobs asked and were let in. A job costs a rate its cost, and any other limit one.
--
-- A rate's key holds the instant at which its allowance is whole again (GCRA), in microseconds; a gate's key the
-- instant until which it is shut. A concurrency's key is a hash: token to '<places> <end, ms>', and '' to the sum of
-- places. Jobs that were let in together have one token, so what places cost grows with the number of batches that
-- run, not of jobs; each gives its place back by itself, and all keep theirs while the lease of any is renewed.
--
-- Caveats: who crashed is counted in a concurrency until that would refuse somebody, or until the key expires.

local token = ARGV[4]

local function open_limit(number, key, interval, capacity, stored)
  -- With room for all its fields: a table that grows is copied.
  local limit = {
    number = number, key = key, interval = interval, capacity = capacity, left = 0, first = 0, demand = 0, taken = 0,
    full = 0, eased = false, held = false, own = 0, placed = 0, shut = false, scarce = false, tried = false,
  }
  if interval > 0 then
    -- Never fuller than its capacity allows: a limit that was raised, or a clock that went back, frees from now on.
    -- That is written even if nobody is let in, or it would be as full again at the next question.
    local kept, whole = tonumber(stored or 0), capacity * interval
    limit.full = math.min(math.max(kept, now), now + whole)
    limit.eased = kept > limit.full
    limit.left = math.floor((now + whole - limit.full) / interval)
  elseif capacity > 0 then
    local kept = redis.call('HMGET', key, '', token)
    limit.held = tonumber(kept[1] or 0)
    limit.own = tonumber(kept[2] and kept[2]:match('^%d+') or 0)
    limit.left = capacity - limit.held
  else
    limit.shut = tonumber(stored or 0)
    limit.left = limit.shut > now and 0 or math.huge
  end
  return limit
end

local function open_plan(code, limits)
  local cost, list = code:match('^(%d+):(.*)$')
  local plan = { cost = tonumber(cost), asked = 0, granted = 0, again = 0, scarce = {}, tried = false }
  for number in list:gmatch('%d+') do
    plan[#plan + 1] = limits[tonumber(number)]
    plan.places = plan.places or limits[tonumber(number)].held
  end
  return plan
end

-- Return the places of a concurrency as a list of { end, count, token }, the earliest end first.
local function places_of(limit)
  local kept, places = redis.call('HGETALL', limit.key), {}
  for i = 1, #kept, 2 do
    if kept[i] ~= '' then
      local places_held, ends = kept[i + 1]:match('^(%d+) (%d+)$')
      places[#places + 1] = { tonumber(ends), tonumber(places_held), kept[i] }
    end
  end
  table.sort(places, function(a, b)
    return a[1] < b[1]
  end)
  return places
end

-- Free the places of leases that ran out.
local function prune(limit)
  for _, place in ipairs(places_of(limit)) do
    if place[1] <= now_ms then
      redis.call('HDEL', limit.key, place[3])
      limit.held = limit.held - place[2]
    end
  end
  redis.call('HSET', limit.key, '', limit.held)
  limit.left = limit.capacity - limit.held
end

-- Find out which limits may refuse somebody, from how often each plan is asked for.
local function weigh(plans, limits)
  for _, plan in pairs(plans) do
    for i = 1, #plan do
      local limit = plan[i]
      limit.demand = limit.demand + (limit.interval > 0 and plan.asked * plan.cost or plan.asked)
    end
  end
  local scarce = false
  for i = 1, #limits do
    local limit = limits[i]
    if limit.demand > limit.left then
      if limit.held and limit.held > 0 then
        prune(limit)
      end
      limit.first = limit.left
      limit.scarce = limit.demand > limit.left
      scarce = scarce or limit.scarce
    end
  end
  for _, plan in pairs(scarce and plans or {}) do
    for i = 1, #plan do
      if plan[i].scarce then
        plan.scarce[#plan.scarce + 1] = plan[i]
      end
    end
  end
end

-- Return how long a limit refuses a plan, in microseconds, and 0 if it does not.
local function wait_for(limit, plan, lease_ends)
  if limit.interval > 0 then
    local after = limit.full + (limit.first - limit.left + plan.cost) * limit.interval
    return after - now - limit.capacity * limit.interval
  elseif limit.shut then
    return limit.shut - now
  elseif limit.left > 0 then
    return 0
  end
  -- So many places more than there are must come free; those granted by this batch do so last.
  local over = 1 - limit.left
  for _, place in ipairs(places_of(limit)) do
    over = over - place[2]
    if over <= 0 then
      return place[1] * 1000 - now
    end
  end
  return lease_ends * 1000 - now
end

-- Return the longest wait and the number of its limit: of rates and gates, whose waits are sure, else of places.
local function refusal(plan, lease_ends)
  local wait, by, place_wait, place_by = 0, 0, 0, 0
  for _, limit in ipairs(plan.scarce) do
    local short = wait_for(limit, plan, lease_ends)
    if limit.held and short > place_wait then
      place_wait, place_by = short, limit.number
    elseif not limit.held and short > wait then
      wait, by = short, limit.number
    end
  end
  if wait > 0 then
    return wait, by
  end
  return place_wait, place_by
end

-- Take the plan's cost from all of its limits and return true, or take nothing and return false.
local function take(plan)
  local scarce, cost = plan.scarce, plan.cost
  plan.tried = true
  for i = 1, #scarce do
    if scarce[i].left < (scarce[i].interval > 0 and cost or 1) then
      return false
    end
  end
  for i = 1, #scarce do
    scarce[i].left = scarce[i].left - (scarce[i].interval > 0 and cost or 1)
  end
  plan.granted = plan.granted + 1
  return true
end

-- Write what was taken, and who holds places until when.
local function spend(plans, limits, lease_ends, keep)
  for _, plan in pairs(plans) do
    for i = 1, #plan do
      local limit = plan[i]
      limit.taken = limit.taken + plan.granted * plan.cost
      limit.placed = limit.placed + plan.granted + plan.again
      limit.tried = limit.tried or plan.tried
    end
  end
  for i = 1, #limits do
    local limit = limits[i]
    if limit.interval > 0 and (limit.taken > 0 or limit.eased and limit.tried) then
      local full = limit.full + limit.taken * limit.interval
      redis.call('SET', limit.key, string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000) + 1)
    elseif limit.held and limit.placed > 0 then
      local own = string.format('%d %.0f', limit.own + limit.placed, lease_ends)
      redis.call('HSET', limit.key, '', limit.held + limit.placed, token, own)
      -- A hash in use gets a new expiry every few batches; each one would cost as much as writing to it.
      if limit.held == 0 or now % 16 == 0 then
        redis.call('PEXPIRE', limit.key, keep)
      end
    end
  end
end
