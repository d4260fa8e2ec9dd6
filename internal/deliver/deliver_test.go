package deliver

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"qstash-receiver/internal/once"
	"qstash-receiver/internal/once/postgres"
	"qstash-receiver/internal/once/redis"
	"qstash-receiver/internal/once/sqlite"
	"qstash-receiver/internal/qstash"
	"qstash-receiver/internal/qstashtest"
)

// handler is business logic as a user writes it.
type handler func(ctx context.Context, m *qstash.Message) ([]byte, error)

// runner makes h the business logic.
func runner(h handler) Runner {
	return Handlers(h, func(context.Context, *qstash.Callback) error { return errors.New("not expected here") })
}

// counting counts the runs of h.
func counting(runs *atomic.Int64, h handler) Runner {
	return runner(func(ctx context.Context, m *qstash.Message) ([]byte, error) {
		runs.Add(1)
		return h(ctx, m)
	})
}

func succeed(context.Context, *qstash.Message) ([]byte, error) { return []byte("done"), nil }

// tally is an Observer.
type tally struct {
	handled, failed atomic.Int64
}

func (o *tally) Handled(time.Duration) { o.handled.Add(1) }
func (o *tally) StoreFailed(string)    { o.failed.Add(1) }

// service is a Deliverer under test.
type service struct {
	*Deliverer
	log   *qstashtest.Log
	tally *tally
}

// start returns a Deliverer with run as its business logic and the memory store, unless change says otherwise.
func start(run Runner, change func(*Config)) service {
	s := service{log: qstashtest.NewLog(), tally: &tally{}}
	c := Config{Run: run, Timing: NewTiming(20 * time.Second), Store: once.NewMemory(time.Hour),
		Log: slog.New(slog.NewJSONHandler(s.log, nil)), Observer: s.tally}
	if change != nil {
		change(&c)
	}
	s.Deliverer = New(c)
	return s
}

// message is a delivery, proven. What is zero is made up.
type message struct {
	id, tokenID, target, body string
	header                    map[string]string
}

func (m message) delivery() *Delivery {
	target := cmp.Or(m.target, "/")
	u, err := url.ParseRequestURI(target)
	if err != nil {
		panic(err)
	}
	header := http.Header{}
	for name, value := range m.header {
		header.Set(name, value)
	}
	if m.id != "" {
		header.Set("Upstash-Message-Id", m.id)
	}
	p := Proof{Key: "current", URL: u, Target: target, Subject: "https://app.example" + target, BodyHash: qstashtest.BodyHash(m.body),
		Token: once.KeyOf(cmp.Or(m.tokenID, "jwt_"+rand.Text())), Expires: time.Now().Add(5 * time.Minute), Check: func([]byte) error { return nil }}
	x, err := p.Open([]byte(m.body), qstash.NewUnverified(header))
	if err != nil {
		panic(err)
	}
	return x
}

// begin delivers m, and returns where its outcome will be.
func (s service) begin(m message) <-chan Outcome {
	outcome := make(chan Outcome, 1)
	go s.Deliver(context.Background(), m.delivery(), func(o Outcome) { outcome <- o })
	return outcome
}

// send delivers m and returns its outcome.
func (s service) send(m message) Outcome { return <-s.begin(m) }

// expect fails the test unless o is answered so.
func expect(t *testing.T, o Outcome, status int, body string, replayed bool) {
	t.Helper()
	if o.Answer.Status != status || string(o.Answer.Body) != body || o.Replayed != replayed {
		t.Errorf("got %d %.100s (replayed: %v), want %d %.100s (%v)", o.Answer.Status, o.Answer.Body, o.Replayed, status, body, replayed)
	}
}

// stops fails the test unless s stops within limit, well.
func (s service) stops(t *testing.T, limit time.Duration) {
	t.Helper()
	if err := s.Stop(limit); err != nil {
		t.Error(err)
	}
}

// unique is an id that no other run of any test has, for stores that outlive it.
func unique(t *testing.T) string { return t.Name() + "_" + rand.Text() }

