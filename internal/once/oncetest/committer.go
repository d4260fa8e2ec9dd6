package oncetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"qstash-receiver/internal/once"
)

// RunCommitter holds an engine, whose stores are once.Committers, to the contract of once.Committer.
func RunCommitter(t *testing.T, e Engine) {
	tests := commits
	if e.Shared {
		tests = append(tests, sharedCommits...)
	}
	for _, test := range tests {
		t.Run(test.sentence, func(t *testing.T) {
			t.Parallel()
			s := e.Open(t, time.Hour)
			test.check(newCommitter(t, s))
		})
	}
}

// committer is a once.Committer under test, with a table for the effects of its messages.
type committer struct {
	store
	once.Committer
	table string
}

func newCommitter(t *testing.T, s once.Store) committer {
	c := committer{store{t, s}, s.(once.Committer), fmt.Sprintf("oncetest_%x", randomBytes(8))}
	c.do("CREATE TABLE " + c.table + " (message TEXT NOT NULL)")
	t.Cleanup(func() { c.do("DROP TABLE " + c.table) })
	return c
}

// do commits a statement for a message of its own.
func (s committer) do(statement string) {
	s.Helper()
	c := NewClaim()
	s.want(c, once.Claimed)
	err := s.Commit(context.Background(), c.Key, c.Holder, c.Lease, func(tx *sql.Tx) (once.Answer, error) {
		_, err := tx.Exec(statement)
		return done, err
	})
	s.wantErr(err, nil)
}

// add is the effect of c: a row in the table.
func (s committer) add(ctx context.Context, tx *sql.Tx, c once.Claim) error {
	_, err := tx.ExecContext(ctx, fmt.Sprintf("INSERT INTO %s VALUES ('%x')", s.table, c.Key))
	return err
}

// commit runs c with its effect, and then also, in the same transaction.
func (s committer) commit(ctx context.Context, c once.Claim, also func(*sql.Tx) error) error {
	return s.Commit(ctx, c.Key, c.Holder, c.Lease, func(tx *sql.Tx) (once.Answer, error) {
		if err := s.add(ctx, tx, c); err != nil {
			return once.Answer{}, err
		}
		return done, also(tx)
	})
}

func nothingElse(*sql.Tx) error { return nil }

// wantEffects checks how often c's effect is there.
func (s committer) wantEffects(c once.Claim, want int) {
	s.Helper()
	got, only, reader := 0, errors.New("only reading"), NewClaim()
	s.want(reader, once.Claimed)
	err := s.Commit(context.Background(), reader.Key, reader.Holder, reader.Lease, func(tx *sql.Tx) (once.Answer, error) {
		row := tx.QueryRow(fmt.Sprintf("SELECT count(*) FROM %s WHERE message = '%x'", s.table, c.Key))
		return once.Answer{}, errors.Join(only, row.Scan(&got))
	})
	s.wantErr(err, only)
	if got != want {
		s.Fatalf("the effect is there %d times, want %d", got, want)
	}
}

// wantNothing checks that c's message is held by c as before, and has no effect.
func (s committer) wantNothing(c once.Claim) {
	s.Helper()
	s.wantEffects(c, 0)
	s.want(look(c), once.Running)
	s.wantErr(s.Release(c.Key, c.Holder), nil)
}

