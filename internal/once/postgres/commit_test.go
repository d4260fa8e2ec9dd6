package postgres

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"qstash-receiver/internal/once"
	"qstash-receiver/internal/once/oncetest"
	"qstash-receiver/internal/qstashtest"
)

var ok = once.Answer{Status: 200, Body: []byte(`{"message":"ok"}`)}

// add is the effect of the message key: a row.
func add(key once.Key) func(*sql.Tx) (once.Answer, error) {
	return func(tx *sql.Tx) (once.Answer, error) {
		_, err := tx.Exec("INSERT INTO effects VALUES ($1)", key[:])
		return ok, err
	}
}

// handle runs the message key as deliveries of it do, one after another, until it is finished.
func handle(ctx context.Context, s *Store, key once.Key) error {
	for ctx.Err() == nil {
		c := oncetest.NewClaim()
		c.Key = key
		c.Lease = time.Second
		d, err := s.Claim(c)
		switch {
		case err == nil && d.State == once.Finished:
			return nil
		case err != nil:
			_ = s.Release(c.Key, c.Holder)
		case d.State == once.Claimed:
			if err := s.Commit(ctx, c.Key, c.Holder, c.Lease, add(key)); err != nil {
				_ = s.Release(c.Key, c.Holder)
			}
		default:
			time.Sleep(10 * time.Millisecond)
		}
	}
	return ctx.Err()
}

// Whatever becomes of connections and servers, each effect is there once: two processes run the same messages while
// trouble is made, until it has been made often enough.
func TestEffectsOnce(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name    string
		pooled  bool
		times   int
		trouble func(t *testing.T, p *qstashtest.Postgres, admin *sql.DB)
	}{
		{"connections are terminated", false, 10, terminate},
		{"connections behind a pooler are terminated", true, 10, terminate},
		{"the server crashes", false, 3, func(t *testing.T, p *qstashtest.Postgres, _ *sql.DB) {
			p.Stop()
			p.Start(t)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			p := qstashtest.NewPostgres(t)
			url := p.URL("postgres")
			qstashtest.PostgresExec(t, url, "CREATE TABLE effects (message bytea)")
			if row.pooled {
				url = qstashtest.NewPgBouncer(t, url, 8).URL(url)
			}
			admin, err := sql.Open("pgx", p.URL("postgres"))
			if err != nil {
				t.Fatal(err)
			}
			defer admin.Close()
			processes := []*Store{open(t, url, time.Hour), open(t, url, time.Hour)}
			var messages atomic.Int64
			over := make(chan bool)
			var work sync.WaitGroup
			for range 4 {
				work.Go(func() {
					for {
						select {
						case <-over:
							return
						default:
						}
						key := oncetest.NewKey()
						var both sync.WaitGroup
						for _, s := range processes {
							both.Go(func() {
								if err := handle(t.Context(), s, key); err != nil {
									t.Error(err)
								}
							})
						}
						both.Wait()
						messages.Add(1)
					}
				})
			}
			for range row.times {
				before := messages.Load()
				row.trouble(t, p, admin)
				for messages.Load() == before && t.Context().Err() == nil { // let some through
					time.Sleep(time.Millisecond)
				}
			}
			close(over)
			work.Wait()
			var distinct, all int64
			if err := admin.QueryRow("SELECT count(DISTINCT message), count(*) FROM effects").Scan(&distinct, &all); err != nil {
				t.Fatal(err)
			}
			if distinct != messages.Load() || all != distinct {
				t.Errorf("%d messages have %d effects, and %d are there twice", messages.Load(), distinct, all-distinct)
			}
			t.Logf("%d messages, %d times", messages.Load(), row.times)
		})
	}
}

// terminate ends all other connections to the server.
func terminate(t *testing.T, _ *qstashtest.Postgres, admin *sql.DB) {
	if _, err := admin.Exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"); err != nil {
		t.Error(err)
	}
}

