package deliver

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"qstash-receiver/internal/once"
)

// errCommit is a commit of which nobody knows whether it was carried out.
var errCommit = errors.New("the database did not say whether it committed; the next delivery finds out")

// committer is qstash.Commit for the run r.
func (d *Deliverer) committer(r *run) func(context.Context, func(*sql.Tx) ([]byte, error)) ([]byte, error) {
	return func(ctx context.Context, effects func(*sql.Tx) ([]byte, error)) ([]byte, error) {
		store, can := d.Store.(once.Committer)
		if !can {
			return nil, errors.New("commit: the store has no transactions to share; set STORE_URL to a SQLite file or a postgres:// URL")
		}
		if !r.commitCalled.CompareAndSwap(false, true) {
			return nil, errors.New("commit: it was called before in this run; call it once, last")
		}
		r.commitErr = errPanic // unless it returns
		reply, err := d.commit(ctx, store, r, effects)
		r.commitErr = err
		return reply, err
	}
}

func (d *Deliverer) commit(ctx context.Context, store once.Committer, r *run, effects func(*sql.Tx) ([]byte, error)) ([]byte, error) {
	var reply []byte
	var answer once.Answer
	var effectsErr error
	began := false
	err := store.Commit(ctx, r.key, r.holder, d.Timing.Lease, func(tx *sql.Tx) (once.Answer, error) {
		began = true
		reply, effectsErr = effects(tx)
		answer = ok(reply)
		return answer.Kept(), effectsErr
	})
	switch {
	case err == nil:
		r.committed = &answer
		d.outage.note("commit", nil)
		return reply, nil
	case effectsErr != nil:
		return nil, effectsErr
	case errors.Is(err, once.ErrLeaseLost):
		return nil, fmt.Errorf("commit: rolled back: %w", err)
	case errors.Is(err, once.ErrEffects):
		return nil, fmt.Errorf("commit: %w", err)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("commit: not confirmed by the deadline: %w", err)
	}
	d.outage.note("commit", err)
	if !began {
		return nil, fmt.Errorf("commit: begin a transaction: %w", err)
	}
	return nil, fmt.Errorf("%w: %w", errCommit, err)
}

// outcome is how the business logic of r ended, given what it returned. What Commit did counts for more: its effects
// are there, or they are not.
func (r *run) outcome(a once.Answer, err error, late bool, log func(ended string)) Outcome {
	if r.committed != nil {
		if err != nil {
			log(err.Error())
		}
		return Outcome{Reason: Handled, Answer: *r.committed}
	}
	if err == nil {
		err = r.commitErr
	}
	if errors.Is(r.commitErr, once.ErrLeaseLost) || errors.Is(r.commitErr, errCommit) {
		err = r.commitErr
	}
	if err == nil {
		return Outcome{Reason: Handled, Answer: a}
	}
	return outcomeOf(err, late)
}
