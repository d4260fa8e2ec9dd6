package deliver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"qstash-receiver/internal/once"
	"qstash-receiver/internal/qstash"
	"qstash-receiver/internal/qstashtest"
)

// await returns when is has become true.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

// looked is how the store has the message of m, without asking by way of the Deliverer.
func (s service) looked(t *testing.T, store once.Store, m message) once.State {
	t.Helper()
	c, _ := m.delivery().claim(s.Timing, s.Dedupe)
	c.Look = true
	d, err := store.Claim(c)
	if err != nil {
		t.Fatal(err)
	}
	return d.State
}

func TestWhatTheStoreDoesNotTakeIsKept(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		sentence string
		logic    handler
		status   int
		body     string
	}{
		{"a success", succeed, 200, "done"},
		{"a success without a reply", func(context.Context, *qstash.Message) ([]byte, error) { return nil, nil }, 200, `{"message":"ok"}`},
		{"a permanent failure", func(context.Context, *qstash.Message) ([]byte, error) {
			return nil, qstash.Permanent(errors.New("boom"))
		},
			489, `{"error":"boom"}`},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			var runs atomic.Int64
			store := &faulty{Store: once.NewMemory(time.Hour)}
			s := start(counting(&runs, row.logic), func(c *Config) { c.Store = store })
			m := message{id: "msg_1"}
			store.fail("complete")
			expect(t, s.send(m), row.status, row.body, false)
			if s.Unrecorded() != 1 {
				t.Errorf("%d answers wait", s.Unrecorded())
			}
			expect(t, s.send(m), row.status, row.body, true) // the store says that it is running
			store.fail("claim", "look", "complete", "release")
			expect(t, s.send(m), row.status, row.body, true) // the store says nothing
			s.log.Await(t, `"level":"ERROR"`, `"operation":"complete"`)
			store.mend()
			await(t, "it is never recorded", func() bool { return s.Unrecorded() == 0 })
			if state := s.looked(t, store.Store, m); state != once.Finished {
				t.Errorf("the store has it as %s", state)
			}
			expect(t, s.send(m), row.status, row.body, true)
			if runs.Load() != 1 {
				t.Errorf("ran %d times", runs.Load())
			}
			s.log.Await(t, "works again")
			if n := len(s.log.Lines(t, `"level":"ERROR"`)); n != 1 {
				t.Errorf("%d ERROR lines for one outage", n)
			}
			s.stops(t, 10*time.Second)
		})
	}
}

func TestTwoOutagesAreTwoLines(t *testing.T) {
	t.Parallel()
	store := &faulty{Store: once.NewMemory(time.Hour)}
	s := start(runner(succeed), func(c *Config) { c.Store = store })
	for outage := range 2 {
		store.fail("complete")
		for i := range 3 {
			s.send(message{id: fmt.Sprint(outage, i)})
		}
		store.mend()
		await(t, "the end of an outage is not logged", func() bool { return len(s.log.Lines(t, "works again")) == outage+1 })
		if n := len(s.log.Lines(t, `"level":"ERROR"`)); n != outage+1 {
			t.Errorf("%d ERROR lines after %d outages", n, outage+1)
		}
	}
}

func TestFailedReleasesAreDoneLater(t *testing.T) {
	t.Parallel()
	store := &faulty{Store: once.NewMemory(time.Hour)}
	s := start(runner(func(context.Context, *qstash.Message) ([]byte, error) { return nil, errors.New("boom") }), func(c *Config) { c.Store = store })
	m := message{id: "msg_1"}
	store.fail("release")
	expect(t, s.send(m), 500, `{"error":"boom"}`, false)
	if state := s.looked(t, store.Store, m); state != once.Running {
		t.Errorf("the store has it as %s", state)
	}
	again := s.begin(m) // waits for it
	store.mend()
	expect(t, <-again, 500, `{"error":"boom"}`, false)
	s.stops(t, 10*time.Second)
}

// A store that is full takes no answers, but it takes back messages.
func TestAnswersDoNotStandInTheWay(t *testing.T) {
	t.Parallel()
	store := &faulty{Store: once.NewMemory(time.Hour)}
	s := start(runner(func(_ context.Context, m *qstash.Message) ([]byte, error) {
		if m.URL.Path == "/error" {
			return nil, errors.New("boom")
		}
		return nil, nil
	}), func(c *Config) { c.Store = store })
	store.fail("complete", "release")
	for i := range 100 {
		s.send(message{id: fmt.Sprint("msg_", i)})
	}
	failed := message{id: "msg_fails", target: "/error"}
	s.send(failed)
	store.fail("complete")
	await(t, "it is not given back", func() bool { return s.looked(t, store.Store, failed) == once.Free })
	store.mend()
	s.stops(t, 20*time.Second)
}

