-- Spends ARGV[1] of the budget KEYS[1] if that fits.
-- Answers what remains, or -1.
local budget = redis.call('HMGET', KEYS[1], 'limit', 'held', 'spent')
local remaining = tonumber(budget[1]) - tonumber(budget[2]) - tonumber(budget[3])
local amount = tonumber(ARGV[1])
if amount > remaining then
  return -1
end
redis.call('HINCRBY', KEYS[1], 'spent', amount)
return remaining - amount
