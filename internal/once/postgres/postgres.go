// Package postgres is a once.Store, and a once.Committer, in a Postgres of version 13 or later, for all machines that
// use it, directly or through a pooler in transaction mode.
package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"qstash-receiver/internal/once"
)

// Store is a once.Committer. Leases and expiries are by the database's clock.
type Store struct {
	ttl time.Duration
	// Transactions of Commit take as long as a user's function likes. They never take the last connections: decisions
	// have their own.
	decisions, transactions *sql.DB

	claims   atomic.Int64
	sweeping sync.Mutex
	sweeps   sync.WaitGroup
}

const (
	// connections is how many each of a store's two pools has at most.
	connections = 8
	// idle is how long a connection is kept that nobody uses, so that a database that sleeps when alone can.
	idle = 5 * time.Minute
	// sweepEvery is how many claims come before expired rows are deleted, twice as many as were added since.
	sweepEvery = 32
)

func newStore(config *pgx.ConnConfig, ttl time.Duration) *Store {
	s := &Store{ttl: ttl, decisions: stdlib.OpenDB(*config), transactions: sql.OpenDB(connector{stdlib.GetConnector(*config)})}
	for _, db := range []*sql.DB{s.decisions, s.transactions} {
		db.SetMaxOpenConns(connections)
		db.SetMaxIdleConns(connections)
		db.SetConnMaxIdleTime(idle)
	}
	return s
}

// Claim implements once.Store.
func (s *Store) Claim(c once.Claim) (once.Decision, error) {
	statement, args := claim, []any{c.Token[:], c.Key[:], ms(c.TokenTTL), c.Holder, ms(c.Lease), ms(s.ttl)}
	if c.Look {
		statement, args = look, args[:4]
	}
	var d once.Decision
	err := s.decide(func(ctx context.Context) error {
		var status sql.NullInt64
		var header, body []byte
		var mine bool
		var left int64
		switch err := s.decisions.QueryRowContext(ctx, statement, args...).Scan(&status, &header, &body, &mine, &left); {
		case errors.Is(err, sql.ErrNoRows):
			d = once.Decision{State: once.Replayed}
		case err != nil:
			return err
		case status.Valid:
			lines, err := once.DecodeHeader(string(header))
			if err != nil {
				return fmt.Errorf("read the header of an answer: %w", err)
			}
			d = once.Decision{State: once.Finished, Answer: once.Answer{Status: int(status.Int64), Header: lines, Body: body}}
		case mine && !c.Look:
			d = once.Decision{State: once.Claimed}
		case mine || left <= 0:
			d = once.Decision{State: once.Free}
		default:
			d = once.Decision{State: once.Running, Left: time.Duration(left) * time.Millisecond}
		}
		return nil
	})
	if err != nil {
		return once.Decision{}, fmt.Errorf("claim a message in Postgres: %w", err)
	}
	if s.claims.Add(1)%sweepEvery == 0 {
		s.sweeps.Go(s.sweepBeside)
	}
	return d, nil
}

// Complete implements once.Store.
func (s *Store) Complete(key once.Key, holder string, a once.Answer) error {
	if err := s.end(complete, answerArgs(key, holder, s.ttl, a)...); err != nil {
		return fmt.Errorf("complete a message in Postgres: %w", err)
	}
	return nil
}

// Release implements once.Store.
func (s *Store) Release(key once.Key, holder string) error {
	if err := s.end(release, key[:], holder); err != nil {
		return fmt.Errorf("release a message in Postgres: %w", err)
	}
	return nil
}

func (s *Store) end(statement string, args ...any) error {
	return s.decide(func(ctx context.Context) error {
		result, err := s.decisions.ExecContext(ctx, statement, args...)
		if err != nil {
			return err
		}
		if rows, err := result.RowsAffected(); rows == 0 && err == nil {
			return once.ErrLeaseLost
		}
		return nil
	})
}

// Forget removes what a trial has left.
func (s *Store) Forget(message, token once.Key) error {
	return s.decide(func(ctx context.Context) error {
		_, err := s.decisions.ExecContext(ctx, forget, message[:], token[:])
		return err
	})
}

// Close implements once.Store.
func (s *Store) Close() error {
	s.sweeps.Wait()
	return errors.Join(s.decisions.Close(), s.transactions.Close())
}

// decide has one decision made. If it collided with another, or its connection was lost, it is made again: the same
// holder may repeat each.
func (s *Store) decide(try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), once.Timeout)
	defer cancel()
	for pause := time.Millisecond; ; pause += time.Millisecond {
		err := try(ctx)
		if err == nil || !worthAgain(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(rand.N(pause)):
		}
	}
}

// worthAgain says whether err is a collision or the loss of a connection that there was.
func worthAgain(err error) bool {
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		return false
	}
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		switch answer.Code {
		case "40001", "40P01", // a serialization failure, a deadlock
			"57P01", "57P02": // the server is shut down, or has crashed
			return true
		}
		return strings.HasPrefix(answer.Code, "08") // what a pooler says of a server that it has lost
	}
	var network *net.OpError
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &network)
}

// sweepBeside deletes some of what has expired, if that is not being done already. What goes wrong is left to the next
// one: nothing depends on it.
func (s *Store) sweepBeside() {
	if !s.sweeping.TryLock() {
		return
	}
	defer s.sweeping.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), once.Timeout)
	defer cancel()
	_ = s.sweep(ctx)
}

func (s *Store) sweep(ctx context.Context) error {
	_, err := s.decisions.ExecContext(ctx, sweep, 2*sweepEvery)
	return err
}

// answerArgs are the arguments of complete and record.
func answerArgs(key once.Key, holder string, ttl time.Duration, a once.Answer) []any {
	body := a.Body
	if body == nil {
		body = []byte{} // not NULL
	}
	return []any{key[:], holder, ms(ttl), a.Status, []byte(once.EncodeHeader(a.Header)), body}
}

// ms is d in whole milliseconds, at least one.
func ms(d time.Duration) int64 { return max(d.Milliseconds(), 1) }
