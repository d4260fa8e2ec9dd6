package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

type handler func(ctx context.Context, m *Message) ([]byte, error)

// withHandler makes h the business logic.
func withHandler(h handler) func(*server) {
	return func(s *server) { s.deliverer.run = runHandlers(h, handleFailure) }
}

func TestOutcomes(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	for _, row := range []struct {
		name       string
		logic      handler
		status     int
		body       string
		header     map[string]string
		outcome    string
		level      string
		runs       int64 // of two deliveries
		secondBody string
	}{
		{"nil is a short success", func(context.Context, *Message) ([]byte, error) { return nil, nil },
			200, `{"message":"ok"}`, map[string]string{"Content-Type": "application/json"}, "ok", "INFO", 1, ""},
		{"a JSON reply", func(context.Context, *Message) ([]byte, error) { return []byte(`{"n": 1}`), nil },
			200, `{"n": 1}`, map[string]string{"Content-Type": "application/json"}, "ok", "INFO", 1, ""},
		{"a text reply", func(context.Context, *Message) ([]byte, error) { return []byte("thanks"), nil },
			200, "thanks", map[string]string{"Content-Type": "text/plain; charset=utf-8"}, "ok", "INFO", 1, ""},
		{"an empty reply", func(context.Context, *Message) ([]byte, error) { return []byte{}, nil },
			200, "", map[string]string{"Content-Type": "text/plain; charset=utf-8"}, "ok", "INFO", 1, ""},
		{"a reply too long to keep", func(context.Context, *Message) ([]byte, error) { return []byte(strings.Repeat("x", 16<<10+1)), nil },
			200, strings.Repeat("x", 16<<10+1), nil, "ok", "INFO", 1, `{"message":"ok"}`},
		{"the longest reply that is kept", func(context.Context, *Message) ([]byte, error) { return []byte(strings.Repeat("x", 16<<10)), nil },
			200, strings.Repeat("x", 16<<10), nil, "ok", "INFO", 1, ""},
		{"a success after the deadline", func(ctx context.Context, _ *Message) ([]byte, error) { <-ctx.Done(); return []byte("late"), nil },
			200, "late", nil, "ok", "INFO", 1, ""},
		{"a permanent failure", func(context.Context, *Message) ([]byte, error) { return nil, Permanent(boom) },
			489, `{"error":"boom"}`, map[string]string{"Upstash-Nonretryable-Error": "true"}, "permanent", "WARN", 1, ""},
		{"a wrapped permanent failure", func(context.Context, *Message) ([]byte, error) { return nil, fmt.Errorf("order: %w", Permanent(boom)) },
			489, `{"error":"order: boom"}`, map[string]string{"Upstash-Nonretryable-Error": "true"}, "permanent", "WARN", 1, ""},
		{"a permanent failure too long to keep", func(context.Context, *Message) ([]byte, error) {
			return nil, Permanent(errors.New(strings.Repeat("x", 16<<10)))
		}, 489, `{"error":"` + strings.Repeat("x", 16<<10) + `"}`, nil, "permanent", "WARN", 1, `{"error":"the first answer was too long to keep"}`},
		{"a permanent failure of nothing", func(context.Context, *Message) ([]byte, error) { return nil, Permanent(nil) },
			489, `{"error":"no reason given"}`, nil, "permanent", "WARN", 1, ""},
		{"a retry in whole seconds, rounded up", func(context.Context, *Message) ([]byte, error) { return nil, RetryAfter(1001*time.Millisecond, boom) },
			503, `{"error":"boom"}`, map[string]string{"Retry-After": "2"}, "retry", "WARN", 2, ""},
		{"a retry at once", func(context.Context, *Message) ([]byte, error) { return nil, RetryAfter(-time.Hour, boom) },
			503, `{"error":"boom"}`, map[string]string{"Retry-After": "1"}, "retry", "WARN", 2, ""},
		{"a retry in a week", func(context.Context, *Message) ([]byte, error) { return nil, RetryAfter(7*24*time.Hour, boom) },
			503, `{"error":"boom"}`, map[string]string{"Retry-After": "86400"}, "retry", "WARN", 2, ""},
		{"an error", func(context.Context, *Message) ([]byte, error) { return []byte("not sent"), boom },
			500, `{"error":"boom"}`, nil, "error", "ERROR", 2, ""},
		{"a timeout within the business logic", func(context.Context, *Message) ([]byte, error) { return nil, context.DeadlineExceeded },
			500, `{"error":"context deadline exceeded"}`, nil, "error", "ERROR", 2, ""},
		{"an error after the deadline", func(ctx context.Context, _ *Message) ([]byte, error) { <-ctx.Done(); return nil, boom },
			504, `{"error":"boom"}`, nil, "timeout", "ERROR", 2, ""},
		{"a retry after the deadline", func(ctx context.Context, _ *Message) ([]byte, error) {
			<-ctx.Done()
			return nil, RetryAfter(time.Minute, boom)
		}, 503, `{"error":"boom"}`, map[string]string{"Retry-After": "60"}, "retry", "WARN", 2, ""},
		{"a message that was overwritten", func(_ context.Context, m *Message) ([]byte, error) { *m = Message{}; return []byte("done"), nil },
			200, "done", nil, "ok", "INFO", 1, ""},
		{"a panic", func(context.Context, *Message) ([]byte, error) { panic("the secret is 42") },
			500, `{"error":"panic"}`, nil, "panic", "ERROR", 2, ""},
		{"an error that panics", func(context.Context, *Message) ([]byte, error) { var e *typedNil; return nil, e },
			500, `{"error":"panic"}`, nil, "panic", "ERROR", 2, ""},
		{"an error's text with what HTML would escape", func(context.Context, *Message) ([]byte, error) { return nil, errors.New("a < b & c") },
			500, `{"error":"a < b & c"}`, nil, "error", "ERROR", 2, ""},
		{"a goroutine that ends", func(context.Context, *Message) ([]byte, error) { runtime.Goexit(); return nil, nil },
			500, `{"error":"panic"}`, nil, "panic", "ERROR", 2, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			var runs atomic.Int64
			url, log := startServer(t, map[string]string{"HANDLER_TIMEOUT": "50ms"}, withHandler(func(ctx context.Context, m *Message) ([]byte, error) {
				runs.Add(1)
				return row.logic(ctx, m)
			}))
			s := sending{id: "msg_1", path: "/p", body: "x", header: map[string]string{"Upstash-Retried": "7"}}
			first := do(t, s.request(t, url))
			if first.status != row.status || first.body != row.body {
				t.Errorf("got %d %s", first.status, first.body)
			}
			line := log.await(t, `"msg":"delivery"`)
			want := map[string]any{"outcome": row.outcome, "level": row.level, "message": "msg_1", "attempt": 7.0, "path": "/p", "status": float64(row.status)}
			for name, value := range want {
				if line[name] != value {
					t.Errorf("the log line's %s is %v, want %v", name, line[name], value)
				}
			}
			second := do(t, s.request(t, url))
			secondBody := row.body
			if row.secondBody != "" {
				secondBody = row.secondBody
			}
			replayed := second.header.Get("Idempotent-Replayed") == "true"
			if second.status != row.status || second.body != secondBody || replayed != (row.runs == 1) || runs.Load() != row.runs {
				t.Errorf("the second delivery got %d %s (replayed: %v), after %d runs", second.status, second.body, replayed, runs.Load())
			}
			for name, value := range row.header {
				if first.header.Get(name) != value || second.header.Get(name) != value {
					t.Errorf("%s: %q, then %q, want %q", name, first.header.Get(name), second.header.Get(name), value)
				}
			}
		})
	}
}

