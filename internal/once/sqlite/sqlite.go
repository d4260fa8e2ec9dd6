// Package sqlite remembers handled messages in a SQLite file, for one process at a time. What was answered is on the
// disk.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"runtime"
	"time"

	"qstash-receiver/internal/once"
)

// Store is a once.Committer. One goroutine writes, on the one connection that there is.
type Store struct {
	db       *sql.DB
	conn     *sql.Conn
	ttl      time.Duration
	log      *slog.Logger
	requests chan *request
	stopped  chan struct{} // closed when the writer has ended
	closing  context.CancelFunc
	room     room
	statements
}

// request is something to do for the writer.
type request struct {
	ctx context.Context // a claim is not begun when nobody waits for it any more; nil: nobody has to wait
	// decide makes a decision within the writer's transaction. It may be called again after a rollback.
	decide func(now time.Time) error
	alone  *commit // instead: business logic that has a transaction of its own
	done   chan error
}

// batchSize is how many decisions share a transaction at most.
const batchSize = 64

// write does what is asked for. Decisions that wait together share a transaction, and so the wait for the disk, which
// is nearly all of the time.
func (s *Store) write() {
	defer close(s.stopped)
	var next *request
	for {
		first := next
		next = nil
		if first == nil {
			var open bool
			if first, open = <-s.requests; !open {
				return
			}
		}
		if first.alone != nil {
			first.done <- s.runAlone(first.alone)
			continue
		}
		batch := []*request{first}
		runtime.Gosched() // on one CPU, those that are about to ask get to it
		for len(batch) < batchSize && len(s.requests) > 0 && next == nil {
			if r := <-s.requests; r.alone != nil {
				next = r
			} else {
				batch = append(batch, r)
			}
		}
		err := s.decideAll(batch)
		for _, r := range batch {
			r.done <- err
		}
	}
}

// decideAll makes the decisions of a batch. Where there is no room for them, it makes some and tries once more.
func (s *Store) decideAll(batch []*request) error {
	kept := batch[:0:0]
	for _, r := range batch {
		if r.ctx == nil || r.ctx.Err() == nil {
			kept = append(kept, r)
		}
	}
	err := s.transact(kept)
	if isFull(err) && s.makeRoom() {
		err = s.transact(kept)
	}
	return err
}

// transact makes the decisions of a batch in one transaction, all or none.
func (s *Store) transact(batch []*request) error {
	now := time.Now()
	s.room.watchDisk(s)
	if err := s.exec(s.begin); err != nil {
		return err
	}
	before := s.room.held
	err := s.sweep(now, len(batch))
	for _, r := range batch {
		if err == nil {
			err = r.decide(now)
		}
	}
	if err == nil {
		err = s.bound(now)
	}
	if err == nil {
		err = s.exec(s.commit)
	}
	if err != nil {
		_ = s.exec(s.rollback) // fails where SQLite has done so itself
		s.room.held = before
	}
	return err
}

// do has decide run in a transaction, and returns when that is on the disk. With skip it is not begun once the call
// has taken once.Timeout.
func (s *Store) do(skip bool, decide func(now time.Time) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), once.Timeout)
	defer cancel()
	r := &request{decide: decide, done: make(chan error, 1)}
	if skip {
		r.ctx = ctx
	}
	select {
	case s.requests <- r:
	case <-ctx.Done():
		return errBusy
	}
	select {
	case err := <-r.done:
		if skip && err == nil && ctx.Err() != nil {
			return errBusy // it may not have been begun
		}
		return err
	case <-ctx.Done():
		return errBusy
	}
}

var errBusy = errors.New("SQLite: the disk has not taken it within 5 s")

// Claim implements once.Store.
func (s *Store) Claim(c once.Claim) (once.Decision, error) {
	decided := make(chan once.Decision, 2) // not a variable: a late decision must not write to what the caller has left
	err := s.do(true, func(now time.Time) error {
		d, err := s.decide(c, now)
		if err == nil {
			select {
			case <-decided: // of a transaction that was rolled back
			default:
			}
			decided <- d
		}
		return err
	})
	if err != nil {
		return once.Decision{}, err
	}
	return <-decided, nil
}

// Complete implements once.Store.
func (s *Store) Complete(key once.Key, holder string, a once.Answer) error {
	return s.end(func(now time.Time) (bool, error) {
		held, _, err := s.finishWith(s.finish, s.owner, key, holder, a, now)
		return held, err
	})
}

// Release implements once.Store.
func (s *Store) Release(key once.Key, holder string) error {
	return s.end(func(now time.Time) (bool, error) { return s.releaseNow(key, holder, now) })
}

// end ends a run, whoever waits for it. It returns once.ErrLeaseLost where decide says false.
func (s *Store) end(decide func(now time.Time) (bool, error)) error {
	held := make(chan bool, 2)
	err := s.do(false, func(now time.Time) error {
		ok, err := decide(now)
		if err == nil {
			select {
			case <-held:
			default:
			}
			held <- ok
		}
		return err
	})
	if err == nil && !<-held {
		return once.ErrLeaseLost
	}
	return err
}

// Forget removes a message and a token.
func (s *Store) Forget(message, token once.Key) error {
	return s.do(false, func(time.Time) error {
		if err := s.exec(s.forgetMessage, message[:]); err != nil {
			return err
		}
		return s.exec(s.forgetToken, token[:])
	})
}

// Close implements once.Store.
func (s *Store) Close() error {
	s.closing()
	close(s.requests)
	<-s.stopped
	return s.closeFile()
}

// closeFile gives the file up. SQLite keeps it locked for as long as a statement is open.
func (s *Store) closeFile() error {
	var errs []error
	for _, stmt := range s.prepared {
		errs = append(errs, stmt.Close())
	}
	return errors.Join(errors.Join(errs...), s.conn.Close(), s.db.Close())
}
