package qstash

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
)

// Run is what the context of a message's business logic carries. The program makes one for each run; a test of
// business logic may make its own.
type Run struct {
	MessageID string       // is on each line of Log
	Log       slog.Handler // nil: slog's default
	Commit    func(ctx context.Context, effects func(*sql.Tx) ([]byte, error)) ([]byte, error)
}

type runKey struct{}

// NewContext returns ctx with run in it.
func NewContext(ctx context.Context, run *Run) context.Context {
	return context.WithValue(ctx, runKey{}, run)
}

// Log returns the log for the business logic that ctx was handed to: its lines carry the message's id.
func Log(ctx context.Context) *slog.Logger {
	run, ok := ctx.Value(runKey{}).(*Run)
	if !ok || run.Log == nil { // a test of the business logic alone
		return slog.Default()
	}
	return slog.New(messageHandler{run.Log, run.MessageID})
}

// Commit runs effects in one transaction with the record that the message is done: either both are there afterwards
// or neither is. It returns what handle must return; call it once, last:
//
//	return qstash.Commit(ctx, func(tx *sql.Tx) ([]byte, error) { ... })
//
// An error or a panic of effects rolls back. effects must not end tx itself. The transaction ends with ctx. It needs
// a STORE_URL that is a SQLite file or Postgres; the tables of effects are in the same database.
func Commit(ctx context.Context, effects func(tx *sql.Tx) ([]byte, error)) ([]byte, error) {
	run, ok := ctx.Value(runKey{}).(*Run)
	if !ok || run.Commit == nil {
		return nil, errors.New("commit: this context is not the one that handle was given")
	}
	return run.Commit(ctx, effects)
}

// messageHandler puts the message's id first on each line. It does so when a line is written: Logger.With would format
// the id for messages whose business logic logs nothing.
type messageHandler struct {
	slog.Handler
	id string
}

// Handle implements slog.Handler.
func (h messageHandler) Handle(ctx context.Context, r slog.Record) error {
	line := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	line.AddAttrs(h.message())
	r.Attrs(func(a slog.Attr) bool {
		line.AddAttrs(a)
		return true
	})
	return h.Handler.Handle(ctx, line)
}

// WithAttrs implements slog.Handler.
func (h messageHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.Handler.WithAttrs([]slog.Attr{h.message()}).WithAttrs(attrs)
}

// WithGroup implements slog.Handler. The id stays outside the group.
func (h messageHandler) WithGroup(name string) slog.Handler {
	return h.Handler.WithAttrs([]slog.Attr{h.message()}).WithGroup(name)
}

func (h messageHandler) message() slog.Attr { return slog.String("message", h.id) }

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
