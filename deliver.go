package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"
)

// Permanent says that err will not go away: QStash is told not to retry.
func Permanent(err error) error { return &permanentError{err} }

// RetryAfter says that err will be over in d: QStash is told to try again then.
func RetryAfter(d time.Duration, err error) error { return &retryAfterError{d, err} }

type permanentError struct{ err error }

func (e *permanentError) Error() string { return errorText(e.err) }
func (e *permanentError) Unwrap() error { return e.err }

type retryAfterError struct {
	after time.Duration
	err   error
}

func (e *retryAfterError) Error() string { return errorText(e.err) }
func (e *retryAfterError) Unwrap() error { return e.err }

func errorText(err error) string {
	if err == nil {
		return "no reason given"
	}
	return err.Error()
}

// Log returns the log of the delivery that ctx belongs to.
func Log(ctx context.Context) *slog.Logger {
	if l, ok := ctx.Value(logKey{}).(*slog.Logger); ok {
		return l
	}
	return slog.Default()
}

type logKey struct{}

// Excerpt is a body for the log: text, at most 1 KiB of it, made only if the line is written.
type Excerpt []byte

// LogValue implements slog.LogValuer.
func (e Excerpt) LogValue() slog.Value {
	const most = 1 << 10
	if len(e) <= most {
		return slog.StringValue(string(e))
	}
	return slog.StringValue(fmt.Sprintf("%s... (%d bytes)", e[:most], len(e)))
}

// answer is what goes back to QStash.
type answer struct {
	status      int
	contentType string
	body        []byte
	permanent   bool   // with Upstash-NonRetryable-Error: true
	retryAfter  string // the header; "": none
}

// outcome is an answer and what the log and the metrics say of it.
type outcome struct {
	answer
	name   string // of a fixed set: a label in the metrics
	reason string
	level  slog.Level
}

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

// deliverer runs the business logic on messages.
type deliverer struct {
	run      runner
	timeout  time.Duration // the business logic's context ends then
	grace    time.Duration // how long after that its return is waited for
	log      *slog.Logger
	inFlight *inFlight
}

// deliver runs the business logic on m and says what to answer.
func (d *deliverer) deliver(m *Message) outcome {
	ctx, cancel := context.WithTimeout(context.WithValue(context.Background(), logKey{}, d.log.With("message", m.Unverified.ID)), d.timeout)
	done := make(chan result, 1)
	go func() {
		defer cancel()
		done <- d.call(ctx, m)
	}()
	overdue := time.NewTimer(d.timeout + d.grace)
	defer overdue.Stop()
	select {
	case res := <-done:
		return outcomeOf(res)
	case <-overdue.C:
	}
	d.inFlight.hold(m)
	go func() {
		defer d.inFlight.end(m)
		o := outcomeOf(<-done)
		d.log.Log(ctx, o.level, "business logic returned late", "message", m.Unverified.ID, "outcome", o.name, "reason", o.reason)
	}()
	return failed("timeout", http.StatusGatewayTimeout, fmt.Sprintf("the business logic has not returned %s after its deadline", d.grace))
}

// result is how the business logic ended.
type result struct {
	answer answer
	err    error
	late   bool // it returned after its deadline
}

// errPanic is all that QStash learns of a panic; the log has the rest.
var errPanic = errors.New("panic")

// call runs the business logic to its end, whatever that is.
func (d *deliverer) call(ctx context.Context, m *Message) (res result) {
	res.err = errPanic // stays if it panics or calls runtime.Goexit
	defer func() {
		if p := recover(); p != nil {
			d.log.Error("panic in the business logic", "message", m.Unverified.ID, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
		res.late = ctx.Err() != nil
	}()
	res.answer, res.err = d.run(ctx, m)
	return res
}

// outcomeOf is the one place that says what the business logic's end means to QStash.
func outcomeOf(res result) outcome {
	var permanent *permanentError
	var later *retryAfterError
	switch err := res.err; {
	case err == nil:
		return outcome{answer: res.answer, name: "ok"}
	case errors.As(err, &permanent):
		o := failed("permanent", 489, err.Error())
		o.permanent = true
		return o
	case errors.As(err, &later):
		o := failed("retry", http.StatusServiceUnavailable, err.Error())
		o.retryAfter, o.level = retryAfterSeconds(later.after), slog.LevelWarn
		return o
	case err == errPanic:
		return failed("panic", http.StatusInternalServerError, err.Error())
	case res.late:
		return failed("timeout", http.StatusGatewayTimeout, err.Error())
	default:
		return failed("error", http.StatusInternalServerError, err.Error())
	}
}

func failed(name string, status int, reason string) outcome {
	return outcome{answer: errorAnswer(status, reason), name: name, reason: reason, level: slog.LevelError}
}

// retryAfterSeconds is d as Retry-After: whole seconds, rounded up, as many as QStash obeys.
func retryAfterSeconds(d time.Duration) string {
	s := math.Ceil(d.Seconds())
	return strconv.Itoa(int(min(max(s, 1), 24*60*60)))
}

var okBody = []byte(`{"message":"ok"}`)

// okAnswer is the 200 for a reply; nil stands for a short JSON.
func okAnswer(reply []byte) answer {
	a := answer{status: http.StatusOK, contentType: "application/json", body: reply}
	if reply == nil {
		a.body = okBody
	} else if !json.Valid(reply) {
		a.contentType = "text/plain; charset=utf-8"
	}
	return a
}

func errorAnswer(status int, text string) answer {
	body, _ := json.Marshal(map[string]string{"error": text}) // no text is an error
	return answer{status: status, contentType: "application/json", body: body}
}
