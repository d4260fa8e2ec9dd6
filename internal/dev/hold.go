package dev

import (
	"time"

	"qstash-receiver/internal/signing"
)

const (
	maxMessages  = 10_000
	maxHeldBytes = 128 << 20
	maxEvents    = 100_000
	dedupeWindow = 10 * time.Minute
)

// held is the messages that are remembered.
type held struct {
	messages  map[string]*message
	order     []*message // oldest first
	dedupe    map[string]*message
	bytes     int
	forgotten int // how many were forgotten to make room
}

func newHeld() held {
	return held{messages: map[string]*message{}, dedupe: map[string]*message{}}
}

// duplicateOf returns the message that p repeats, or nil. The caller holds q.mu, as with every method here.
func (q *QStash) duplicateOf(p *publication) *message {
	m, ok := q.held.dedupe[p.dedupe]
	if p.dedupe == "" || !ok || time.Since(m.created) >= dedupeWindow {
		return nil
	}
	return m
}

// hold holds a message for p and sees to its delivery. Of a callback, source is the message that it tells of.
func (q *QStash) hold(p *publication, source string) *message {
	now := time.Now()
	wait := p.delay
	if !p.notBefore.IsZero() {
		wait = p.notBefore.Sub(now)
	}
	m := &message{
		publication: p,
		ID:          "msg_" + signing.NewID(),
		source:      source,
		created:     now,
		notBefore:   now.Add(q.scaled(wait)),
		state:       Waiting,
		ended:       make(chan struct{}),
	}
	q.held.messages[m.ID] = m
	q.held.order = append(q.held.order, m)
	if p.dedupe != "" {
		q.held.dedupe[p.dedupe] = m
	}
	q.grow(m, 1<<10+len(p.destination)+len(p.body)+2*sizeOf(p.asked)+sizeOf(p.header))
	q.happened(m, event{State: "CREATED"})
	if m.queue == "" {
		q.schedule(m, m.notBefore)
		return m
	}
	q.queues[m.queue] = append(q.queues[m.queue], m)
	if q.queues[m.queue][0] == m {
		q.schedule(m, m.notBefore)
	}
	return m
}

// grow counts bytes that m holds, and forgets the oldest messages when there are too many: first those that have come to
// their end. m stays.
func (q *QStash) grow(m *message, bytes int) {
	if m.forgotten {
		return
	}
	m.size += bytes
	q.held.bytes += bytes
	for _, onlyFinal := range []bool{true, false} {
		for i := 0; i < len(q.held.order) && q.full(); {
			if old := q.held.order[i]; old != m && (old.final() || !onlyFinal) {
				q.held.order = append(q.held.order[:i], q.held.order[i+1:]...)
				q.forget(old)
			} else {
				i++
			}
		}
	}
}

func (q *QStash) full() bool {
	return len(q.held.order) > maxMessages || q.held.bytes > maxHeldBytes
}

func (q *QStash) forget(m *message) {
	q.held.forgotten++
	q.held.bytes -= m.size
	m.forgotten = true
	delete(q.held.messages, m.ID)
	if q.held.dedupe[m.dedupe] == m {
		delete(q.held.dedupe, m.dedupe)
	}
	if m.dlqID != "" {
		q.removeLetter(m)
	}
	if m.state == Waiting {
		q.end(m, Cancelled)
	}
}

// end is the message's end; the next of its queue begins.
func (q *QStash) end(m *message, state State) {
	m.stopTimer()
	m.state, m.due = state, time.Time{}
	close(m.ended)
	line := q.queues[m.queue]
	for i, queued := range line {
		if m.queue == "" || queued != m {
			continue
		}
		line = append(line[:i:i], line[i+1:]...)
		if len(line) == 0 {
			delete(q.queues, m.queue)
			return
		}
		q.queues[m.queue] = line
		if i == 0 {
			q.schedule(line[0], line[0].notBefore)
		}
		return
	}
}

// event is a line of QStash's log.
type event struct {
	number  int64
	id      string // of the message: what is forgotten is not held by its events
	attempt int    // ERROR, FAILED: the number of the attempt that failed

	Time             time.Time
	State            string
	Error            string
	NextDeliveryTime time.Time
}

func (q *QStash) happened(m *message, e event) {
	q.number++
	e.number, e.id, e.Time = q.number, m.ID, time.Now()
	if len(q.events) >= maxEvents {
		q.events = append([]event(nil), q.events[maxEvents/2:]...)
	}
	q.events = append(q.events, e)
	q.changed(m, nil)
}
