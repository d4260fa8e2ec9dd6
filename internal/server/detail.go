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
		said += ". " + after
	}
	return said
}

// cause is what happened, and what helps, given what the outcome says of it.
func (s *Server) cause(l *line, o *deliver.Outcome, said string) string {
	switch o.Reason {
	case deliver.Repeat:
		if o.Answer.Status > 299 {
			return "this message failed for good before and came again: nothing was run, and the first answer was sent again"
		}
		return "this message was finished before and came again, as QStash's messages may: nothing was run, the first answer was sent again, " +
			"and nothing has to be done"
	case deliver.Checked:
		return "keys, URL, clock and the way here are right; nothing was run"
	case deliver.Permanent:
		return "handler.go says that no retry can help (qstash.Permanent): " + said
	case deliver.AppPermanent:
		return said + " and says that no retry can help (Upstash-NonRetryable-Error: true)"
	case deliver.RetryAfter:
		return "handler.go asks for a later retry (qstash.RetryAfter), and nothing has to be done unless it asks each time: " + said
	case deliver.Failed:
		return "handler.go returned an error: " + said
	case deliver.Panicked:
		return "handler.go panicked; the line \"panic in handler.go\" of this message has the stack: mend the code and deploy it, for retries are likely to panic too"
	case deliver.TimedOut:
		return fmt.Sprintf("handler.go returned an error after its deadline (HANDLER_TIMEOUT, now %s): %s. Do less in one message, or %s",
			s.Timing.Timeout, said, s.longer())
	case deliver.Overdue:
		return said + ": have it return when its context ends. It still runs; another line tells when it returns"
	case deliver.AppAway:
		return said + ". The app " + s.patterns.app.history() + ": see whether it runs, and listens on the port in FORWARD_URL"
	case deliver.AppCut:
		return said + ". The app " + s.patterns.app.history() + ": see its log for a crash; if there is none, check the port in FORWARD_URL"
	case deliver.AppLate:
		return fmt.Sprintf("%s (now %s). The app %s: if it hangs, its log may say why; if it needs longer, have it do less in one message, or %s",
			said, s.Timing.Timeout, s.patterns.app.history(), s.longer())
	case deliver.AppFailed:
		if o.Answer.Status >= http.StatusBadRequest {
			return said + ": the app's own log says why"
		}
	case deliver.InFlight:
		return fmt.Sprintf("%s. That run has HANDLER_TIMEOUT (%s) in all", said, s.Timing.Timeout)
	case deliver.StoreAway:
		return said + ", so nothing was run; the line \"the store of handled messages (STORE_URL) fails\" says why"
	case deliver.Stopping:
		return said + " (a deploy, a restart or an idle machine), so nothing was run"
	case deliver.TooLarge:
		return said + s.enough(l.size)
	case deliver.Malformed:
		if l.stranger() {
			return said + ": it is not from QStash, and nothing has to be done"
		}
	case deliver.Replayed:
		return "somebody captured a delivery and sent it again under this message's id: nothing was run, and nothing has to be done, for QStash delivers a " +
			"real message of this id itself. If this comes often, publish to https URLs alone, and let no proxy or app log the Upstash-Signature header"
	case deliver.Signature:
		if !l.proof.LooksOurs {
			return said + ", nor do its claims fit this service: it is most likely a stranger's. If you miss messages, compare keys and RECEIVER_URL: go run . doctor"
		}
		_, do := s.patterns.wrongKeys()
		return said + ". If it is a stranger's, nothing has to be done; " +
			"if it is QStash's, it is retried all the same (\"never retried\" holds for a stranger's), and runs once the keys here are right: " + do
	}
	return said
}

// longer is how to allow a message more time, as much as Fly gives a stop.
func (s *Server) longer() string {
	const least, most = 30 * time.Second, 285 * time.Second
	if s.Timing.Timeout >= most {
		return "raise HANDLER_TIMEOUT (not on Fly, which gives a stop 300 s at most)"
	}
	raised := min(max(2*s.Timing.Timeout, least), most).Truncate(time.Second)
	return fmt.Sprintf("raise HANDLER_TIMEOUT to %s (on Fly: in fly.toml, HANDLER_TIMEOUT = '%s' under [env] and kill_timeout = '%s', "+
		"then flyctl deploy)", raised, raised, deliver.NewTiming(raised).Stop)
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
	const (
		console = " (console.upstash.com, QStash, DLQ)"
		inQueue = "in the dead letter queue: mend the cause and retry it there, or delete it" + console
	)
	u := &l.unverified
	tries := u.Attempt + 1
	switch {
	case l.stranger(), o.Replayed, next == deliver.Done, o.Reason.Row().Next == deliver.NeverRetried:
		return ""
	case o.Reason == deliver.NotFailure:
		return "What it reports on is not affected. This callback is in the dead letter queue: delete it there" + console
	case u.LastAttempt && tries > 1:
		return fmt.Sprintf("This was the last of %d tries, and the message is %s", tries, inQueue)
	case u.LastAttempt, next == deliver.FailedForGood:
		return "The message is " + inQueue
	case u.MaxRetries < 0 && u.Attempt >= defaultRetries:
		return fmt.Sprintf("This was try %d: unless the message was published with more than the usual %d retries, it is %s", tries, defaultRetries, inQueue)
	}
	again := "QStash tries again " + waitOf(o.Retry, u.Attempt)
	if o.Reason == deliver.InFlight {
		return again + ": that try gets the run's answer if it succeeds, and runs the message if it fails. Nothing has to be done"
	}
	switch o.Reason {
	case deliver.Bearer, deliver.Method:
		return "QStash's retries of this one are refused as well; then it is in the dead letter queue: delete it there" + console
	case deliver.Expired, deliver.NotYetValid, deliver.BodyHash: // somebody else may be the cause
		again = "If it was QStash that sent it, " + again
	}
	switch {
	case tries == u.MaxRetries:
		again += ", for the last time: mend the cause before then, or the message is in the dead letter queue" + console
	case u.MaxRetries < 0 && tries == defaultRetries:
		again += "; that is the last try, if it was published with the usual 3 retries: mend the cause before then, or the message is in the dead letter queue" + console
	}
	if (o.Reason == deliver.Failed || o.Reason == deliver.AppFailed) && tries < defaultRetries && tries != u.MaxRetries {
		again += "; nothing has to be done if that succeeds"
	}
	if tries > 1 {
		return fmt.Sprintf("This was try %d. %s", tries, again)
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
