package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"time"

	"qstash-receiver/internal/once"
)

// commit is business logic that waits for its transaction.
type commit struct {
	key    once.Key
	holder string
	begun  chan *sql.Tx // to the goroutine of the caller, on which the effects run
	ended  chan effects // and back; closed without a value if they panicked
}

type effects struct {
	answer once.Answer
	err    error
}

var errEnded = fmt.Errorf("%w: the transaction was rolled back, or the function ended it: a statement whose context ends takes everything back, and tx is not the function's to end", once.ErrEffects)

// Commit implements once.Committer. Nothing else is written meanwhile. A statement of the effects that is given no
// context cannot be interrupted when ctx ends.
func (s *Store) Commit(ctx context.Context, key once.Key, holder string, _ time.Duration, logic func(*sql.Tx) (once.Answer, error)) error {
	c := &commit{key: key, holder: holder, begun: make(chan *sql.Tx), ended: make(chan effects, 1)}
	r := &request{ctx: ctx, commit: c, done: make(chan error, 1)}
	select {
	case s.requests <- r:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case tx := <-c.begun:
		func() {
			defer close(c.ended) // after a panic too, which goes on from here
			answer, err := logic(tx)
			c.ended <- effects{answer, err}
		}()
		return <-r.done
	case err := <-r.done:
		return err
	}
}

// runCommit does for c what the writer has to. Once ctx has ended it does not wait for the effects.
func (s *Store) runCommit(ctx context.Context, c *commit) (err error) {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	l, now := s.leases.of[c.key], time.Now()
	m, err := s.find(c.key, now.UnixMilli())
	switch {
	case err != nil:
		return err
	case m.finished && m.holder == c.holder: // a repeat
		return nil
	case m.finished, l.running && l.holder != c.holder:
		return once.ErrLeaseLost
	}
	s.pragma("max_page_count = " + strconv.Itoa(unbounded)) // how much the effects need is not known
	pages := s.pragma("page_count")
	defer func() {
		s.leases.settle(err == nil)
		s.pin()
		if isFull(err) && s.checkpoint() {
			s.forget(8) // for the next try, which is another delivery's
		} else if s.pragma("page_count") > pages {
			s.checkpoint() // so that the file has grown, too
		}
	}()
	// The context is not the transaction's: at its end database/sql would roll back beside what is done here.
	tx, err := s.conn.BeginTx(context.Background(), nil)
	if err != nil {
		return fmt.Errorf("begin a transaction in SQLite: %w", err)
	}
	defer tx.Rollback() // once committed, it does nothing
	// SQLite takes back a whole transaction when a statement of it is interrupted or finds no room, and what follows
	// would be outside of any. The savepoint is there for as long as the transaction is.
	if _, err := s.conn.ExecContext(context.Background(), "SAVEPOINT qstash"); err != nil {
		return err
	}
	used := s.pagesUsed()
	c.begun <- tx
	var done effects
	select {
	case <-ctx.Done():
		return ctx.Err()
	case e, returned := <-c.ended:
		if !returned {
			return errors.New("the function panicked")
		}
		done = e
	}
	if done.err != nil {
		return done.err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if _, err := s.conn.ExecContext(context.Background(), "RELEASE qstash"); err != nil {
		return fmt.Errorf("%w (%w)", errEnded, err)
	}
	taken := s.pagesUsed() - used
	if _, err := s.finish(c.key, c.holder, done.answer, time.Now()); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	if s.room.users >= 0 {
		s.room.users += taken
	}
	return nil
}

func (s *Store) pagesUsed() int { return s.pragma("page_count") - s.pragma("freelist_count") }
