package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"qstash-receiver/internal/once"
)

// applicationID stands in the header of a file of ours: "qsth".
const applicationID = 0x71737468

// schemaVersion stands in the file's user_version.
const schemaVersion = 2

// Rows are swept in the order of their rowids, which is about that of their expiry: no index to keep for it. Times are
// in ms since 1970.
const schema = `
CREATE TABLE qstash_messages (
  id INTEGER PRIMARY KEY,
  key BLOB NOT NULL UNIQUE,
  holder TEXT NOT NULL,
  until INTEGER NOT NULL,   -- the end of the lease, which lasts for as long as the holder lives; 0: nobody holds it
  expires INTEGER NOT NULL, -- when it may be forgotten
  bound INTEGER NOT NULL,   -- when the last token that is bound to it expires
  status INTEGER,           -- NULL: not finished
  header TEXT, body BLOB
) STRICT;
CREATE TABLE qstash_tokens (
  id INTEGER PRIMARY KEY,
  token BLOB NOT NULL UNIQUE,
  key BLOB NOT NULL,
  expires INTEGER NOT NULL
) STRICT;`

// statements are prepared on the one connection.
type statements struct {
	prepared                                                   []*sql.Stmt // all of them, to close
	begin, commit, rollback                                    *sql.Stmt
	bind, take, keep, look, finish, owner, free                *sql.Stmt
	sweepMessages, sweepTokens                                 *sql.Stmt
	forgetOldest, longest, shorten, forgetMessage, forgetToken *sql.Stmt
}

func (s *Store) prepare(ctx context.Context) error {
	for stmt, text := range map[**sql.Stmt]string{
		&s.begin: `BEGIN IMMEDIATE`, &s.commit: `COMMIT`, &s.rollback: `ROLLBACK`,
		// token, key, expires, now
		&s.bind: `INSERT INTO qstash_tokens (token, key, expires) VALUES (?1, ?2, ?3) ON CONFLICT (token) DO UPDATE SET
			key = iif(expires <= ?4, excluded.key, key), expires = iif(expires <= ?4, excluded.expires, expires) RETURNING key`,
		// key, holder, until, expires, bound, now
		&s.take: `INSERT INTO qstash_messages (key, holder, until, expires, bound) VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (key) DO UPDATE SET
			holder = excluded.holder, until = excluded.until, expires = excluded.expires, bound = max(bound, excluded.bound),
			status = NULL, header = NULL, body = NULL
			WHERE status IS NULL AND (until = 0 OR holder = excluded.holder) OR status IS NOT NULL AND expires <= ?6`,
		// key, bound
		&s.keep: `INSERT INTO qstash_messages (key, holder, until, expires, bound) VALUES (?1, '', 0, ?2, ?2)
			ON CONFLICT (key) DO UPDATE SET bound = max(bound, ?2), expires = max(expires, ?2)`,
		&s.look: `SELECT until, status, header, body, body IS NULL FROM qstash_messages WHERE key = ?1`,
		// key, holder, expires, status, header, body, now
		&s.finish: `INSERT INTO qstash_messages (key, holder, until, expires, bound, status, header, body) VALUES (?1, ?2, 0, ?3, 0, ?4, ?5, ?6)
			ON CONFLICT (key) DO UPDATE SET holder = excluded.holder, until = 0, expires = max(excluded.expires, bound),
			status = excluded.status, header = excluded.header, body = excluded.body
			WHERE status IS NULL AND (until = 0 OR holder = excluded.holder) OR status IS NOT NULL AND expires <= ?7`,
		&s.owner: `SELECT holder, status IS NOT NULL FROM qstash_messages WHERE key = ?1`,
		// key, holder, expires
		&s.free: `UPDATE qstash_messages SET until = 0, expires = max(?3, bound) WHERE key = ?1 AND holder = ?2 AND status IS NULL`,
		// now, rows to look at
		&s.sweepMessages: `DELETE FROM qstash_messages WHERE id IN (SELECT id FROM qstash_messages ORDER BY id LIMIT ?2)
			AND expires <= ?1 AND (status IS NOT NULL OR until = 0) RETURNING ` + rowBytes,
		&s.sweepTokens: `DELETE FROM qstash_tokens WHERE id IN (SELECT id FROM qstash_tokens ORDER BY id LIMIT ?2) AND expires <= ?1`,
		// now, rows
		&s.forgetOldest: `DELETE FROM qstash_messages WHERE id IN
			(SELECT id FROM qstash_messages WHERE status IS NOT NULL AND bound <= ?1 ORDER BY id LIMIT ?2) RETURNING ` + rowBytes,
		// rows
		&s.longest:       `SELECT id, ` + rowBytes + ` FROM qstash_messages WHERE length(body) > 512 ORDER BY id LIMIT ?1`,
		&s.shorten:       `UPDATE qstash_messages SET body = NULL WHERE id = ?1`,
		&s.forgetMessage: `DELETE FROM qstash_messages WHERE key = ?1`,
		&s.forgetToken:   `DELETE FROM qstash_tokens WHERE token = ?1`,
	} {
		prepared, err := s.conn.PrepareContext(ctx, text)
		if err != nil {
			return err
		}
		*stmt = prepared
		s.prepared = append(s.prepared, prepared)
	}
	return nil
}

