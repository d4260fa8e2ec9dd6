package server

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"qstash-receiver/internal/deliver"
)

// maxDetail bounds what others, business logic among them, put into a detail. In bytes.
const maxDetail = 1 << 10

// detail is the sentence of a delivery's line: what happened, what to do about it, and what becomes of the message.
func (s *Server) detail(l *line, o *deliver.Outcome, next deliver.Next) string {
	said := s.cause(l, o, clip(o.Detail, maxDetail))
	if after := sequel(l, o, next); after != "" {
		said += "; " + after
	}
	return said
}

// cause is what happened, and what helps, given what the outcome says of it.
func (s *Server) cause(l *line, o *deliver.Outcome, said string) string {
	switch o.Reason {
	case deliver.Repeat:
		return "this message was finished before: nothing was run, and the first answer was sent again"
	case deliver.Checked:
		return "keys, URL, clock and the way here are right; nothing was run"
	case deliver.Permanent:
		return "handler.go says that no retry can help (qstash.Permanent): " + said
	case deliver.AppPermanent:
		return said + " and says that no retry can help (Upstash-NonRetryable-Error: true)"
	case deliver.RetryAfter:
		return "handler.go asks for a later retry (qstash.RetryAfter): " + said
	case deliver.Failed:
		return "handler.go returned an error: " + said
	case deliver.Panicked:
		return "handler.go panicked; the line \"panic in the business logic\" of this message has the stack"
	case deliver.TimedOut:
		return fmt.Sprintf("handler.go returned an error after its deadline (HANDLER_TIMEOUT, now %s): %s; "+
			"raise HANDLER_TIMEOUT, and kill_timeout in fly.toml to 15 s more, or do less in one message", s.Timing.Timeout, said)
	case deliver.Overdue:
		return said + ": it ignores its context; another line tells when it returns"
	case deliver.AppAway:
		return said + "; " + s.patterns.app.history() + ": see whether it runs, and on the port that FORWARD_URL names"
	case deliver.AppCut:
		return said + "; " + s.patterns.app.history() + ": its own log says whether it crashed"
	case deliver.AppLate:
		return fmt.Sprintf("%s (now %s); %s: raise HANDLER_TIMEOUT, and kill_timeout in fly.toml to 15 s more, or have it do less in one message",
			said, s.Timing.Timeout, s.patterns.app.history())
	case deliver.AppFailed:
		if o.Answer.Status >= http.StatusBadRequest {
			return said + ": its own log says why"
		}
	case deliver.StoreAway:
		return said + ", so nothing was run; the line that begins the outage has its error"
	case deliver.TooLarge:
		return said + s.enough(l.size)
	case deliver.Malformed:
		if l.stranger() {
			return said + ": it is not from QStash"
		}
	case deliver.Replayed:
		return said + "; nothing has to be done, but if it happens again somebody reads this service's deliveries on their way"
	case deliver.Signature:
		if l.proof.LooksOurs {
			return said + "; what it says fits this service, so it may be QStash's after all: then QStash does retry it, and it runs once the keys are right"
		}
	}
	return said
}

// enough is the MAX_BODY_BYTES that takes a body of so many bytes; -1: of more than are taken now.
func (s *Server) enough(size int64) string {
	if size < 0 {
		size = s.MaxBody + 1
	}
	if size > MaxHeldBytes {
		return fmt.Sprintf("; no more than %d can be allowed: publish a link to the data in its place", MaxHeldBytes)
	}
	enough := int64(1) << 20
	for enough < size {
		enough *= 2
	}
	return fmt.Sprintf("; to take such messages set MAX_BODY_BYTES=%d (on Fly: flyctl secrets set MAX_BODY_BYTES=%d)", enough, enough)
}

// sequel is what becomes of a message that did not succeed. It goes by headers, which QStash does not sign.
func sequel(l *line, o *deliver.Outcome, next deliver.Next) string {
	const inQueue = "it is in QStash's dead letter queue now: mend the cause, then retry it there (console.upstash.com, QStash, DLQ)"
	u := &l.unverified
	tries := u.Attempt + 1
	switch {
	case l.stranger(), o.Replayed, next == deliver.Done, o.Reason.Row().Next == deliver.NeverRetried:
		return ""
	case o.Reason == deliver.NotFailure:
		return "it is in QStash's dead letter queue now, where a callback may be deleted"
	case u.LastAttempt && tries > 1:
		return fmt.Sprintf("this was the last of %d tries, so %s", tries, inQueue)
	case u.LastAttempt, next == deliver.FailedForGood:
		return inQueue
	case u.MaxRetries < 0 && u.Attempt >= defaultRetries:
		return fmt.Sprintf("this was try %d: unless the message was published with more retries than the usual %d, %s", tries, defaultRetries, inQueue)
	}
	again := "QStash tries again " + waitOf(o.Retry, u.Attempt)
	switch o.Reason {
	case deliver.Bearer, deliver.Method:
		return "QStash's retries of it are refused as well, and then it is in the dead letter queue"
	case deliver.Expired, deliver.NotYetValid, deliver.BodyHash: // somebody else may be the cause
		again = "if it was QStash that sent it, " + again
	}
	if tries > 1 && o.Reason != deliver.InFlight {
		return fmt.Sprintf("it has been tried %d times now, without success; %s", tries, again)
	}
	return again
}

// defaultRetries is how often QStash retries a message that was published without Upstash-Retries.
const defaultRetries = 3

// waitOf is when QStash tries again after an answer to attempt, from 0 on, that carries retry.
func waitOf(retry http.Header, attempt int) string {
	if seconds, err := strconv.Atoi(retry.Get("Retry-After")); err == nil {
		return "in " + inSeconds(seconds) + ", as the answer asks"
	}
	if len(retry) > 0 {
		return "when the answer's Retry-After or X-RateLimit-Reset says"
	}
	seconds := min(math.Exp(2.5*float64(attempt+1)), 24*60*60)
	return "in about " + inSeconds(int(seconds)) + ", unless it was published with another delay"
}

func inSeconds(n int) string { return (time.Duration(n) * time.Second).String() }
