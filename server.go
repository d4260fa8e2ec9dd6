package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

const (
	readTimeout  = 30 * time.Second // headers and body in all
	writeTimeout = 30 * time.Second // one answer
)

// server is the HTTP side: verify, deliver, respond.
type server struct {
	verifier  *verifier
	deliverer *deliverer
	inFlight  *inFlight
	log       *slog.Logger
	refusals  *lineLimit
}

// newHTTPServer returns h behind limits that no business logic runs into: nothing here has to do with how long it
// takes, and a caller's connection is not what its context hangs on.
func newHTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:                      h,
		ReadHeaderTimeout:            10 * time.Second,
		ReadTimeout:                  readTimeout,
		IdleTimeout:                  120 * time.Second,
		MaxHeaderBytes:               64 << 10,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// ServeHTTP takes every path as it was sent: a http.ServeMux would redirect some.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	if r.URL.Path == "/healthz" && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		respond(w, answer{status: http.StatusOK, contentType: "text/plain; charset=utf-8", body: []byte("ok")})
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		s.refuse(w, r, began, &refusal{status: http.StatusMethodNotAllowed, reason: "method", detail: "messages are posted"})
		return
	}
	m, err := s.verifier.verify(w, r)
	if err != nil {
		s.refuse(w, r, began, err)
		return
	}
	if !s.inFlight.begin(m) {
		m.release()
		s.refuse(w, r, began, stopping())
		return
	}
	defer s.inFlight.end(m)
	o := s.deliverer.deliver(m)
	respond(w, o.answer)
	s.log.Log(r.Context(), o.level, "delivery", s.fields(r, began, o.name, o.reason, o.status)...)
}

// refuse answers a request that is no message, at once: a body that is still to come is not waited for.
func (s *server) refuse(w http.ResponseWriter, r *http.Request, began time.Time, err error) {
	ref := new(refusal)
	if !errors.As(err, &ref) {
		ref = &refusal{status: http.StatusInternalServerError, reason: "error", detail: err.Error()}
	}
	var a answer
	switch ref.status {
	case http.StatusUnauthorized:
		a = errorAnswer(ref.status, "unauthorized") // the same whatever was wrong
	case http.StatusMethodNotAllowed:
		a = errorAnswer(ref.status, "method not allowed")
	default: // the sender is proven
		a = errorAnswer(ref.status, ref.Error())
	}
	if ref.retryAfter > 0 {
		a.retryAfter = retryAfterSeconds(time.Duration(ref.retryAfter) * time.Second)
	}
	if r.ContentLength != 0 {
		w.Header().Set("Connection", "close")
	}
	respond(w, a)
	s.refusals.line(func(leftOut int) {
		s.log.Warn("delivery", append(s.fields(r, began, "refused", ref.reason, ref.status), "detail", ref.detail, "left_out", leftOut)...)
	})
}

// fields are a delivery's log line.
func (s *server) fields(r *http.Request, began time.Time, name, reason string, status int) []any {
	return []any{
		"outcome", name,
		"reason", reason,
		"message", clip(r.Header.Get("Upstash-Message-Id")),
		"attempt", attempt(r.Header),
		"path", clip(r.URL.Path),
		"status", status,
		"ms", float64(time.Since(began).Microseconds()) / 1000,
	}
}

// respond writes a.
func respond(w http.ResponseWriter, a answer) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	h := w.Header()
	h.Set("Content-Type", a.contentType)
	if a.retryAfter != "" {
		h.Set("Retry-After", a.retryAfter)
	}
	if a.permanent {
		h.Set("Upstash-NonRetryable-Error", "true")
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // a caller that hung up is told nothing
}

// inFlight knows the messages between verifying and the end of their business logic.
type inFlight struct {
	draining context.Context // done once drain was called
	stop     context.CancelFunc
	mu       sync.Mutex
	holds    map[*Message]int
	idle     chan struct{} // closed when draining and empty
}

func newInFlight() *inFlight {
	f := &inFlight{holds: map[*Message]int{}, idle: make(chan struct{})}
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
	f.holds[m] = 1
	return true
}

// hold keeps m, which has not ended, for one more end.
func (f *inFlight) hold(m *Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.holds[m]++
}

// end takes one hold off m, and releases m with the last.
func (f *inFlight) end(m *Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.holds[m]--; f.holds[m] > 0 {
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

// left names what has not ended.
func (f *inFlight) left() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for m := range f.holds {
		names = append(names, fmt.Sprintf("message %q to %s", m.Unverified.ID, m.URL.Path))
	}
	return names
}

// lineLimit lets at most 10 lines through in any second. Those it leaves out are counted on the next one.
type lineLimit struct {
	mu      sync.Mutex
	last    [10]time.Time // when each of the last lines went through, a ring
	next    int           // the oldest of them
	leftOut int
	rest    func(leftOut int) // writes the count where no further line comes to carry it
}

// line calls write with the number of lines left out since the last one, or leaves this one out too.
func (l *lineLimit) line(write func(leftOut int)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.through(write) {
		return
	}
	if l.leftOut++; l.leftOut == 1 {
		time.AfterFunc(time.Second, l.flush)
	}
}

func (l *lineLimit) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leftOut > 0 && !l.through(l.rest) {
		time.AfterFunc(time.Second, l.flush)
	}
}

func (l *lineLimit) through(write func(leftOut int)) bool {
	now := time.Now()
	if now.Sub(l.last[l.next]) < time.Second {
		return false
	}
	l.last[l.next] = now
	l.next = (l.next + 1) % len(l.last)
	write(l.leftOut)
	l.leftOut = 0
	return true
}
