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
	messages map[*Message]named
	idle     chan struct{} // closed when draining and empty
}

// named is what the business logic, which may change all of a message in flight, cannot reach.
type named struct {
	id, path string
	release  func()
}

func newInFlight() *inFlight {
	f := &inFlight{messages: map[*Message]named{}, idle: make(chan struct{})}
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
	f.messages[m] = named{clip(m.Unverified.ID), clip(m.URL.Path), m.release}
	return true
}

// end takes m out, and releases it.
func (f *inFlight) end(m *Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.messages[m].release()
	delete(f.messages, m)
	if len(f.messages) == 0 && f.draining.Err() != nil {
		close(f.idle)
	}
}

// drain lets no further message begin. The channel is closed when none is left.
func (f *inFlight) drain() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stop()
	if len(f.messages) == 0 {
		close(f.idle)
	}
	return f.idle
}

// count is how many have not ended.
func (f *inFlight) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.messages)
}

// left names what has not ended.
func (f *inFlight) left() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for _, m := range f.messages {
		names = append(names, fmt.Sprintf("message %q to %s", m.id, m.path))
	}
	return names
}
