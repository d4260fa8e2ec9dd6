package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// sqliteStore remembers in a file, for one process at a time. What was answered is on the disk. The leases of a
// process that died are void: the next one to open the file could not do so while that one lived.
type sqliteStore struct {
	db       *sql.DB
	ttl      time.Duration
	requests chan *sqliteRequest
	stopped  chan struct{}
	// Prepared on the one connection.
	bind, take, look, finish, free, sweepMessages, sweepTokens *sql.Stmt
}

// sqliteRequest is a decision to make within the writer's transaction.
type sqliteRequest struct {
	ctx    context.Context
	decide func(*sql.Tx) error
	err    error // of this one alone
	done   chan error
}

// Rows are swept in the order of their rowids, which is about that of their expiry: no index to keep for it.
const sqliteSchema = `
CREATE TABLE IF NOT EXISTS messages (
  id INTEGER PRIMARY KEY,
  key BLOB NOT NULL UNIQUE,
  holder TEXT NOT NULL,
  until INTEGER NOT NULL,   -- the end of the lease, ms since 1970
  expires INTEGER NOT NULL, -- ms since 1970
  status INTEGER,           -- NULL: not finished
  type TEXT, permanent INTEGER, body BLOB, upstash TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS tokens (
  id INTEGER PRIMARY KEY,
  token BLOB NOT NULL UNIQUE,
  key BLOB NOT NULL,
  expires INTEGER NOT NULL
) STRICT;
UPDATE messages SET until = 0 WHERE status IS NULL AND until > 0;`

// openSQLite opens or makes the file at path. If another process has it, that one gets 10 s to end.
func openSQLite(ctx context.Context, path string, ttl time.Duration) (_ *sqliteStore, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("STORE_URL: open the SQLite file %q: %w; it must be in a directory that this user can write to, and only one process can have it", path, err)
		}
	}()
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	dsn := url.URL{Scheme: "file", Path: absolute, RawQuery: url.Values{
		// In the order in which the driver applies them; locked before WAL, there is no shared memory file.
		"_busy_timeout": {"100"},
		"_pragma":       {"locking_mode(EXCLUSIVE)"},
		"_journal_mode": {"WAL"},
		"_synchronous":  {"FULL"},
		"_txlock":       {"immediate"},
	}.Encode()}
	db, err := sql.Open("sqlite", dsn.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	s := &sqliteStore{db: db, ttl: ttl, requests: make(chan *sqliteRequest, sqliteBatch), stopped: make(chan struct{})}
	for end := time.Now().Add(10 * time.Second); ; { // in small steps, so that a signal ends it
		if err = s.prepare(ctx); err == nil {
			break
		}
		var busy *sqlite.Error
		if !errors.As(err, &busy) || busy.Code()&0xff != sqlite3.SQLITE_BUSY || time.Now().After(end) || ctx.Err() != nil {
			return nil, errors.Join(err, db.Close())
		}
	}
	go s.write()
	return s, nil
}

func (s *sqliteStore) prepare(ctx context.Context) error {
	if _, err := s.db.ExecContext(ctx, sqliteSchema); err != nil {
		return err
	}
	for stmt, text := range map[**sql.Stmt]string{
		// token, key, expires, now
		&s.bind: `INSERT INTO tokens (token, key, expires) VALUES (?1, ?2, ?3) ON CONFLICT (token) DO UPDATE SET
			key = iif(expires <= ?4, excluded.key, key), expires = iif(expires <= ?4, excluded.expires, expires) RETURNING key`,
		// key, holder, until, expires, now
		&s.take: `INSERT INTO messages (key, holder, until, expires) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (key) DO UPDATE SET
			holder = excluded.holder, until = excluded.until, expires = excluded.expires, status = NULL, type = NULL, permanent = NULL, body = NULL, upstash = NULL
			WHERE expires <= ?5 OR status IS NULL AND (until <= ?5 OR holder = excluded.holder)`,
		&s.look: `SELECT until, status, type, permanent, body, upstash FROM messages WHERE key = ?1`,
		// key, holder, expires, status, type, permanent, body, upstash
		&s.finish: `UPDATE messages SET expires = iif(status IS NULL, ?3, expires), status = ifnull(status, ?4), type = ifnull(type, ?5),
			permanent = ifnull(permanent, ?6), body = ifnull(body, ?7), upstash = ifnull(upstash, ?8) WHERE key = ?1 AND holder = ?2`,
		// key, holder, expires
		&s.free:          `UPDATE messages SET until = 0, expires = iif(status IS NULL, ?3, expires) WHERE key = ?1 AND holder = ?2`,
		&s.sweepMessages: `DELETE FROM messages WHERE id IN (SELECT id FROM messages ORDER BY id LIMIT 4) AND expires <= ?1`,
		&s.sweepTokens:   `DELETE FROM tokens WHERE id IN (SELECT id FROM tokens ORDER BY id LIMIT 4) AND expires <= ?1`,
	} {
		prepared, err := s.db.PrepareContext(ctx, text)
		if err != nil {
			return err
		}
		*stmt = prepared
	}
	return nil
}

