package main

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // database/sql's driver "pgx"

	"qstash-receiver/internal/qstash"
)

// handle has one effect a run, which EFFECTS says where to leave: "commit", in the transaction that records the
// message; "own", in the same database on a connection of its own; else at the end of the file of that name.
func handle(ctx context.Context, m *qstash.Message) ([]byte, error) {
	id, attempt := m.Unverified.ID, m.Unverified.Attempt
	reply := []byte(`{"message":"` + id + `"}`)
	work()
	switch where := os.Getenv("EFFECTS"); where {
	case "commit":
		return qstash.Commit(ctx, func(tx *sql.Tx) ([]byte, error) {
			_, err := tx.ExecContext(ctx, os.Getenv("EFFECTS_INSERT"), id, attempt)
			work()
			return reply, err
		})
	case "own":
		db, err := own()
		if err == nil {
			_, err = db.ExecContext(ctx, os.Getenv("EFFECTS_INSERT"), id, attempt)
		}
		work()
		return reply, err
	default:
		f, err := os.OpenFile(where, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		_, err = fmt.Fprintln(f, id, attempt)
		work()
		return reply, err
	}
}

// work takes a few milliseconds, so that faults come before, between and after what counts.
func work() {
	time.Sleep(rand.N(3 * time.Millisecond))
}

var own = sync.OnceValues(func() (*sql.DB, error) {
	db, err := sql.Open("pgx", os.Getenv("EFFECTS_URL"))
	if err == nil {
		db.SetMaxOpenConns(8)
		db.SetMaxIdleConns(8)
	}
	return db, err
})

func handleFailure(context.Context, *qstash.Callback) error { return nil }
