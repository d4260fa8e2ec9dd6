package deliver

import (
	"sync"
	"sync/atomic"

	"qstash-receiver/internal/once"
)

// here knows which messages this process claims or runs. A lease can lapse while its holder lives, when clocks jump
// or the process was paused; here makes sure that no message is run beside itself in one process even then.
type here struct {
	mu   sync.Mutex
	runs map[once.Key]*run
}

// run is one message in the hands of one delivery, from before its claim to the end of its business logic.
type run struct {
	here        *here
	key         once.Key
	holder      string
	over        chan struct{} // closed by end; made by the first that waits for it
	successOnly bool          // the message is known by a value in its body: only a success is kept

	commitCalled atomic.Bool
	committed    *once.Answer // what Commit has recorded; nil: nothing
	commitErr    error        // why Commit has not; nil: it was not called, or has
}

func newHere() *here { return &here{runs: map[once.Key]*run{}} }

// begin returns the run of c if no other delivery has the message in hand here; else a channel that is closed when
// that one's business logic has ended.
func (h *here) begin(c once.Claim) (*run, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if other := h.runs[c.Key]; other != nil {
		if other.over == nil {
			other.over = make(chan struct{})
		}
		return nil, other.over
	}
	r := &run{here: h, key: c.Key, holder: c.Holder}
	h.runs[c.Key] = r
	return r, nil
}

// abandon takes begin back: the claim was not granted. It wakes nobody, or all that wait for a message that is run
// elsewhere would ask the store again at each other's answers.
func (r *run) abandon() {
	r.here.mu.Lock()
	defer r.here.mu.Unlock()
	delete(r.here.runs, r.key)
}

// end lets other deliveries of the message go on.
func (r *run) end() {
	r.here.mu.Lock()
	defer r.here.mu.Unlock()
	delete(r.here.runs, r.key)
	if r.over != nil {
		close(r.over)
	}
}