// sqliteBatch is how many decisions share a transaction at most.
const sqliteBatch = 64

// write makes the decisions, those that wait together in one transaction: they share the wait for the disk, which is
// nearly all of the time.
func (s *sqliteStore) write() {
	defer close(s.stopped)
	for first := range s.requests {
		batch := []*sqliteRequest{first}
		for len(batch) < sqliteBatch && len(s.requests) > 0 {
			batch = append(batch, <-s.requests)
		}
		err := s.commit(batch)
		for _, r := range batch {
			r.done <- errors.Join(r.err, err)
		}
	}
}

func (s *sqliteStore) commit(batch []*sqliteRequest) error {
	tx, err := s.db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for _, r := range batch {
		if r.err = r.ctx.Err(); r.err != nil { // nobody waits for it any more
			continue
		}
		if err := r.decide(tx); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// do has decide run in a transaction, and returns when that is on the disk.
func (s *sqliteStore) do(decide func(*sql.Tx) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	r := &sqliteRequest{ctx: ctx, decide: decide, done: make(chan error, 1)}
	select {
	case s.requests <- r:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *sqliteStore) claim(c claim) (decision, error) {
	decided := make(chan decision, 1) // not a variable: a late decision must not write to what the caller has left
	err := s.do(func(tx *sql.Tx) error {
		d, err := s.decide(tx, c, time.Now())
		decided <- d
		return err
	})
	if err != nil {
		return decision{}, err
	}
	return <-decided, nil
}

func (s *sqliteStore) decide(tx *sql.Tx, c claim, now time.Time) (decision, error) {
	at := now.UnixMilli()
	if _, err := tx.Stmt(s.sweepMessages).Exec(at); err != nil {
		return decision{}, err
	}
	if c.token != nil {
		if _, err := tx.Stmt(s.sweepTokens).Exec(at); err != nil {
			return decision{}, err
		}
		var key []byte
		if err := tx.Stmt(s.bind).QueryRow(c.token[:], c.key[:], at+ms(c.tokenTTL), at).Scan(&key); err != nil {
			return decision{}, err
		}
		if messageKey(key) != c.key {
			return decision{state: replayed}, nil
		}
	}
	taken, err := changed(tx.Stmt(s.take).Exec(c.key[:], c.holder, at+ms(c.lease), at+ms(c.lease)+ms(s.ttl), at))
	if err != nil || taken {
		return decision{state: claimed}, err
	}
	var until int64
	var status sql.NullInt64
	var contentType, upstash sql.NullString
	var permanent sql.NullBool
	var body []byte
	if err := tx.Stmt(s.look).QueryRow(c.key[:]).Scan(&until, &status, &contentType, &permanent, &body, &upstash); err != nil {
		return decision{}, err
	}
	if !status.Valid {
		return decision{state: running, left: time.Duration(until-at) * time.Millisecond}, nil
	}
	return decision{state: finished, answer: answer{
		status: int(status.Int64), contentType: contentType.String, permanent: permanent.Bool, body: body, upstash: upstash.String,
	}}, nil
}

func (s *sqliteStore) complete(key messageKey, holder string, a answer) error {
	body := append([]byte{}, a.body...) // not nil, which would be NULL and filled in by a repeat
	return s.end(s.finish, key[:], holder, time.Now().UnixMilli()+ms(s.ttl), a.status, a.contentType, a.permanent, body, a.upstash)
}

func (s *sqliteStore) release(key messageKey, holder string) error {
	return s.end(s.free, key[:], holder, time.Now().UnixMilli()+ms(s.ttl))
}

func (s *sqliteStore) end(stmt *sql.Stmt, args ...any) error {
	held := make(chan bool, 1)
	err := s.do(func(tx *sql.Tx) error {
		ok, err := changed(tx.Stmt(stmt).Exec(args...))
		held <- ok
		return err
	})
	if err == nil && !<-held {
		return errLeaseLost
	}
	return err
}

func changed(r sql.Result, err error) (bool, error) {
	if err != nil {
		return false, err
	}
	n, err := r.RowsAffected()
	return n > 0, err
}

func (s *sqliteStore) close() error {
	close(s.requests)
	<-s.stopped
	return s.db.Close()
}
