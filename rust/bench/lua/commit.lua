-- Ends the hold ARGV[1] and spends ARGV[2] of the budget KEYS[1]; KEYS as for a Reserve.
-- Answers whether there was such a hold, and how much it held.
local held = redis.call('HGET', KEYS[2], ARGV[1])
if not held then
  return {0, 0}
end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HINCRBY', KEYS[1], 'held', -held)
redis.call('HINCRBY', KEYS[1], 'spent', ARGV[2])
return {1, tonumber(held)}
