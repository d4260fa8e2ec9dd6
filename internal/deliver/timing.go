package deliver

import (
	"context"
	"time"
)

// Timing is how long each step of a delivery may take. With t for HANDLER_TIMEOUT:
//
//	t       the business logic's context ends
//	t + 5   business logic that has not returned is answered for with 504
//	t + 10  its lease lapses: other processes may run the message
//	t + 15  a stop of the program waits no longer
type Timing struct {
	Timeout time.Duration // t
	Grace   time.Duration // from t to the 504
	Lease   time.Duration // from the claim
	Stop    time.Duration // from the signal
	Wait    time.Duration // for another delivery of the same message, and for room for a body
}

// NewTiming returns the timing for a HANDLER_TIMEOUT.
func NewTiming(timeout time.Duration) Timing {
	return Timing{
		Timeout: timeout,
		Grace:   5 * time.Second,
		Lease:   timeout + 10*time.Second,
		Stop:    timeout + 15*time.Second,
		Wait:    10 * time.Second,
	}
}

// within is t for a delivery that must be answered before ctx ends, as AWS Lambda's must.
func (t Timing) within(ctx context.Context) Timing {
	end, limited := ctx.Deadline()
	if !limited {
		return t
	}
	left := time.Until(end)
	margin := min(2*time.Second, left/5) // one before the business logic, to claim; one after it, to record and answer
	t.Timeout = min(t.Timeout, left-2*margin)
	t.Wait = min(t.Wait, left-t.Timeout-margin)
	return t
}