// typedNil is an error whose nil pointer is not a nil error, and has no text.
type typedNil struct{ text string }

func (e *typedNil) Error() string { return e.text }

func TestPanicIsLoggedWithItsStack(t *testing.T) {
	t.Parallel()
	url, log := startServer(t, nil, withHandler(func(context.Context, *Message) ([]byte, error) { panic("the cause") }))
	do(t, sending{id: "msg_1", body: "x"}.request(t, url))
	if line := log.await(t, "panic in the business logic", "the cause", "msg_1"); !strings.Contains(line["stack"].(string), "deliver_test.go") {
		t.Errorf("the stack does not lead to the cause: %s", line["stack"])
	}
}

func TestFailureCallbacksGoToTheirOwnFunction(t *testing.T) {
	t.Parallel()
	failures := make(chan *Failure, 1)
	url, _ := startServer(t, nil, func(s *server) {
		s.deliverer.run = runHandlers(
			func(context.Context, *Message) ([]byte, error) { return []byte("a message"), nil },
			func(_ context.Context, f *Failure) error { failures <- f; return nil })
	})
	failure := `{"status":500,"sourceMessageId":"msg_failed","dlqId":"dlq_1"}`
	if got := do(t, sending{path: "/failure?x=1", body: failure}.request(t, url)); got.status != 200 || got.body != `{"message":"ok"}` {
		t.Errorf("got %+v", got)
	}
	if f := <-failures; f.MessageID != "msg_failed" || f.DLQID != "dlq_1" || f.Status != 500 {
		t.Errorf("handed over: %+v", f)
	}
	if got := do(t, sending{path: "/failure", body: `{"hello":"world"}`}.request(t, url)); got.status != 489 || got.header.Get("Upstash-NonRetryable-Error") != "true" {
		t.Errorf("what is no failure callback got %+v", got)
	}
	if got := do(t, sending{path: "/failure/x", body: failure}.request(t, url)); got.status != 200 || got.body != "a message" {
		t.Errorf("a message to another path got %+v", got)
	}
}

