package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"qstash-receiver/internal/once"
)

var errEnded = fmt.Errorf("%w: the function ended the transaction itself; leave tx.Commit and tx.Rollback to qstash.Commit", once.ErrEffects)

// Commit implements once.Committer. It takes two round trips of its own: one begins the transaction, one records the
// answer and commits.
func (s *Store) Commit(ctx context.Context, key once.Key, holder string, lease time.Duration,
	effects func(*sql.Tx) (once.Answer, error)) error {
	t := &transaction{lease: lease}
	tx, err := s.transactions.BeginTx(context.WithValue(ctx, transactionKey{}, t), nil)
	if err != nil {
		return fmt.Errorf("begin a transaction in Postgres: %w", err)
	}
	defer tx.Rollback() // after an error or a panic; once committed, it does nothing
	answer, err := effects(tx)
	if err != nil {
		return err
	}
	t.record = answerArgs(key, holder, s.ttl, answer)
	switch err := tx.Commit(); {
	case errors.Is(err, sql.ErrTxDone) && ctx.Err() == nil:
		return errEnded
	case errors.Is(err, sql.ErrTxDone):
		return ctx.Err()
	case errors.Is(err, once.ErrLeaseLost):
		return s.Release(key, holder) // which succeeds, and has no effect, if this holder has committed before
	case isOfEffects(err):
		return fmt.Errorf("%w: %w", once.ErrEffects, err)
	case err != nil:
		return fmt.Errorf("commit in Postgres: %w", err)
	}
	return nil
}

// isOfEffects says whether err is Postgres's answer to a transaction that the effects have spoiled.
func isOfEffects(err error) bool {
	const aborted = "25P02" // by a statement whose error the effects passed over
	var answer *pgconn.PgError
	return errors.As(err, &answer) &&
		(answer.Code == aborted || strings.HasPrefix(answer.Code, "23")) // or a deferred constraint, found broken now
}

// transaction is a driver's transaction that takes one round trip to begin, with its timeout, and one to end, with the
// record. Record and COMMIT travel together: a process that is frozen, or cut off, between them would keep the
// message's row locked, and its claims waiting.
type transaction struct {
	lease  time.Duration
	record []any // the arguments of the record; nil: the effects are still under way
	conn   *pgx.Conn
}

// transactionKey is under which the context of BeginTx carries the transaction to begin.
type transactionKey struct{}

// connector makes connections whose transactions are such.
type connector struct{ driver.Connector }

// Connect implements driver.Connector.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return connection{conn.(*stdlib.Conn)}, nil
}

type connection struct{ *stdlib.Conn }

// BeginTx implements driver.ConnBeginTx.
func (c connection) BeginTx(ctx context.Context, _ driver.TxOptions) (driver.Tx, error) {
	t := ctx.Value(transactionKey{}).(*transaction)
	t.conn = c.Conn.Conn()
	// A machine that is frozen in the middle keeps the rows of its effects locked for a lease, not for ever.
	_, err := t.conn.Exec(ctx, fmt.Sprintf("BEGIN ISOLATION LEVEL READ COMMITTED; "+
		"SET LOCAL idle_in_transaction_session_timeout = %d", min(ms(t.lease), math.MaxInt32)))
	if err == nil {
		return t, nil
	}
	lost := t.conn.IsClosed() && ctx.Err() == nil
	_ = t.Rollback()
	if lost {
		return nil, driver.ErrBadConn // nothing has happened yet: it is tried on another connection
	}
	return nil, err
}

// Commit implements driver.Tx.
func (t *transaction) Commit() error {
	if t.record == nil || t.conn.PgConn().TxStatus() == 'I' {
		_ = t.Rollback()
		return errEnded
	}
	ctx, cancel := context.WithTimeout(context.Background(), once.Timeout)
	defer cancel()
	batch := &pgx.Batch{}
	batch.Queue(record, t.record...)
	batch.Queue("COMMIT")
	results := t.conn.SendBatch(ctx, batch)
	_, err := results.Exec()
	var answer *pgconn.PgError
	if errors.As(err, &answer) && answer.Code == divisionByZero {
		err = once.ErrLeaseLost
	}
	if closing := results.Close(); err == nil { // which reads the result of COMMIT, and repeats an earlier error
		err = closing
	}
	if err != nil {
		_ = t.Rollback()
	}
	return err
}

// Rollback implements driver.Tx. A connection on which that fails is not used again, which ends the transaction too.
func (t *transaction) Rollback() error {
	if t.conn.IsClosed() || t.conn.PgConn().TxStatus() == 'I' {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), once.Timeout)
	defer cancel()
	if _, err := t.conn.Exec(ctx, "ROLLBACK"); err != nil {
		_ = t.conn.Close(ctx)
	}
	return nil
}
