package server

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"qstash-receiver/internal/deliver"
	"qstash-receiver/internal/once"
)

const (
	// MaxHeldBytes bounds the bodies that all requests hold at one time, and so the largest message.
	MaxHeldBytes = 64 << 20
	firstPart    = 64 << 10 // bytes of a body that get room before any have arrived
	earnest      = 1 << 20  // bytes of a body that have arrived when it gets room in larger steps: each step is a copy
	maxReading   = 2        // bodies that are read at one time under one token
)

// room is the memory that message bodies share. A body takes room as it arrives, not as it is declared: a promise
// costs a stranger nothing.
type room struct {
	limit    int64         // bytes of one body
	patience time.Duration // how long a body waits before it is turned away
	now      func() time.Time

	mu       sync.Mutex
	held     int64
	reading  map[*reading]struct{}
	line     []*reading       // bodies that wait for room to begin in, the oldest first
	tokens   map[once.Key]int // bodies being read, by token
	changed  chan struct{}    // closed when there may be more room; nil: nobody waits
	draining bool
	turned   time.Time // when a body was turned away for want of room, none having been given back since; zero: it is not so
}

// reading is one body on its way in.
type reading struct {
	room    *room
	control *http.ResponseController
	token   once.Key
	held    int64
	left    int64         // bytes that may still come
	whole   bool          // all of it is here
	waited  time.Duration // for room, so far
}

func newRoom(limit int64, patience time.Duration) *room {
	return &room{limit: limit, patience: patience, now: time.Now, reading: map[*reading]struct{}{}, tokens: map[once.Key]int{}}
}

// Held is how many bytes are taken.
func (m *room) Held() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held
}

// wedged says that a body was turned away for want of room, and none has been given back, for longer than d.
func (m *room) wedged(d time.Duration) (since time.Time, yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.turned, !m.turned.IsZero() && m.now().Sub(m.turned) > d
}

// drain gives up the bodies that are still on their way, and those that wait for room.
func (m *room) drain() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.draining = true
	for r := range m.reading {
		_ = r.control.SetReadDeadline(time.Now())
	}
	m.wake()
}

// wait calls try, and again whenever there may be more room, until it returns "". It returns a *deliver.Refusal with
// what try says stands in the way once r has waited long enough in all, or when the program stops.
func (r *reading) wait(try func() (obstacle string)) error {
	m := r.room
	for {
		m.mu.Lock()
		if m.draining {
			m.mu.Unlock()
			return stopping()
		}
		obstacle := try()
		if obstacle == "" {
			m.mu.Unlock()
			return nil
		}
		if m.changed == nil {
			m.changed = make(chan struct{})
		}
		changed := m.changed
		m.mu.Unlock()
		began := time.Now()
		giveUp := time.NewTimer(m.patience - r.waited)
		select {
		case <-changed:
			giveUp.Stop()
			r.waited += time.Since(began)
		case <-giveUp.C:
			if obstacle == noRoom {
				m.turnAway()
			}
			return deliver.Refuse(deliver.Busy, "waited %s for room: %s", m.patience, obstacle)
		}
	}
}

// What stands in the way of a body.
var (
	noRoom   = fmt.Sprintf("the bodies of other messages fill the %d bytes that this machine gives them together", MaxHeldBytes)
	twoOfOne = fmt.Sprintf("%d others were arriving under the same token", maxReading)
)

func (m *room) turnAway() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.turned.IsZero() {
		m.turned = m.now()
	}
}

// wake lets those who wait look again. The caller has m.mu.
func (m *room) wake() {
	if m.changed != nil {
		close(m.changed)
		m.changed = nil
	}
}

