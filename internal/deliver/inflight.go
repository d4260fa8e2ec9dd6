package deliver

import (
	"fmt"
	"sync"
)

// inFlight knows the deliveries between verifying and the end of their business logic.
type inFlight struct {
	draining   chan struct{} // closed once Drain was called
	idle       chan struct{} // closed when draining and empty
	mu         sync.Mutex
	deliveries map[*Delivery]struct{}
}

func newInFlight() *inFlight {
	return &inFlight{draining: make(chan struct{}), idle: make(chan struct{}), deliveries: map[*Delivery]struct{}{}}
}

// begin adds x, which its caller must end. It returns false, and adds nothing, when the program is stopping.
func (f *inFlight) begin(x *Delivery) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.draining:
		return false
	default:
	}
	f.deliveries[x] = struct{}{}
	return true
}

// end takes x out.
func (f *inFlight) end(x *Delivery) {
	for _, ended := range x.ended {
		ended()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.deliveries, x)
	select {
	case <-f.draining:
		if len(f.deliveries) == 0 {
			close(f.idle)
		}
	default:
	}
}

// Drain lets no further delivery begin; call it once. The channel is closed when none is left.
func (f *inFlight) Drain() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.draining)
	if len(f.deliveries) == 0 {
		close(f.idle)
	}
	return f.idle
}

// Draining is closed when no further delivery may begin.
func (f *inFlight) Draining() <-chan struct{} { return f.draining }

// InFlight is how many have not ended.
func (f *inFlight) InFlight() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.deliveries)
}

// Left names what has not ended.
func (f *inFlight) Left() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for x := range f.deliveries {
		names = append(names, fmt.Sprintf("message %q to %s", x.id, x.path))
	}
	return names
}
