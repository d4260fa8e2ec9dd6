package dev

import (
	"bytes"
	"net/http"
	"time"
)

// State is how far a message is.
type State string

// The states of a message.
const (
	Waiting    State = "waiting"
	Delivering State = "delivering"
	Delivered  State = "delivered"
	Failed     State = "failed" // it is, or was, in the dead letter queue
	Cancelled  State = "cancelled"
)

// Message is a message as it is now. Nobody changes what its slices and maps hold.
type Message struct {
	ID          string
	Destination string // as published
	Method      string
	Header      http.Header // what the publisher forwards
	Body        []byte
	Queue       string // "" if it is in none
	Label       string
	Source      string // of a callback: the id of the message that it tells of
	State       State
	Created     time.Time
	Due         time.Time // Waiting: when the next attempt is made; zero behind others of its queue
	MaxRetries  int
	DLQID       string // Failed: its place in the dead letter queue, even if it has left it
	Attempts    []Attempt
}

// Attempt is one delivery of a message.
type Attempt struct {
	Retried int    // its Upstash-Retried
	Extra   string // why it was made, of one that QStash's answer does not depend on
	Started time.Time
	Ended   time.Time   // zero while it is under way
	Sent    http.Header // of the request

	Status int         // of the answer; 0: there was none
	Header http.Header // of the answer
	Body   []byte      // of the answer
	Err    string      // why there was no answer, or not all of it
	Then   string      // what QStash does then

	Outcome, Reason, Next string // what the receiver's log says of it; see Heard

	number  int   // its place among the message's attempts, from 1
	changed int64 // the number of its last change
}

// message is a message and what is needed to deliver it. QStash.mu guards what is not set once.
type message struct {
	*publication
	ID      string
	source  string
	created time.Time

	state     State
	notBefore time.Time // of the first attempt
	due       time.Time
	timer     *time.Timer
	turn      int // counts what the timer is set for, so that one that fires late is known
	retried   int // retries made
	cancelled bool
	attempts  []*Attempt
	dlqID     string
	letter    int64 // orders dead letters
	size      int
	forgotten bool
	ended     chan struct{} // closed at the message's end
}

// maxAttempts is how many attempts of one message are kept.
const maxAttempts = 200

func (m *message) snapshot() Message {
	s := Message{
		ID:          m.ID,
		Destination: m.destination,
		Method:      m.method,
		Header:      m.header,
		Body:        m.body,
		Queue:       m.queue,
		Label:       m.label,
		Source:      m.source,
		State:       m.state,
		Created:     m.created,
		Due:         m.due,
		MaxRetries:  m.retries,
		DLQID:       m.dlqID,
		Attempts:    make([]Attempt, len(m.attempts)),
	}
	for i, a := range m.attempts {
		s.Attempts[i] = *a
	}
	return s
}

func (m *message) final() bool {
	return m.state == Delivered || m.state == Failed || m.state == Cancelled
}

func (m *message) stopTimer() {
	m.turn++
	if m.timer != nil {
		m.timer.Stop()
	}
}

// last returns the attempt that decided last.
func (m *message) last() *Attempt {
	for i := len(m.attempts) - 1; i >= 0; i-- {
		if a := m.attempts[i]; a.Extra == "" && !a.Ended.IsZero() {
			return a
		}
	}
	return &Attempt{}
}

func sizeOf(h http.Header) int {
	var b bytes.Buffer
	_ = h.Write(&b) // to a Buffer, which takes everything
	return b.Len()
}
