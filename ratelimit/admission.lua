-- Answer a batch of candidates: check the ledger, take the limits, grant the leases.
-- Follows clock.lua, ledger.lua and limits.lua in one script.
--
-- KEYS   job key of each candidate, then the key of each limit they name
-- ARGV   1 clock in microseconds, empty for Redis TIME (only tests give one)
--        2 lease in ms   3 marker retention in ms   4 token of this batch
--        5 tokens of batches whose answer never arrived, each between spaces, or empty
--        6 number of candidates, then per limit: interval in microseconds or 0, capacity: of a rate both, of a
--        concurrency the capacity, of a gate neither; then per candidate: fence; then, if there are limits,
--        per candidate: '' or 'cost:limit,limit'
-- Returns { answers, detail... }: one letter per candidate, and integers for the letters that have some
--        R run   C run after crashes (their number)   D duplicate   L leased (microseconds left)
--        T limited (microseconds until it fits, limit that frees last, from 1)
--
-- Caveats: all keys share one hash tag, hence one slot. A script runs alone: the client bounds the batch.

local marker, doubted, count = ARGV[3], ARGV[5], tonumber(ARGV[6])
local lease_ends = now_ms + ARGV[2]
local lease_text = string.format('%.0f', lease_ends)
local limits, plans = {}, {}
local fences = 6 + 2 * (#KEYS - count)
local codes = fences + count

local stored = values_of(KEYS)
local value_of, granted = {}, {}
for i = 1, count do
  value_of[KEYS[i]] = stored[i]
end
for i = count + 1, #KEYS do
  local number = i - count
  local interval, capacity = tonumber(ARGV[5 + 2 * number]), tonumber(ARGV[6 + 2 * number])
  limits[number] = open_limit(number, KEYS[i], interval, capacity, stored[i])
end
if #limits > 0 then
  for i = 1, count do
    local code = ARGV[codes + i]
    if code ~= '' then
      local plan = plans[code] or open_plan(code, limits)
      plans[code] = plan
      plan.asked = plan.asked + 1
    end
  end
  weigh(plans, limits)
end

local letters, reply = {}, { '' }
local function answer(i, letter, first, second)
  letters[i] = letter
  reply[#reply + 1] = first
  reply[#reply + 1] = second
end

local function grant(i, key, fence, crashes)
  local value = 'l' .. token .. ' ' .. lease_text .. ' ' .. crashes .. ' ' .. fence
  redis.call('SET', key, value, 'PX', marker)
  value_of[key] = value
  granted[key] = true
  if crashes == 0 then
    letters[i] = 'R'
  else
    answer(i, 'C', crashes)
  end
end

for i = 1, count do
  local key, fence = KEYS[i], ARGV[fences + i]
  local plan = plans[ARGV[codes + i]]
  local value = value_of[key]
  local crashes, answered = 0, false
  if value then
    local kind = value:sub(1, 1)
    local holder, ends, lost, floor
    if kind == 'l' then
      holder, ends, lost, floor = value:match('^l(%S*) (%d+) (%d+) (.*)$')
    elseif kind == 'w' then
      lost, floor = value:match('^w%S* (%d+) (.*)$')
    end
    crashes = tonumber(lost or 0)
    if kind == 'd' or (floor ~= fence and less(fence, floor)) then
      answer(i, 'D')
      answered = true
    elseif kind == 'l' then
      local runs = tonumber(ends) > now_ms
      local unheard = not granted[key] and (holder == token or doubted:find(' ' .. holder .. ' ', 1, true))
      if unheard and (runs or not plan or not plan.places) then
        -- Granted before, but the answer was lost on its way: nobody runs it, and its limits are taken already. Its
        -- places, too, but under the token of that batch: they are taken again, and those run out.
        grant(i, key, fence, crashes)
        if plan then
          plan.again = plan.again + 1
        end
        answered = true
      elseif runs then
        answer(i, 'L', tonumber(ends) * 1000 - now)
        answered = true
      elseif not unheard then
        crashes = crashes + 1
      end
    end
  end
  if not answered then
    if not plan or take(plan) then
      grant(i, key, fence, crashes)
    else
      answer(i, 'T', refusal(plan, lease_ends))
    end
  end
end

spend(plans, limits, lease_ends, marker)

reply[1] = table.concat(letters)
return reply
