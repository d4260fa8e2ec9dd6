package settings

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"qstash-receiver/internal/once"
	"qstash-receiver/internal/once/postgres"
	"qstash-receiver/internal/once/redis"
	"qstash-receiver/internal/once/sqlite"
)

// Store is a checked STORE_URL.
type Store struct {
	Kind string // "memory", "sqlite", "redis" or "postgres"
	Path string // of the SQLite file
	// Open opens it; what does not answer is tried for wait, what cannot serve is an error at once. The caller closes
	// the store.
	Open func(ctx context.Context, ttl, wait time.Duration, log *slog.Logger) (once.Store, error)
}

// parseStore checks v as far as that goes without opening anything. Its error holds no password.
func parseStore(v string) (Store, error) {
	scheme, _, _ := strings.Cut(v, ":")
	switch {
	case v == "memory:":
		return Store{Kind: "memory", Open: func(_ context.Context, ttl, _ time.Duration, _ *slog.Logger) (once.Store, error) {
			return once.NewMemory(ttl), nil
		}}, nil
	case scheme == "redis" || scheme == "rediss":
		options, err := redis.Parse(v)
		return Store{Kind: "redis", Open: func(ctx context.Context, ttl, wait time.Duration, log *slog.Logger) (once.Store, error) {
			return redis.Open(ctx, options, ttl, wait, log)
		}}, err
	case scheme == "postgres" || scheme == "postgresql":
		config, err := postgres.Parse(v)
		return Store{Kind: "postgres", Open: func(ctx context.Context, ttl, wait time.Duration, log *slog.Logger) (once.Store, error) {
			return postgres.Open(ctx, config, ttl, wait, log)
		}}, err
	case scheme == "https" && strings.Contains(v, "upstash.io"):
		return Store{}, errors.New("it is the REST address of an Upstash Redis; give its TCP address, like rediss://default:password@host:6379")
	case strings.EqualFold(v, "memory") || strings.EqualFold(v, "memory:") || v == ":memory:":
		return Store{}, errors.New("write memory: as it is here, or ./memory for a file of that name")
	case scheme == "file" || scheme == "sqlite" || scheme == "sqlite3":
		return Store{}, errors.New("a SQLite file is given by its path alone, like /data/receiver.db")
	case strings.ContainsAny(v, ":@") && !strings.HasPrefix(v, "/") && !strings.HasPrefix(v, "."): // it may hold a password
		return Store{}, errors.New("it is no URL of a store; give memory:, a file path like /data/receiver.db, " +
			"or a URL like rediss://default:password@host:6379 or postgres://user:password@host/database")
	}
	return SQLite(v), sqlite.CheckPath(v)
}

// TryStore returns what shows to be wrong with the store once it is opened. It waits for little.
func (s Settings) TryStore(ctx context.Context) error {
	if s.Store.Open == nil { // a wrong STORE_URL, which Load has named
		return nil
	}
	store, err := s.Store.Open(ctx, max(s.StoreTTL, time.Minute), time.Second, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return store.Close()
}

// SQLite is the store in the file at path, which has not been checked.
func SQLite(path string) Store {
	return Store{Kind: "sqlite", Path: path, Open: func(ctx context.Context, ttl, wait time.Duration, log *slog.Logger) (once.Store, error) {
		return sqlite.Open(ctx, path, ttl, wait, log)
	}}
}
