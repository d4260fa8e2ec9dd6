// Package oncetest is the contract of once.Store and once.Committer as a test. A new store counts when it passes:
//
//	oncetest.Run(t, oncetest.Engine{Open: open})
package oncetest

import (
	"bytes"
	"crypto/rand"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"qstash-receiver/internal/once"
)

// Engine is a kind of store.
type Engine struct {
	// Open returns a store that remembers finished messages for ttl; t's cleanup closes it.
	Open func(t testing.TB, ttl time.Duration) once.Store
	// Shared says that each call of Open opens the same data, as another process would, and that a lease lapses by
	// the store's clock. Otherwise each has data of its own, and a lease lasts until its holder ends it.
	Shared bool
}

// NewKey returns a key that no other message or token has.
func NewKey() (k once.Key) {
	_, _ = rand.Read(k[:])
	return k
}

// NewClaim returns the claim of the first delivery of a new message; lease and token last for a minute.
func NewClaim() once.Claim {
	return once.Claim{Key: NewKey(), Holder: once.NewHolder(), Lease: time.Minute, Token: NewKey(), TokenTTL: time.Minute}
}

// Again returns the claim of a later delivery of c's message, which has a holder and a token of its own.
func Again(c once.Claim) once.Claim {
	next := NewClaim()
	next.Key = c.Key
	return next
}

// look is the claim of a later delivery of c's message that only looks.
func look(c once.Claim) once.Claim {
	next := Again(c)
	next.Look = true
	return next
}

// Want claims c, and checks how things stand.
func Want(t testing.TB, s once.Store, c once.Claim, want once.State) once.Decision {
	t.Helper()
	d, err := s.Claim(c)
	if err != nil {
		t.Fatalf("claim: %v, want %s", err, want)
	}
	if d.State != want {
		t.Fatalf("claim: %s, want %s", d.State, want)
	}
	return d
}

// store is a store under test.
type store struct {
	*testing.T
	once.Store
}

func (s store) want(c once.Claim, want once.State) once.Decision {
	s.Helper()
	return Want(s, s.Store, c, want)
}

// await claims c, for a new holder each time, until it gets want: for something that only time brings.
func (s store) await(c once.Claim, want once.State) once.Claim {
	s.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		c.Holder = once.NewHolder()
		d, err := s.Claim(c)
		if err != nil {
			s.Fatal(err)
		}
		if d.State == want {
			return c
		}
		if time.Now().After(end) {
			s.Fatalf("claim: still %s after 10 s, want %s", d.State, want)
		}
	}
}

func (s store) wantErr(got, want error) {
	s.Helper()
	if !errors.Is(got, want) || want == nil && got != nil {
		s.Fatalf("got error %v, want %v", got, want)
	}
}

func (s store) finish(c once.Claim) {
	s.Helper()
	s.wantErr(s.Complete(c.Key, c.Holder, done), nil)
}

// done is what the messages of these tests are answered.
var done = once.Answer{Status: 201, Header: http.Header{"Content-Type": {"text/plain"}}, Body: []byte("done\x00")}

func sameAnswer(a, b once.Answer) bool {
	return a.Status == b.Status && bytes.Equal(a.Body, b.Body) &&
		(len(a.Header)+len(b.Header) == 0 || reflect.DeepEqual(a.Header, b.Header))
}

