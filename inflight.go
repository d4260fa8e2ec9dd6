package main

import (
	"context"
	"fmt"
	"sync"
)

// inFlight knows the messages between verifying and the end of their business logic.
type inFlight struct {
	draining context.Context // done once drain was called
	stop     context.CancelFunc
	mu       sync.Mutex
	holds    map[*Message]held
	idle     chan struct{} // closed when draining and empty
}

// held is a message in flight. Its names are copies: the business logic may change the message.
type held struct {
	times    int
	id, path string
}

func newInFlight() *inFlight {
	f := &inFlight{holds: map[*Message]held{}, idle: make(chan struct{})}
	f.draining, f.stop = context.WithCancel(context.Background())
	return f
}

// begin adds m, which its caller must end. It returns false, and adds nothing, when the program is stopping.
func (f *inFlight) begin(m *Message) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.draining.Err() != nil {
		return false
	}
	f.holds[m] = held{1, clip(m.Unverified.ID), clip(m.URL.Path)}
	return true
}

// hold keeps m, which has not ended, for one more end.
func (f *inFlight) hold(m *Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.holds[m]
	h.times++
	f.holds[m] = h
}

// end takes one hold off m, and releases m with the last.
func (f *inFlight) end(m *Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.holds[m]
	if h.times--; h.times > 0 {
		f.holds[m] = h
		return
	}
	delete(f.holds, m)
	m.release()
	if len(f.holds) == 0 && f.draining.Err() != nil {
		close(f.idle)
	}
}

// drain lets no further message begin. The channel is closed when none is left.
func (f *inFlight) drain() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stop()
	if len(f.holds) == 0 {
		close(f.idle)
	}
	return f.idle
}

// count is how many have not ended.
func (f *inFlight) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.holds)
}

// left names what has not ended.
func (f *inFlight) left() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for _, h := range f.holds {
		names = append(names, fmt.Sprintf("message %q to %s", h.id, h.path))
	}
	return names
}
