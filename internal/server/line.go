package server

import (
	"context"
	"encoding/hex"
	"errors"
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
	began      time.Time
	path       string
	size       int64 // of the body, as declared; -1: it was not
	trace      string
	remote     [2]string         // where the request came from: the connection's address, and what Fly's proxy says; "": nothing
	unverified qstash.Unverified // its Header is not used
	proof      deliver.Proof
	signature  string // the key that made it, or "wrong", "absent", "unchecked"
}

func newLine(r *http.Request, onFly bool) line {
	l := line{
		began: time.Now(), path: clip(r.URL.Path, maxClipped), size: r.ContentLength,
		remote: [2]string{r.RemoteAddr}, trace: traceOf(r.Header.Get("Traceparent")),
		unverified: qstash.NewUnverified(r.Header), signature: "unchecked",
	}
	l.unverified.Header = nil
	if onFly { // elsewhere anybody can write it
		l.remote[1] = r.Header.Get("Fly-Client-Ip")
	}
	return l
}

// from is who sent the request. On Fly the connection is Fly's proxy's, which names the sender.
func (l *line) from() string {
	address, named := l.remote[0], l.remote[1]
	if named != "" {
		return clip(named, maxClipped)
	}
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return clip(address, maxClipped)
}

// traceOf is the trace-id of a traceparent header (W3C Trace Context); "": it is none.
func traceOf(parent string) string {
	version, rest, _ := strings.Cut(parent, "-")
	id, rest, ok := strings.Cut(rest, "-")
	if !ok || len(version) != 2 || version == "ff" || len(rest) < len("0123456789abcdef-00") || id == strings.Repeat("0", 32) {
		return ""
	}
	if bytes, err := hex.DecodeString(id); err != nil || len(bytes) != 16 || strings.ToLower(id) != id {
		return ""
	}
	return id
}

// verified notes what verifying the request came to.
func (l *line) verified(proof deliver.Proof, err error) {
	l.proof = proof
	var refusal *deliver.Refusal
	switch {
	case proof.Key != "":
		l.signature = proof.Key
	case errors.As(err, &refusal) && refusal.Reason == deliver.Missing:
		l.signature = "absent"
	case err != nil:
		l.signature = "wrong"
	}
}

// stranger says that nothing proves who sent the request.
func (l *line) stranger() bool { return l.proof.Key == "" }

// log writes the line of a delivery that ended in o.
func (s *Server) log(l *line, o *deliver.Outcome) {
	row, next, level := o.Reason.Row(), o.Next(&l.unverified), o.Level(&l.unverified)
	if l.stranger() {
		next, level = deliver.NeverRetried, slog.LevelInfo
	}
	if s.Heard != nil {
		s.Heard(l.unverified.ID, l.unverified.Attempt, row, next)
	}
	if s.Log.Enabled(context.Background(), level) {
		write := func(leftOut int) { s.write(l, o, row, next, level, leftOut) }
		if row.Outcome == "refused" || o.Replayed {
			s.refusals.line(level, write)
		} else {
			write(0)
		}
	}
	s.patterns.heard(l, o)
}

func (s *Server) write(l *line, o *deliver.Outcome, row *deliver.Row, next deliver.Next, level slog.Level, leftOut int) {
	var room [14]slog.Attr
	attrs := append(room[:0], slog.String("outcome", row.Outcome), slog.String("reason", row.Reason))
	if detail := s.detail(l, o, next); detail != "" {
		attrs = append(attrs, slog.String("detail", detail))
	}
	id := "message"
	if l.stranger() {
		id = "unverified_message"
	}
	attrs = append(attrs, slog.String("next", string(next)), slog.String("signature", l.signature),
		slog.String(id, clip(l.unverified.ID, maxClipped)), slog.Int("attempt", l.unverified.Attempt), slog.String("path", l.path),
		slog.Int("status", o.Answer.Status), slog.Float64("ms", float64(time.Since(l.began).Microseconds())/1000))
	if row.Outcome == "refused" {
		attrs = append(attrs, slog.String("from", l.from()))
	}
	if l.trace != "" {
		attrs = append(attrs, slog.String("trace", l.trace))
	}
	if leftOut > 0 {
		attrs = append(attrs, slog.Int("left_out", leftOut))
	}
	r := slog.NewRecord(time.Now(), level, "delivery", 0) // 0: where in the code it is from is not shown, and costs
	r.AddAttrs(attrs...)
	_ = s.Log.Handler().Handle(context.Background(), r)
}

// lineLimit lets at most 10 lines through in any second. Those it leaves out are counted on the next one.
type lineLimit struct {
	log     *slog.Logger
	mu      sync.Mutex
	last    [10]time.Time // when each of the last lines went through, a ring
	next    int           // the oldest of them
	leftOut int
	level   slog.Level // the highest of those left out
}

// line calls write with the number of lines left out since the last one, or leaves this one out too.
func (l *lineLimit) line(level slog.Level, write func(leftOut int)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.through(write) {
		return
	}
	if l.leftOut++; l.leftOut > 1 {
		l.level = max(l.level, level)
		return
	}
	l.level = level
	time.AfterFunc(time.Second, l.flush)
}

// flush writes the count where no further line has come to carry it.
func (l *lineLimit) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leftOut == 0 {
		return
	}
	if !l.through(func(leftOut int) {
		l.log.Log(context.Background(), l.level,
			"refused and repeated deliveries were left out of the log, which shows 10 a second; the metrics count all", "left_out", leftOut)
	}) {
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

// maxClipped bounds a path, an id or an address on a log line: they are whatever somebody sends. In bytes.
const maxClipped = 512

// clip is s, or its first bytes and dots.
func clip(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
