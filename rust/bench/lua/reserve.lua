-- Holds ARGV[2] of the budget KEYS[1] under the idempotency key ARGV[1] for ARGV[3] milliseconds.
-- KEYS[2] has the holds by key, KEYS[3] their ends; up to ten that have ended are given back first.
-- Answers whether it is held, and what remains. A repeat is answered and holds nothing.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
for _, key in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, 10)) do
  redis.call('HINCRBY', KEYS[1], 'held', -redis.call('HGET', KEYS[2], key))
  redis.call('HDEL', KEYS[2], key)
  redis.call('ZREM', KEYS[3], key)
end
local budget = redis.call('HMGET', KEYS[1], 'limit', 'held', 'spent')
local remaining = tonumber(budget[1]) - tonumber(budget[2]) - tonumber(budget[3])
local amount = tonumber(ARGV[2])
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then
  return {1, remaining}
end
if amount > remaining then
  return {0, remaining}
end
redis.call('HINCRBY', KEYS[1], 'held', amount)
redis.call('HSET', KEYS[2], ARGV[1], amount)
redis.call('ZADD', KEYS[3], now + ARGV[3], ARGV[1])
return {1, remaining - amount}
