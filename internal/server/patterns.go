package server

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"qstash-receiver/internal/deliver"
)

const (
	sayRolledEvery = 24 * time.Hour
	manyInARow     = 3 // deliveries that make a pattern
)

// patterns tells the owner what no single delivery shows.
type patterns struct {
	log      *slog.Logger
	fetched  map[string]bool // regions whose keys are fetched
	accepted atomic.Bool     // a message was accepted since the start
	app      appPattern

	mu       sync.Mutex
	rolled   map[string]time.Time // when it was said that a region's messages verify with the next key
	mistaken int                  // deliveries refused though their claims look like ours, while none was accepted
}

func newPatterns(log *slog.Logger, fetched map[string]bool) *patterns {
	return &patterns{log: log, fetched: fetched, app: appPattern{log: log}, rolled: map[string]time.Time{}}
}

// heard takes note of a delivery that ended in o.
func (p *patterns) heard(l *line, o *deliver.Outcome) {
	switch o.Reason {
	case deliver.Signature:
		if l.proof.LooksOurs && !p.accepted.Load() {
			p.refused()
		}
	case deliver.AppAway, deliver.AppCut, deliver.AppLate:
		p.app.silent(l.began)
	case deliver.Handled, deliver.AppFailed, deliver.AppPermanent:
		p.app.answered()
	}
}

// verified takes note of a message that is proven.
func (p *patterns) verified(proof *deliver.Proof) {
	if !p.accepted.Load() {
		p.accepted.Store(true)
	}
	if proof.Key == "next" {
		p.next(proof.Region)
	}
}

// next says, once a day for each region, that its messages verify with the next key.
func (p *patterns) next(region string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if said, ever := p.rolled[region]; ever && time.Since(said) < sayRolledEvery {
		return
	}
	p.rolled[region] = time.Now()
	if p.fetched[region] {
		p.log.Warn("messages verify with the next signing key: the keys were rolled, and the new ones are not fetched yet. "+
			"One more roll before they are, and everything is refused until then",
			"do", "nothing; if this comes again tomorrow: go run . doctor, with the same QSTASH_TOKEN set")
		return
	}
	p.log.Warn("messages verify with the next signing key: the keys were rolled. All is well until they are rolled again: "+
		"one more roll, and this program refuses everything", "do", setKeys(region))
}

// refused says, once, that nothing has been accepted since the start although QStash seems to deliver.
func (p *patterns) refused() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mistaken++; p.mistaken != manyInARow {
		return
	}
	cause, do := p.wrongKeys()
	p.log.Error(fmt.Sprintf("no message has been accepted since the start, and %d were refused that look like QStash's for this service "+
		"but are signed with other keys: %s", manyInARow, cause), "next", retried, "do", do)
}

// retried is what becomes of messages while something is wrong.
const retried = "QStash retries each message a few times, 3 unless it was published with another number; " +
	"what is in its dead letter queue by the time all is well must be retried there (console.upstash.com, QStash, DLQ)"

// wrongKeys is why QStash's messages may not verify, and what helps.
func (p *patterns) wrongKeys() (cause, do string) {
	if len(p.fetched) > 0 {
		return "the token that the keys are fetched with is another account's or region's",
			"go run . doctor, with the same QSTASH_TOKEN set, says what the token is for"
	}
	return "the keys set here are another account's or region's, or were rolled twice", setKeys("")
}

// setKeys is what helps where a region's keys are out of date.
func setKeys(region string) string {
	return "copy both keys from the Upstash console (QStash, Signing Keys) and set them together; on Fly: flyctl secrets set " +
		region + "QSTASH_CURRENT_SIGNING_KEY=sig_... " + region + "QSTASH_NEXT_SIGNING_KEY=sig_..."
}

// appPattern makes one event of the deliveries that the service behind FORWARD_URL does not answer.
type appPattern struct {
	log  *slog.Logger
	last atomic.Int64 // when it last answered, in nanoseconds since 1970; 0: not since the start
	away atomic.Bool  // it has not answered the last delivery

	mu         sync.Mutex
	since      time.Time // when the first delivery came that it did not answer
	unanswered int       // deliveries, one after another
}

// silent takes note of a delivery, come at began, that the service did not answer.
func (a *appPattern) silent(began time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.unanswered++; a.unanswered == 1 {
		a.since = began
		a.away.Store(true)
	}
	if a.unanswered == manyInARow {
		a.log.Error(fmt.Sprintf("the service behind FORWARD_URL has left %d deliveries in a row without an answer; it %s", manyInARow, a.history()),
			"since", a.since.UTC().Format(time.RFC3339), "next", retried,
			"do", "see whether that service runs, listens on the port in FORWARD_URL and answers within HANDLER_TIMEOUT; this program need not be restarted")
	}
}

// answered takes note of an answer of the service, or of business logic in its place.
func (a *appPattern) answered() {
	a.last.Store(time.Now().UnixNano())
	if a.away.Load() {
		a.back()
	}
}

func (a *appPattern) back() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.unanswered >= manyInARow {
		a.log.Info("the service behind FORWARD_URL answers again", "unanswered", a.unanswered,
			"since", a.since.UTC().Format(time.RFC3339), "seconds", int(time.Since(a.since).Seconds()), "next", retried)
	}
	a.unanswered = 0
	a.away.Store(false)
}

// history says of the service when it last answered.
func (a *appPattern) history() string {
	last := a.last.Load()
	if last == 0 {
		return "has not answered since this program started"
	}
	return "last answered at " + time.Unix(0, last).UTC().Format(time.RFC3339)
}