// onEachStore runs test with each kind of STORE_URL.
func onEachStore(t *testing.T, test func(t *testing.T, env map[string]string)) {
	for name, u := range map[string]func(t *testing.T) string{
		"memory": func(*testing.T) string { return "memory:" },
		"sqlite": func(t *testing.T) string { return t.TempDir() + "/receiver.db" },
		"redis":  func(t *testing.T) string { return testRedis(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, map[string]string{"STORE_URL": u(t)})
		})
	}
}

func TestConcurrentDeliveriesRunOnce(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, env map[string]string) {
		var runs atomic.Int64
		finish := make(chan bool)
		url, _ := startServer(t, env, withHandler(func(context.Context, *Message) ([]byte, error) {
			runs.Add(1)
			<-finish
			return []byte("once"), nil
		}))
		s := sending{id: "msg_" + t.Name(), path: "/" + strconv.FormatInt(time.Now().UnixNano(), 36), body: "x"}
		var all sync.WaitGroup
		var replays atomic.Int64
		for range 40 {
			all.Go(func() {
				got, err := tryDo(s.request(t, url))
				if err != nil || got.status != 200 || got.body != "once" {
					t.Error(got, err)
				}
				if got.header.Get("Idempotent-Replayed") == "true" {
					replays.Add(1)
				}
			})
		}
		finish <- true
		all.Wait()
		if runs.Load() != 1 || replays.Load() != 39 {
			t.Errorf("ran %d times, %d replays", runs.Load(), replays.Load())
		}
	})
}

func TestWaitingDeliveryTakesOver(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, env map[string]string) {
		begun, fail := make(chan bool), make(chan bool)
		var runs atomic.Int64
		url, _ := startServer(t, env, withHandler(func(context.Context, *Message) ([]byte, error) {
			if runs.Add(1) == 1 {
				begun <- true
				<-fail
				return nil, errors.New("the first fails")
			}
			return []byte("the second does not"), nil
		}))
		s := sending{path: "/" + strconv.FormatInt(time.Now().UnixNano(), 36), id: "msg_takeover", body: "x"}
		first, second := make(chan reply), make(chan reply)
		go func() { r, _ := tryDo(s.request(t, url)); first <- r }()
		<-begun
		go func() { r, _ := tryDo(s.request(t, url)); second <- r }()
		fail <- true
		if got := <-first; got.status != 500 {
			t.Errorf("the first got %+v", got)
		}
		if got := <-second; got.status != 200 || got.body != "the second does not" || got.header.Get("Idempotent-Replayed") != "" {
			t.Errorf("the second got %+v", got)
		}
	})
}

