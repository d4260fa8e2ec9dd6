package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"qstash-receiver/internal/once"
)

// commit is business logic that waits for a transaction of the writer's.
type commit struct {
	ctx     context.Context
	key     once.Key
	holder  string
	tx      chan *sql.Tx      // handed to the caller's goroutine
	effects chan commitAnswer // and what it did there; closed without one if it panicked
}

type commitAnswer struct {
	answer once.Answer
	err    error
}

var errEnded = errors.New("the function ended the transaction itself; leave tx.Commit and tx.Rollback to qstash.Commit")

// Commit implements once.Committer. The effects run on the caller's goroutine, while the writer waits.
func (s *Store) Commit(ctx context.Context, key once.Key, holder string, _ time.Duration, effects func(*sql.Tx) (once.Answer, error)) error {
	c := &commit{ctx: ctx, key: key, holder: holder, tx: make(chan *sql.Tx), effects: make(chan commitAnswer, 1)}
	r := &request{alone: c, done: make(chan error, 1)}
	select {
	case s.requests <- r:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case tx := <-c.tx:
		c.run(tx, effects)
	case err := <-r.done: // it has not begun
		return err
	}
	return <-r.done // the writer does not wait for anybody now
}

func (c *commit) run(tx *sql.Tx, effects func(*sql.Tx) (once.Answer, error)) {
	defer close(c.effects) // after a panic too, which goes on
	answer, err := effects(tx)
	c.effects <- commitAnswer{answer, err}
}

// runAlone runs c in a transaction. It returns when that is over; once c's context has ended it does not wait for the
// effects.
func (s *Store) runAlone(c *commit) error {
	tx, err := s.conn.BeginTx(c.ctx, nil)
	if err != nil {
		return fmt.Errorf("begin a transaction in SQLite: %w", err)
	}
	defer tx.Rollback() // once committed, it does nothing
	before := s.room.held
	defer func() {
		if err != nil {
			s.room.held = before
		}
	}()
	c.tx <- tx
	var done commitAnswer
	select {
	case said, returned := <-c.effects:
		if !returned {
			err = errors.New("the function panicked")
			return err
		}
		done = said
	case <-c.ctx.Done():
		err = c.ctx.Err()
		return err
	}
	if err = done.err; err != nil {
		return err
	}
	held, first, err := s.finishWith(tx.Stmt(s.finish), tx.Stmt(s.owner), c.key, c.holder, done.answer, time.Now())
	switch {
	case errors.Is(err, sql.ErrTxDone) && c.ctx.Err() == nil:
		err = errEnded
	case err == nil && !held:
		err = once.ErrLeaseLost
	case err == nil && first: // else it is a repeat, whose effects are there
		err = tx.Commit()
	}
	if isFull(err) {
		_ = tx.Rollback()
		s.makeRoom() // for the next try, which is another delivery's
	}
	return err
}