func (s *Store) exec(stmt *sql.Stmt, args ...any) error {
	_, err := stmt.Exec(args...)
	return err
}

func changed(r sql.Result, err error) (bool, error) {
	if err != nil {
		return false, err
	}
	n, err := r.RowsAffected()
	return n > 0, err
}

// decide is Claim within a transaction.
func (s *Store) decide(c once.Claim, now time.Time) (once.Decision, error) {
	at := now.UnixMilli()
	bound := at + ms(c.TokenTTL)
	var key []byte
	if err := s.bind.QueryRow(c.Token[:], c.Key[:], bound, at).Scan(&key); err != nil {
		return once.Decision{}, err
	}
	s.room.held += tokenBytes // too much where it was bound before; the next start counts anew
	if once.Key(key) != c.Key {
		return once.Decision{State: once.Replayed}, nil
	}
	if !c.Look {
		taken, err := changed(s.take.Exec(c.Key[:], c.Holder, at+ms(c.Lease), at+ms(c.Lease)+ms(s.ttl), bound, at))
		if err != nil || taken {
			s.room.held += messageBytes
			return once.Decision{State: once.Claimed}, err
		}
	}
	// Whatever it is, it is remembered for as long as the token.
	if err := s.exec(s.keep, c.Key[:], bound); err != nil {
		return once.Decision{}, err
	}
	var until int64
	var status sql.NullInt64
	var header sql.NullString
	var body []byte
	var short bool
	err := s.look.QueryRow(c.Key[:]).Scan(&until, &status, &header, &body, &short)
	switch {
	case err != nil:
		return once.Decision{}, err
	case !status.Valid && until == 0:
		return once.Decision{State: once.Free}, nil
	}
	if !status.Valid {
		return once.Decision{State: once.Running, Left: once.LivingLease(time.Duration(until-at)*time.Millisecond, c.Lease)}, nil
	}
	a := once.Answer{Status: int(status.Int64), Body: body}
	if a.Header, err = once.DecodeHeader(header.String); err != nil {
		return once.Decision{}, fmt.Errorf("read the answer of a message from SQLite: %w", err)
	}
	if short { // to make room
		a = a.Short()
	}
	return once.Decision{State: once.Finished, Answer: a}, nil
}

// finishWith completes a message with the statements given, which may be a transaction's. First is false where that
// is a repeat; held is false where another holder has finished the message or holds it now.
func (s *Store) finishWith(finish, owner *sql.Stmt, key once.Key, holder string, a once.Answer, now time.Time) (held, first bool, err error) {
	header := once.EncodeHeader(a.Header)
	body := append([]byte{}, a.Body...) // not nil, which would be NULL
	at := now.UnixMilli()
	done, err := changed(finish.Exec(key[:], holder, at+ms(s.ttl), a.Status, header, body, at))
	if err != nil || done {
		s.room.held += bytesOf(len(header), len(body))
		return done, done, err
	}
	by, finished, err := ownerOf(owner, key)
	return by == holder && finished, false, err
}

// releaseNow gives a message back. It returns false where holder is not the last that claimed it.
func (s *Store) releaseNow(key once.Key, holder string, now time.Time) (bool, error) {
	freed, err := changed(s.free.Exec(key[:], holder, now.UnixMilli()+ms(s.ttl)))
	if err != nil || freed {
		return freed, err
	}
	by, _, err := ownerOf(s.owner, key)
	return by == holder, err // finished: a release has no effect
}

func ownerOf(owner *sql.Stmt, key once.Key) (holder string, finished bool, err error) {
	err = owner.QueryRow(key[:]).Scan(&holder, &finished)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return holder, finished, err
}

// ms is d in whole milliseconds, rounded up.
func ms(d time.Duration) int64 { return int64((d + time.Millisecond - 1) / time.Millisecond) }