// wire is a connection to a database that is seen from outside.
type wire struct {
	net.Conn
	write func(c net.Conn, p []byte) (int, error)
}

func (w wire) Write(p []byte) (int, error) { return w.write(w.Conn, p) }

// openBy is open with what the client sends handed to write.
func openBy(t *testing.T, url string, write func(c net.Conn, p []byte) (int, error)) *Store {
	t.Helper()
	config, err := Parse(with(url, "sslmode=disable"))
	if err != nil {
		t.Fatal(err)
	}
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		return wire{c, write}, err
	}
	s, err := Open(t.Context(), config, time.Hour, 10*time.Second, discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestCutOffInCommit(t *testing.T) {
	t.Parallel()
	url := qstashtest.PostgresURL(t)
	qstashtest.PostgresExec(t, url, "CREATE TABLE effects (message bytea)")
	for _, row := range []struct {
		name string
		cut  func(c net.Conn, p []byte) (int, error)
		want once.State
		rows int
	}{
		{"before it arrives", func(c net.Conn, p []byte) (int, error) {
			_ = c.Close()
			return 0, net.ErrClosed
		}, once.Claimed, 0},
		{"after it was carried out", func(c net.Conn, p []byte) (int, error) {
			n, err := c.Write(p)
			_, _ = c.Read(make([]byte, 1)) // of the answer, which nobody will see
			_ = c.Close()
			return n, err
		}, once.Finished, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			var cutting atomic.Bool
			s := openBy(t, url, func(c net.Conn, p []byte) (int, error) {
				if cutting.Load() && bytes.Contains(p, []byte("COMMIT\x00")) {
					return row.cut(c, p)
				}
				return c.Write(p)
			})
			c := oncetest.NewClaim() // the first, whose statements are described before
			if err := s.Commit(t.Context(), c.Key, c.Holder, c.Lease, add(c.Key)); err != nil {
				t.Fatal(err)
			}
			cutting.Store(true)
			c = oncetest.NewClaim()
			oncetest.Want(t, s, c, once.Claimed)
			err := s.Commit(t.Context(), c.Key, c.Holder, c.Lease, add(c.Key))
			if err == nil || errors.Is(err, once.ErrLeaseLost) {
				t.Fatalf("got %v, want to hear that nobody knows", err)
			}
			if err := s.Release(c.Key, c.Holder); err != nil {
				t.Fatal(err)
			}
			oncetest.Want(t, s, oncetest.Again(c), row.want)
			var rows int
			query(t, url, &rows, "SELECT count(*) FROM effects WHERE message = $1", c.Key[:])
			if rows != row.rows {
				t.Errorf("the effect is there %d times, want %d", rows, row.rows)
			}
		})
	}
}

func TestRoundTrips(t *testing.T) {
	t.Parallel()
	url := qstashtest.PostgresURL(t)
	qstashtest.PostgresExec(t, url, "CREATE TABLE effects (message bytea)")
	var trips atomic.Int64
	s := openBy(t, url, func(c net.Conn, p []byte) (int, error) {
		trips.Add(1)
		return c.Write(p)
	})
	for n := range 3 { // the first of each describes its statement, the second looks whether the connection is alive
		c := oncetest.NewClaim()
		for _, step := range []struct {
			name string
			do   func() error
			want int64
		}{
			{"claim", func() error { _, err := s.Claim(c); return err }, 1},
			{"begin, an effect, and commit", func() error { return s.Commit(t.Context(), c.Key, c.Holder, c.Lease, add(c.Key)) }, 3},
			{"complete", func() error { return s.Complete(c.Key, c.Holder, ok) }, 1},
			{"release", func() error { return s.Release(c.Key, c.Holder) }, 1},
		} {
			before := trips.Load()
			if err := step.do(); err != nil {
				t.Fatal(err)
			}
			if got := trips.Load() - before; n > 1 && got != step.want {
				t.Errorf("%s: %d round trips, want %d", step.name, got, step.want)
			}
		}
	}
}

