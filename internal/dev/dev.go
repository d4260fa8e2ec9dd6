// Package dev is a stand-in for QStash on one's own machine: its API, its deliveries and a page that shows them, all in
// memory. It signs, waits, retries, calls back and keeps dead letters as QStash does.
package dev

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"qstash-receiver/internal/signing"
)

// NoWaiting is a Speed for tests: every wait is over at once.
var NoWaiting = math.Inf(1)

// Config is how a stand-in works. The zero Config waits as long as QStash does.
type Config struct {
	// Speed divides the waits: delay, not-before, backoff, Retry-Delay, Retry-After and X-RateLimit-Reset. 0 is 1.
	Speed float64
	// Destination is what the page proposes to publish to.
	Destination string
	// ErrorLog gets what net/http has to say. nil: log's standard logger.
	ErrorLog *log.Logger
}

// QStash is a stand-in for QStash. It is an http.Handler: the API under /v2/, the page elsewhere.
type QStash struct {
	config Config
	client *http.Client
	pages  http.Handler
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // deliveries under way
	slots  chan struct{}  // taken by each of them
	bodies chan struct{}  // taken by each body that is being read

	mu      sync.Mutex
	closed  bool
	keys    keyPair
	held    held
	queues  map[string][]*message // what is still to be delivered; the first is being delivered
	letters []*message            // the dead letter queue, oldest first
	events  []event               // oldest first
	number  int64                 // counts events and changes of attempts
	views   map[*view]struct{}    // open pages
}

// What is done at a time, so that a burst does not use up the machine.
const (
	maxDeliveries = 100
	maxReading    = 8
)

// New returns a stand-in that begins with the pair of keys that QStash's local server has. Close ends it.
func New(config Config) *QStash {
	if config.Speed == 0 {
		config.Speed = 1
	}
	ctx, cancel := context.WithCancel(context.Background())
	q := &QStash{
		config: config,
		client: newClient(),
		ctx:    ctx,
		cancel: cancel,
		slots:  make(chan struct{}, maxDeliveries),
		bodies: make(chan struct{}, maxReading),
		keys:   keyPair{Current: signing.DevCurrent, Next: signing.DevNext},
		held:   newHeld(),
		queues: map[string][]*message{},
		views:  map[*view]struct{}{},
	}
	q.pages = q.newPages()
	return q
}

// Serve answers on listener, which must be on loopback, until ctx ends, and then closes q.
func (q *QStash) Serve(ctx context.Context, listener net.Listener) error {
	defer q.Close()
	if addr, ok := listener.Addr().(*net.TCPAddr); !ok || !addr.IP.IsLoopback() {
		_ = listener.Close()
		return fmt.Errorf("serve the stand-in for QStash on %s: it signs for anybody; listen on 127.0.0.1", listener.Addr())
	}
	server := &http.Server{
		Handler:           q,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          q.config.ErrorLog,
	}
	stop := context.AfterFunc(ctx, func() {
		q.Close() // open pages would keep a graceful stop waiting
		_ = server.Close()
	})
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the stand-in for QStash: %w", err)
	}
	return nil
}

// Close gives up what is under way and returns when nothing of it runs any more.
func (q *QStash) Close() {
	q.mu.Lock()
	q.closed = true
	for _, m := range q.held.messages {
		m.stopTimer()
	}
	q.mu.Unlock()
	q.cancel()
	q.work.Wait()
}

// ServeHTTP answers the API and the page.
func (q *QStash) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := checkOrigin(r); err != nil {
		writeError(w, err)
		return
	}
	// The target is taken as it was sent: http.ServeMux would clean and redirect destinations.
	if strings.HasPrefix(r.RequestURI, "/v2/") {
		q.serveAPI(w, r)
		return
	}
	q.pages.ServeHTTP(w, r)
}

// Publish publishes body to destination, as POST /v2/publish/destination with header would. It returns the message's id.
func (q *QStash) Publish(destination string, header http.Header, body []byte) (id string, err error) {
	if len(body) > maxBody {
		return "", errTooLarge
	}
	p, err := newPublication(destination, header, body)
	if err != nil {
		return "", err
	}
	p.callerIP = "127.0.0.1"
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.accept(p).MessageID, nil
}

// Await returns the message once it has come to its end: Delivered, Failed or Cancelled.
func (q *QStash) Await(ctx context.Context, id string) (Message, error) {
	q.mu.Lock()
	m, ok := q.held.messages[id]
	q.mu.Unlock()
	if !ok {
		return Message{}, fmt.Errorf("await message %s: there is none", id)
	}
	select {
	case <-m.ended:
		q.mu.Lock()
		defer q.mu.Unlock()
		return m.snapshot(), nil
	case <-ctx.Done():
		return Message{}, fmt.Errorf("await message %s: %w", id, ctx.Err())
	case <-q.ctx.Done():
		return Message{}, fmt.Errorf("await message %s: the stand-in was closed", id)
	}
}

// Heard adds to an attempt what the receiver's log says of it. It may come before or after the receiver's answer; retried
// is the attempt's Upstash-Retried. What is heard of no attempt here is dropped.
func (q *QStash) Heard(messageID string, retried int, outcome, reason, next string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	m, ok := q.held.messages[messageID]
	if !ok {
		return
	}
	for _, a := range m.attempts { // of two deliveries of one attempt the first is usually heard of first
		if a.Retried == retried && a.Outcome == "" {
			a.Outcome, a.Reason, a.Next = outcome, reason, next
			q.changed(m, a)
			return
		}
	}
}