// Run holds an engine to the contract of once.Store.
func Run(t *testing.T, e Engine) {
	tests := messages
	if e.Shared {
		tests = append(tests, sharedLeases...)
	} else {
		tests = append(tests, livingLeases...)
	}
	for _, test := range tests {
		t.Run(test.sentence, func(t *testing.T) {
			t.Parallel()
			test.check(store{t, e.Open(t, time.Hour)})
		})
	}
	for _, test := range memories {
		t.Run(test.sentence, func(t *testing.T) {
			t.Parallel()
			s := store{t, e.Open(t, shortTTL)}
			test.check(s, func() { // a message that was finished now, and whose token is over, is forgotten
				c := NewClaim()
				c.TokenTTL = time.Millisecond
				s.want(c, once.Claimed)
				s.finish(c)
				again := Again(c)
				again.TokenTTL = time.Millisecond
				s.await(again, once.Claimed)
			})
		})
	}
	for _, row := range answers {
		t.Run("the first answer is given again: "+row.name, func(t *testing.T) {
			t.Parallel()
			s := store{t, e.Open(t, time.Hour)}
			c := NewClaim()
			s.want(c, once.Claimed)
			s.wantErr(s.Complete(c.Key, c.Holder, row.answer), nil)
			for range 2 {
				if got := s.want(Again(c), once.Finished).Answer; !sameAnswer(got, row.answer) {
					t.Errorf("got %+v, want %+v", got, row.answer)
				}
			}
		})
	}
	if e.Shared {
		t.Run("what one process did, another sees", func(t *testing.T) {
			t.Parallel()
			s, other := store{t, e.Open(t, time.Hour)}, store{t, e.Open(t, time.Hour)}
			c := NewClaim()
			s.want(c, once.Claimed)
			other.want(Again(c), once.Running)
			replay := NewClaim()
			replay.Token = c.Token
			other.want(replay, once.Replayed)
			other.wantErr(other.Complete(c.Key, once.NewHolder(), done), once.ErrLeaseLost)
			s.finish(c)
			if got := other.want(Again(c), once.Finished).Answer; !sameAnswer(got, done) {
				t.Errorf("got %+v, want %+v", got, done)
			}
		})
	}
}

// A sentence of the contract, and what shows that it holds.
type sentence struct {
	sentence string
	check    func(store)
}