func TestWaitingEnds(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan bool), make(chan bool)
	url, log := startServer(t, map[string]string{"HANDLER_TIMEOUT": "20s"}, func(s *server) {
		withHandler(func(context.Context, *Message) ([]byte, error) { begun <- true; <-finish; return nil, nil })(s)
		s.deliverer.wait = 100 * time.Millisecond
	})
	s := sending{id: "msg_1", body: "x"}
	first := make(chan reply)
	go func() { r, _ := tryDo(s.request(t, url)); first <- r }()
	<-begun
	got := do(t, s.request(t, url))
	left, _ := strconv.Atoi(got.header.Get("Retry-After"))
	if got.status != 503 || left < 25 || left > 30 { // of 20 s + 10 s
		t.Errorf("got %+v", got)
	}
	if line := log.await(t, `"outcome":"in_flight"`); line["level"] != "INFO" {
		t.Errorf("logged %v", line)
	}
	finish <- true
	if got := <-first; got.status != 200 {
		t.Errorf("the first got %+v", got)
	}
}

func TestBusinessLogicThatIgnoresItsContext(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name string
		err  error
		next int // the status of a later delivery
		runs int64
	}{
		{"and succeeds late is recorded", nil, 200, 1},
		{"and fails late is released", errors.New("late"), 200, 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			finish := make(chan bool)
			var runs atomic.Int64
			url, log := startServer(t, map[string]string{"HANDLER_TIMEOUT": "20ms"}, func(s *server) {
				withHandler(func(context.Context, *Message) ([]byte, error) {
					if runs.Add(1) == 1 {
						<-finish
						return []byte("done"), row.err
					}
					return []byte("done"), nil
				})(s)
				s.deliverer.grace, s.deliverer.wait = 20*time.Millisecond, 50*time.Millisecond
			})
			s := sending{id: "msg_1", body: "x"}
			if got := do(t, s.request(t, url)); got.status != 504 {
				t.Errorf("got %+v", got)
			}
			if got := do(t, s.request(t, url)); got.status != 503 || runs.Load() != 1 { // nothing was released
				t.Errorf("while it runs: %+v after %d runs", got, runs.Load())
			}
			finish <- true
			log.await(t, "returned late", "msg_1")
			if got := do(t, s.request(t, url)); got.status != row.next || got.body != "done" || runs.Load() != row.runs {
				t.Errorf("then: %+v after %d runs", got, runs.Load())
			}
		})
	}
}

func TestCapturedTokenSpendsNothing(t *testing.T) {
	t.Parallel()
	onEachStore(t, func(t *testing.T, env map[string]string) {
		var runs atomic.Int64
		url, log := startServer(t, env, withHandler(func(context.Context, *Message) ([]byte, error) { runs.Add(1); return nil, nil }))
		unique := strconv.FormatInt(time.Now().UnixNano(), 36)
		captured := sending{id: "msg_a" + unique, jti: "jwt_" + unique, body: "x"}.request(t, url)
		send := func(id string, wantStatus int, wantRuns int64) {
			t.Helper()
			again := sending{body: "x"}.request(t, url)
			again.Header = captured.Header.Clone()
			again.Header.Set("Upstash-Message-Id", id)
			if got := do(t, again); got.status != wantStatus || runs.Load() != wantRuns {
				t.Errorf("%q: status %d, %d runs; want %d, %d", id, got.status, runs.Load(), wantStatus, wantRuns)
			}
		}
		send("msg_a"+unique, 200, 1)
		send("msg_a"+unique, 200, 1) // a proxy's resend
		send("msg_b"+unique, 401, 1)
		send("", 401, 1)
		log.await(t, `"reason":"replayed"`, "msg_b")
		if got := do(t, sending{id: "msg_b" + unique, body: "x"}.request(t, url)); got.status != 200 || runs.Load() != 2 {
			t.Errorf("the id that the replay named is spent: %+v, %d runs", got, runs.Load())
		}
	})
}

