package deliver

import (
	"fmt"
	"time"

	"qstash-receiver/internal/once"
)

// claim returns the run of c's message if it is c's to run, else the outcome of the delivery. While another delivery
// runs it, that one is waited for: a wait costs a connection, a refusal costs one of QStash's few retries.
func (d *Deliverer) claim(c once.Claim, timing Timing) (*run, Outcome) {
	giveUp := time.Now().Add(timing.Wait)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		r, over := d.here.begin(c)
		kept, isKept := d.backlog.answer(c)
		c.Look = r == nil || isKept // it is run here, or was: only bind the token, and see
		now, err := d.Store.Claim(c)
		d.outage.note("claim", err)
		if r != nil && (err != nil || now.State != once.Claimed) {
			r.abandon()
		}
		switch {
		case err == nil && now.State == once.Claimed:
			return r, Outcome{}
		case err == nil && now.State == once.Replayed:
			return nil, Refused(Refuse(Replayed, "the token was used for another message: a captured delivery was sent again under another id"))
		case err == nil && now.State == once.Finished:
			return nil, Outcome{Reason: Repeat, Answer: now.Answer, Replayed: true}
		case isKept:
			if err != nil {
				d.backlog.bindLater(c)
			}
			return nil, Outcome{Reason: Repeat, Answer: kept, Replayed: true}
		case err != nil: // fail closed: nothing is run
			if !c.Look { // it may have been carried out all the same
				d.backlog.giveBack(c)
			}
			return nil, failed(StoreAway, "the store of handled messages does not answer")
		}
		if now.State == once.Free { // its lease has lapsed, or the store forgot it, but it is run here
			now.Left = timing.Lease
		}
		left := time.Until(giveUp)
		if left <= 0 {
			o := failed(InFlight, fmt.Sprintf("another delivery of this message is still being run after %s of waiting for it", timing.Wait))
			o.Retry = retryAfter(now.Left)
			return nil, o
		}
		timer := time.NewTimer(min(pause, left))
		select {
		case <-timer.C:
		case <-over: // nil, which never comes, if it is run elsewhere
		case <-d.Draining():
			timer.Stop()
			return nil, Refused(Refuse(Stopping, "this machine is stopping"))
		}
		timer.Stop()
	}
}
