package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

// maxHeldBytes bounds the bodies that all requests hold at one time.
const maxHeldBytes = 64 << 20

// bodyReader reads request bodies of at most limit bytes each and maxHeldBytes together.
type bodyReader struct {
	limit    int64
	held     atomic.Int64
	draining context.Context // done: bodies still arriving are given up
}

// take reserves n bytes; the caller gives them back with b.held.Add(-n).
func (b *bodyReader) take(n int64) bool {
	if b.held.Add(n) > maxHeldBytes {
		b.held.Add(-n)
		return false
	}
	return true
}

// read returns r's body as it came, never decoded, and a function that says it is no longer needed; or a *refusal.
func (b *bodyReader) read(w http.ResponseWriter, r *http.Request) ([]byte, func(), error) {
	declared := r.ContentLength
	if declared > b.limit {
		return nil, nil, b.tooLarge(fmt.Sprintf("%d bytes", declared))
	}
	held := declared
	if declared < 0 { // chunked: any length up to the limit
		held = b.limit
	}
	if !b.take(held) {
		return nil, nil, &refusal{http.StatusServiceUnavailable, "busy", fmt.Sprintf("the bodies of other messages fill the %d bytes that this machine gives them", maxHeldBytes), 5}
	}
	body, err := b.arrive(w, r)
	if err != nil {
		b.held.Add(-held)
		return nil, nil, err
	}
	if declared < 0 {
		b.held.Add(int64(cap(body)) - held)
		held = int64(cap(body))
	}
	return body, func() { b.held.Add(-held) }, nil
}

func (b *bodyReader) arrive(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.ContentLength == 0 {
		return nil, nil
	}
	control := http.NewResponseController(w)
	// A "100 Continue" is written by the first read, under whatever deadline the connection's last answer left.
	_ = control.SetWriteDeadline(time.Now().Add(writeTimeout))
	stop := context.AfterFunc(b.draining, func() { _ = control.SetReadDeadline(time.Now()) })
	defer stop()
	var body []byte
	var err error
	if r.ContentLength > 0 {
		body = make([]byte, r.ContentLength)
		_, err = io.ReadFull(r.Body, body)
	} else {
		body, err = io.ReadAll(io.LimitReader(r.Body, b.limit+1))
	}
	switch {
	case err == nil && int64(len(body)) > b.limit:
		return nil, b.tooLarge("more")
	case err == nil:
		return body, nil
	case b.draining.Err() != nil:
		return nil, stopping()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, &refusal{http.StatusRequestTimeout, "stalled", fmt.Sprintf("headers and body did not arrive within %s", readTimeout), 0}
	}
	return nil, &refusal{http.StatusRequestTimeout, "cut short", "the body ended before its end: " + err.Error(), 0}
}

func (b *bodyReader) tooLarge(size string) *refusal {
	return &refusal{http.StatusRequestEntityTooLarge, "too large", fmt.Sprintf("the body has %s, MAX_BODY_BYTES allows %d", size, b.limit), 0}
}

// stopping is the answer to a delivery that is not yet claimed when the program is told to stop.
func stopping() *refusal {
	return &refusal{http.StatusServiceUnavailable, "stopping", "this machine is stopping", 1}
}
