package server

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"qstash-receiver/internal/deliver"
	"qstash-receiver/internal/qstash"
)

// line is what the log says of a delivery, read before the business logic gets hold of the headers.
type line struct {
	began       time.Time
	path        string
	from, trace string
	unverified  qstash.Unverified // its Header is not used
	proof       deliver.Proof
}

func newLine(r *http.Request) line {
	l := line{began: time.Now(), path: clip(r.URL.Path), unverified: qstash.NewUnverified(r.Header)}
	l.unverified.Header = nil
	if l.from = r.Header.Get("Fly-Client-Ip"); l.from == "" {
		l.from = r.RemoteAddr
		if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
			l.from = host
		}
	}
	if parent := strings.Split(r.Header.Get("Traceparent"), "-"); len(parent) == 4 && len(parent[1]) == 32 {
		l.trace = parent[1]
	}
	return l
}

// signature is what the log says of a delivery's signature.
func (l *line) signature(o *deliver.Outcome) string {
	switch {
	case l.proof.Key != "":
		return l.proof.Key
	case o.Reason == deliver.Missing:
		return "absent"
	case o.Reason == deliver.Signature || o.Reason == deliver.Malformed:
		return "wrong"
	}
	return "unchecked"
}

// log writes the line of a delivery that ended in o.
func (s *Server) log(l *line, o *deliver.Outcome) {
	row, next, level := o.Reason.Row(), o.Next(&l.unverified), o.Level(&l.unverified)
	if l.proof.Key == "" { // a stranger's
		next, level = deliver.NeverRetried, slog.LevelInfo
	}
	if s.Heard != nil {
		s.Heard(l.unverified.ID, l.unverified.Attempt, row, next)
	}
	ctx := context.Background()
	if !s.Log.Enabled(ctx, level) {
		return
	}
	write := func(leftOut int) {
		attrs := make([]slog.Attr, 0, 16)
		attrs = append(attrs, slog.String("outcome", row.Outcome), slog.String("reason", row.Reason))
		if o.Detail != "" {
			attrs = append(attrs, slog.String("detail", clip(o.Detail)))
		}
		message := "message"
		if l.proof.Key == "" {
			message = "unverified_message"
		}
		attrs = append(attrs, slog.String("next", string(next)), slog.String("signature", l.signature(o)), slog.String(message, clip(l.unverified.ID)),
			slog.Int("attempt", l.unverified.Attempt), slog.String("path", l.path), slog.Int("status", o.Answer.Status),
			slog.Float64("ms", float64(time.Since(l.began).Microseconds())/1000))
		if row.Outcome == "refused" {
			attrs = append(attrs, slog.String("from", clip(l.from)))
		}
		if l.trace != "" {
			attrs = append(attrs, slog.String("trace", l.trace))
		}
		if leftOut > 0 {
			attrs = append(attrs, slog.Int("left_out", leftOut))
		}
		s.Log.LogAttrs(ctx, level, "delivery", attrs...)
	}
	if row.Outcome == "refused" || o.Replayed {
		s.refusals.line(write)
	} else {
		write(0)
	}
	if o.Reason == deliver.Signature && l.proof.LooksOurs {
		s.strangers.refused()
	}
}

// lineLimit lets at most 10 lines through in any second. Those it leaves out are counted on the next one.
type lineLimit struct {
	mu      sync.Mutex
	last    [10]time.Time // when each of the last lines went through, a ring
	next    int           // the oldest of them
	leftOut int
	rest    func(leftOut int) // writes the count where no further line comes to carry it
}

// line calls write with the number of lines left out since the last one, or leaves this one out too.
func (l *lineLimit) line(write func(leftOut int)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.through(write) {
		return
	}
	if l.leftOut++; l.leftOut == 1 {
		time.AfterFunc(time.Second, l.flush)
	}
}

func (l *lineLimit) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leftOut > 0 && !l.through(l.rest) {
		time.AfterFunc(time.Second, l.flush)
	}
}

func (l *lineLimit) through(write func(leftOut int)) bool {
	now := time.Now()
	if now.Sub(l.last[l.next]) < time.Second {
		return false
	}
	l.last[l.next] = now
	l.next = (l.next + 1) % len(l.last)
	write(l.leftOut)
	l.leftOut = 0
	return true
}
