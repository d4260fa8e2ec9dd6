package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net/http"
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

// answer is what goes back to QStash.
type answer struct {
	status      int
	contentType string
	body        []byte
	permanent   bool   // with Upstash-NonRetryable-Error: true
	retryAfter  string // the header; "": none
	upstash     string // further Upstash-* headers of the service behind FORWARD_URL, as lines; "": none
}

// outcome is an answer and what the log and the metrics say of it.
type outcome struct {
	answer
	name   string // of a fixed set: a label in the metrics
	reason string
	level  slog.Level
	final  bool // no further run can change it
	alone  bool // the request's goroutine will not finish the answer: it runs the business logic, or has ended with it
	replay bool // it is the answer of an earlier delivery: with Idempotent-Replayed: true
}

// outcomeOf is the one place that says what the business logic's end means to QStash.
func outcomeOf(res result) outcome {
	var permanent *permanentError
	var later *retryAfterError
	var upstream *upstreamError
	switch err := res.err; {
	case err == nil:
		return outcome{answer: res.answer, name: "ok", final: true}
	case errors.As(err, &permanent):
		o := failed("permanent", 489, err.Error())
		o.permanent, o.final, o.level = true, true, slog.LevelWarn
		return o
	case errors.As(err, &upstream):
		o := failed("upstream", upstream.answer.status, err.Error())
		o.answer = upstream.answer
		if o.permanent {
			o.name, o.final, o.level = "permanent", true, slog.LevelWarn
		}
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
	var body bytes.Buffer
	e := json.NewEncoder(&body)
	e.SetEscapeHTML(false) // people read it in a console
	_ = e.Encode(map[string]string{"error": text})
	return answer{status: status, contentType: "application/json", body: bytes.TrimSuffix(body.Bytes(), []byte("\n"))}
}
