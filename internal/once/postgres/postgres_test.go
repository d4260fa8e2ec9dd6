package postgres

import (
	"log/slog"
	"testing"
	"time"

	"qstash-receiver/internal/once"
	"qstash-receiver/internal/once/oncetest"
	"qstash-receiver/internal/qstashtest"
)

var discard = slog.New(slog.DiscardHandler)

func open(t testing.TB, url string, ttl time.Duration) *Store {
	t.Helper()
	config, err := Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), config, ttl, 10*time.Second, discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// ways are those in which a database is reached.
var ways = []struct {
	name string
	url  func(t testing.TB) string
}{
	{"directly", qstashtest.PostgresURL},
	{"through a pooler in transaction mode", func(t testing.TB) string {
		url := qstashtest.PostgresURL(t)
		return qstashtest.NewPgBouncer(t, url, 4).URL(url)
	}},
}

func TestContract(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			url := way.url(t)
			engine := oncetest.Engine{Shared: true, Open: func(t testing.TB, ttl time.Duration) once.Store { return open(t, url, ttl) }}
			oncetest.Run(t, engine)
			oncetest.RunCommitter(t, engine)
		})
	}
}
