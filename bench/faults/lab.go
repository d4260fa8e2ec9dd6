package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// lab is what one part of the program works in. The servers that tests start ask for a testing.TB, so a lab is one.
type lab struct {
	testing.TB         // nil: methods that are not below are not called
	dir         string // of its own
	binary      string // the receiver's
	directories int

	mu   sync.Mutex
	undo []func()
}

// errSkipped is a part whose servers are not on this machine.
var errSkipped = errors.New("left out")

// failure is what Fatal panics with. It is an error.
type failure struct{ error }

// run plays one part and cleans up after it.
func (l *lab) run(play func(*lab) result) (r result, err error) {
	defer func() {
		l.close()
		if ended, is := recover().(failure); is {
			err = ended.error
		}
	}()
	return play(l), nil
}

// close ends what the part has started.
func (l *lab) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range slices.Backward(l.undo) {
		f()
	}
	l.undo = nil
}

// Helper implements testing.TB.
func (l *lab) Helper() {}

// Cleanup implements testing.TB.
func (l *lab) Cleanup(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.undo = append(l.undo, f)
}

// TempDir implements testing.TB.
func (l *lab) TempDir() string {
	l.directories++
	dir := filepath.Join(l.dir, fmt.Sprint(l.directories))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		l.Fatal(err)
	}
	return dir
}

// Fatal implements testing.TB. It ends the part.
func (l *lab) Fatal(args ...any) { panic(failure{errors.New(fmt.Sprint(args...))}) }

// Fatalf implements testing.TB.
func (l *lab) Fatalf(format string, args ...any) { panic(failure{fmt.Errorf(format, args...)}) }

// Skip implements testing.TB.
func (l *lab) Skip(args ...any) {
	panic(failure{fmt.Errorf("%w: %s", errSkipped, fmt.Sprint(args...))})
}

// Skipf implements testing.TB.
func (l *lab) Skipf(format string, args ...any) { l.Skip(fmt.Sprintf(format, args...)) }

// check ends the part if err is not nil.
func (l *lab) check(err error) {
	if err != nil {
		l.Fatal(err)
	}
}
