package qstash

import "time"

// Permanent says that err will not go away: QStash does not retry, puts the message in the dead letter queue and
// calls its failure callback.
func Permanent(err error) error { return &PermanentError{err} }

// RetryAfter says that err will be over in d: QStash tries again then. It is rounded up to whole seconds and kept
// within a second and a day.
func RetryAfter(d time.Duration, err error) error { return &RetryAfterError{d, err} }

// PermanentError is what Permanent returns.
type PermanentError struct{ Err error }

func (e *PermanentError) Error() string { return textOf(e.Err) }
func (e *PermanentError) Unwrap() error { return e.Err }

// RetryAfterError is what RetryAfter returns.
type RetryAfterError struct {
	After time.Duration
	Err   error
}

func (e *RetryAfterError) Error() string { return textOf(e.Err) }
func (e *RetryAfterError) Unwrap() error { return e.Err }

func textOf(err error) string {
	if err == nil {
		return "no reason given"
	}
	return err.Error()
}
