package deliver

import "log/slog"

// Reason says why a delivery ended as it did. Each is a row of the table below, which is the one list of outcomes:
// log, metrics, README and dashboard use its words.
type Reason uint8

// The reasons. Where one stands in the table says what it means.
const (
	Handled Reason = iota
	Repeat
	Checked
	Permanent
	NotFailure
	AppPermanent
	RetryAfter
	Failed
	Panicked
	TimedOut
	Overdue
	CommitLost
	LeaseLost
	AppAway
	AppCut
	AppFailed
	AppLate
	InFlight
	StoreAway
	Missing
	Malformed
	Signature
	Issuer
	Expired
	NotYetValid
	Subject
	Bearer
	BodyHash
	Replayed
	Method
	TooLarge
	Stalled
	CutShort
	Busy
	Stopping
)

// Row is what is fixed of a reason.
type Row struct {
	Outcome string     // what log and metrics sort by
	Reason  string     // a short code, which names the row
	Status  int        // of the answer; 0: somebody else's
	Next    Next       // what becomes of the message
	Level   slog.Level // of the log line, by consequence
}

// Next is what becomes of a message after an answer.
type Next string

// What becomes of a message.
const (
	Done          Next = "done"
	NotRunRetried Next = "not run, QStash retries"
	NeverRetried  Next = "not run, never retried"
	FailedRetried Next = "failed, QStash retries"
	MaybeRetried  Next = "may have run, QStash retries"
	FailedForGood Next = "failed for good: dead letter queue"
)

// table has a row for each reason.
var table = [...]Row{
	Handled:      {"ok", "handled", 200, Done, slog.LevelInfo},
	Repeat:       {"duplicate", "finished before", 0, Done, slog.LevelInfo},
	Checked:      {"checked", "healthz", 200, Done, slog.LevelInfo},
	Permanent:    {"permanent", "permanent", 489, FailedForGood, slog.LevelWarn},
	NotFailure:   {"permanent", "wrong path", 489, FailedForGood, slog.LevelError},
	AppPermanent: {"permanent", "app permanent", 489, FailedForGood, slog.LevelWarn},
	RetryAfter:   {"retry", "retry after", 503, FailedRetried, slog.LevelWarn},
	Failed:       {"error", "error", 500, FailedRetried, slog.LevelWarn},
	Panicked:     {"panic", "panic", 500, FailedRetried, slog.LevelWarn},
	TimedOut:     {"timeout", "deadline", 504, FailedRetried, slog.LevelWarn},
	Overdue:      {"timeout", "overdue", 504, MaybeRetried, slog.LevelWarn},
	CommitLost:   {"error", "commit", 500, MaybeRetried, slog.LevelWarn},
	LeaseLost:    {"retry", "lease lost", 503, FailedRetried, slog.LevelWarn},
	AppAway:      {"upstream", "app away", 502, NotRunRetried, slog.LevelWarn},
	AppCut:       {"upstream", "no answer", 502, MaybeRetried, slog.LevelWarn},
	AppFailed:    {"upstream", "app failed", 0, FailedRetried, slog.LevelWarn},
	AppLate:      {"timeout", "app late", 504, MaybeRetried, slog.LevelWarn},
	InFlight:     {"in_flight", "being run", 503, NotRunRetried, slog.LevelWarn},
	StoreAway:    {"store", "store away", 503, NotRunRetried, slog.LevelWarn},
	Missing:      {"refused", "missing", 401, NeverRetried, slog.LevelInfo},
	Malformed:    {"refused", "malformed", 401, NeverRetried, slog.LevelInfo},
	Signature:    {"refused", "signature", 401, NeverRetried, slog.LevelInfo},
	Issuer:       {"refused", "issuer", 401, NotRunRetried, slog.LevelError},
	Expired:      {"refused", "expired", 401, NotRunRetried, slog.LevelWarn},
	NotYetValid:  {"refused", "not yet valid", 401, NotRunRetried, slog.LevelWarn},
	Subject:      {"refused", "subject", 401, NotRunRetried, slog.LevelError},
	Bearer:       {"refused", "bearer", 401, NotRunRetried, slog.LevelError},
	BodyHash:     {"refused", "body hash", 401, NotRunRetried, slog.LevelWarn},
	Replayed:     {"refused", "replayed", 401, NeverRetried, slog.LevelInfo},
	Method:       {"refused", "method", 405, NotRunRetried, slog.LevelError},
	TooLarge:     {"refused", "too large", 413, NotRunRetried, slog.LevelError},
	Stalled:      {"refused", "stalled", 408, NotRunRetried, slog.LevelWarn},
	CutShort:     {"refused", "cut short", 408, NotRunRetried, slog.LevelWarn},
	Busy:         {"refused", "busy", 503, NotRunRetried, slog.LevelWarn},
	Stopping:     {"refused", "stopping", 503, NotRunRetried, slog.LevelWarn},
}

// Table returns all rows, in their order.
func Table() []Row { return table[:] }

// Row returns what is fixed of r.
func (r Reason) Row() *Row { return &table[r] }
