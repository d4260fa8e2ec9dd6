package deliver

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"qstash-receiver/internal/once"
	"qstash-receiver/internal/once/postgres"
	"qstash-receiver/internal/qstash"
	"qstash-receiver/internal/qstashtest"
)

// committing is a store whose commits end as the test says.
type committing struct {
	*postgres.Store
	before func() error // instead of a commit, unless it returns nil
	after  func() error // instead of its answer, unless it returns nil
}

func (c *committing) Commit(ctx context.Context, key once.Key, holder string, lease time.Duration, effects func(*sql.Tx) (once.Answer, error)) error {
	if c.before != nil {
		if err := c.before(); err != nil {
			return err
		}
	}
	if err := c.Store.Commit(ctx, key, holder, lease, effects); err != nil || c.after == nil {
		return err
	}
	return c.after()
}

// effect is a row of its own.
type effect string

func (e effect) insert(tx *sql.Tx) ([]byte, error) {
	_, err := tx.Exec("INSERT INTO effects VALUES ($1)", string(e))
	return []byte("committed"), err
}

// times is how often e is in the database at url.
func (e effect) times(t *testing.T, url string) (n int) {
	t.Helper()
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow("SELECT count(*) FROM effects WHERE message = $1", string(e)).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// effects is what Commit runs.
type effects = func(*sql.Tx) ([]byte, error)

func TestCommit(t *testing.T) {
	t.Parallel()
	url := qstashtest.PostgresURL(t)
	qstashtest.PostgresExec(t, url, "CREATE TABLE effects (message text)", "CREATE TABLE seats (n integer UNIQUE DEFERRABLE INITIALLY DEFERRED)")
	boom := errors.New("boom")
	lost := errors.New("connection reset")
	for _, row := range []struct {
		sentence string
		store    committing
		logic    func(ctx context.Context, insert effects) ([]byte, error)
		status   int
		body     string // what the first answer has
		reason   Reason
		effects  int    // after the first delivery
		second   string // what the second answer has, from a run that commits
		replayed bool   // the second
		logged   string // an ERROR line
	}{
		{"a success", committing{}, func(ctx context.Context, insert effects) ([]byte, error) { return qstash.Commit(ctx, insert) },
			200, "committed", Handled, 1, "committed", true, ""},
		{"a success in a handler of its own context", committing{}, func(ctx context.Context, insert effects) ([]byte, error) {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			return qstash.Commit(ctx, insert)
		}, 200, "committed", Handled, 1, "committed", true, ""},
		{"a reply of its own after it", committing{}, func(ctx context.Context, insert effects) ([]byte, error) {
			_, err := qstash.Commit(ctx, insert)
			return []byte("another"), err
		}, 200, "committed", Handled, 1, "committed", true, ""},
		{"an error after it", committing{}, func(ctx context.Context, insert effects) ([]byte, error) {
			_, _ = qstash.Commit(ctx, insert)
			return nil, boom
		}, 200, "committed", Handled, 1, "committed", true, "boom"},
		{"a panic after it", committing{}, func(ctx context.Context, insert effects) ([]byte, error) {
			_, _ = qstash.Commit(ctx, insert)
			panic("boom")
		}, 200, "committed", Handled, 1, "committed", true, "panic"},
		{"a permanent failure after it", committing{}, func(ctx context.Context, insert effects) ([]byte, error) {
			_, _ = qstash.Commit(ctx, insert)
			return nil, qstash.Permanent(boom)
		}, 200, "committed", Handled, 1, "committed", true, "boom"},
		{"a second one after it", committing{}, func(ctx context.Context, insert effects) ([]byte, error) {
			_, _ = qstash.Commit(ctx, insert)
			return qstash.Commit(ctx, insert)
		}, 200, "committed", Handled, 1, "committed", true, "called before"},
		{"one within it", committing{}, func(ctx context.Context, insert effects) ([]byte, error) {
			return qstash.Commit(ctx, func(tx *sql.Tx) ([]byte, error) {
				_, _ = insert(tx)
				return qstash.Commit(ctx, insert)
			})
		}, 500, "call it once, last", Failed, 0, "committed", false, ""},
		{"an error of the effects", committing{}, func(ctx context.Context, insert effects) ([]byte, error) {
			return qstash.Commit(ctx, func(tx *sql.Tx) ([]byte, error) { _, _ = insert(tx); return nil, boom })
		}, 500, "boom", Failed, 0, "committed", false, ""},
		{"an error of the effects that is swallowed", committing{}, func(ctx context.Context, insert effects) ([]byte, error) {
			_, _ = qstash.Commit(ctx, func(tx *sql.Tx) ([]byte, error) { _, _ = insert(tx); return nil, boom })
			return []byte("all is well"), nil
		}, 500, "boom", Failed, 0, "committed", false, ""},
		{"a permanent failure of the effects", committing{}, func(ctx context.Context, insert effects) ([]byte, error) {
			return qstash.Commit(ctx, func(tx *sql.Tx) ([]byte, error) { _, _ = insert(tx); return nil, qstash.Permanent(boom) })
		}, 489, "boom", Permanent, 0, "boom", true, ""},
		{"a retry of the effects", committing{}, func(ctx context.Context, insert effects) ([]byte, error) {
			return qstash.Commit(ctx, func(tx *sql.Tx) ([]byte, error) { return nil, qstash.RetryAfter(time.Second, boom) })
		}, 503, "boom", RetryAfter, 0, "committed", false, ""},
		{"a panic before it", committing{}, func(ctx context.Context, insert effects) ([]byte, error) { panic("boom") },
			500, "panic", Panicked, 0, "committed", false, ""},
		{"a panic of the effects", committing{}, func(ctx context.Context, insert effects) ([]byte, error) {
			return qstash.Commit(ctx, func(tx *sql.Tx) ([]byte, error) { _, _ = insert(tx); panic("boom") })
		}, 500, "panic", Panicked, 0, "committed", false, ""},
		{"a panic of the effects that is swallowed", committing{}, func(ctx context.Context, insert effects) (reply []byte, err error) {
			defer func() { _ = recover() }()
			return qstash.Commit(ctx, func(tx *sql.Tx) ([]byte, error) { _, _ = insert(tx); panic("boom") })
		}, 500, "panic", Panicked, 0, "committed", false, ""},
		{"a statement that fails, whose error the effects pass over", committing{}, func(ctx context.Context, insert effects) ([]byte, error) {
			return qstash.Commit(ctx, func(tx *sql.Tx) ([]byte, error) { _, _ = tx.Exec("INSERT INTO nowhere VALUES (1)"); return nil, nil })
		}, 500, "transaction is aborted", Failed, 0, "committed", false, ""},
		{"a constraint that only COMMIT finds broken", committing{}, func(ctx context.Context, insert effects) ([]byte, error) {
			return qstash.Commit(ctx, func(tx *sql.Tx) ([]byte, error) {
				_, _ = insert(tx)
				_, err := tx.Exec("INSERT INTO seats VALUES (1), (1)")
				return nil, err
			})
		}, 500, "unique constraint", Failed, 0, "committed", false, ""},
		{"effects that end the transaction", committing{}, func(ctx context.Context, insert effects) ([]byte, error) {
			return qstash.Commit(ctx, func(tx *sql.Tx) ([]byte, error) { return nil, tx.Rollback() })
		}, 500, "leave tx.Commit and tx.Rollback to qstash.Commit", Failed, 0, "committed", false, ""},
		{"effects that outlast the deadline", committing{}, func(ctx context.Context, insert effects) ([]byte, error) {
			return qstash.Commit(ctx, func(tx *sql.Tx) ([]byte, error) { <-ctx.Done(); return insert(tx) })
		}, 504, "", TimedOut, 0, "committed", false, ""},
		{"the lease lost to another delivery", committing{before: func() error { return once.ErrLeaseLost }}, func(ctx context.Context, insert effects) ([]byte, error) {
			return qstash.Commit(ctx, insert)
		}, 503, "rolled back", LeaseLost, 0, "committed", false, ""},
		{"the lease lost, and that swallowed", committing{before: func() error { return once.ErrLeaseLost }}, func(ctx context.Context, insert effects) ([]byte, error) {
			_, err := qstash.Commit(ctx, insert)
			return nil, qstash.Permanent(err)
		}, 503, "rolled back", LeaseLost, 0, "committed", false, ""},
		{"the connection lost in COMMIT, which was carried out", committing{after: func() error { return lost }}, func(ctx context.Context, insert effects) ([]byte, error) {
			return qstash.Commit(ctx, insert)
		}, 500, "the next delivery finds out", CommitLost, 1, "committed", true, ""},
		{"no connection to the database", committing{before: func() error { return lost }}, func(ctx context.Context, insert effects) ([]byte, error) {
			return qstash.Commit(ctx, insert)
		}, 500, "begin a transaction", Failed, 0, "committed", false, ""},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			store := row.store
			store.Store = openPostgres(t, url)
			var runs atomic.Int64
			e := effect(row.sentence)
			s := start(counting(&runs, func(ctx context.Context, m *qstash.Message) ([]byte, error) {
				if runs.Load() > 1 {
					store.before, store.after = nil, nil
					return qstash.Commit(ctx, e.insert)
				}
				return row.logic(ctx, e.insert)
			}), func(c *Config) {
				if c.Store = &store; row.reason == TimedOut {
					c.Timing = NewTiming(time.Second)
				}
			})
			m := message{id: row.sentence}
			o := s.send(m)
			if o.Answer.Status != row.status || !strings.Contains(string(o.Answer.Body), row.body) || o.Reason != row.reason {
				t.Errorf("got %s: %d %s", o.Reason.Row().Reason, o.Answer.Status, o.Answer.Body)
			}
			if row.reason != RetryAfter && o.Retry != nil {
				t.Errorf("it says when to retry: %v", o.Retry)
			}
			if n := e.times(t, url); n != row.effects {
				t.Errorf("the effect is there %d times", n)
			}
			if away := row.reason == CommitLost || row.body == "begin a transaction"; s.tally.failed.Load() > 0 != away {
				t.Errorf("the store failed %d times", s.tally.failed.Load())
			}
			if row.logged != "" {
				s.log.Await(t, `"level":"ERROR"`, "which stands", row.logged)
			}
			s.Timing = NewTiming(20 * time.Second)
			o = s.send(m)
			if !strings.Contains(string(o.Answer.Body), row.second) || o.Replayed != row.replayed {
				t.Errorf("the second delivery got %d %s (replayed: %v)", o.Answer.Status, o.Answer.Body, o.Replayed)
			}
			if n := e.times(t, url); row.reason != Permanent && n != 1 {
				t.Errorf("then the effect is there %d times", n)
			}
			s.stops(t, 10*time.Second)
		})
	}
}

