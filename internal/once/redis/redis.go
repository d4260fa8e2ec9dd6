// Package redis is a once.Store in a Redis 7 or an Upstash Redis, for all machines that use it.
package redis

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"qstash-receiver/internal/once"
)

// Store is a once.Store. A message is a hash under qstash:message:<key>, a bound token a string under
// qstash:token:<token>, and every key expires. Leases are by Redis's clock.
type Store struct {
	client    *redis.Client
	ttl       time.Duration
	decisions chan *decision
	senders   sync.WaitGroup
}

// Parse checks a redis:// or rediss:// URL without connecting. Its error holds no password.
func Parse(url string) (*redis.Options, error) {
	options, err := redis.ParseURL(url)
	if err != nil || strings.Contains(url, "#") || !hasPort(options.Addr) {
		// The text of err repeats parts of the URL, maybe of the password.
		return nil, errors.New("not a Redis URL; write it like rediss://default:password@host:6379, " +
			"with / ? # % in the password as %2F %3F %23 %25")
	}
	return options, nil
}

func hasPort(address string) bool {
	_, port, err := net.SplitHostPort(address)
	n, numeric := strconv.ParseUint(port, 10, 16)
	return err == nil && numeric == nil && n > 0
}

// Open connects to the Redis of options and carries out a claim, a completion and a release there. A Redis that does
// not answer, or is loading, is tried again for wait; one that cannot serve is an error at once, with its fix.
func Open(ctx context.Context, options *redis.Options, ttl, wait time.Duration, log *slog.Logger) (*Store, error) {
	s := newStore(options, ttl)
	if err := s.try(ctx, wait, log); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("STORE_URL: Redis at %s: %w", options.Addr, err)
	}
	s.warnOfEviction(ctx, log)
	return s, nil
}

// Claim implements once.Store.
func (s *Store) Claim(c once.Claim) (once.Decision, error) {
	ctx, cancel := context.WithTimeout(context.Background(), once.Timeout)
	defer cancel()
	look := "no"
	if c.Look {
		look = "yes"
	}
	reply, err := s.decide(ctx, &decision{
		ctx:    ctx, // a claim that nobody waits for any more is better not made
		script: claim,
		keys:   []string{messageKey(c.Key), tokenKey(c.Token)},
		args:   []any{c.Holder, ms(c.Lease), ms(s.ttl), ms(c.TokenTTL), look},
	}).StringSlice()
	if err != nil {
		return once.Decision{}, fmt.Errorf("claim a message in Redis: %w", err)
	}
	d := once.Decision{State: once.State(reply[0])}
	switch d.State {
	case once.Running:
		left, err := strconv.ParseInt(reply[1], 10, 64)
		if err != nil {
			return once.Decision{}, fmt.Errorf("read the lease of a message from Redis: %w", err)
		}
		d.Left = time.Duration(left) * time.Millisecond
	case once.Finished:
		d.Answer.Body = []byte(reply[3])
		if d.Answer.Status, err = strconv.Atoi(reply[1]); err == nil {
			d.Answer.Header, err = once.DecodeHeader(reply[2])
		}
		if err != nil {
			return once.Decision{}, fmt.Errorf("read the answer of a message from Redis: %w", err)
		}
	}
	return d, nil
}

// Complete implements once.Store.
func (s *Store) Complete(key once.Key, holder string, a once.Answer) error {
	err := s.end(complete, key, holder, ms(s.ttl), a.Status, once.EncodeHeader(a.Header), a.Body)
	if err != nil {
		return fmt.Errorf("complete a message in Redis: %w", err)
	}
	return nil
}

// Release implements once.Store.
func (s *Store) Release(key once.Key, holder string) error {
	if err := s.end(release, key, holder); err != nil {
		return fmt.Errorf("release a message in Redis: %w", err)
	}
	return nil
}

func (s *Store) end(script *redis.Script, key once.Key, holder string, args ...any) error {
	ctx, cancel := context.WithTimeout(context.Background(), once.Timeout)
	defer cancel()
	done, err := s.decide(ctx, &decision{
		ctx:    context.Background(), // the end of a run is worth sending even if its caller has stopped waiting
		script: script,
		keys:   []string{messageKey(key)},
		args:   append([]any{holder}, args...),
	}).Bool()
	if err == nil && !done {
		return once.ErrLeaseLost
	}
	return err
}

// Forget removes what a trial has left.
func (s *Store) Forget(message, token once.Key) error {
	ctx, cancel := context.WithTimeout(context.Background(), once.Timeout)
	defer cancel()
	return s.client.Del(ctx, messageKey(message), tokenKey(token)).Err()
}

// Close implements once.Store.
func (s *Store) Close() error {
	close(s.decisions)
	s.senders.Wait()
	return s.client.Close()
}

func messageKey(key once.Key) string { return "qstash:message:" + hex.EncodeToString(key[:]) }
func tokenKey(token once.Key) string { return "qstash:token:" + hex.EncodeToString(token[:]) }

// ms is d in whole milliseconds, at least one: Redis takes no other expiry.
func ms(d time.Duration) int64 { return max(d.Milliseconds(), 1) }
