package deliver

import (
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"qstash-receiver/internal/once"
)

// outage makes one event of a store that fails many calls: a line when it begins and one when it is over.
type outage struct {
	log      *slog.Logger
	observer Observer

	on       atomic.Bool
	mu       sync.Mutex
	since    time.Time
	failures int
	last     time.Time // the last failure
	works    bool      // a call succeeded since
	watched  bool      // isOver will be called
}

// quiet is how long nothing may have failed before the outage counts as over.
const quiet = time.Second

// note hears how a call of the store ended.
func (o *outage) note(operation string, err error) {
	if err == nil || errors.Is(err, once.ErrLeaseLost) {
		if o.on.Load() {
			o.succeeded()
		}
		return
	}
	o.observer.StoreFailed(operation)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last, o.works = time.Now(), false
	if o.failures++; o.failures > 1 {
		return
	}
	o.since = o.last
	o.on.Store(true)
	o.log.Error("the store of handled messages (STORE_URL) fails", "operation", operation, "error", err.Error(),
		"next", "what comes while it fails is not run, and QStash retries it; what has run is kept in this process, and recorded once it works",
		"do", "see whether the store runs, has room, and can be reached from this machine (go run . doctor says more, with the same STORE_URL and where that reaches the store); "+
			"do not restart this program, it goes on by itself")
}

func (o *outage) succeeded() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.works = true
	if o.failures > 0 && !o.watched {
		o.watched = true
		time.AfterFunc(quiet, o.isOver)
	}
}

// isOver says that the outage is over, if it is.
func (o *outage) isOver() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.watched = false
	if !o.works {
		return // the next success looks again
	}
	if left := quiet - time.Since(o.last); left > 0 { // there may be no other call
		o.watched = true
		time.AfterFunc(left, o.isOver)
		return
	}
	o.log.Info("the store of handled messages works again, and has for a second", "failed_calls", o.failures,
		"since", o.since.UTC().Format(time.RFC3339), "seconds", int(o.last.Sub(o.since).Seconds()),
		"next", "what had run is recorded by itself, and QStash's retries run the rest; "+
			"what is in its dead letter queue must be retried there (console.upstash.com, QStash, DLQ)")
	o.failures = 0
	o.on.Store(false)
}
