package redis

import "github.com/redis/go-redis/v9"

// One script a decision. A message is a hash with these fields:
//
//	holder  who claimed it last, or finished it
//	until   when the lease ends, in ms since 1970; 0: it was released
//	tokens  when the last of the tokens that are bound to it stops being valid: it is remembered until then
//	status, header, body  the answer, once it is finished
var (
	// KEYS: message, token. ARGV: holder, lease, message's ttl, token's ttl (all in ms), whether only to look.
	claim = redis.NewScript(`
local message, token = KEYS[1], KEYS[2]
local holder, lease, ttl, valid = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local function keep(key)
  if redis.call('PTTL', key) < valid then
    redis.call('PEXPIRE', key, ARGV[4])
  end
end

if not redis.call('SET', token, message, 'NX', 'PX', ARGV[4]) then
  if redis.call('GET', token) ~= message then
    return {'replayed'}
  end
  keep(token)
end

local m = redis.call('HMGET', message, 'holder', 'until', 'tokens', 'status', 'header', 'body')
if m[4] then
  keep(message)
  local header = m[5]
  if not header then -- the version before this one kept it in parts
    local old = redis.call('HMGET', message, 'type', 'permanent', 'upstash')
    header = old[3] or ''
    if old[1] and old[1] ~= '' then
      header = 'Content-Type: ' .. old[1] .. '\r\n' .. header
    end
    if old[2] == '1' then
      header = 'Upstash-NonRetryable-Error: true\r\n' .. header
    end
  end
  return {'finished', m[4], header, m[6] or ''}
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local tokens = math.max(tonumber(m[3] or 0), now + valid)
local free = not m[1] or m[1] == holder or tonumber(m[2]) <= now
if free and ARGV[5] == 'no' then
  redis.call('HSET', message,
    'holder', holder, 'until', string.format('%d', now + lease), 'tokens', string.format('%d', tokens))
  redis.call('PEXPIRE', message, string.format('%d', lease + math.max(ttl, tokens - now)))
  return {'claimed'}
end
redis.call('HSET', message, 'tokens', string.format('%d', tokens))
keep(message)
if free then
  return {'free'}
end
return {'running', string.format('%d', m[2] - now)}`)

	// KEYS: message. ARGV: holder, message's ttl in ms, status, header, body.
	complete = redis.NewScript(`
local m = redis.call('HMGET', KEYS[1], 'holder', 'until', 'tokens', 'status')
if m[4] then
  return m[1] == ARGV[1] and 1 or 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if m[1] and m[1] ~= ARGV[1] and tonumber(m[2]) > now then
  return 0
end
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'status', ARGV[3], 'header', ARGV[4], 'body', ARGV[5])
redis.call('PEXPIRE', KEYS[1], string.format('%d', math.max(tonumber(ARGV[2]), tonumber(m[3] or 0) - now)))
return 1`)

	// KEYS: message. ARGV: holder.
	release = redis.NewScript(`
local m = redis.call('HMGET', KEYS[1], 'holder', 'status')
if m[1] ~= ARGV[1] then
  return 0
end
if not m[2] then
  redis.call('HSET', KEYS[1], 'until', '0')
end
return 1`)
)