func openRedis(t *testing.T, url string) once.Store {
	t.Helper()
	options, err := redis.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	s, err := redis.Open(t.Context(), options, time.Hour, 10*time.Second, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openSQLite(t *testing.T) once.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), t.TempDir()+"/receiver.db", time.Hour, 10*time.Second, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openPostgres(t *testing.T, url string) *postgres.Store {
	t.Helper()
	config, err := postgres.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	s, err := postgres.Open(t.Context(), config, time.Hour, 10*time.Second, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestOnEachStore(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(t *testing.T) once.Store{
		"memory":   func(*testing.T) once.Store { return once.NewMemory(time.Hour) },
		"sqlite":   func(t *testing.T) once.Store { return openSQLite(t) },
		"redis":    func(t *testing.T) once.Store { return openRedis(t, qstashtest.RedisURL(t)) },
		"postgres": func(t *testing.T) once.Store { return openPostgres(t, qstashtest.PostgresURL(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := open(t)
			t.Cleanup(func() { store.Close() })
			for _, test := range []struct {
				name string
				run  func(t *testing.T, store once.Store)
			}{
				{"concurrent deliveries run once", testConcurrentDeliveries},
				{"a delivery that waits takes over", testTakeOver},
				{"a captured token spends nothing", testCapturedToken},
				{"messages of one value are one", testDedupeKey},
				{"failures of a value are not kept", testDedupeKeyAndFailures},
				{"two of one value run one after the other", testDedupeKeyTwoAtOnce},
			} {
				t.Run(test.name, func(t *testing.T) {
					t.Parallel()
					test.run(t, store)
				})
			}
		})
	}
}

// typedNil is an error whose nil pointer is not a nil error, and has no text.
type typedNil struct{ text string }

func (e *typedNil) Error() string { return e.text }

func TestOutcomes(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	long := strings.Repeat("x", 16<<10)
	type header = map[string]string
	for _, row := range []struct {
		sentence   string
		logic      handler
		status     int
		body       string
		header     header
		reason     Reason
		level      slog.Level // of the first attempt
		runs       int64      // of two deliveries
		secondBody string
	}{
		{"nil is a short success", func(context.Context, *qstash.Message) ([]byte, error) { return nil, nil },
			200, `{"message":"ok"}`, header{"Content-Type": "application/json"}, Handled, slog.LevelInfo, 1, ""},
		{"a JSON reply", func(context.Context, *qstash.Message) ([]byte, error) { return []byte(`{"n": 1}`), nil },
			200, `{"n": 1}`, header{"Content-Type": "application/json"}, Handled, slog.LevelInfo, 1, ""},
		{"a text reply", func(context.Context, *qstash.Message) ([]byte, error) { return []byte("thanks"), nil },
			200, "thanks", header{"Content-Type": "text/plain; charset=utf-8"}, Handled, slog.LevelInfo, 1, ""},
		{"an empty reply", func(context.Context, *qstash.Message) ([]byte, error) { return []byte{}, nil },
			200, "", header{"Content-Type": "text/plain; charset=utf-8"}, Handled, slog.LevelInfo, 1, ""},
		{"a reply too long to keep", func(context.Context, *qstash.Message) ([]byte, error) { return []byte(long + "x"), nil },
			200, long + "x", nil, Handled, slog.LevelInfo, 1, `{"message":"ok"}`},
		{"the longest reply that is kept", func(context.Context, *qstash.Message) ([]byte, error) { return []byte(long), nil },
			200, long, nil, Handled, slog.LevelInfo, 1, ""},
		{"a success after the deadline", func(ctx context.Context, _ *qstash.Message) ([]byte, error) { <-ctx.Done(); return []byte("late"), nil },
			200, "late", nil, Handled, slog.LevelInfo, 1, ""},
		{"a permanent failure", func(context.Context, *qstash.Message) ([]byte, error) { return nil, qstash.Permanent(boom) },
			489, `{"error":"boom"}`, header{"Upstash-Nonretryable-Error": "true"}, Permanent, slog.LevelWarn, 1, ""},
		{"a wrapped permanent failure", func(context.Context, *qstash.Message) ([]byte, error) {
			return nil, fmt.Errorf("order: %w", qstash.Permanent(boom))
		}, 489, `{"error":"order: boom"}`, header{"Upstash-Nonretryable-Error": "true"}, Permanent, slog.LevelWarn, 1, ""},
		{"a permanent failure after the deadline", func(ctx context.Context, _ *qstash.Message) ([]byte, error) {
			<-ctx.Done()
			return nil, qstash.Permanent(boom)
		}, 489, `{"error":"boom"}`, header{"Upstash-Nonretryable-Error": "true"}, Permanent, slog.LevelWarn, 1, ""},
		{"a permanent failure too long to keep", func(context.Context, *qstash.Message) ([]byte, error) {
			return nil, qstash.Permanent(errors.New(long))
		}, 489, `{"error":"` + long + `"}`, header{"Upstash-Nonretryable-Error": "true"}, Permanent, slog.LevelWarn, 1,
			`{"error":"the first answer was too long to keep"}`},
		{"a permanent failure of nothing", func(context.Context, *qstash.Message) ([]byte, error) { return nil, qstash.Permanent(nil) },
			489, `{"error":"no reason given"}`, nil, Permanent, slog.LevelWarn, 1, ""},
		{"a body that is no order", func(_ context.Context, m *qstash.Message) ([]byte, error) {
			_, err := qstash.Decode[[]int](m)
			return nil, err
		}, 489, `{"error":"decode the body as []int: invalid character 'x' looking for beginning of value"}`, nil, Permanent, slog.LevelWarn, 1, ""},
		{"a retry in whole seconds, rounded up", func(context.Context, *qstash.Message) ([]byte, error) {
			return nil, qstash.RetryAfter(1001*time.Millisecond, boom)
		}, 503, `{"error":"boom"}`, header{"Retry-After": "2"}, RetryAfter, slog.LevelWarn, 2, ""},
		{"a retry at once", func(context.Context, *qstash.Message) ([]byte, error) {
			return nil, qstash.RetryAfter(-time.Hour, boom)
		},
			503, `{"error":"boom"}`, header{"Retry-After": "1"}, RetryAfter, slog.LevelWarn, 2, ""},
		{"a retry in a week", func(context.Context, *qstash.Message) ([]byte, error) {
			return nil, qstash.RetryAfter(7*24*time.Hour, boom)
		},
			503, `{"error":"boom"}`, header{"Retry-After": "86400"}, RetryAfter, slog.LevelWarn, 2, ""},
		{"a retry after the deadline", func(ctx context.Context, _ *qstash.Message) ([]byte, error) {
			<-ctx.Done()
			return nil, qstash.RetryAfter(time.Minute, boom)
		}, 503, `{"error":"boom"}`, header{"Retry-After": "60"}, RetryAfter, slog.LevelWarn, 2, ""},
		{"an error", func(context.Context, *qstash.Message) ([]byte, error) { return []byte("not sent"), boom },
			500, `{"error":"boom"}`, header{"Retry-After": ""}, Failed, slog.LevelWarn, 2, ""},
		{"a timeout within the business logic", func(context.Context, *qstash.Message) ([]byte, error) { return nil, context.DeadlineExceeded },
			500, `{"error":"context deadline exceeded"}`, nil, Failed, slog.LevelWarn, 2, ""},
		{"an error after the deadline", func(ctx context.Context, _ *qstash.Message) ([]byte, error) { <-ctx.Done(); return nil, boom },
			504, `{"error":"boom"}`, header{"Retry-After": ""}, TimedOut, slog.LevelWarn, 2, ""},
		{"a message that was overwritten", func(_ context.Context, m *qstash.Message) ([]byte, error) {
			*m = qstash.Message{}
			return []byte("done"), nil
		}, 200, "done", nil, Handled, slog.LevelInfo, 1, ""},
		{"a panic", func(context.Context, *qstash.Message) ([]byte, error) { panic("the secret is 42") },
			500, `{"error":"panic"}`, nil, Panicked, slog.LevelWarn, 2, ""},
		{"a panic with nil", func(context.Context, *qstash.Message) ([]byte, error) { panic(nil) },
			500, `{"error":"panic"}`, nil, Panicked, slog.LevelWarn, 2, ""},
		{"a panic after the deadline", func(ctx context.Context, _ *qstash.Message) ([]byte, error) { <-ctx.Done(); panic("late") },
			500, `{"error":"panic"}`, nil, Panicked, slog.LevelWarn, 2, ""},
		{"an error that panics", func(context.Context, *qstash.Message) ([]byte, error) { var e *typedNil; return nil, e },
			500, `{"error":"panic"}`, nil, Panicked, slog.LevelWarn, 2, ""},
		{"a goroutine that ends", func(context.Context, *qstash.Message) ([]byte, error) { runtime.Goexit(); return nil, nil },
			500, `{"error":"panic"}`, nil, Panicked, slog.LevelWarn, 2, ""},
		{"an error's text with what HTML would escape", func(context.Context, *qstash.Message) ([]byte, error) { return nil, errors.New("a < b & c") },
			500, `{"error":"a < b & c"}`, nil, Failed, slog.LevelWarn, 2, ""},
		{"a commit without a database", func(ctx context.Context, _ *qstash.Message) ([]byte, error) { return qstash.Commit(ctx, nil) },
			500, `{"error":"commit: the store has no transactions to share; set STORE_URL to a SQLite file or a postgres:// URL"}`, nil, Failed, slog.LevelWarn, 2, ""},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			var runs atomic.Int64
			s := start(counting(&runs, row.logic), func(c *Config) { c.Timing = NewTiming(30 * time.Millisecond) })
			m := message{id: "msg_1", body: "x"}
			first := s.send(m)
			expect(t, first, row.status, row.body, false)
			x := m.delivery()
			if first.Reason != row.reason || first.Level(&x.Message.Unverified) != row.level {
				t.Errorf("got %s at %s", first.Reason.Row().Reason, first.Level(&x.Message.Unverified))
			}
			second := s.send(m)
			expect(t, second, row.status, cmp.Or(row.secondBody, row.body), row.runs == 1)
			if runs.Load() != row.runs || s.tally.handled.Load() != row.runs {
				t.Errorf("ran %d times, %d were observed, want %d", runs.Load(), s.tally.handled.Load(), row.runs)
			}
			for name, value := range row.header {
				for _, o := range []Outcome{first, second} {
					if got := cmp.Or(o.Answer.Header.Get(name), o.Retry.Get(name)); got != value {
						t.Errorf("%s: %q, want %q", name, got, value)
					}
				}
			}
			s.stops(t, 10*time.Second)
		})
	}
}

func TestPanicIsLoggedWithItsStack(t *testing.T) {
	t.Parallel()
	for cause, logic := range map[string]func(){
		"the cause":      func() { panic("the cause") },
		"runtime.Goexit": runtime.Goexit,
	} {
		s := start(runner(func(context.Context, *qstash.Message) ([]byte, error) { logic(); return nil, nil }), nil)
		s.send(message{id: "msg_1"})
		if line := s.log.Await(t, `"stack":`, cause, "msg_1"); !strings.Contains(line["stack"].(string), "deliver_test.go") {
			t.Errorf("the stack does not lead to the cause: %s", line["stack"])
		}
	}
}

func TestFailureCallbacksGoToTheirOwnFunction(t *testing.T) {
	t.Parallel()
	const failure = `{"status":500,"sourceMessageId":"msg_failed","dlqId":"dlq_1"}`
	for _, row := range []struct {
		target, body string
		status       int
		reply        string // what the answer's body has
		failed       bool   // handleFailure is called
	}{
		{"/failure", failure, 200, `{"message":"ok"}`, true},
		{"/failure?x=1", failure, 200, `{"message":"ok"}`, true},
		{"/failure/", failure, 200, `{"message":"ok"}`, true},
		{"//failure", failure, 200, `{"message":"ok"}`, true},
		{"/failure//", failure, 200, `{"message":"ok"}`, true},
		{"///Failure//?", failure, 200, `{"message":"ok"}`, true},
		{"/FAILURE", failure, 200, `{"message":"ok"}`, true},
		{"/failure", `{"dlqId":"dlq_1"}`, 200, `{"message":"ok"}`, true},
		{"/failure/x", failure, 200, "a message", false},
		{"/x/failure", failure, 200, "a message", false},
		{"/failures", failure, 200, "a message", false},
		{"/", failure, 200, "a message", false},
		{"/failure", `{"hello":"world"}`, 489, "publish messages to another path", false},
		{"/failure", `hello`, 489, "publish messages to another path", false},
		{"/failure", ``, 489, "publish messages to another path", false},
		{"/Failure/", `{"sourceMessageId":"msg_1","status":500,"retried":1}`, 489, "give Upstash-Callback another path", false},
		{"/failure", `{"sourceMessageId":"msg_1","status":200}`, 489, "give Upstash-Callback another path", false},
	} {
		var failed *qstash.Callback
		s := start(Handlers(
			func(context.Context, *qstash.Message) ([]byte, error) { return []byte("a message"), nil },
			func(_ context.Context, f *qstash.Callback) error { failed = f; return nil }), nil)
		o := s.send(message{target: row.target, body: row.body})
		if o.Answer.Status != row.status || !strings.Contains(string(o.Answer.Body), row.reply) || (failed != nil) != row.failed {
			t.Errorf("%s %s: got %d %s, handleFailure had %+v", row.target, row.body, o.Answer.Status, o.Answer.Body, failed)
		}
		if row.status == 489 && (o.Answer.Header.Get("Upstash-NonRetryable-Error") != "true" || o.Reason != NotFailure || !strings.Contains(o.Detail, row.reply)) {
			t.Errorf("%s %s: got %+v", row.target, row.body, o)
		}
		if failed != nil && failed.DLQID != "dlq_1" {
			t.Errorf("%s: handed over %+v", row.target, failed)
		}
	}
}

func testConcurrentDeliveries(t *testing.T, store once.Store) {
	var runs atomic.Int64
	finish := make(chan bool)
	s := start(counting(&runs, func(context.Context, *qstash.Message) ([]byte, error) { <-finish; return []byte("once"), nil }),
		func(c *Config) { c.Store = store })
	m := message{id: unique(t), body: "x"}
	var all []<-chan Outcome
	for range 40 {
		all = append(all, s.begin(m))
	}
	finish <- true
	replays := 0
	for _, outcome := range all {
		o := <-outcome
		if o.Replayed {
			replays++
		}
		expect(t, o, 200, "once", o.Replayed)
	}
	if runs.Load() != 1 || replays != 39 {
		t.Errorf("ran %d times, %d replays", runs.Load(), replays)
	}
}

func testTakeOver(t *testing.T, store once.Store) {
	begun, fail := make(chan bool), make(chan bool)
	var runs atomic.Int64
	s := start(runner(func(context.Context, *qstash.Message) ([]byte, error) {
		if runs.Add(1) == 1 {
			begun <- true
			<-fail
			return nil, errors.New("the first fails")
		}
		return []byte("the second does not"), nil
	}), func(c *Config) { c.Store = store })
	m := message{id: unique(t), body: "x"}
	first := s.begin(m)
	<-begun
	second := s.begin(m)
	fail <- true
	expect(t, <-first, 500, `{"error":"the first fails"}`, false)
	expect(t, <-second, 200, "the second does not", false)
}

// Two processes with one store: the second waits for the first's end, however it comes.
func TestWaitingForAnotherProcess(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		sentence string
		err      error
		body     string
		replayed bool
	}{
		{"which succeeds", nil, "the first", true},
		{"which fails", errors.New("boom"), "the second", false},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			store := once.NewMemory(time.Hour)
			shared := func(c *Config) { c.Store = store }
			begun, finish := make(chan bool), make(chan bool)
			first := start(runner(func(context.Context, *qstash.Message) ([]byte, error) {
				begun <- true
				<-finish
				return []byte("the first"), row.err
			}), shared)
			second := start(runner(func(context.Context, *qstash.Message) ([]byte, error) { return []byte("the second"), nil }), shared)
			m := message{id: "msg_1"}
			first.begin(m)
			<-begun
			var waiting []<-chan Outcome
			for range 5 {
				waiting = append(waiting, second.begin(m))
			}
			finish <- true
			ran := 0
			for _, w := range waiting {
				o := <-w
				if !o.Replayed {
					ran++
				}
				expect(t, o, 200, row.body, row.replayed || o.Replayed)
			}
			if want := 1; row.err != nil && ran != want || row.err == nil && ran != 0 {
				t.Errorf("the second process ran it %d times", ran)
			}
		})
	}
}

