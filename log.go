package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// Log returns the log for the business logic that ctx was handed to: its lines carry the message's id.
func Log(ctx context.Context) *slog.Logger {
	h, ok := ctx.Value(logKey{}).(messageHandler)
	if !ok { // a test of the business logic alone
		return slog.Default()
	}
	return slog.New(h)
}

type logKey struct{}

func withLog(ctx context.Context, log *slog.Logger, m *Message) context.Context {
	return context.WithValue(ctx, logKey{}, messageHandler{log.Handler(), clip(m.Unverified.ID)})
}

// messageHandler adds the message's id when a line is written: Logger.With would format it for every message.
type messageHandler struct {
	slog.Handler
	id string
}

// Handle implements slog.Handler.
func (h messageHandler) Handle(ctx context.Context, r slog.Record) error {
	r.AddAttrs(slog.String("message", h.id))
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h messageHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return messageHandler{h.Handler.WithAttrs(attrs), h.id}
}

// WithGroup implements slog.Handler.
func (h messageHandler) WithGroup(name string) slog.Handler {
	return messageHandler{h.Handler.WithGroup(name), h.id}
}

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

// line is what the log says of every delivery, read before the business logic gets hold of the headers.
type line struct {
	began    time.Time
	id, path string
	attempt  int
}

func newLine(r *http.Request) line {
	return line{time.Now(), clip(r.Header.Get("Upstash-Message-Id")), clip(r.URL.Path), attempt(r.Header)}
}

func (l line) fields(outcome, reason string, status int) []any {
	return []any{
		"outcome", outcome,
		"reason", reason,
		"message", l.id,
		"attempt", l.attempt,
		"path", l.path,
		"status", status,
		"ms", float64(time.Since(l.began).Microseconds()) / 1000,
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

// clip bounds what a stranger can put on a log line.
func clip(s string) string {
	const most = 512
	if len(s) <= most {
		return s
	}
	return string(bytes.ToValidUTF8([]byte(s[:most]), nil)) + "..."
}
