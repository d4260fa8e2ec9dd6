package deliver

import (
	"errors"
	"log/slog"
	"testing"

	"qstash-receiver/internal/once"
	"qstash-receiver/internal/qstash"
)

func TestNextAndLevel(t *testing.T) {
	t.Parallel()
	const info, warn, bad = slog.LevelInfo, slog.LevelWarn, slog.LevelError
	unknown := qstash.Unverified{MaxRetries: -1}
	third := qstash.Unverified{MaxRetries: -1, Attempt: 3}
	known := qstash.Unverified{MaxRetries: 5, Attempt: 4}
	last := qstash.Unverified{MaxRetries: 3, Attempt: 3, LastAttempt: true}
	for _, row := range []struct {
		sentence string
		reason   Reason
		u        qstash.Unverified
		next     Next
		level    slog.Level
	}{
		{"a success", Handled, unknown, Done, info},
		{"a success at last", Handled, last, Done, info},
		{"an error", Failed, unknown, FailedRetried, warn},
		{"an error in the fourth attempt of nobody knows how many", Failed, third, FailedRetried, bad},
		{"an error in the fifth attempt of six", Failed, known, FailedRetried, warn},
		{"an error in the last attempt", Failed, last, FailedForGood, bad},
		{"a function that did not return in the last attempt", Overdue, last, FailedForGood, bad},
		{"an app that was away", AppAway, unknown, NotRunRetried, warn},
		{"an app that was away in the last attempt", AppAway, last, NeverRetried, bad},
		{"an app that gave no answer", AppCut, unknown, MaybeRetried, warn},
		{"a store that was away", StoreAway, unknown, NotRunRetried, warn},
		{"a store that was away in the last attempt", StoreAway, last, NeverRetried, bad},
		{"a permanent failure", Permanent, unknown, FailedForGood, warn},
		{"no failure callback", NotFailure, unknown, FailedForGood, bad},
		{"an expired token", Expired, unknown, NotRunRetried, warn},
		{"an expired token in the last attempt", Expired, last, NeverRetried, warn},
		{"a replay", Replayed, unknown, NeverRetried, info},
		{"another subject", Subject, unknown, NotRunRetried, bad},
		{"no room", Busy, last, NeverRetried, bad},
	} {
		o := Outcome{Reason: row.reason}
		if next, level := o.Next(&row.u), o.Level(&row.u); next != row.next || level != row.level {
			t.Errorf("%s: %s at %s, want %s at %s", row.sentence, next, level, row.next, row.level)
		}
	}
	failedBefore := Outcome{Reason: Repeat, Answer: once.Answer{Status: 489}, Replayed: true}
	if next := failedBefore.Next(&unknown); next != FailedForGood {
		t.Errorf("a permanent failure, again: %s", next)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		err    error
		status int
		body   string
	}{
		{Refuse(Subject, "a secret"), 401, `{"error":"unauthorized"}`},
		{Refuse(Signature, "a secret"), 401, `{"error":"unauthorized"}`},
		{Refuse(Method, "PUT"), 405, `{"error":"method not allowed"}`},
		{Refuse(TooLarge, "%d bytes", 7), 413, `{"error":"too large: 7 bytes"}`},
		{Refuse(Stopping, "x"), 503, `{"error":"stopping: x"}`},
		{errors.New("what no verifier returns"), 401, `{"error":"unauthorized"}`},
	} {
		if o := Refused(row.err); o.Answer.Status != row.status || string(o.Answer.Body) != row.body || o.Retry != nil {
			t.Errorf("%v: got %d %s", row.err, o.Answer.Status, o.Answer.Body)
		}
	}
}