// A machine that is frozen in the middle of its effects keeps nothing locked for longer than its lease.
func TestFrozen(t *testing.T) {
	t.Parallel()
	url := qstashtest.PostgresURL(t)
	qstashtest.PostgresExec(t, url, "CREATE TABLE stock (n integer)", "INSERT INTO stock VALUES (1)")
	s := open(t, url, time.Hour)
	c := oncetest.NewClaim()
	c.Lease = 300 * time.Millisecond
	oncetest.Want(t, s, c, once.Claimed)
	take := func(tx *sql.Tx) (once.Answer, error) {
		_, err := tx.Exec("UPDATE stock SET n = n - 1")
		return ok, err
	}
	err := s.Commit(t.Context(), c.Key, c.Holder, c.Lease, func(tx *sql.Tx) (once.Answer, error) {
		if _, err := take(tx); err != nil {
			t.Error(err)
		}
		next := oncetest.Again(c) // by another machine, which has to wait for the row, and not long
		for {
			d, err := s.Claim(next)
			if err != nil {
				t.Error(err)
				return ok, nil
			}
			if d.State == once.Claimed {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err := s.Commit(t.Context(), next.Key, next.Holder, time.Minute, take); err != nil {
			t.Error(err)
		}
		return ok, nil
	})
	if err == nil {
		t.Error("the one that was frozen committed too")
	}
	var n int
	query(t, url, &n, "SELECT n FROM stock")
	if n != 0 {
		t.Errorf("%d left, want 0", n)
	}
}

// Claims and completions go on however many transactions are under way.
func TestTransactionsLeaveConnections(t *testing.T) {
	t.Parallel()
	s := open(t, qstashtest.PostgresURL(t), time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	under, over := make(chan bool, connections), make(chan bool)
	var all sync.WaitGroup
	for range connections + 4 {
		all.Go(func() {
			c := oncetest.NewClaim()
			err := s.Commit(ctx, c.Key, c.Holder, c.Lease, func(*sql.Tx) (once.Answer, error) {
				under <- true
				<-over
				return ok, nil
			})
			if err == nil {
				t.Error("committed although its context is over")
			}
		})
	}
	for range connections {
		<-under
	}
	for range 50 {
		c := oncetest.NewClaim()
		oncetest.Want(t, s, c, once.Claimed)
		if err := s.Complete(c.Key, c.Holder, ok); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	close(over)
	all.Wait()
}

// What only COMMIT finds wrong rolls everything back.
func TestDeferredConstraint(t *testing.T) {
	t.Parallel()
	url := qstashtest.PostgresURL(t)
	qstashtest.PostgresExec(t, url, "CREATE TABLE seats (n integer UNIQUE DEFERRABLE INITIALLY DEFERRED)", "INSERT INTO seats VALUES (1)")
	s := open(t, url, time.Hour)
	c := oncetest.NewClaim()
	oncetest.Want(t, s, c, once.Claimed)
	err := s.Commit(t.Context(), c.Key, c.Holder, c.Lease, func(tx *sql.Tx) (once.Answer, error) {
		_, err := tx.Exec("INSERT INTO seats VALUES (1)")
		return ok, err
	})
	if !errors.Is(err, once.ErrEffects) || !strings.Contains(err.Error(), "unique constraint") {
		t.Errorf("got %v, want the constraint's error", err)
	}
	if err := s.Release(c.Key, c.Holder); err != nil {
		t.Error(err)
	}
	oncetest.Want(t, s, oncetest.Again(c), once.Claimed)
}

// A COMMIT that the function sends as text is found out, though what it committed stays.
func TestCommitAsText(t *testing.T) {
	t.Parallel()
	s := open(t, qstashtest.PostgresURL(t), time.Hour)
	c := oncetest.NewClaim()
	oncetest.Want(t, s, c, once.Claimed)
	err := s.Commit(t.Context(), c.Key, c.Holder, c.Lease, func(tx *sql.Tx) (once.Answer, error) {
		_, err := tx.Exec("COMMIT")
		return ok, err
	})
	if !errors.Is(err, errEnded) {
		t.Errorf("got %v, want %v", err, errEnded)
	}
	d := oncetest.Want(t, s, oncetest.Again(c), once.Running)
	if d.Left <= 0 {
		t.Errorf("%+v", d)
	}
}

func TestExpiredRowsGo(t *testing.T) {
	t.Parallel()
	url := qstashtest.PostgresURL(t)
	s := open(t, url, time.Millisecond)
	one := func() {
		c := oncetest.NewClaim()
		c.Lease, c.TokenTTL = time.Millisecond, time.Millisecond
		oncetest.Want(t, s, c, once.Claimed)
		if err := s.Complete(c.Key, c.Holder, ok); err != nil {
			t.Fatal(err)
		}
	}
	for range 6 * sweepEvery {
		one()
	}
	s.sweeps.Wait()
	var rows int
	query(t, url, &rows, "SELECT greatest((SELECT count(*) FROM qstash_messages), (SELECT count(*) FROM qstash_tokens))")
	if rows > 2*sweepEvery {
		t.Errorf("%d rows of %d messages, nearly all of which have expired", rows, 6*sweepEvery)
	}
}

// A stricter isolation that came after the start only makes decisions collide, which are made again.
func TestStricterIsolation(t *testing.T) {
	t.Parallel()
	url := qstashtest.PostgresURL(t)
	first := open(t, url, time.Hour)
	config, err := Parse(with(url, "default_transaction_isolation=serializable"))
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(config, time.Hour)
	defer s.Close()
	c := oncetest.NewClaim()
	oncetest.Want(t, first, c, once.Claimed)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 20 {
				if d, err := s.Claim(oncetest.Again(c)); err != nil || d.State != once.Running {
					t.Error(d.State, err)
				}
			}
		})
	}
	all.Wait()
}

// BenchmarkStore is a message by 1 and by 16 callers at once: a claim, and a completion or a Commit with one effect.
func BenchmarkStore(b *testing.B) {
	for _, remembered := range []int{0, 100_000, 1_000_000} {
		url := qstashtest.PostgresURL(b)
		s := open(b, url, time.Hour)
		qstashtest.PostgresExec(b, url,
			"CREATE TABLE effects (message bytea)",
			fmt.Sprintf(`INSERT INTO qstash_messages SELECT sha256(n::text::bytea), n::text, 'epoch', 'epoch', now() + interval '1 hour', 200, '', '{"message":"ok"}'
				FROM generate_series(1, %d) AS n`, remembered),
			fmt.Sprintf("INSERT INTO qstash_tokens SELECT sha256(n::text::bytea), sha256(n::text::bytea), now() + interval '1 hour' FROM generate_series(1, %d) AS n", remembered),
			"ANALYZE")
		for _, end := range []struct {
			name string
			end  func(c once.Claim) error
		}{
			{"complete", func(c once.Claim) error { return s.Complete(c.Key, c.Holder, ok) }},
			{"commit", func(c once.Claim) error {
				return s.Commit(context.Background(), c.Key, c.Holder, c.Lease, add(c.Key))
			}},
		} {
			for _, callers := range []int{1, 16} {
				b.Run(fmt.Sprintf("%d remembered, claim and %s, %d callers", remembered, end.name, callers), func(b *testing.B) {
					var left atomic.Int64
					left.Store(int64(b.N))
					var all sync.WaitGroup
					for range callers {
						all.Go(func() {
							for left.Add(-1) >= 0 {
								c := oncetest.NewClaim()
								d, err := s.Claim(c)
								if err == nil {
									err = end.end(c)
								}
								if err != nil || d.State != once.Claimed {
									b.Error(d.State, err)
								}
							}
						})
					}
					all.Wait()
				})
			}
		}
	}
}