// Deliveries that wait for a message that another process runs ask the store now and then, not at each other's answers.
func TestWaitingIsNoBurden(t *testing.T) {
	t.Parallel()
	store := &faulty{Store: once.NewMemory(time.Hour)}
	var claims atomic.Int64
	store.before = func(call string) error { claims.Add(1); return nil }
	s := start(runner(succeed), func(c *Config) { c.Store, c.Timing.Wait = store, time.Second })
	m := message{id: "msg_1"}
	c, _ := m.delivery().claim(s.Timing, nil)
	if d, _ := store.Store.Claim(c); d.State != once.Claimed {
		t.Fatal("the other process does not have it")
	}
	var all []<-chan Outcome
	for range 20 {
		all = append(all, s.begin(m))
	}
	for _, o := range all {
		if o := <-o; o.Reason != InFlight {
			t.Errorf("got %+v", o)
		}
	}
	if most := int64(20 * 12); claims.Load() > most { // at 0, 5, 15, 35 ... ms, then four a second
		t.Errorf("the store was asked %d times by 20 deliveries in a second", claims.Load())
	}
}

func TestWaitingEnds(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		sentence string
		store    once.Store
	}{
		{"with what is left of the lease", once.NewMemory(time.Hour)},
		{"with a whole lease, where it has lapsed and the run has not ended", lapsing{once.NewMemory(time.Hour)}},
	} {
		begun, finish := make(chan bool), make(chan bool)
		s := start(runner(func(context.Context, *qstash.Message) ([]byte, error) { begun <- true; <-finish; return nil, nil }),
			func(c *Config) { c.Store, c.Timing.Wait = row.store, 50*time.Millisecond })
		m := message{id: "msg_1"}
		first := s.begin(m)
		<-begun
		o := s.send(m)
		if after := o.Retry.Get("Retry-After"); o.Answer.Status != 503 || o.Reason != InFlight || after != "30" { // of 20 s + 10 s
			t.Errorf("%s: got %+v", row.sentence, o)
		}
		finish <- true
		if o := <-first; o.Answer.Status != 200 {
			t.Errorf("%s: the first got %+v", row.sentence, o)
		}
	}
}