// enter waits until fewer than maxReading bodies are read under r's token, and for room for the first n bytes.
func (r *reading) enter(n int64) error {
	m := r.room
	err := r.wait(func() string {
		switch {
		case m.tokens[r.token] >= maxReading:
			return twoOfOne
		case !m.isNext(r) || !m.fits(r, n):
			if !slices.Contains(m.line, r) {
				m.line = append(m.line, r)
			}
			return noRoom
		}
		m.tokens[r.token]++
		m.reading[r] = struct{}{}
		r.grow(n)
		return ""
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	if at := slices.Index(m.line, r); at >= 0 {
		m.line = slices.Delete(m.line, at, at+1)
		m.wake()
	}
	return err
}

// isNext says that no body that is as small has waited for longer than r: the small do not wait for the large. The
// caller has m.mu.
func (m *room) isNext(r *reading) bool {
	for _, before := range m.line {
		if before == r {
			break
		}
		if before.left <= r.left {
			return false
		}
	}
	return true
}

// take waits for n more bytes of room.
func (r *reading) take(n int64) error {
	return r.wait(func() string {
		if !r.room.fits(r, n) {
			return noRoom
		}
		r.grow(n)
		return ""
	})
}

// grow takes n bytes. The caller has r.room.mu.
func (r *reading) grow(n int64) {
	r.room.held += n
	r.held += n
	r.left = max(r.left-n, 0)
}

// fits says that n more bytes for r leave enough for r or another body to arrive whole. Otherwise bodies that are half
// here could fill the room together and wait for each other. The caller has m.mu.
func (m *room) fits(r *reading, n int64) bool {
	free := MaxHeldBytes - m.held - n
	if free < 0 || r.left-n <= free {
		return free >= 0
	}
	for other := range m.reading {
		if other != r && other.left <= free {
			return true
		}
	}
	return false
}

// arrived ends the reading; the body stays.
func (r *reading) arrived() {
	m := r.room
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.reading, r)
	if m.tokens[r.token]--; m.tokens[r.token] == 0 {
		delete(m.tokens, r.token)
	}
	m.wake()
}

// giveBack says that the body is no longer needed.
func (r *reading) giveBack() {
	m := r.room
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held -= r.held
	if r.whole || m.held+m.limit <= MaxHeldBytes { // what a body that was turned away gives back is not enough
		m.turned = time.Time{}
	}
	m.wake()
}

// read returns r's body as it came, never decoded, and a function that says it is no longer needed; or a
// *deliver.Refusal.
func (m *room) read(w http.ResponseWriter, r *http.Request, token once.Key) ([]byte, func(), error) {
	size := r.ContentLength
	switch {
	case size == 0:
		return nil, func() {}, nil
	case size > m.limit:
		return nil, nil, m.tooLarge(fmt.Sprintf("%d bytes", size))
	case size < 0: // chunked
		size = m.limit
	}
	reading := &reading{room: m, control: http.NewResponseController(w), token: token, left: size}
	// Room comes first: the first read sends "100 Continue".
	if err := reading.enter(min(size, firstPart)); err != nil {
		return nil, nil, err
	}
	defer reading.arrived()
	body, err := reading.arrive(r, size)
	if err != nil {
		reading.giveBack()
		return nil, nil, err
	}
	reading.whole = true
	return body, reading.giveBack, nil
}

func (r *reading) arrive(request *http.Request, size int64) ([]byte, error) {
	if request.Header.Get("Expect") != "" { // "100 Continue" is written under the deadline of the last answer
		_ = r.control.SetWriteDeadline(time.Now().Add(writeTimeout))
	}
	body := make([]byte, 0, min(size, firstPart))
	var err error
	for err == nil && int64(len(body)) < size {
		if len(body) == cap(body) {
			times := int64(4) // what has arrived
			if cap(body) >= earnest {
				times = 16
			}
			more := min(size, times*int64(cap(body))) - int64(cap(body))
			if err := r.take(more); err != nil {
				return nil, err
			}
			grown := make([]byte, len(body), int64(cap(body))+more)
			copy(grown, body)
			body = grown
		}
		var n int
		n, err = request.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
	}
	whole := int64(len(body)) == request.ContentLength
	if request.ContentLength < 0 {
		if err == nil { // as large as may be: is there more?
			var n int
			if n, err = io.ReadFull(request.Body, make([]byte, 1)); n > 0 {
				return nil, r.room.tooLarge("more")
			}
		}
		whole = err == io.EOF
	}
	switch {
	case whole:
		return body, nil
	case r.room.isDraining():
		return nil, stopping()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, deliver.Refuse(deliver.Stalled, "headers and body did not arrive within %s; %d bytes of the body did", readTimeout, len(body))
	}
	return nil, deliver.Refuse(deliver.CutShort, "the body ended after %d bytes, before its end: %v", len(body), err)
}

func (m *room) isDraining() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.draining
}

func (m *room) tooLarge(size string) error {
	return deliver.Refuse(deliver.TooLarge, "the body has %s, MAX_BODY_BYTES allows %d", size, m.limit)
}

// stopping is for a delivery that is not yet claimed when the program is told to stop.
func stopping() error { return deliver.Refuse(deliver.Stopping, "this machine is stopping") }