var messages = []sentence{
	{"of many claims at once one wins", func(s store) {
		c := NewClaim()
		var begin, end sync.WaitGroup
		begin.Add(1)
		states := make(chan once.State, 50)
		for range cap(states) {
			end.Go(func() {
				begin.Wait()
				d, err := s.Claim(Again(c))
				if err != nil {
					s.Error(err)
				}
				states <- d.State
			})
		}
		begin.Done()
		end.Wait()
		close(states)
		count := map[once.State]int{}
		for state := range states {
			count[state]++
		}
		if count[once.Claimed] != 1 || count[once.Running] != 49 {
			s.Errorf("got %v, want 1 claimed and 49 running", count)
		}
	}},
	{"many messages at once are each claimed, finished and answered", func(s store) {
		var all sync.WaitGroup
		for range 16 {
			all.Go(func() {
				for range 25 {
					c := NewClaim()
					answer := once.Answer{Status: 200, Body: c.Key[:]}
					first, err := s.Claim(c)
					err = errors.Join(err, s.Complete(c.Key, c.Holder, answer))
					second, err2 := s.Claim(Again(c))
					if err = errors.Join(err, err2); err != nil || first.State != once.Claimed || second.State != once.Finished {
						s.Errorf("claimed: %s, finished: %s, error: %v", first.State, second.State, err)
					}
					if !sameAnswer(second.Answer, answer) {
						s.Errorf("message %x got the answer %x", c.Key, second.Answer.Body)
					}
				}
			})
		}
		all.Wait()
	}},
	{"a running message says what is left of its lease", func(s store) {
		c := NewClaim()
		s.want(c, once.Claimed)
		for _, other := range []once.Claim{Again(c), look(c)} {
			if d := s.want(other, once.Running); d.Left <= 50*time.Second || d.Left > time.Minute {
				s.Errorf("%s left of a minute", d.Left)
			}
		}
	}},
	{"a look says how things stand and claims nothing", func(s store) {
		c := NewClaim()
		s.want(look(c), once.Free)
		s.want(look(c), once.Free)
		s.want(c, once.Claimed)
		s.want(look(c), once.Running)
		s.wantErr(s.Release(c.Key, c.Holder), nil)
		s.want(look(c), once.Free)
		c = Again(c)
		s.want(c, once.Claimed)
		s.finish(c)
		if got := s.want(look(c), once.Finished).Answer; !sameAnswer(got, done) {
			s.Errorf("got %+v, want %+v", got, done)
		}
	}},
	{"who only looked cannot release, nor complete what another holds", func(s store) {
		c := NewClaim()
		l := look(c)
		s.want(l, once.Free)
		s.wantErr(s.Release(l.Key, l.Holder), once.ErrLeaseLost)
		s.want(c, once.Claimed)
		s.want(l, once.Running)
		s.wantErr(s.Release(l.Key, l.Holder), once.ErrLeaseLost)
		s.wantErr(s.Complete(l.Key, l.Holder, done), once.ErrLeaseLost)
		s.finish(c)
	}},
	{"a released message is claimed again", func(s store) {
		c := NewClaim()
		s.want(c, once.Claimed)
		s.wantErr(s.Release(c.Key, c.Holder), nil)
		s.want(Again(c), once.Claimed)
	}},
	{"what was released may be claimed again by the same holder", func(s store) {
		c := NewClaim()
		s.want(c, once.Claimed)
		s.wantErr(s.Release(c.Key, c.Holder), nil)
		s.want(c, once.Claimed)
		s.want(Again(c), once.Running)
	}},
	{"a message that another holds can be neither completed nor released", func(s store) {
		c := NewClaim()
		s.want(c, once.Claimed)
		s.wantErr(s.Release(c.Key, c.Holder), nil)
		next := Again(c)
		s.want(next, once.Claimed)
		s.wantErr(s.Complete(c.Key, c.Holder, done), once.ErrLeaseLost)
		s.wantErr(s.Release(c.Key, c.Holder), once.ErrLeaseLost)
		s.want(look(c), once.Running)
		s.finish(next)
	}},
	{"a message that another finished can be neither completed nor released", func(s store) {
		c := NewClaim()
		s.want(c, once.Claimed)
		s.wantErr(s.Release(c.Key, c.Holder), nil)
		next := Again(c)
		s.want(next, once.Claimed)
		s.finish(next)
		s.wantErr(s.Complete(c.Key, c.Holder, once.Answer{Status: 200}), once.ErrLeaseLost)
		s.wantErr(s.Release(c.Key, c.Holder), once.ErrLeaseLost)
		if got := s.want(Again(c), once.Finished).Answer; !sameAnswer(got, done) {
			s.Errorf("got %+v, want %+v", got, done)
		}
	}},
	{"a late success is recorded where a later holder gave the message back", func(s store) {
		c := NewClaim()
		s.want(c, once.Claimed)
		s.wantErr(s.Release(c.Key, c.Holder), nil)
		next := Again(c)
		s.want(next, once.Claimed)
		s.wantErr(s.Release(next.Key, next.Holder), nil)
		s.finish(c)
		s.want(Again(c), once.Finished)
		s.wantErr(s.Complete(next.Key, next.Holder, done), once.ErrLeaseLost)
	}},
	{"a success is recorded where nothing is known of the message, but nothing is released", func(s store) {
		c := NewClaim()
		s.wantErr(s.Release(c.Key, c.Holder), once.ErrLeaseLost)
		s.finish(c)
		s.finish(c)
		if got := s.want(Again(c), once.Finished).Answer; !sameAnswer(got, done) {
			s.Errorf("got %+v, want %+v", got, done)
		}
	}},
	{"what the same holder repeats succeeds", func(s store) {
		c := NewClaim()
		s.want(c, once.Claimed)
		s.want(c, once.Claimed)
		s.wantErr(s.Release(c.Key, c.Holder), nil)
		s.wantErr(s.Release(c.Key, c.Holder), nil)
		c = Again(c)
		s.want(c, once.Claimed)
		s.finish(c)
		s.wantErr(s.Complete(c.Key, c.Holder, once.Answer{Status: 500}), nil)
		if got := s.want(Again(c), once.Finished).Answer; !sameAnswer(got, done) {
			s.Errorf("the repeat changed the answer to %+v", got)
		}
	}},
	{"a finished message stays finished when its holder releases it", func(s store) {
		c := NewClaim()
		s.want(c, once.Claimed)
		s.finish(c)
		s.wantErr(s.Release(c.Key, c.Holder), nil)
		s.want(Again(c), once.Finished)
	}},
	{"a stored answer does not change with the caller's buffer", func(s store) {
		c := NewClaim()
		s.want(c, once.Claimed)
		body := []byte("first")
		s.wantErr(s.Complete(c.Key, c.Holder, once.Answer{Status: 200, Body: body}), nil)
		copy(body, "other")
		if got := s.want(Again(c), once.Finished).Answer; string(got.Body) != "first" {
			s.Errorf("the body became %q", got.Body)
		}
	}},
	{"a token is bound to the first message it comes with", func(s store) {
		c, other := NewClaim(), NewClaim()
		other.Token = c.Token
		s.want(c, once.Claimed)
		s.want(other, once.Replayed)
		other.Look = true
		s.want(other, once.Replayed)
		s.want(look(other), once.Free) // the replay has not spent that message
	}},
	{"a token is bound whatever the claim's answer", func(s store) {
		c := NewClaim()
		wantBound := func(c once.Claim) {
			s.Helper()
			other := NewClaim()
			other.Token = c.Token
			s.want(other, once.Replayed)
		}
		free := look(c)
		s.want(free, once.Free)
		wantBound(free)
		s.want(c, once.Claimed)
		wantBound(c)
		for _, second := range []once.Claim{Again(c), look(c)} {
			s.want(second, once.Running)
			wantBound(second)
		}
		s.finish(c)
		for _, third := range []once.Claim{Again(c), look(c)} {
			s.want(third, once.Finished)
			wantBound(third)
		}
	}},
	{"the same token with the same message goes on", func(s store) {
		c := NewClaim()
		s.want(c, once.Claimed)
		resent := Again(c)
		resent.Token = c.Token
		s.want(resent, once.Running)
		s.wantErr(s.Release(c.Key, c.Holder), nil)
		s.want(resent, once.Claimed)
		s.finish(resent)
		resent.Holder = once.NewHolder()
		s.want(resent, once.Finished)
	}},
	{"a token is free when its time is over, and then bound anew", func(s store) {
		c, other, third := NewClaim(), NewClaim(), NewClaim()
		c.TokenTTL = 30 * time.Millisecond
		other.Token, third.Token = c.Token, c.Token
		s.want(c, once.Claimed)
		s.await(other, once.Claimed)
		s.want(third, once.Replayed)
	}},
}

