package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// store remembers which messages are being run and which were handled, so that each is run once. Each method is one
// decision, made for all processes that share the store, and ends within storeTimeout, whatever became of the
// request. Those that change something may be repeated by the same holder with the same effect: a client that heard
// no answer sends again.
//
// A finished or released message is remembered for STORE_TTL; in memory, less long where there are many.
type store interface {
	// claim makes c.holder the holder of c.key for c.lease if no one holds it and it is not finished; else it says
	// how things stand. Whatever it answers, it first binds c.token to c.key for c.tokenTTL, unless that token is
	// bound to another key: then it claims nothing and answers replayed.
	claim(c claim) (decision, error)
	// complete makes a the answer of the message, for good. It returns errLeaseLost if another holder has taken the
	// message or nothing is known of it; a lease that has lapsed but was not taken will do.
	complete(key messageKey, holder string, a answer) error
	// release lets the next claim have the message. It returns errLeaseLost as complete does.
	release(key messageKey, holder string) error
	// close ends the store. No other call is under way or follows.
	close() error
}

// storeTimeout ends each call of a store.
const storeTimeout = 5 * time.Second

var errLeaseLost = errors.New("the lease on the message was lost to another delivery")

// messageKey names a message: the SHA-256 of what makes it that message.
type messageKey [sha256.Size]byte

// claim is one delivery's wish to run a message.
type claim struct {
	key    messageKey
	holder string // the fencing token: of this claim alone
	lease  time.Duration

	token    *messageKey // the SHA-256 of the token's jti; nil: it has none
	tokenTTL time.Duration
}

// decision is how things stand with a message.
type decision struct {
	state  state
	left   time.Duration // running: of the holder's lease
	answer answer        // finished
}

type state string

const (
	claimed  state = "claimed"
	running  state = "running"
	finished state = "finished"
	replayed state = "replayed"
)

// newClaim returns the claim of one delivery of m. A message with neither id nor jti cannot be told from others:
// then ok is false.
func newClaim(m *Message, lease, ttl time.Duration) (c claim, ok bool) {
	id := m.Unverified.ID
	if id == "" {
		id = m.claims.id
	}
	if id == "" {
		return claim{}, false
	}
	// The id is not signed, the other two are: nobody can spend another message's id.
	c = claim{key: keyOf(id, m.claims.subject, m.claims.bodyHash), holder: rand.Text(), lease: lease}
	if m.claims.id != "" {
		token := keyOf(m.claims.id)
		c.token, c.tokenTTL = &token, max(min(time.Until(m.claims.expires), ttl), time.Millisecond)
	}
	return c, true
}

// keyOf hashes parts so that no two lists of parts run into each other.
func keyOf(parts ...string) messageKey {
	b := make([]byte, 0, 256)
	for _, p := range parts {
		b = binary.AppendUvarint(b, uint64(len(p)))
		b = append(b, p...)
	}
	return sha256.Sum256(b)
}

// maxKeptBody is the largest answer that is kept as it was, in bytes.
const maxKeptBody = 16 << 10

// kept is a as every store keeps it: no Retry-After, and a short body in place of a long one.
func kept(a answer) answer {
	a.retryAfter = ""
	if len(a.body) <= maxKeptBody {
		return a
	}
	a.contentType, a.body = "application/json", okBody
	if a.permanent {
		a.body = []byte(`{"error":"the first answer was too long to keep"}`)
	}
	return a
}

// storeURL is a checked STORE_URL.
type storeURL struct {
	kind  string // "memory", "sqlite" or "redis"
	path  string // sqlite
	redis *redis.Options
}

// parseStoreURL checks v as far as that goes without opening anything. Its error holds no password.
func parseStoreURL(v string) (storeURL, error) {
	scheme, _, _ := strings.Cut(v, ":")
	switch {
	case v == "memory:":
		return storeURL{kind: "memory"}, nil
	case scheme == "redis" || scheme == "rediss":
		options, err := redis.ParseURL(v)
		if err != nil || strings.Contains(v, "#") { // its text repeats parts of the URL, maybe of the password
			return storeURL{}, errors.New("not a Redis URL; write it like rediss://default:password@host:6379, with / ? # % in the password as %2F %3F %23 %25")
		}
		return storeURL{kind: "redis", redis: options}, nil
	case v == "memory" || strings.Contains(v, "@") || strings.Contains(v, "://") || scheme == "file" || scheme == "":
		return storeURL{}, fmt.Errorf("it starts with %q; give memory:, a file path like /data/receiver.db, or a URL like rediss://default:password@host:6379", scheme)
	}
	if info, err := os.Stat(v); err == nil && info.IsDir() {
		return storeURL{}, fmt.Errorf("%q is a directory; add a file name, like %s", v, filepath.Join(v, "receiver.db"))
	}
	if _, err := os.Stat(filepath.Dir(v)); err != nil {
		return storeURL{}, fmt.Errorf("the directory of %q: %w; make it, or mount the volume there", v, err)
	}
	return storeURL{kind: "sqlite", path: v}, nil
}

// openStore opens the store that u names; a Redis that does not answer is tried for wait. The caller closes it.
func openStore(ctx context.Context, u storeURL, ttl, wait time.Duration, log *slog.Logger) (store, error) {
	switch u.kind {
	case "sqlite":
		return openSQLite(ctx, u.path, ttl)
	case "redis":
		return openRedis(ctx, u.redis, ttl, wait, log)
	}
	return newMemoryStore(ttl), nil
}
