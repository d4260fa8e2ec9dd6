// Package sqlite remembers handled messages in a SQLite file, for one process at a time. What was answered is on the
// disk.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"qstash-receiver/internal/once"
)

// Store is a once.Committer. One goroutine, the writer, does everything that is done with the file.
type Store struct {
	requests  chan *request
	late      sync.WaitGroup // ends of runs that the writer has yet to take, though nobody waits for them
	stopped   chan struct{}  // closed when the writer has ended
	stopWatch context.CancelFunc
	db        *sql.DB

	// All below is the writer's.
	conn   *sql.Conn // the only one
	file   *os.File  // the same file
	ttl    time.Duration
	leases leases
	tokens int64 // numbers the rows of tokens
	room   room
	statements
}

// request is something for the writer to do.
type request struct {
	ctx    context.Context           // when it has ended, nothing is begun
	decide func(now time.Time) error // runs in the writer's transaction, and once more if that was rolled back
	commit *commit                   // instead of decide: has a transaction of its own
	done   chan error
}

// batchSize is how many decisions share a transaction at most.
const batchSize = 64

// write does what is asked for. Decisions that wait together share a transaction, and so the wait for the disk, which
// is nearly all of the time.
func (s *Store) write() {
	defer close(s.stopped)
	for r := range s.requests {
		runtime.Gosched() // with one CPU, whoever is about to ask gets to it
		var batch []*request
		for r != nil {
			if r.commit != nil {
				s.decideAll(batch)
				batch = nil
				r.done <- s.runCommit(r.ctx, r.commit)
			} else if err := r.ctx.Err(); err != nil {
				r.done <- err
			} else {
				batch = append(batch, r)
			}
			r = nil
			if len(batch) < batchSize && len(s.requests) > 0 {
				r = <-s.requests
			}
		}
		s.decideAll(batch)
	}
}

// decideAll makes the decisions of a batch together or, if that fails, each alone.
func (s *Store) decideAll(batch []*request) {
	if len(batch) == 0 {
		return
	}
	err := s.decideWithRoom(batch)
	for _, r := range batch {
		if err != nil && len(batch) > 1 {
			r.done <- s.decideWithRoom([]*request{r})
		} else {
			r.done <- err
		}
	}
}

// transact makes the decisions of a batch in one transaction, all or none.
func (s *Store) transact(batch []*request) (err error) {
	now := time.Now()
	defer func() {
		s.leases.settle(err == nil)
		if err != nil {
			_ = run(s.rollback) // fails if SQLite has done so already
		}
	}()
	if err := run(s.begin); err != nil {
		return err
	}
	if err := s.sweep(now, len(batch)); err != nil {
		return err
	}
	for _, r := range batch {
		if err := r.decide(now); err != nil {
			return err
		}
	}
	return run(s.end)
}

// do has the writer make a decision, and returns when that is on the disk. One that must is made even if the disk
// takes longer than the caller can wait.
func (s *Store) do(must bool, decide func(now time.Time) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), once.Timeout)
	defer cancel()
	r := &request{ctx: ctx, decide: decide, done: make(chan error, 1)}
	if must {
		r.ctx = context.Background()
	}
	select {
	case s.requests <- r:
	case <-ctx.Done():
		if must {
			s.late.Go(func() { s.requests <- r })
		}
		return errSlow
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return errSlow
	}
}

var errSlow = fmt.Errorf("write to the SQLite file: the disk has not taken it within %s", once.Timeout)

// Claim implements once.Store.
func (s *Store) Claim(c once.Claim) (once.Decision, error) {
	var d once.Decision // for the writer alone until it is done, or for good
	err := s.do(false, func(now time.Time) (err error) {
		d, err = s.decide(c, now)
		return err
	})
	if err != nil {
		return once.Decision{}, err
	}
	return d, nil
}

// Complete implements once.Store.
func (s *Store) Complete(key once.Key, holder string, a once.Answer) error {
	a.Body = append([]byte{}, a.Body...) // it may be written when the caller has gone on
	return s.endRun(func(now time.Time) (held bool, err error) { return s.finish(key, holder, a, now) })
}

// Release implements once.Store.
func (s *Store) Release(key once.Key, holder string) error {
	return s.endRun(func(time.Time) (held bool, err error) { return s.release(key, holder) })
}

func (s *Store) endRun(end func(now time.Time) (held bool, err error)) error {
	var held bool
	err := s.do(true, func(now time.Time) (err error) {
		held, err = end(now)
		return err
	})
	if err != nil {
		return err
	}
	if !held {
		return once.ErrLeaseLost
	}
	return nil
}

// Forget removes a message and a token.
func (s *Store) Forget(message, token once.Key) error {
	return s.do(true, func(time.Time) error {
		s.leases.remove(message)
		return errors.Join(run(s.forgetMessage, message[:]), run(s.forgetToken, token[:]))
	})
}

// Close implements once.Store.
func (s *Store) Close() error {
	s.stopWatch()
	s.late.Wait()
	close(s.requests)
	<-s.stopped
	return s.closeFiles()
}

// closeFiles closes all that is open: statements first, for SQLite keeps the file as long as there is one, and the file
// last, for closing it gives up every lock that this process has on it.
func (s *Store) closeFiles() error {
	var errs []error
	for _, stmt := range s.prepared {
		errs = append(errs, stmt.Close())
	}
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	return errors.Join(append(errs, s.db.Close(), s.file.Close())...)
}
