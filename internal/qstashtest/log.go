package qstashtest

import (
	"bytes"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"
)

// Log is a log that tests read while it is written. Each write is one line or more.
type Log struct {
	mu      sync.Mutex
	changed chan struct{} // closed by the next write
	text    bytes.Buffer
}

// NewLog returns an empty Log.
func NewLog() *Log { return &Log{changed: make(chan struct{})} }

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
	return l.text.Write(p)
}

// String returns all that has been written.
func (l *Log) String() string {
	text, _ := l.read()
	return text
}

func (l *Log) read() (text string, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String(), l.changed
}

// Await returns the fields of the first line that holds all of parts, as soon as it is there.
func (l *Log) Await(t testing.TB, parts ...string) map[string]any {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		text, changed := l.read()
		for line := range strings.Lines(text) {
			if holds(line, parts) {
				return fields(t, line)
			}
		}
		select {
		case <-changed:
		case <-late:
			t.Fatalf("no log line with %q in:\n%s", parts, text)
		}
	}
}

// Lines returns the fields of the lines so far that hold all of parts.
func (l *Log) Lines(t testing.TB, parts ...string) []map[string]any {
	t.Helper()
	var found []map[string]any
	for line := range strings.Lines(l.String()) {
		if holds(line, parts) {
			found = append(found, fields(t, line))
		}
	}
	return found
}

func holds(line string, parts []string) bool {
	for _, part := range parts {
		if !strings.Contains(line, part) {
			return false
		}
	}
	return true
}

func fields(t testing.TB, line string) map[string]any {
	t.Helper()
	var f map[string]any
	if err := json.Unmarshal([]byte(line), &f); err != nil {
		t.Fatalf("a log line is not JSON: %s", line)
	}
	return f
}