// shortTTL is over soon, and longer than two calls of a slow store take.
const shortTTL = 500 * time.Millisecond

// memories are about how long things are remembered. forget returns when what was finished before it has been for
// longer than shortTTL.
var memories = []struct {
	sentence string
	check    func(s store, forget func())
}{
	{"a finished message is forgotten after its time", func(_ store, forget func()) { forget() }},
	{"a token is bound for its own time, and its message remembered as long", func(s store, forget func()) {
		c := NewClaim()
		s.want(c, once.Claimed)
		s.finish(c)
		forget()
		replay := NewClaim()
		replay.Token = c.Token
		s.want(replay, once.Replayed)
		c.Holder = once.NewHolder()
		s.want(c, once.Finished)
	}},
	{"a message is remembered as long as a token that came while it ran", func(s store, forget func()) {
		c := NewClaim()
		c.TokenTTL = time.Millisecond
		s.want(c, once.Claimed)
		s.want(Again(c), once.Running)
		s.finish(c)
		forget()
		s.want(look(c), once.Finished)
	}},
	{"a message is remembered as long as a token that came after it was finished", func(s store, forget func()) {
		c := NewClaim()
		c.TokenTTL = time.Millisecond
		s.want(c, once.Claimed)
		s.finish(c)
		s.want(Again(c), once.Finished)
		forget()
		s.want(look(c), once.Finished)
	}},
	{"a message is remembered as long as a token of a delivery that only looked", func(s store, forget func()) {
		c := NewClaim()
		c.TokenTTL = time.Millisecond
		s.want(look(c), once.Free)
		s.want(c, once.Claimed)
		s.finish(c)
		forget()
		s.want(look(c), once.Finished)
	}},
	{"a message is remembered as long as a token of a run that was given back", func(s store, forget func()) {
		c := NewClaim()
		s.want(c, once.Claimed)
		s.wantErr(s.Release(c.Key, c.Holder), nil)
		c = Again(c)
		c.TokenTTL = time.Millisecond
		s.want(c, once.Claimed)
		s.finish(c)
		forget()
		s.want(look(c), once.Finished)
	}},
}

