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

// take reserves n bytes, which the caller gives back with b.held.Add(-n), or returns a *refusal.
func (b *bodyReader) take(n int64) error {
	if b.held.Add(n) > maxHeldBytes {
		b.held.Add(-n)
		return &refusal{http.StatusServiceUnavailable, "busy", fmt.Sprintf("the bodies of other messages fill the %d bytes that this machine gives them", maxHeldBytes), 5}
	}
	return nil
}

// read returns r's body as it came, never decoded, and a function that says it is no longer needed; or a *refusal.
func (b *bodyReader) read(w http.ResponseWriter, r *http.Request) ([]byte, func(), error) {
	if r.ContentLength > b.limit {
		return nil, nil, b.tooLarge(fmt.Sprintf("%d bytes", r.ContentLength))
	}
	body, err := b.arrive(w, r)
	if err != nil {
		b.held.Add(-int64(cap(body)))
		return nil, nil, err
	}
	return body, func() { b.held.Add(-int64(cap(body))) }, nil
}

// arrive returns what has arrived, whose capacity it has reserved, even with an error.
func (b *bodyReader) arrive(w http.ResponseWriter, r *http.Request) (body []byte, err error) {
	if r.ContentLength == 0 {
		return nil, nil
	}
	control := http.NewResponseController(w)
	if r.Header.Get("Expect") != "" { // "100 Continue" is written by the first read, under the deadline of the last answer
		_ = control.SetWriteDeadline(time.Now().Add(writeTimeout))
	}
	stop := context.AfterFunc(b.draining, func() { _ = control.SetReadDeadline(time.Now()) })
	defer stop()
	if r.ContentLength < 0 {
		body, err = b.readChunks(r.Body)
	} else if err = b.take(r.ContentLength); err == nil {
		body = make([]byte, r.ContentLength)
		_, err = io.ReadFull(r.Body, body)
	}
	switch {
	case err == nil || errors.As(err, new(*refusal)):
		return body, err
	case b.draining.Err() != nil:
		return body, stopping()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return body, &refusal{http.StatusRequestTimeout, "stalled", fmt.Sprintf("headers and body did not arrive within %s", readTimeout), 0}
	}
	return body, &refusal{http.StatusRequestTimeout, "cut short", "the body ended before its end: " + err.Error(), 0}
}

// readChunks reads a body that has not said how long it is, and reserves as it grows.
func (b *bodyReader) readChunks(from io.Reader) (body []byte, err error) {
	for err == nil && int64(len(body)) < b.limit {
		if size := int64(cap(body)); int64(len(body)) == size {
			more := min(max(size, 4<<10), b.limit-size)
			if err := b.take(more); err != nil {
				return body, err
			}
			grown := make([]byte, size, size+more)
			copy(grown, body)
			body = grown
		}
		var n int
		n, err = from.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
	}
	if err == nil { // is there more?
		var n int
		if n, err = io.ReadFull(from, make([]byte, 1)); n > 0 {
			return body, b.tooLarge("more")
		}
	}
	if err == io.EOF {
		err = nil
	}
	return body, err
}

func (b *bodyReader) tooLarge(size string) *refusal {
	return &refusal{http.StatusRequestEntityTooLarge, "too large", fmt.Sprintf("the body has %s, MAX_BODY_BYTES allows %d", size, b.limit), 0}
}

// stopping is the answer to a delivery that is not yet claimed when the program is told to stop.
func stopping() *refusal {
	return &refusal{http.StatusServiceUnavailable, "stopping", "this machine is stopping", 1}
}
