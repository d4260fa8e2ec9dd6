package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"time"
)

// runner is the business logic: handle and handleFailure, or whatever stands in for them.
type runner func(ctx context.Context, m *Message) (answer, error)

// runHandlers makes one runner of the user's functions: failure callbacks are posted to /failure.
func runHandlers(handle func(context.Context, *Message) ([]byte, error), handleFailure func(context.Context, *Failure) error) runner {
	return func(ctx context.Context, m *Message) (answer, error) {
		if m.URL.Path != "/failure" {
			reply, err := handle(ctx, m)
			return okAnswer(reply), err
		}
		f, err := parseFailure(m.Body)
		if err != nil {
			return answer{}, Permanent(err)
		}
		return okAnswer(nil), handleFailure(ctx, f)
	}
}

// deliverer runs the business logic once for each message.
type deliverer struct {
	run      runner
	timeout  time.Duration // the business logic's context ends then
	grace    time.Duration // how long after that its return is waited for
	wait     time.Duration // how long another delivery of the message is waited for
	store    store
	storeTTL time.Duration
	log      *slog.Logger
	metrics  *metrics
	inFlight *inFlight
}

// deliver runs the business logic on m, if no other delivery did or does, and calls answer once: when the business
// logic has returned or, if it ignores its context, d.grace after its deadline. It returns when the business logic
// has; its error, a *refusal, is in place of an answer.
func (d *deliverer) deliver(m *Message, answer func(outcome)) error {
	c, known := newClaim(m, d.timeout+10*time.Second, d.storeTTL)
	if known {
		if o, err := d.claim(c); err != nil {
			return err
		} else if o.name != "" {
			answer(o)
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(withLog(context.Background(), d.log, m), d.timeout)
	defer cancel()
	var once sync.Once
	overdue := time.AfterFunc(d.timeout+d.grace, func() {
		once.Do(func() {
			o := failed("timeout", http.StatusGatewayTimeout, fmt.Sprintf("the business logic has not returned %s after its deadline", d.grace))
			o.alone = true
			answer(o)
		})
	})
	// On this goroutine: one of its own would cost as much as all of verifying does. Only its return ends the run:
	// until then the message stays claimed.
	d.call(ctx, m, func(o outcome) {
		overdue.Stop() // recording takes its own time
		if known {
			d.record(c, o)
		}
		late := true
		once.Do(func() { answer(o); late = false })
		if late {
			Log(ctx).Log(ctx, o.level, "business logic returned late", "outcome", o.name, "reason", o.reason)
		}
	})
	return nil
}

// claim returns an outcome without a name when c's message is c's to run. While another delivery runs it, that one
// is waited for: a wait costs a connection, a refusal costs one of QStash's few retries.
func (d *deliverer) claim(c claim) (outcome, error) {
	giveUp := time.Now().Add(d.wait)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		now, err := d.store.claim(c)
		if err != nil { // fail closed: nothing is run
			d.storeFailed("claim", err)
			o := failed("store", http.StatusServiceUnavailable, "the store of handled messages does not answer")
			o.retryAfter = "10"
			return o, nil
		}
		switch now.state {
		case claimed:
			return outcome{}, nil
		case replayed:
			return outcome{}, unauthorized("replayed", "the token was used for another message: a captured delivery was sent again under another id")
		case finished:
			return outcome{answer: now.answer, name: "duplicate", replay: true}, nil
		}
		if time.Now().Add(pause).After(giveUp) {
			o := failed("in_flight", http.StatusServiceUnavailable, "another delivery of this message is still being run")
			o.retryAfter, o.level = retryAfterSeconds(now.left), slog.LevelInfo
			return o, nil
		}
		select {
		case <-time.After(pause):
		case <-d.inFlight.draining.Done():
			return outcome{}, stopping()
		}
	}
}

// record completes or releases c's message. If it cannot, the answer stays as it is: a success that is answered
// with an error would be repeated.
func (d *deliverer) record(c claim, o outcome) {
	if o.final {
		if err := d.store.complete(c.key, c.holder, kept(o.answer)); err != nil {
			d.storeFailed("complete", err)
		}
	} else if err := d.store.release(c.key, c.holder); err != nil {
		d.storeFailed("release", err)
	}
}

func (d *deliverer) storeFailed(operation string, err error) {
	d.metrics.storeError.WithLabelValues(operation).Inc()
	d.log.Error("the store of handled messages failed", "operation", operation, "error", err.Error())
}

// result is how the business logic ended.
type result struct {
	answer answer
	err    error
	late   bool // it returned after its deadline
}

// errPanic is all that QStash learns of a panic; the log has the rest.
var errPanic = errors.New("panic")

// call runs the business logic and hands on what its end means: it returned, panicked or called runtime.Goexit. The
// error's own methods are the user's code too, so they are called here.
func (d *deliverer) call(ctx context.Context, m *Message, ended func(outcome)) {
	began := time.Now()
	var o outcome
	defer func() {
		p := recover()
		if p != nil {
			Log(ctx).Error("panic in the business logic", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
		if o.name == "" { // it did not get to the end
			o = outcomeOf(result{err: errPanic})
			o.alone = p == nil // runtime.Goexit
		}
		d.metrics.handling.Observe(time.Since(began).Seconds())
		ended(o)
	}()
	var res result
	res.answer, res.err = d.run(ctx, m)
	res.late = ctx.Err() != nil
	o = outcomeOf(res)
}