// RunCommitter's sentences.
var commits = []struct {
	sentence string
	check    func(committer)
}{
	{"effects and answer are there together", func(s committer) {
		c := NewClaim()
		s.want(c, once.Claimed)
		s.wantErr(s.commit(s.Context(), c, nothingElse), nil)
		s.wantEffects(c, 1)
		if got := s.want(Again(c), once.Finished).Answer; !sameAnswer(got, done) {
			s.Errorf("got %+v, want %+v", got, done)
		}
	}},
	{"many commit at once", func(s committer) {
		var all sync.WaitGroup
		var keys [16]once.Claim
		for i := range keys {
			keys[i] = NewClaim()
			all.Go(func() {
				if d, err := s.Claim(keys[i]); err != nil || d.State != once.Claimed {
					s.Error(d.State, err)
				}
				if err := s.commit(s.Context(), keys[i], nothingElse); err != nil {
					s.Error(err)
				}
			})
		}
		all.Wait()
		for _, c := range keys {
			s.wantEffects(c, 1)
			s.want(look(c), once.Finished)
		}
	}},
	{"an error of the effects rolls back, and is returned", func(s committer) {
		c, failed := NewClaim(), errors.New("no stock")
		s.want(c, once.Claimed)
		s.wantErr(s.commit(s.Context(), c, func(*sql.Tx) error { return failed }), failed)
		s.wantNothing(c)
	}},
	{"a statement that failed rolls back, though the effects return no error", func(s committer) {
		c := NewClaim()
		s.want(c, once.Claimed)
		// SQLite takes the transaction for sound after this, Postgres does not: either both are there or neither is.
		err := s.commit(s.Context(), c, func(tx *sql.Tx) error {
			_, _ = tx.Exec("no statement at all")
			return nil
		})
		if err == nil {
			s.wantEffects(c, 1)
			s.want(look(c), once.Finished)
			return
		}
		s.wantNothing(c)
	}},
	{"a panic of the effects rolls back, and reaches the caller", func(s committer) {
		c := NewClaim()
		s.want(c, once.Claimed)
		func() {
			defer func() {
				if got := recover(); got != "out of paper" {
					s.Errorf("recovered %v", got)
				}
			}()
			_ = s.commit(s.Context(), c, func(*sql.Tx) error { panic("out of paper") })
			s.Error("the panic did not arrive")
		}()
		s.wantNothing(c)
	}},
	{"a message that another holds is not committed", func(s committer) {
		c := NewClaim()
		s.want(c, once.Claimed)
		s.wantErr(s.Release(c.Key, c.Holder), nil)
		next := Again(c)
		s.want(next, once.Claimed)
		s.wantErr(s.commit(s.Context(), c, nothingElse), once.ErrLeaseLost)
		s.wantEffects(c, 0)
		s.wantErr(s.commit(s.Context(), next, nothingElse), nil)
		s.wantEffects(c, 1)
	}},
	{"a message that another finished is not committed", func(s committer) {
		c := NewClaim()
		s.want(c, once.Claimed)
		s.wantErr(s.Release(c.Key, c.Holder), nil)
		next := Again(c)
		s.want(next, once.Claimed)
		s.finish(next)
		s.wantErr(s.commit(s.Context(), c, nothingElse), once.ErrLeaseLost)
		s.wantEffects(c, 0)
	}},
	{"a late commit counts where a later holder gave the message back", func(s committer) {
		c := NewClaim()
		s.want(c, once.Claimed)
		s.wantErr(s.Release(c.Key, c.Holder), nil)
		next := Again(c)
		s.want(next, once.Claimed)
		s.wantErr(s.Release(next.Key, next.Holder), nil)
		s.wantErr(s.commit(s.Context(), c, nothingElse), nil)
		s.wantEffects(c, 1)
		s.want(Again(c), once.Finished)
	}},
	{"a late commit counts where nothing is known of the message", func(s committer) {
		c := NewClaim()
		s.wantErr(s.commit(s.Context(), c, nothingElse), nil)
		s.wantEffects(c, 1)
		s.want(Again(c), once.Finished)
	}},
	{"a repeat by the holder succeeds, and has no effect", func(s committer) {
		c := NewClaim()
		s.want(c, once.Claimed)
		s.wantErr(s.commit(s.Context(), c, nothingElse), nil)
		s.wantErr(s.commit(s.Context(), c, nothingElse), nil)
		s.wantEffects(c, 1)
	}},
	{"a context that is over commits nothing", func(s committer) {
		c := NewClaim()
		s.want(c, once.Claimed)
		ctx, cancel := context.WithCancel(s.Context())
		cancel()
		if err := s.commit(ctx, c, nothingElse); err == nil {
			s.Error("committed")
		}
		s.wantNothing(c)
	}},
	{"a context that ends within the effects rolls back", func(s committer) {
		c := NewClaim()
		s.want(c, once.Claimed)
		ctx, cancel := context.WithCancel(s.Context())
		if err := s.commit(ctx, c, func(*sql.Tx) error { cancel(); return nil }); err == nil {
			s.Error("committed")
		}
		s.wantNothing(c)
	}},
	{"effects that do not return hold nothing up once their context is over", func(s committer) {
		c := NewClaim()
		s.want(c, once.Claimed)
		ctx, cancel := context.WithCancel(s.Context())
		stuck, ended := make(chan bool), make(chan error, 1)
		go func() {
			ended <- s.commit(ctx, c, func(*sql.Tx) error { cancel(); <-stuck; return nil })
		}()
		<-ctx.Done()
		s.wantEffects(c, 0)
		s.want(look(c), once.Running)
		close(stuck)
		if err := <-ended; err == nil {
			s.Error("committed")
		}
		s.wantNothing(c)
	}},
	{"effects that roll back by themselves are not recorded", func(s committer) {
		c := NewClaim()
		s.want(c, once.Claimed)
		if err := s.commit(s.Context(), c, func(tx *sql.Tx) error { return tx.Rollback() }); err == nil {
			s.Error("committed")
		}
		s.wantNothing(c)
	}},
	{"effects that commit by themselves are not recorded", func(s committer) {
		c := NewClaim()
		s.want(c, once.Claimed)
		if err := s.commit(s.Context(), c, func(tx *sql.Tx) error { return tx.Commit() }); err == nil {
			s.Error("committed a second time")
		}
		s.want(look(c), once.Running)
		s.wantErr(s.Release(c.Key, c.Holder), nil)
	}},
}

// sharedCommits hold where several processes share a store.
var sharedCommits = []struct {
	sentence string
	check    func(committer)
}{
	{"a lease that was lost while the effects ran rolls back", func(s committer) {
		c := NewClaim()
		c.Lease = 200 * time.Millisecond
		s.want(c, once.Claimed)
		c.Lease = time.Minute // the database does not end the transaction
		var next once.Claim
		err := s.commit(s.Context(), c, func(*sql.Tx) error {
			next = s.await(Again(c), once.Claimed)
			return nil
		})
		s.wantErr(err, once.ErrLeaseLost)
		s.wantEffects(c, 0)
		s.wantErr(s.commit(s.Context(), next, nothingElse), nil)
		s.wantEffects(c, 1)
	}},
	{"a lease that has lapsed and was not taken over will do", func(s committer) {
		c := NewClaim()
		c.Lease = 20 * time.Millisecond
		s.want(c, once.Claimed)
		s.await(look(c), once.Free)
		c.Lease = time.Minute // as above
		s.wantErr(s.commit(s.Context(), c, nothingElse), nil)
		s.wantEffects(c, 1)
		s.want(Again(c), once.Finished)
	}},
}