func TestCommitOutsideOfHandle(t *testing.T) {
	t.Parallel()
	if _, err := qstash.Commit(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "not the one that handle was given") {
		t.Errorf("got %v", err)
	}
}

// A failure callback's effects may be committed too. A reply that is too long to keep is answered whole, once.
func TestCommitOfOtherThings(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", once.MaxKeptBody+1)
	url := qstashtest.PostgresURL(t)
	qstashtest.PostgresExec(t, url, "CREATE TABLE effects (message text)")
	s := start(Handlers(
		func(ctx context.Context, _ *qstash.Message) ([]byte, error) {
			return qstash.Commit(ctx, func(*sql.Tx) ([]byte, error) { return []byte(long), nil })
		}, func(ctx context.Context, _ *qstash.Callback) error {
			_, err := qstash.Commit(ctx, effect("failure").insert)
			return err
		}), func(c *Config) { c.Store = openPostgres(t, url) })
	expect(t, s.send(message{id: "msg_1"}), 200, long, false)
	expect(t, s.send(message{id: "msg_1"}), 200, `{"message":"ok"}`, true)
	failure := message{id: "msg_2", target: "/failure", body: `{"dlqId":"dlq_1"}`}
	expect(t, s.send(failure), 200, "committed", false)
	expect(t, s.send(failure), 200, "committed", true)
	if n := effect("failure").times(t, url); n != 1 {
		t.Errorf("the effect is there %d times", n)
	}
	s.stops(t, 10*time.Second)
}
