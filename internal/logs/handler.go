package logs

import (
	"context"
	"io"
	"log/slog"
	"sync"
)

// output is where the lines of a log and of all logs derived from it go.
type output struct {
	mu sync.Mutex
	w  io.Writer
}

func (o *output) write(line []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, err := o.w.Write(line)
	return err
}

func (o *output) flush() {
	if w, ok := o.w.(*Writer); ok {
		_ = w.Flush()
	}
}

// handler is a slog.Handler. It appends each line to a buffer, every value bounded and escaped on the way, and costs less
// than slog's own handlers, which do neither.
type handler struct {
	out            *output
	level          slog.Level
	text, coloured bool

	fixed  []byte   // what With has added, as it stands on a line
	groups []string // that are open behind it
	opened int      // how many of them fixed has opened
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level }

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	with := *h
	with.groups = append(h.groups[:len(h.groups):len(h.groups)], name)
	return &with
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	l := &line{text: h.text, coloured: h.coloured, most: maxLine / 2} // the other half is each line's own
	l.resume(h)
	before := len(l.buf)
	l.within(h.groups[h.opened:], func() {
		for _, a := range attrs {
			l.attr(a)
		}
	})
	if len(l.buf) == before {
		return h
	}
	with := *h
	with.fixed, with.opened = l.buf, l.open
	return &with
}

var lines = sync.Pool{New: func() any { return new(line) }}

// Handle implements slog.Handler.
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	l := lines.Get().(*line)
	defer lines.Put(l)
	*l = line{buf: l.buf[:0], detail: l.detail[:0], text: h.text, coloured: h.coloured, most: maxLine}
	l.begin(r)
	l.resume(h)
	l.within(h.groups[h.opened:], func() {
		r.Attrs(func(a slog.Attr) bool {
			l.attr(a)
			return true
		})
	})
	l.end()
	err := h.out.write(l.buf)
	if r.Level >= slog.LevelError {
		h.out.flush()
	}
	return err
}
