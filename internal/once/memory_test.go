package once_test

import (
	"bytes"
	"fmt"
	"net/http"
	"runtime"
	"testing"
	"time"

	"qstash-receiver/internal/once"
	"qstash-receiver/internal/once/oncetest"
)

var ok = once.Answer{
	Status: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: []byte(`{"message":"ok"}`),
}

func TestMemory(t *testing.T) {
	t.Parallel()
	oncetest.Run(t, oncetest.Engine{Open: func(_ testing.TB, ttl time.Duration) once.Store { return once.NewMemory(ttl) }})
}

// finish is one message from its claim to its answer.
func finish(t testing.TB, s once.Store, c once.Claim, a once.Answer) once.Claim {
	t.Helper()
	oncetest.Want(t, s, c, once.Claimed)
	if err := s.Complete(c.Key, c.Holder, a); err != nil {
		t.Fatal(err)
	}
	return c
}

// heap is what the program holds.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func lasting() once.Claim {
	c := oncetest.NewClaim()
	c.TokenTTL = time.Hour
	return c
}

func TestMemoryTakesFewBytesAMessage(t *testing.T) {
	const messages, most = 100_000, 300
	before := heap()
	s := once.NewMemory(72 * time.Hour)
	first := finish(t, s, lasting(), ok)
	for range messages - 1 {
		finish(t, s, lasting(), ok)
	}
	each := (heap() - before) / messages
	t.Logf("%d bytes a message", each)
	if each > most {
		t.Errorf("%d bytes a message and its token, want at most %d", each, most)
	}
	if got := oncetest.Want(t, s, oncetest.Again(first), once.Finished).Answer; !bytes.Equal(got.Body, ok.Body) {
		t.Errorf("the first of them has the answer %q", got.Body)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	const limit = 4 << 20 // of 32 MiB, to be quick
	for _, row := range []struct {
		name     string
		messages int
		message  func(n int) (once.Claim, once.Answer)
	}{
		{"many messages", 40_000, func(int) (once.Claim, once.Answer) { return lasting(), ok }},
		{"many messages whose tokens are over", 40_000, func(int) (once.Claim, once.Answer) {
			c := oncetest.NewClaim()
			c.TokenTTL = 0
			return c, ok
		}},
		{"many different answers", 40_000, func(n int) (once.Claim, once.Answer) {
			return lasting(), once.Answer{Status: 200, Body: fmt.Appendf(nil, `{"order":%d}`, n)}
		}},
		{"large answers", 3_000, func(n int) (once.Claim, once.Answer) {
			body := fmt.Appendf(make([]byte, 0, once.MaxKeptBody), "%*d", once.MaxKeptBody-n%100, n)
			if n%100 == 0 {
				body = make([]byte, 1<<20)[:n%1000] // all of which would stay alive
			}
			return lasting(), once.Answer{Status: 200, Body: body}
		}},
		{"answers with long headers", 3_000, func(n int) (once.Claim, once.Answer) {
			return lasting(), once.Answer{Status: 200, Header: http.Header{"Upstash-Long": {fmt.Sprintf("%8000d", n)}}}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := heap()
			s := once.NewMemory(time.Hour)
			s.SetLimit(limit)
			held := lasting() // the oldest, and running
			oncetest.Want(t, s, held, once.Claimed)
			var last once.Claim
			for n := range row.messages {
				c, a := row.message(n)
				last = finish(t, s, c, a)
			}
			if used := heap() - before; used > limit {
				t.Errorf("%d messages take %d bytes, want at most %d", row.messages, used, limit)
			}
			oncetest.Want(t, s, oncetest.Again(held), once.Running)
			oncetest.Want(t, s, oncetest.Again(last), once.Finished)
		})
	}
}

func TestMemoryForgetsTokensLast(t *testing.T) {
	t.Parallel()
	s := once.NewMemory(time.Hour)
	s.SetLimit(4 << 20)
	over := oncetest.NewClaim()
	over.TokenTTL = 0
	finish(t, s, over, ok)
	failure := once.Answer{Status: 489, Header: http.Header{
		"Content-Type": {"text/plain"}, "Upstash-Nonretryable-Error": {"true"}, "Upstash-Label": {"l"}}}
	first, second := lasting(), lasting()
	for _, row := range []struct {
		claim  once.Claim
		status int
	}{{first, 201}, {second, 489}} {
		a := failure
		a.Status, a.Body = row.status, bytes.Repeat([]byte{'x'}, 16_000)
		finish(t, s, row.claim, a)
	}
	for n := range 10_000 { // more large answers than there is room for, and fewer messages
		finish(t, s, lasting(), once.Answer{Status: 200, Body: fmt.Appendf(nil, "%16000d", n)})
	}
	for _, row := range []struct {
		claim once.Claim
		want  once.Answer
	}{{first, once.Answer{Status: 201, Body: ok.Body}}, {second, once.Answer{Status: 489}}} {
		replay := lasting()
		replay.Token = row.claim.Token
		oncetest.Want(t, s, replay, once.Replayed)
		again := row.claim
		again.Holder = once.NewHolder()
		got := oncetest.Want(t, s, again, once.Finished).Answer
		if got.Status != row.want.Status || len(got.Body) > 100 || row.want.Body != nil && !bytes.Equal(got.Body, row.want.Body) {
			t.Errorf("got %d %.200q", got.Status, got.Body)
		}
		if got.Header.Get("Upstash-NonRetryable-Error") != "true" || got.Header.Get("Content-Type") != "application/json" {
			t.Errorf("got %v", got.Header)
		}
	}
	oncetest.Want(t, s, oncetest.Again(over), once.Claimed) // it went before any answer did
}

func TestKeptAnswer(t *testing.T) {
	t.Parallel()
	long := make([]byte, once.MaxKeptBody+1)
	header := http.Header{"Content-Type": {"text/csv"}, "Content-Encoding": {"gzip"}, "Upstash-Label": {"l"}}
	short := http.Header{"Content-Type": {"application/json"}, "Upstash-Label": {"l"}}
	for _, row := range []struct {
		name    string
		a, want once.Answer
	}{
		{"as it was", once.Answer{Status: 201, Header: header, Body: long[1:]}, once.Answer{Status: 201, Header: header, Body: long[1:]}},
		{"a long success", once.Answer{Status: 201, Header: header, Body: long}, once.Answer{Status: 201, Header: short, Body: []byte(`{"message":"ok"}`)}},
		{"a long failure", once.Answer{Status: 489, Header: header, Body: long},
			once.Answer{Status: 489, Header: short, Body: []byte(`{"error":"the first answer was too long to keep"}`)}},
	} {
		got := row.a.Kept()
		if got.Status != row.want.Status || !bytes.Equal(got.Body, row.want.Body) || fmt.Sprint(got.Header) != fmt.Sprint(row.want.Header) {
			t.Errorf("%s: got %+.100v, want %+.100v", row.name, got, row.want)
		}
	}
}

func TestLivingLease(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name              string
		left, lease, want time.Duration
	}{
		{"as it was made", time.Minute, time.Minute, time.Minute},
		{"half over", 30 * time.Second, time.Minute, 30 * time.Second},
		{"just over", 0, time.Minute, time.Minute},
		{"over for a quarter", -15 * time.Second, time.Minute, 45 * time.Second},
		{"over for long", -time.Hour - 15*time.Second, time.Minute, 45 * time.Second},
		{"the clock went back an hour", time.Hour, time.Minute, time.Minute},
	} {
		if got := once.LivingLease(row.left, row.lease); got != row.want {
			t.Errorf("%s: %s, want %s", row.name, got, row.want)
		}
	}
}

// BenchmarkMemory is one message, a claim and a completion, among as many as are remembered already.
func BenchmarkMemory(b *testing.B) {
	for _, remembered := range []int{0, 100_000} {
		b.Run(fmt.Sprint(remembered), func(b *testing.B) {
			s := once.NewMemory(time.Hour)
			for range remembered {
				finish(b, s, lasting(), ok)
			}
			b.ReportAllocs()
			for b.Loop() {
				finish(b, s, lasting(), ok)
			}
		})
	}
}
