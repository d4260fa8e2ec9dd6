package deliver

import (
	"bytes"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"qstash-receiver/internal/once"
)

// end is how one run of a message ended: with an answer to remember, or with the message given back.
type end struct {
	key     once.Key
	holder  string
	message string       // its id, for the log
	answer  *once.Answer // nil: given back
	bytes   int          // what the answer takes, about

	tokens  []once.Claim // of deliveries that were answered with the answer while the store was away: to bind
	lost    bool         // the answer to its claim was lost: it may never have been carried out, or may still be
	repeats int          // lost: how often to give back again
	due     time.Time
}

// Bounds of what waits for the store.
const (
	backlogBytes     = 16 << 20 // of answers
	backlogGivenBack = 16 << 10 // messages
	backlogTokens    = 16       // of one answer
	tokenBytes       = 192
	endBytes         = 512
	lostRepeats      = 8 // a second apart: longer than a request stays on its way once the store is back
)

// backlog records how runs ended. What the store does not take at once is kept, answered from here, and recorded as
// soon as the store takes it.
type backlog struct {
	store  once.Store
	outage *outage
	log    *slog.Logger

	waiting atomic.Int64 // len(ends), for those who only want to know whether there are any
	mu      sync.Mutex
	ends    []*end // oldest first
	answers map[once.Key]*end
	bytes   int           // of answers and their tokens
	givenUp int           // answers that nobody will record
	full    bool          // it was said that answers are given up
	closing bool          // the program stops: lost claims are given back once more, if at all
	idle    chan struct{} // closed when nothing waits; nil: nothing does
}

func newBacklog(store once.Store, outage *outage, log *slog.Logger) *backlog {
	return &backlog{store: store, outage: outage, log: log, answers: map[once.Key]*end{}}
}

// record tells the store of e, now or later.
func (b *backlog) record(e end) {
	if b.tell(&e) {
		return
	}
	if e.answer != nil { // as small as it can be: it may be a piece of something large
		e.answer = &once.Answer{Status: e.answer.Status, Header: e.answer.Header.Clone(), Body: bytes.Clone(e.answer.Body)}
		e.bytes = endBytes + len(e.answer.Body) + len(once.EncodeHeader(e.answer.Header))
	}
	b.add(&e)
}

// giveBack releases a claim whose answer was lost, and again while it may still arrive.
func (b *backlog) giveBack(c once.Claim) {
	b.add(&end{key: c.Key, holder: c.Holder, lost: true, repeats: lostRepeats})
}

// answer returns the answer of c's message if it is kept here.
func (b *backlog) answer(c once.Claim) (once.Answer, bool) {
	if b.waiting.Load() == 0 {
		return once.Answer{}, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.answers[c.Key]
	if e == nil {
		return once.Answer{}, false
	}
	return *e.answer, true
}

// bindLater has the token of each of claims, which are for one message, bound when its answer is recorded.
func (b *backlog) bindLater(claims ...once.Claim) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range claims {
		if e := b.answers[c.Key]; e != nil && len(e.tokens) < backlogTokens {
			e.tokens = append(e.tokens, c)
			b.bytes += tokenBytes
		}
	}
	b.makeRoom()
}

// Unrecorded is how many answers wait for the store.
func (b *backlog) Unrecorded() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.answers)
}

// GivenUp is how many answers there was no room for, so that the store will never have them.
func (b *backlog) GivenUp() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.givenUp
}

// Held is how many messages that failed the store has not taken back.
func (b *backlog) Held() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.ends) - len(b.answers)
}

// finish returns a channel that is closed when nothing waits for the store any more.
func (b *backlog) finish() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closing = true
	if b.idle != nil {
		return b.idle
	}
	none := make(chan struct{})
	close(none)
	return none
}

// tell carries e out. It returns false if it must be tried again.
func (b *backlog) tell(e *end) bool {
	tokens := b.takeTokens(e)
	for i, c := range tokens {
		_, err := b.store.Claim(c)
		b.outage.note("claim", err)
		if err != nil {
			b.bindLater(tokens[i:]...)
			return false
		}
	}
	if e.answer == nil {
		err := b.store.Release(e.key, e.holder)
		b.outage.note("release", err)
		return err == nil || errors.Is(err, once.ErrLeaseLost)
	}
	err := b.store.Complete(e.key, e.holder, *e.answer)
	b.outage.note("complete", err)
	if errors.Is(err, once.ErrLeaseLost) {
		b.log.Warn("a message was run twice: its run outlasted its lease, and another delivery took it over", "message", e.message)
		return true
	}
	return err == nil
}