func TestBusinessLogicThatIgnoresItsContext(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		sentence string
		err      error
		replayed bool
		runs     int64
	}{
		{"and succeeds late is recorded", nil, true, 1},
		{"and fails late is released", errors.New("late"), false, 2},
		{"and panics late is released", errPanic, false, 2},
		{"and fails late for good is recorded", qstash.Permanent(errors.New("late")), true, 1},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			finish := make(chan bool)
			var runs atomic.Int64
			s := start(runner(func(context.Context, *qstash.Message) ([]byte, error) {
				if runs.Add(1) > 1 {
					return []byte("done"), nil
				}
				<-finish
				if row.err == errPanic {
					panic("late")
				}
				return []byte("done"), row.err
			}), func(c *Config) {
				c.Timing = Timing{Timeout: 20 * time.Millisecond, Grace: 20 * time.Millisecond, Lease: time.Minute, Wait: 50 * time.Millisecond}
			})
			m := message{id: "msg_1"}
			o := s.send(m)
			if o.Answer.Status != 504 || o.Reason != Overdue || !o.Detached || o.Retry != nil {
				t.Errorf("got %+v", o)
			}
			if o := s.send(m); o.Answer.Status != 503 || runs.Load() != 1 { // nothing was released
				t.Errorf("while it runs: %+v after %d runs", o, runs.Load())
			}
			finish <- true
			s.log.Await(t, "returned late", "msg_1")
			await(t, "it does not end", func() bool { return s.InFlight() == 0 })
			if o := s.send(m); o.Replayed != row.replayed || runs.Load() != row.runs {
				t.Errorf("then: %+v after %d runs", o, runs.Load())
			}
		})
	}
}

