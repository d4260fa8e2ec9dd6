package deliver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"time"

	"qstash-receiver/internal/once"
	"qstash-receiver/internal/qstash"
)

// Outcome is how a delivery ended: what QStash is answered, and what log and metrics say.
type Outcome struct {
	Reason Reason
	Detail string      // for the log: a sentence with the values, and what to do; "": nothing to add
	Answer once.Answer // what a store keeps of it, if anything
	Retry  http.Header // Retry-After and X-RateLimit-Reset*, which are for this answer alone; nil: none
	// Replayed says that the answer is an earlier delivery's.
	Replayed bool
	// Detached says that the request's goroutine will not finish the answer: it still runs the business logic, or has
	// ended with it.
	Detached bool
}

// Next is what becomes of the message.
func (o *Outcome) Next(u *qstash.Unverified) Next {
	switch next := o.Reason.Row().Next; {
	case o.Replayed && o.Answer.Status > 299:
		return FailedForGood
	case !u.LastAttempt:
		return next
	case next == NotRunRetried:
		return NeverRetried
	case next == FailedRetried || next == MaybeRetried:
		return FailedForGood
	default:
		return next
	}
}

// Level is that of the log line. What QStash retries is a warning, until nothing or little is left to retry.
func (o *Outcome) Level(u *qstash.Unverified) slog.Level {
	row := o.Reason.Row()
	if row.Level == slog.LevelWarn && row.Status != http.StatusUnauthorized && row.Next != FailedForGood &&
		(u.LastAttempt || u.MaxRetries < 0 && u.Attempt >= 3) {
		return slog.LevelError
	}
	return row.Level
}

// Final says that no further run can change the outcome, so that a store keeps it.
func (o *Outcome) Final() bool {
	next := o.Reason.Row().Next
	return next == Done || next == FailedForGood
}

// Refusal is the error of a request that is no message, or of a message that is not run.
type Refusal struct {
	Reason Reason
	Detail string // for the log, and for the answer where the sender is proven
}

func (r *Refusal) Error() string { return r.Reason.Row().Reason + ": " + r.Detail }

// Refuse returns a *Refusal.
func Refuse(reason Reason, format string, args ...any) error {
	return &Refusal{reason, fmt.Sprintf(format, args...)}
}

// Refused is err, a *Refusal, as it is answered. A stranger learns nothing from it.
func Refused(err error) Outcome {
	r := &Refusal{Reason: Malformed, Detail: err.Error()}
	errors.As(err, &r)
	text := r.Error()
	switch r.Reason.Row().Status {
	case http.StatusUnauthorized:
		text = "unauthorized"
	case http.StatusMethodNotAllowed:
		text = "method not allowed"
	}
	o := failed(r.Reason, text)
	o.Detail = r.Detail
	return o
}

// appError is an answer of the service behind FORWARD_URL that is no success, or the lack of one.
type appError struct{ Outcome }

func (e *appError) Error() string { return e.Detail }

// errPanic is all that QStash learns of a panic; the log has the rest.
var errPanic = errors.New("panic")

// outcomeOf is the one place that says what the business logic's error means to QStash. Late: its deadline has passed.
func outcomeOf(err error, late bool) Outcome {
	var permanent *qstash.PermanentError
	var later *qstash.RetryAfterError
	var app *appError
	switch {
	case errors.As(err, &app):
		return app.Outcome
	case errors.Is(err, errNotFailure):
		return permanently(NotFailure, err.Error())
	case errors.As(err, &permanent):
		return permanently(Permanent, err.Error())
	case errors.Is(err, once.ErrLeaseLost):
		return failed(LeaseLost, err.Error())
	case errors.Is(err, errCommit):
		return failed(CommitLost, err.Error())
	case errors.As(err, &later):
		o := failed(RetryAfter, err.Error())
		o.Retry = retryAfter(later.After)
		return o
	case errors.Is(err, errPanic):
		return failed(Panicked, err.Error())
	case late:
		return failed(TimedOut, err.Error())
	default:
		return failed(Failed, err.Error())
	}
}

func permanently(reason Reason, text string) Outcome {
	o := failed(reason, text)
	o.Answer.Header = permanentHeader
	return o
}

// failed is an outcome that is answered with a text.
func failed(reason Reason, text string) Outcome {
	return Outcome{Reason: reason, Detail: text, Answer: once.Answer{Status: reason.Row().Status, Header: jsonHeader, Body: errorBody(text)}}
}

// Nobody changes these: headers of answers are shared.
var (
	jsonHeader      = http.Header{"Content-Type": {"application/json"}}
	textHeader      = http.Header{"Content-Type": {"text/plain; charset=utf-8"}}
	permanentHeader = http.Header{"Content-Type": {"application/json"}, permanentName: {"true"}}
	okBody          = []byte(`{"message":"ok"}`)
)

// permanentName is Upstash-NonRetryable-Error as Go spells it; HTTP does not tell the two apart.
const permanentName = "Upstash-Nonretryable-Error"

// ok is the answer to a reply of the business logic; nil stands for a short JSON.
func ok(reply []byte) once.Answer {
	switch {
	case reply == nil:
		return once.Answer{Status: http.StatusOK, Header: jsonHeader, Body: okBody}
	case json.Valid(reply):
		return once.Answer{Status: http.StatusOK, Header: jsonHeader, Body: reply}
	}
	return once.Answer{Status: http.StatusOK, Header: textHeader, Body: reply}
}

func errorBody(text string) []byte {
	var body bytes.Buffer
	e := json.NewEncoder(&body)
	e.SetEscapeHTML(false) // people read it in a console
	_ = e.Encode(map[string]string{"error": text})
	return bytes.TrimSuffix(body.Bytes(), []byte("\n"))
}

// retryAfter is d as Retry-After: whole seconds, rounded up, as many as QStash obeys.
func retryAfter(d time.Duration) http.Header {
	seconds := min(max(math.Ceil(d.Seconds()), 1), 24*60*60)
	return http.Header{"Retry-After": {strconv.Itoa(int(seconds))}}
}