func TestLostClaimsAreGivenBack(t *testing.T) {
	t.Parallel()
	lost := errors.New("no answer")
	for _, row := range []struct {
		sentence string
		claim    func(*faulty, once.Claim) // how a claim whose answer is lost is carried out
	}{
		{"one that was carried out", func(store *faulty, c once.Claim) { _, _ = store.Store.Claim(c) }},
		{"one that never arrives", func(*faulty, once.Claim) {}},
		{"one that arrives when it has been given back already", func(store *faulty, c once.Claim) {
			released := make(chan struct{})
			var first sync.Once
			store.set(nil, func(call string) error {
				if call == "release" {
					first.Do(func() { close(released) })
				}
				return nil
			})
			go func() { <-released; _, _ = store.Store.Claim(c) }()
		}},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			store := &faulty{Store: once.NewMemory(time.Hour)}
			losing := &losing{faulty: store}
			losing.claim = func(c once.Claim) error { row.claim(store, c); losing.claim = nil; return lost }
			s := start(runner(succeed), func(c *Config) { c.Store = losing })
			m := message{id: "msg_1"}
			o := s.send(m)
			if o.Reason != StoreAway || o.Answer.Status != 503 || o.Retry != nil {
				t.Errorf("got %+v", o)
			}
			began := time.Now()
			expect(t, s.send(m), 200, "done", false)
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it was held for %s", took)
			}
			s.stops(t, 10*time.Second)
		})
	}
}

// losing is a store whose claims the test carries out.
type losing struct {
	*faulty
	claim func(once.Claim) error // nil: as ever
}

func (l *losing) Claim(c once.Claim) (once.Decision, error) {
	if claim := l.claim; claim != nil {
		return once.Decision{}, claim(c)
	}
	return l.faulty.Claim(c)
}

// The token of a delivery that is answered from here is bound to its message once the store is back.
func TestTokensOfAnOutageAreBound(t *testing.T) {
	t.Parallel()
	var runs atomic.Int64
	store := &faulty{Store: once.NewMemory(time.Hour)}
	s := start(counting(&runs, succeed), func(c *Config) { c.Store = store })
	store.fail("complete")
	s.send(message{id: "msg_1"})
	store.fail("look", "complete")
	for i := range 3 {
		expect(t, s.send(message{id: "msg_1", tokenID: fmt.Sprint("jwt_", i)}), 200, "done", true)
	}
	// The first is bound, and then the store is away again.
	var looks atomic.Int64
	store.set(func(call string) error {
		if call == "look" && looks.Add(1) == 2 {
			return errAway
		}
		return nil
	}, nil)
	await(t, "it is never recorded", func() bool { return s.Unrecorded() == 0 })
	for i := range 3 {
		if o := s.send(message{id: "msg_2", tokenID: fmt.Sprint("jwt_", i)}); o.Reason != Replayed {
			t.Errorf("token %d under another id got %s", i, o.Reason.Row().Reason)
		}
	}
	if runs.Load() != 1 {
		t.Errorf("ran %d times", runs.Load())
	}
}

func TestTheOldestAnswersAreGivenUp(t *testing.T) {
	t.Parallel()
	large := []byte(strings.Repeat("x", once.MaxKeptBody))
	hoard := make([]byte, 1<<20) // what a reply may be a piece of
	store := &faulty{Store: once.NewMemory(time.Hour)}
	s := start(runner(func(_ context.Context, m *qstash.Message) ([]byte, error) {
		if m.URL.Path == "/error" {
			return nil, errors.New("boom")
		}
		reply := append(hoard[:0:len(large)], large...)
		return reply, nil
	}), func(c *Config) { c.Store, c.Log = store, slog.New(slog.NewJSONHandler(io.Discard, nil)) })
	log := qstashtest.NewLog()
	s.backlog.log = slog.New(slog.NewJSONHandler(log, nil))
	store.fail("complete", "release")
	const n = 1100
	for i := range n {
		s.send(message{id: fmt.Sprint("msg_", i)})
	}
	for range backlogGivenBack + 100 { // these push out none of the answers
		s.backlog.giveBack(once.Claim{Holder: "x"})
	}
	kept := s.Unrecorded()
	if room := backlogBytes / (once.MaxKeptBody + 1000); kept < room || kept+s.backlog.GivenUp() != n || s.backlog.Held() != backlogGivenBack {
		t.Errorf("%d are kept, %d given up, %d to give back", kept, s.backlog.GivenUp(), s.backlog.Held())
	}
	if lines := log.Lines(t, "the oldest are given up", `"level":"ERROR"`); len(lines) != 1 {
		t.Errorf("logged %d times", len(lines))
	}
	if _, isKept := s.backlog.answers[once.KeyOf("msg_0", "https://app.example/", qstashtest.BodyHash(""))]; isKept {
		t.Error("the oldest is kept")
	}
	var memory runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&memory)
	if held := memory.HeapAlloc; held > 64<<20 {
		t.Errorf("%d bytes are in use", held)
	}
	store.mend()
	await(t, "what is kept is never recorded", func() bool { return s.Unrecorded() == 0 })
	if err := s.Stop(10 * time.Second); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("the answers of %d messages", n-kept)) {
		t.Errorf("got %v", err)
	}
}

