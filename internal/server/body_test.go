//go:build !lambda

package server

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"qstash-receiver/internal/deliver"
	"qstash-receiver/internal/once"
	"qstash-receiver/internal/qstash"
	"qstash-receiver/internal/qstashtest"
)

// Large messages wait for room, and none is turned away.
func TestLargeMessagesWaitForEachOther(t *testing.T) {
	t.Parallel()
	var most atomic.Int64
	var p instance
	p = start(t, runner(func(context.Context, *qstash.Message) ([]byte, error) {
		if held := p.room.Held(); held > most.Load() {
			most.Store(held)
		}
		return nil, nil
	}), func(c *Config, web *http.Server) { // for a machine that does other things too
		c.Timing.Wait, web.ReadTimeout = time.Minute, 5*time.Minute
	})
	body := strings.Repeat("x", 10<<20)
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 2 {
				if got, err := qstashtest.TryDo(qstashtest.Sending{Body: body}.Request(t, p.url)); err != nil || got.Status != 200 {
					t.Errorf("got %d %s, %v", got.Status, got.Body, err)
				}
			}
		})
	}
	all.Wait()
	await(t, "there are bytes that nobody holds", func() bool { return p.room.Held() == 0 })
	if most.Load() > MaxHeldBytes {
		t.Errorf("%d bytes were held", most.Load())
	}
}

// A captured token can promise as many bodies as it likes.
func TestPromisesCostNothing(t *testing.T) {
	t.Parallel()
	var runs atomic.Int64
	p := start(t, counting(&runs), func(_ *Config, web *http.Server) { web.ReadTimeout = 5 * time.Minute })
	captured := qstashtest.Sending{TokenID: "jwt_captured"}.Head(p.url, "", "Content-Length: 10485760\r\n")
	for range 40 {
		qstashtest.Dial(t, p.url).Send(t, captured)
	}
	for i := range 30 { // and as many tokens
		qstashtest.Dial(t, p.url).Send(t, qstashtest.Sending{TokenID: fmt.Sprint("jwt_", i)}.Head(p.url, "", "Content-Length: 10485760\r\n"))
	}
	await(t, "the promises do not come", func() bool { return p.room.Held() == 32*firstPart })
	for range 2 {
		if got := p.send(t, qstashtest.Sending{Body: strings.Repeat("x", 10<<20)}); got.Status != 200 {
			t.Errorf("got %+v", got)
		}
	}
	await(t, "more is held for promises", func() bool { return p.room.Held() == 32*firstPart })
}

func TestTwoBodiesUnderOneToken(t *testing.T) {
	t.Parallel()
	var runs atomic.Int64
	for _, row := range []struct {
		sentence string
		patience time.Duration
		arrives  bool
		status   int
	}{
		{"a third is turned away", 100 * time.Millisecond, false, 503},
		{"a third is read when one of them is here", 20 * time.Second, true, 100},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			p := start(t, counting(&runs), func(c *Config, _ *http.Server) { c.Timing.Wait = row.patience })
			s := qstashtest.Sending{ID: "msg_1", TokenID: "jwt_1", Body: "hello"}
			head := s.Head(p.url, "", "Content-Length: 5\r\nExpect: 100-continue\r\n")
			var both []*qstashtest.Conn
			for range 2 {
				c := qstashtest.Dial(t, p.url)
				c.Send(t, head)
				if got := c.Reply(t); got.Status != 100 {
					t.Fatalf("got %+v", got)
				}
				both = append(both, c)
			}
			third := qstashtest.Dial(t, p.url)
			third.Send(t, head)
			if row.arrives {
				both[0].Send(t, "hello")
			}
			got := third.Reply(t)
			if got.Status != row.status || got.Status == 503 && (got.Header.Get("Retry-After") != "" || !strings.Contains(got.Body, "under the same token")) {
				t.Errorf("got %+v", got)
			}
			if _, wedged := p.room.wedged(-time.Hour); wedged {
				t.Error("that is no want of room")
			}
			if other := p.send(t, qstashtest.Sending{Body: "hello"}); other.Status != 200 {
				t.Errorf("another token got %+v", other)
			}
		})
	}
}