func (b *backlog) takeTokens(e *end) []once.Claim {
	if b.waiting.Load() == 0 {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	tokens := e.tokens
	e.tokens = nil
	b.bytes -= len(tokens) * tokenBytes
	return tokens
}

// add keeps e until the store has taken it.
func (b *backlog) add(e *end) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ends = append(b.ends, e)
	if e.answer != nil {
		b.answers[e.key] = e
		b.bytes += e.bytes
	}
	b.makeRoom()
	if b.idle == nil {
		b.idle = make(chan struct{})
		go b.work()
	}
}

// makeRoom gives up the oldest answers, and the oldest of the messages to give back, until the rest are within their
// bounds. The caller has b.mu.
func (b *backlog) makeRoom() {
	for b.bytes > backlogBytes {
		b.forgetFirst(func(e *end) bool { return e.answer != nil })
		b.givenUp++
		if !b.full {
			b.full = true
			b.log.Error("more answers wait for the store than there is room for: the oldest are given up, and their messages run again if they are delivered again",
				"room_bytes", backlogBytes)
		}
	}
	for len(b.ends)-len(b.answers) > backlogGivenBack { // each is held until its lease lapses
		b.forgetFirst(func(e *end) bool { return e.answer == nil })
	}
	b.waiting.Store(int64(len(b.ends)))
}

func (b *backlog) forgetFirst(of func(*end) bool) {
	at := slices.IndexFunc(b.ends, of)
	b.forget(b.ends[at])
	b.ends = slices.Delete(b.ends, at, at+1)
}

// forget lets go of what e takes, but for its place in b.ends. The caller has b.mu.
func (b *backlog) forget(e *end) {
	if e.answer != nil {
		delete(b.answers, e.key)
		b.bytes -= e.bytes + len(e.tokens)*tokenBytes
		e.tokens = nil
	}
}

// work tells the store what waits, until nothing does.
func (b *backlog) work() {
	const shortest, longest = 20 * time.Millisecond, time.Second
	pause := shortest
	for {
		round := b.round(time.Now())
		taken := make(chan *end, len(round))
		var group sync.WaitGroup
		for _, e := range round { // together, which stores take best
			group.Go(func() {
				if b.tell(e) {
					taken <- e
				}
			})
		}
		group.Wait()
		close(taken)
		if len(taken) < len(round) {
			pause = min(2*pause, longest)
		} else {
			pause = shortest
		}
		if b.settle(taken) {
			return
		}
		if len(round) == 0 || pause > shortest {
			time.Sleep(pause)
		}
	}
}

// round returns the oldest ends that are due at now, a few of each kind: a store that is full takes back messages, but
// no answers.
func (b *backlog) round(now time.Time) []*end {
	const few = 32
	b.mu.Lock()
	defer b.mu.Unlock()
	var answers, givenBack []*end
	for _, e := range b.ends {
		switch {
		case now.Before(e.due):
		case e.answer != nil && len(answers) < few:
			answers = append(answers, e)
		case e.answer == nil && len(givenBack) < few:
			givenBack = append(givenBack, e)
		}
	}
	return append(answers, givenBack...)
}

// settle takes out what the store has taken and is not to be repeated. It returns true, and ends the waiting, when
// nothing is left.
func (b *backlog) settle(taken <-chan *end) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	done := map[*end]bool{}
	for e := range taken {
		if e.repeats > 0 && !b.closing {
			e.repeats--
			e.due = time.Now().Add(time.Second)
		} else if len(e.tokens) == 0 {
			done[e] = true
		}
	}
	b.ends = slices.DeleteFunc(b.ends, func(e *end) bool {
		over := done[e] || b.closing && e.lost
		if over {
			b.forget(e)
		}
		return over
	})
	b.waiting.Store(int64(len(b.ends)))
	if len(b.ends) > 0 {
		return false
	}
	b.full = false
	close(b.idle)
	b.idle = nil
	return true
}
