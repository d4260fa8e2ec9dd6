// Package deliver takes a proven delivery to its outcome: it claims the message, runs the business logic, records how
// that ended, and says what QStash is to be answered. It writes no HTTP answer.
package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"qstash-receiver/internal/once"
	"qstash-receiver/internal/qstash"
)

// Runner is the business logic: handle and handleFailure, or whatever stands in for them.
type Runner func(ctx context.Context, x *Delivery) (once.Answer, error)

// errNotFailure is a message to /failure that is no failure callback.
var errNotFailure = errors.New("not a failure callback")

// Handlers makes one Runner of the user's functions: what is posted to /failure, however that is written, goes to
// handleFailure.
func Handlers(handle func(context.Context, *qstash.Message) ([]byte, error), handleFailure func(context.Context, *qstash.Callback) error) Runner {
	return func(ctx context.Context, x *Delivery) (once.Answer, error) {
		if !strings.EqualFold(strings.Trim(x.Message.URL.Path, "/"), "failure") {
			reply, err := handle(ctx, x.Message)
			return ok(reply), err
		}
		callback, err := qstash.ParseCallback(x.Message.Body)
		switch {
		case err != nil:
			return once.Answer{}, fmt.Errorf("%w: %w; /failure takes those alone, publish messages to another path", errNotFailure, err)
		case callback.DLQID == "":
			return once.Answer{}, fmt.Errorf("%w: it reports one attempt (status %d) and has no dlqId; "+
				"publish with Upstash-Failure-Callback for /failure, and give Upstash-Callback another path", errNotFailure, callback.Status)
		}
		return ok(nil), handleFailure(ctx, callback)
	}
}

// Observer hears what metrics count.
type Observer interface {
	Handled(took time.Duration)   // the business logic has ended
	StoreFailed(operation string) // "claim", "complete", "release", "commit"
}

// Config is what a Deliverer works with.
type Config struct {
	Run      Runner
	Timing   Timing
	Store    once.Store
	Dedupe   Pointer // nil: messages are known by their ids
	Log      *slog.Logger
	Observer Observer
}

// Deliverer runs the business logic once for each message.
type Deliverer struct {
	Config
	*inFlight
	here    *here
	backlog *backlog
	outage  *outage
}

// New returns a Deliverer, which owns c.Store from now on: Stop closes it.
func New(c Config) *Deliverer {
	d := &Deliverer{Config: c, inFlight: newInFlight(), here: newHere(), outage: &outage{log: c.Log, observer: c.Observer}}
	d.backlog = newBacklog(c.Store, d.outage, c.Log)
	return d
}

// Deliver runs the business logic on x's message, if no other delivery did or does, and calls answer once: when the
// business logic has returned or, if it ignores its context, the grace after its deadline. Deliver returns when the
// business logic has. If ctx has a deadline, the answer comes before it; ctx means nothing else.
func (d *Deliverer) Deliver(ctx context.Context, x *Delivery, answer func(Outcome)) {
	if !d.begin(x) {
		answer(Refused(Refuse(Stopping, "this machine is stopping")))
		return
	}
	defer d.end(x)
	timing := d.Timing.within(ctx)
	c, byValue := x.claim(timing, d.Dedupe)
	r, o := d.claim(c, timing)
	if r == nil {
		answer(o)
		return
	}
	r.successOnly = byValue
	d.run(x, r, timing, answer)
}

// run runs a message that is claimed.
func (d *Deliverer) run(x *Delivery, r *run, timing Timing, answer func(Outcome)) {
	defer r.end()
	ctx, cancel := context.WithTimeout(context.Background(), timing.Timeout)
	defer cancel()
	ctx = qstash.NewContext(ctx, &qstash.Run{MessageID: x.id, Log: d.Log.Handler(), Commit: d.committer(r)})
	var first sync.Once
	overdue := time.AfterFunc(timing.Timeout+timing.Grace, func() {
		first.Do(func() {
			o := failed(Overdue, fmt.Sprintf("handler.go has not returned %s after its deadline (HANDLER_TIMEOUT, now %s)", timing.Grace, timing.Timeout))
			o.Detached = true
			answer(o)
		})
	})
	// On this goroutine: one of its own would cost as much as all of verifying does. Only its return ends the run:
	// until then the message stays claimed.
	d.call(ctx, x, r, func(o Outcome) {
		overdue.Stop() // recording takes its own time
		d.record(x, r, o)
		late := true
		first.Do(func() { answer(o); late = false })
		if late {
			qstash.Log(ctx).Log(ctx, o.Level(&x.Message.Unverified), "handler.go returned late", "outcome", o.Reason.Row().Outcome,
				"reason", o.Reason.Row().Reason, "detail", o.Detail)
		}
	})
}

// call runs the business logic and hands on what its end means: it returned, panicked or called runtime.Goexit. The
// error's own methods are the user's code too, so they are called here.
func (d *Deliverer) call(ctx context.Context, x *Delivery, r *run, ended func(Outcome)) {
	began := time.Now()
	var o Outcome
	returned := false
	otherEnd := func(ended string) {
		qstash.Log(ctx).Error("handler.go ended otherwise than its qstash.Commit, which stands: the message is done", "detail", ended)
	}
	defer func() {
		p := recover()
		if !returned {
			goexit := p == nil
			if goexit {
				p = "runtime.Goexit ended the goroutine"
			}
			qstash.Log(ctx).Error("panic in handler.go", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			o = r.outcome(once.Answer{}, errPanic, false, otherEnd)
			o.Detached = goexit
		}
		d.Observer.Handled(time.Since(began))
		ended(o)
	}()
	a, err := d.Run(ctx, x)
	o = r.outcome(a, err, ctx.Err() != nil, otherEnd)
	returned = true
}

// record completes or releases r's message. What the store does not take now it gets later: a success that is
// answered with an error would be repeated.
func (d *Deliverer) record(x *Delivery, r *run, o Outcome) {
	switch {
	case r.committed != nil:
	case o.Final() && !(r.successOnly && o.Answer.Status > 299):
		d.backlog.record(end{key: r.key, holder: r.holder, message: x.id, answer: new(o.Answer.Kept())})
	default:
		d.backlog.record(end{key: r.key, holder: r.holder})
	}
}

// Stop lets no further delivery begin, waits until those in flight have ended and the store has what they ended with,
// and closes the store. If that takes longer than limit, an error says what was left. Call it once.
func (d *Deliverer) Stop(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	ended, recorded := false, false
	select {
	case <-d.Drain():
		ended = true
	case <-ctx.Done():
	}
	select {
	case <-d.backlog.finish():
		recorded = true
	case <-ctx.Done():
	}
	var left []string
	if names := d.Left(); !ended {
		left = append(left, fmt.Sprintf("still running after %s: %s", limit, strings.Join(names, ", ")))
	}
	if n := d.backlog.Unrecorded() + d.backlog.GivenUp(); n > 0 {
		left = append(left, fmt.Sprintf("the store has not taken the answers of %d messages that succeeded or failed for good: they run again if they are delivered again", n))
	}
	if n := d.backlog.Held(); n > 0 && !recorded {
		left = append(left, fmt.Sprintf("the store has not taken back %d messages that failed: they are held until their leases lapse", n))
	}
	if ended && recorded {
		if err := d.Store.Close(); err != nil {
			left = append(left, fmt.Sprintf("close the store: %v", err))
		}
	}
	if left != nil {
		return errors.New("stop: " + strings.Join(left, "; "))
	}
	return nil
}

// Unrecorded is how many answers wait for the store.
func (d *Deliverer) Unrecorded() int { return d.backlog.Unrecorded() }
