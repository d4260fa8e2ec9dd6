package logs

import (
	"io"
	"sync"
	"time"
)

const (
	gatherFor   = time.Millisecond
	gatherBytes = 64 << 10
)

// Writer makes one write of many. What comes a millisecond or longer after the last write is written before Write
// returns; what comes sooner is written together when that millisecond is over. So nothing waits longer than that, the
// log of an idle program is written as it is made, and a busy one has a thousand writes a second. A program that ends
// must call Flush; what is lost without it is the last millisecond's. It is safe for concurrent use.
type Writer struct {
	w io.Writer

	mu       sync.Mutex
	gathered []byte
	last     time.Time   // when the last write was over
	timer    *time.Timer // flushes; nil: none was needed yet
	err      error       // of the last write
}

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Write implements io.Writer. The error is that of an earlier write, if p is still to be written.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	first := len(w.gathered) == 0
	w.gathered = append(w.gathered, p...)
	if !first && len(w.gathered) < gatherBytes {
		return len(p), w.err
	}
	if wait := gatherFor - time.Since(w.last); first && wait > 0 {
		w.flushIn(wait)
		return len(p), w.err
	}
	return len(p), w.write()
}

func (w *Writer) flushIn(wait time.Duration) {
	if w.timer == nil {
		w.timer = time.AfterFunc(wait, func() { _ = w.Flush() })
		return
	}
	w.timer.Reset(wait)
}

// Flush writes what has gathered.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.write()
}

// write writes what has gathered. The caller has w.mu, so that lines stay in their order and a reader that does not
// keep up holds back those who log, rather than memory filling up.
func (w *Writer) write() error {
	if len(w.gathered) == 0 {
		return w.err
	}
	_, w.err = w.w.Write(w.gathered)
	w.gathered = w.gathered[:0]
	w.last = time.Now()
	return w.err
}
