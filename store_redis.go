package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// redisStore remembers in a Redis 7 or Upstash Redis, for all machines that use it. A message is a hash under
// qstash:message:<key>, a bound token a string under qstash:token:<token>. Leases are by Redis's clock.
type redisStore struct {
	client *redis.Client
	ttl    time.Duration
}

var (
	// KEYS: message, token (if it has an id). ARGV: holder, lease ms, message ttl ms, token ttl ms.
	redisClaim = redis.NewScript(`
if KEYS[2] and not redis.call('SET', KEYS[2], KEYS[1], 'NX', 'PX', ARGV[4]) and redis.call('GET', KEYS[2]) ~= KEYS[1] then
  return {'replayed'}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local m = redis.call('HMGET', KEYS[1], 'holder', 'until', 'status', 'type', 'permanent', 'body', 'upstash')
if m[3] then
  return {'finished', m[3], m[4], m[5], m[6], m[7] or ''}
end
if m[1] and m[1] ~= ARGV[1] and tonumber(m[2]) > now then
  return {'running', tostring(m[2] - now)}
end
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'until', string.format('%d', now + ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[2] + ARGV[3])
return {'claimed'}`)

	// KEYS: message. ARGV: holder, message ttl ms, then the fields to set.
	redisEnd = redis.NewScript(`
local m = redis.call('HMGET', KEYS[1], 'holder', 'status')
if m[1] ~= ARGV[1] then
  return 0
end
if not m[2] then
  redis.call('HSET', KEYS[1], unpack(ARGV, 3))
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1`)
)

// openRedis connects to the Redis of options. One that does not answer is tried again for wait; one that answers
// with an error (a wrong password, say) is not.
func openRedis(ctx context.Context, options *redis.Options, ttl, wait time.Duration, log *slog.Logger) (*redisStore, error) {
	logging.Disable() // it would write lines of its own to standard error; what fails comes back as an error
	options.ContextTimeoutEnabled = true
	options.DisableIdentity = true
	options.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	options.DialerRetries = 1 // a command is tried again as a whole
	s := &redisStore{client: redis.NewClient(options), ttl: ttl}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		err := s.client.Ping(ctx).Err()
		if err == nil {
			return s, nil
		}
		var reply redis.Error
		if errors.As(err, &reply) && !strings.HasPrefix(reply.Error(), "LOADING") {
			_ = s.client.Close()
			return nil, fmt.Errorf("STORE_URL: Redis at %s answers %q: check login and database in the URL", options.Addr, reply.Error())
		}
		if ctx.Err() == nil {
			log.Warn("Redis does not answer, trying again", "address", options.Addr, "error", err.Error())
		}
		select {
		case <-ctx.Done():
			_ = s.client.Close()
			return nil, fmt.Errorf("STORE_URL: Redis at %s did not answer within %s: %w; does the address reach it from this machine?", options.Addr, wait, err)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func (s *redisStore) claim(c claim) (decision, error) {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	keys := []string{redisMessage(c.key)}
	if c.token != nil {
		keys = append(keys, "qstash:token:"+hex.EncodeToString(c.token[:]))
	}
	reply, err := redisClaim.Run(ctx, s.client, keys, c.holder, ms(c.lease), ms(s.ttl), ms(c.tokenTTL)).StringSlice()
	if err != nil {
		return decision{}, err
	}
	d := decision{state: state(reply[0])}
	switch d.state {
	case running:
		left, err := strconv.ParseInt(reply[1], 10, 64)
		if err != nil {
			return decision{}, fmt.Errorf("read the lease of a message from Redis: %w", err)
		}
		d.left = time.Duration(left) * time.Millisecond
	case finished:
		d.answer = answer{contentType: reply[2], permanent: reply[3] == "1", body: []byte(reply[4]), upstash: reply[5]}
		if d.answer.status, err = strconv.Atoi(reply[1]); err != nil {
			return decision{}, fmt.Errorf("read the answer of a message from Redis: %w", err)
		}
	}
	return d, nil
}

func (s *redisStore) complete(key messageKey, holder string, a answer) error {
	return s.end(key, holder, "status", a.status, "type", a.contentType, "permanent", a.permanent, "body", a.body, "upstash", a.upstash)
}

func (s *redisStore) release(key messageKey, holder string) error {
	return s.end(key, holder, "until", 0)
}

func (s *redisStore) end(key messageKey, holder string, fields ...any) error {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	args := append([]any{holder, ms(s.ttl)}, fields...)
	held, err := redisEnd.Run(ctx, s.client, []string{redisMessage(key)}, args...).Bool()
	if err == nil && !held {
		return errLeaseLost
	}
	return err
}

func (s *redisStore) close() error { return s.client.Close() }

func redisMessage(key messageKey) string { return "qstash:message:" + hex.EncodeToString(key[:]) }

// ms is d in whole milliseconds, at least one: Redis takes no other expiry.
func ms(d time.Duration) int64 { return max(d.Milliseconds(), 1) }