// steps of bodies that share the room; each body has the bytes that it takes.
func TestRoom(t *testing.T) {
	t.Parallel()
	const mega = 1 << 20
	m := newRoom(10*mega, 0)
	body := func(size int64) *reading { return &reading{room: m, left: size} }
	m.held = 58 * mega
	whole := body(5 * mega)
	if err := whole.enter(mega); err != nil {
		t.Errorf("a body that fits: %v", err)
	}
	large := body(10 * mega)
	if err := large.enter(mega); err != nil {
		t.Errorf("a body that has to wait, beside one that has not: %v", err)
	}
	if err := large.take(mega); err == nil {
		t.Error("it takes what the other needs")
	}
	if err := whole.take(4 * mega); err != nil {
		t.Errorf("the rest of the one that fits: %v", err)
	}
	whole.arrived()
	whole.whole = true
	whole.giveBack()
	m.held -= 6 * mega
	if err := large.take(9 * mega); err != nil {
		t.Errorf("the rest of the other, now: %v", err)
	}
	large.arrived()
	large.giveBack()
	if m.held != 52*mega || len(m.reading) != 0 || len(m.tokens) != 0 {
		t.Errorf("%d bytes, %d bodies and %d tokens are left", m.held, len(m.reading), len(m.tokens))
	}
	m.drain()
	if err := body(1).enter(1); !strings.Contains(fmt.Sprint(err), deliver.Stopping.Row().Reason) {
		t.Errorf("when it stops: %v", err)
	}
}

// Who has waited longest is next, but small bodies do not wait for large ones.
func TestRoomIsGivenInOrder(t *testing.T) {
	t.Parallel()
	const mega = 1 << 20
	m := newRoom(10*mega, 20*time.Second)
	m.held = MaxHeldBytes
	entered := make(chan string)
	for i, body := range []struct {
		name string
		size int64
	}{{"first", 9 * mega}, {"second", 9 * mega}, {"larger", 10 * mega}, {"small", mega}} {
		go func() {
			if err := (&reading{room: m, token: once.KeyOf(body.name), left: body.size}).enter(body.size); err != nil {
				t.Error(err)
			}
			entered <- body.name
		}()
		await(t, "it does not wait", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return len(m.line) == i+1 })
	}
	for _, next := range []struct {
		freed int64
		name  string
	}{{mega, "small"}, {9 * mega, "first"}, {9 * mega, "second"}, {10 * mega, "larger"}} {
		m.mu.Lock()
		m.held -= next.freed
		m.wake()
		m.mu.Unlock()
		if name := <-entered; name != next.name {
			t.Errorf("%s is next, not %s", name, next.name)
		}
	}
	if len(m.line) != 0 {
		t.Errorf("%d still wait", len(m.line))
	}
}

// Bodies that stall fill the room too. Once they are gone there is no want of it, though none of them was ever whole.
func TestRoomOfBodiesThatStall(t *testing.T) {
	t.Parallel()
	const mega = 1 << 20
	m := newRoom(10*mega, 0)
	m.held = MaxHeldBytes - 10*mega
	stalled := &reading{room: m, left: 10 * mega}
	if err := stalled.enter(10 * mega); err != nil {
		t.Fatal(err)
	}
	turned := &reading{room: m, left: mega}
	if err := turned.enter(1); err == nil {
		t.Fatal("there is room")
	}
	turned.giveBack()
	if _, wedged := m.wedged(-time.Hour); !wedged {
		t.Error("a body was turned away, and the room is as full as before")
	}
	stalled.arrived()
	stalled.giveBack()
	if _, wedged := m.wedged(-time.Hour); wedged {
		t.Error("there is room for the largest message")
	}
}

// A body waits for its patience in all, not each time.
func TestPatience(t *testing.T) {
	t.Parallel()
	m := newRoom(1, 200*time.Millisecond)
	r := &reading{room: m}
	began := time.Now()
	looks := 0
	go func() {
		for time.Since(began) < time.Second {
			m.mu.Lock()
			m.wake()
			m.mu.Unlock()
			time.Sleep(10 * time.Millisecond)
		}
	}()
	if err := r.wait(func() string { looks++; return noRoom }); err == nil || time.Since(began) > 900*time.Millisecond || looks < 2 {
		t.Errorf("got %v after %s and %d looks", err, time.Since(began), looks)
	}
}