func testCapturedToken(t *testing.T, store once.Store) {
	var runs atomic.Int64
	s := start(counting(&runs, succeed), func(c *Config) { c.Store = store })
	token, a, b := unique(t), unique(t), unique(t)
	for _, row := range []struct {
		sentence, id, token string
		reason              Reason
		runs                int64
	}{
		{"a delivery", a, token, Handled, 1},
		{"a proxy's resend", a, token, Repeat, 1},
		{"the token under another id", b, token, Replayed, 1},
		{"the token under no id", "", token, Replayed, 1},
		{"the id that the replay named is not spent", b, unique(t), Handled, 2},
	} {
		if o := s.send(message{id: row.id, tokenID: row.token}); o.Reason != row.reason || runs.Load() != row.runs {
			t.Errorf("%s: got %s after %d runs", row.sentence, o.Reason.Row().Reason, runs.Load())
		}
	}
}

func TestMessagesAreToldApart(t *testing.T) {
	t.Parallel()
	var runs atomic.Int64
	s := start(counting(&runs, succeed), nil)
	for _, row := range []struct {
		sentence string
		m        message
		reason   Reason
	}{
		{"the first", message{id: "msg_1", body: "x", target: "/a"}, Handled},
		{"the same again", message{id: "msg_1", body: "x", target: "/a"}, Repeat},
		{"another id", message{id: "msg_2", body: "x", target: "/a"}, Handled},
		{"another path", message{id: "msg_1", body: "x", target: "/b"}, Handled},
		{"another query", message{id: "msg_1", body: "x", target: "/a?b"}, Handled},
		{"another body", message{id: "msg_1", body: "y", target: "/a"}, Handled},
		{"no id", message{body: "x", target: "/a"}, Handled},
		{"no id again, under another token", message{body: "x", target: "/a"}, Handled},
		{"no id, under a token", message{tokenID: "jwt_1"}, Handled},
		{"no id, under the same token", message{tokenID: "jwt_1"}, Repeat},
	} {
		if o := s.send(row.m); o.Reason != row.reason {
			t.Errorf("%s: got %s", row.sentence, o.Reason.Row().Reason)
		}
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan bool), make(chan bool)
	s := start(runner(func(context.Context, *qstash.Message) ([]byte, error) { begun <- true; <-finish; return nil, nil }), nil)
	m := message{id: "msg_1", target: "/orders"}
	running := s.begin(m)
	<-begun
	waiting := s.begin(m)
	await(t, "it does not wait", func() bool { return s.InFlight() == 2 })
	stopped := make(chan error)
	go func() { stopped <- s.Stop(20 * time.Second) }()
	for _, o := range []Outcome{<-waiting, s.send(message{id: "msg_2"})} { // the second when Stop has begun
		if o.Reason != Stopping || o.Answer.Status != 503 || o.Retry != nil {
			t.Errorf("what is not claimed yet got %+v", o)
		}
	}
	finish <- true
	if o := <-running; o.Answer.Status != 200 {
		t.Errorf("what runs got %+v", o)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestStopNamesWhatIsLeft(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan bool), make(chan bool)
	store := &faulty{Store: once.NewMemory(time.Hour)}
	s := start(runner(func(_ context.Context, m *qstash.Message) ([]byte, error) {
		switch m.URL.Path {
		case "/orders":
			begun <- true
			<-finish
		case "/error":
			return nil, errors.New("boom")
		}
		return nil, nil
	}), func(c *Config) { c.Store = store })
	s.begin(message{id: "msg_1", target: "/orders"})
	<-begun
	store.fail("complete", "release")
	s.send(message{id: "msg_2"})
	s.send(message{id: "msg_3"})
	s.send(message{id: "msg_4", target: "/error"})
	err := s.Stop(30 * time.Millisecond)
	want := `stop: still running after 30ms: message "msg_1" to /orders; ` +
		`the store has not taken the answers of 2 messages that succeeded or failed for good: they run again if they are delivered again; ` +
		`the store has not taken back 1 messages that failed: they are held until their leases lapse`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	store.mend()
	finish <- true
}

// lapsing is a store whose leases lapse at once, as on a machine whose clock jumps or that is paused.
type lapsing struct{ once.Store }

func (s lapsing) Claim(c once.Claim) (once.Decision, error) {
	if d, err := s.Store.Claim(c); err != nil || d.State != once.Running {
		return d, err
	}
	if c.Look {
		return once.Decision{State: once.Free}, nil
	}
	return once.Decision{State: once.Claimed}, nil
}

func TestNoMessageIsRunBesideItself(t *testing.T) {
	t.Parallel()
	var running, most, runs atomic.Int64
	s := start(runner(func(context.Context, *qstash.Message) ([]byte, error) {
		defer running.Add(-1)
		if n := running.Add(1); n > most.Load() {
			most.Store(n)
		}
		runtime.Gosched()
		if runs.Add(1) < 20 {
			return nil, errors.New("boom")
		}
		return []byte("done"), nil
	}), func(c *Config) { c.Store = lapsing{once.NewMemory(time.Hour)} })
	var all sync.WaitGroup
	for range 40 {
		all.Go(func() { s.send(message{id: "msg_1"}) })
	}
	all.Wait()
	if most.Load() != 1 {
		t.Errorf("%d runs at one time", most.Load())
	}
}

func TestLambdaIsAnsweredBeforeItsDeadline(t *testing.T) {
	t.Parallel()
	s := start(runner(func(ctx context.Context, _ *qstash.Message) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() }), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	s.Deliver(ctx, message{}.delivery(), func(o Outcome) {
		if o.Answer.Status != 504 || ctx.Err() != nil {
			t.Errorf("got %+v; the deadline: %v", o, ctx.Err())
		}
	})
}

// faulty is a store some of whose calls fail, hang or lose their answer, as the test says.
type faulty struct {
	once.Store
	mu     sync.Mutex
	before func(call string) error // instead of the call, unless it returns nil
	after  func(call string) error // instead of the answer, unless it returns nil
}

var errAway = errors.New("the store is away")

// fail has the calls of these names fail from now on.
func (f *faulty) fail(calls ...string) {
	f.set(func(call string) error {
		if slices.Contains(calls, call) {
			return errAway
		}
		return nil
	}, nil)
}

func (f *faulty) mend() { f.set(nil, nil) }

func (f *faulty) set(before, after func(string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before, f.after = before, after
}

func (f *faulty) do(call string, carryOut func() error) error {
	f.mu.Lock()
	before, after := f.before, f.after
	f.mu.Unlock()
	if before != nil {
		if err := before(call); err != nil {
			return err
		}
	}
	err := carryOut()
	if after != nil {
		err = cmp.Or(after(call), err)
	}
	return err
}

func (f *faulty) Claim(c once.Claim) (d once.Decision, err error) {
	call := "claim"
	if c.Look {
		call = "look"
	}
	err = f.do(call, func() error { d, err = f.Store.Claim(c); return err })
	return d, err
}

func (f *faulty) Complete(key once.Key, holder string, a once.Answer) error {
	return f.do("complete", func() error { return f.Store.Complete(key, holder, a) })
}

func (f *faulty) Release(key once.Key, holder string) error {
	return f.do("release", func() error { return f.Store.Release(key, holder) })
}