func TestStopWaitsForTheStore(t *testing.T) {
	t.Parallel()
	store := &faulty{Store: once.NewMemory(time.Hour)}
	s := start(runner(succeed), func(c *Config) { c.Store = store })
	store.fail("complete")
	m := message{id: "msg_1"}
	s.send(m)
	stopped := make(chan error)
	go func() { stopped <- s.Stop(20 * time.Second) }()
	await(t, "it does not stop", func() bool { return s.send(message{}).Reason == Stopping })
	store.mend()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if state := s.looked(t, store.Store, m); state != once.Finished {
		t.Errorf("the store has it as %s", state)
	}
}

// A claim that was perhaps never carried out is nothing to wait for.
func TestStopDoesNotWaitForLostClaims(t *testing.T) {
	t.Parallel()
	store := &faulty{Store: once.NewMemory(time.Hour)}
	s := start(runner(succeed), func(c *Config) { c.Store = store })
	store.fail("claim", "release")
	s.send(message{id: "msg_1"})
	began := time.Now()
	s.stops(t, 20*time.Second)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the stop took %s", took)
	}
}

// A Redis that loses nothing but is killed again and again, under load: nothing runs twice, though answers of its get
// lost and redeliveries come while it is away.
func TestRedisThatComesAndGoes(t *testing.T) {
	t.Parallel()
	server := qstashtest.NewRedis(t, "--appendonly", "yes", "--appendfsync", "always")
	var ran sync.Map
	var messages, again atomic.Int64
	s := start(runner(func(_ context.Context, m *qstash.Message) ([]byte, error) {
		if _, before := ran.LoadOrStore(m.Unverified.ID, true); before {
			again.Add(1)
		}
		return nil, nil
	}), func(c *Config) { c.Store = openRedis(t, server.URL()) })
	ctx, end := context.WithCancel(t.Context())
	var load sync.WaitGroup
	for worker := range 8 {
		load.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				m := message{id: fmt.Sprint("msg_", worker, "_", i)}
				messages.Add(1)
				for range 2 { // a delivery and its redelivery, each until it is answered
					for s.send(m).Answer.Status != 200 && ctx.Err() == nil {
						time.Sleep(time.Millisecond)
					}
				}
			}
		})
	}
	for range 3 {
		before := messages.Load()
		await(t, "no message gets through", func() bool { return messages.Load() > before+50 })
		server.Stop()
		before = s.tally.failed.Load()
		await(t, "nobody asks the store", func() bool { return s.tally.failed.Load() > before+20 })
		server.Start(t)
	}
	end()
	load.Wait()
	if n := again.Load(); n > 0 {
		t.Errorf("of %d messages %d ran again", messages.Load(), n)
	}
	s.stops(t, 20*time.Second)
}

// QStash retries three times with a backoff of its own, unless the answer says when. Fifty messages meet an outage of
// 35 s, here a hundredth as long, and the waits too.
func TestAnOutageLosesNoMessage(t *testing.T) {
	t.Parallel()
	const speed = 100
	server := qstashtest.NewRedis(t)
	s := start(runner(succeed), func(c *Config) { c.Store = openRedis(t, server.URL()) })
	server.Stop()
	time.AfterFunc(35*time.Second/speed, func() { server.Start(t) })
	var delivered atomic.Int64
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			m := message{id: fmt.Sprint("msg_", i)}
			for retried := range 4 {
				m.header = map[string]string{"Upstash-Retried": strconv.Itoa(retried)}
				o := s.send(m)
				if o.Answer.Status == 200 {
					delivered.Add(1)
					return
				}
				wait := math.Exp(2.5 * float64(retried+1))
				if after := o.Retry.Get("Retry-After"); after != "" {
					wait, _ = strconv.ParseFloat(after, 64)
				}
				if retried < 3 {
					time.Sleep(time.Duration(min(wait, 300) / speed * float64(time.Second)))
				}
			}
		})
	}
	all.Wait()
	if delivered.Load() != 50 {
		t.Errorf("%d of 50 messages were delivered", delivered.Load())
	}
	s.stops(t, 20*time.Second)
}

// A Redis that hangs for longer than a claim is waited for, and carries out each claim when it goes on.
func TestRedisThatHangs(t *testing.T) {
	t.Parallel()
	server := qstashtest.NewRedis(t)
	s := start(runner(succeed), func(c *Config) { c.Store = openRedis(t, server.URL()) })
	m := message{id: "msg_1"}
	server.Pause()
	began := time.Now()
	if o := s.send(m); o.Reason != StoreAway || time.Since(began) > 6*time.Second {
		t.Errorf("got %+v after %s", o, time.Since(began))
	}
	server.Resume()
	began = time.Now()
	expect(t, s.send(m), 200, "done", false)
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("it was held for %s", took)
	}
	s.stops(t, 20*time.Second)
}