// livingLeases hold where a store belongs to one process.
var livingLeases = []sentence{
	{"a lease lasts until its holder ends it", func(s store) {
		c := NewClaim()
		c.Lease = 20 * time.Millisecond
		s.want(c, once.Claimed)
		time.Sleep(3 * c.Lease)
		for _, other := range []once.Claim{Again(c), look(c)} {
			other.Lease = c.Lease
			if d := s.want(other, once.Running); d.Left <= 0 || d.Left > c.Lease {
				s.Errorf("%s left of a lease of %s that is renewed", d.Left, c.Lease)
			}
		}
		s.finish(c)
		s.want(Again(c), once.Finished)
	}},
}

// sharedLeases hold where several processes share a store.
var sharedLeases = []sentence{
	{"a lease that has lapsed is taken over, and lost", func(s store) {
		c := NewClaim()
		c.Lease = 20 * time.Millisecond
		s.want(c, once.Claimed)
		next := s.await(Again(c), once.Claimed)
		s.wantErr(s.Complete(c.Key, c.Holder, done), once.ErrLeaseLost)
		s.wantErr(s.Release(c.Key, c.Holder), once.ErrLeaseLost)
		s.finish(next)
		s.want(Again(c), once.Finished)
	}},
	{"a lease that has lapsed and was not taken over will do to complete", func(s store) {
		c := NewClaim()
		c.Lease = 20 * time.Millisecond
		s.want(c, once.Claimed)
		s.await(look(c), once.Free)
		s.finish(c)
		s.want(Again(c), once.Finished)
	}},
	{"a lease that has lapsed and was not taken over will do to release", func(s store) {
		c := NewClaim()
		c.Lease = 20 * time.Millisecond
		s.want(c, once.Claimed)
		s.await(look(c), once.Free)
		s.wantErr(s.Release(c.Key, c.Holder), nil)
		s.want(Again(c), once.Claimed)
	}},
	{"a late success is recorded where the later holder's lease has lapsed", func(s store) {
		c := NewClaim()
		c.Lease = 20 * time.Millisecond
		s.want(c, once.Claimed)
		next := Again(c)
		next.Lease = c.Lease
		next = s.await(next, once.Claimed)
		s.await(look(c), once.Free)
		s.finish(c)
		s.want(Again(c), once.Finished)
		s.wantErr(s.Complete(next.Key, next.Holder, done), once.ErrLeaseLost)
	}},
}

// answers are kept as they are, to the byte.
var answers = []struct {
	name   string
	answer once.Answer
}{
	{"a body with NULs", done},
	{"nothing but a status", once.Answer{Status: 204}},
	{"a body without a content type", once.Answer{Status: 200, Body: []byte(`{"message":"ok"}`)}},
	{"headers", once.Answer{Status: 200, Body: []byte("\x1f\x8b\x08"), Header: http.Header{
		"Content-Type":     {"application/json; charset=utf-8"},
		"Content-Encoding": {"gzip"},
		"Upstash-Label":    {"one", "two: with a colon", "größer"},
		"Upstash-Empty":    {""},
	}}},
	{"a permanent failure", once.Answer{Status: 489, Body: []byte(`{"error":"no"}`), Header: http.Header{
		"Content-Type": {"application/json"}, "Upstash-Nonretryable-Error": {"true"}}}},
	{"the largest body", once.Answer{Status: 200, Body: randomBytes(once.MaxKeptBody)}},
	{"a long header", once.Answer{Status: 200, Header: http.Header{"Upstash-Long": {strings.Repeat("x", 8<<10)}}}},
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}