func TestMessageWithoutAnyIDIsRunEachTime(t *testing.T) {
	t.Parallel()
	var runs atomic.Int64
	url, _ := startServer(t, nil, withHandler(func(context.Context, *Message) ([]byte, error) { runs.Add(1); return nil, nil }))
	for range 2 {
		r := sending{body: "x"}.request(t, url)
		r.Header.Del("Upstash-Message-Id")
		now := time.Now().Unix()
		r.Header.Set("Upstash-Signature", hmacToken(validDelivery().alg, `{"alg":"HS256","typ":"JWT"}`,
			fmt.Sprintf(`{"body":%q,"exp":%d,"iss":"Upstash","nbf":0}`, hashOf("x"), now+300), currentKey))
		if got := do(t, r); got.status != 200 || got.header.Get("Idempotent-Replayed") != "" {
			t.Errorf("got %+v", got)
		}
	}
	if runs.Load() != 2 {
		t.Errorf("ran %d times", runs.Load())
	}
}

// The grace is for the business logic: once it has returned, the store has its own time.
func TestRecordingIsNotOverdue(t *testing.T) {
	t.Parallel()
	r := newOwnRedis(t)
	pause := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + r.port})
	defer pause.Close()
	url, _ := startServer(t, map[string]string{"STORE_URL": "redis://127.0.0.1:" + r.port, "HANDLER_TIMEOUT": "20ms"}, func(s *server) {
		s.deliverer.grace = 200 * time.Millisecond
		withHandler(func(ctx context.Context, _ *Message) ([]byte, error) {
			<-ctx.Done()
			return []byte("late"), pause.Do(context.Background(), "CLIENT", "PAUSE", "1000").Err()
		})(s)
	})
	s := sending{id: "msg_1", body: "x"}
	for _, replayed := range []string{"", "true"} {
		if got := do(t, s.request(t, url)); got.status != 200 || got.body != "late" || got.header.Get("Idempotent-Replayed") != replayed {
			t.Errorf("got %+v", got)
		}
	}
}

func TestStoreAway(t *testing.T) {
	t.Parallel()
	r := newOwnRedis(t)
	var runs atomic.Int64
	begun, finish := make(chan bool, 8), make(chan bool)
	url, log := startServer(t, map[string]string{"STORE_URL": "redis://127.0.0.1:" + r.port}, withHandler(func(context.Context, *Message) ([]byte, error) {
		runs.Add(1)
		begun <- true
		<-finish
		return []byte("done"), nil
	}))
	first := make(chan reply)
	go func() { got, _ := tryDo(sending{body: "x"}.request(t, url)); first <- got }()
	<-begun
	r.stop()
	finish <- true
	if got := <-first; got.status != 200 || got.body != "done" {
		t.Errorf("work that is done and cannot be recorded got %+v", got)
	}
	log.await(t, `"level":"ERROR"`, `"operation":"complete"`)
	got := do(t, sending{body: "x"}.request(t, url))
	if got.status != 503 || got.header.Get("Retry-After") != "10" || runs.Load() != 1 {
		t.Errorf("without its store: %+v, %d runs", got, runs.Load())
	}
	log.await(t, `"outcome":"store"`)
	r.start(t)
	go func() { finish <- true }()
	if got := do(t, sending{body: "x"}.request(t, url)); got.status != 200 || runs.Load() != 2 {
		t.Errorf("with its store back: %+v, %d runs", got, runs.Load())
	}
}
