package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"qstash-receiver/internal/once"
)

// Times are in ms since 1970. Messages are in the order in which they were finished, tokens in that of their expiry
// (see tokenID): so both are swept from the front, and no index has to be kept for it.
const schema = `
CREATE TABLE IF NOT EXISTS qstash_messages (
  id INTEGER PRIMARY KEY,
  key BLOB NOT NULL UNIQUE,
  holder TEXT NOT NULL,     -- that finished it
  bound INTEGER NOT NULL,   -- when the last token that is bound to it expires
  expires INTEGER NOT NULL, -- when it is forgotten, not before bound
  status INTEGER, type TEXT, header TEXT, body BLOB -- the answer; body NULL: it had to go
) STRICT;
CREATE TABLE IF NOT EXISTS qstash_tokens (
  id INTEGER PRIMARY KEY,
  token BLOB NOT NULL UNIQUE,
  key BLOB NOT NULL         -- the message that it is bound to
) STRICT;`

// statements are prepared on the one connection.
type statements struct {
	begin, end, rollback                      *sql.Stmt
	bindToken, findToken, forgetToken         *sql.Stmt
	addMessage, findMessage, extend           *sql.Stmt
	forgetMessage, sweepMessages, sweepTokens *sql.Stmt
	forgetOver                                *sql.Stmt
	findLong, shorten                         *sql.Stmt

	prepared []*sql.Stmt // all of them, to close
}

func (s *Store) prepare(ctx context.Context) error {
	const oldest = `(SELECT id FROM qstash_messages ORDER BY id LIMIT ?2)`
	for stmt, text := range map[**sql.Stmt]string{
		&s.begin: `BEGIN IMMEDIATE`, &s.end: `COMMIT`, &s.rollback: `ROLLBACK`,

		&s.bindToken:   `INSERT INTO qstash_tokens (id, token, key) VALUES (?1, ?2, ?3) ON CONFLICT (token) DO NOTHING`,
		&s.findToken:   `SELECT id, key FROM qstash_tokens WHERE token = ?1`,
		&s.forgetToken: `DELETE FROM qstash_tokens WHERE token = ?1`,
		&s.sweepTokens: `DELETE FROM qstash_tokens WHERE id IN (SELECT id FROM qstash_tokens WHERE id < ?1 ORDER BY id LIMIT ?2)`,

		&s.addMessage: `INSERT INTO qstash_messages (key, holder, bound, expires, status, type, header, body)
			VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (key) DO NOTHING`,
		&s.findMessage:   `SELECT holder, bound, status, type, header, body, body IS NULL FROM qstash_messages WHERE key = ?1 AND expires > ?2`,
		&s.extend:        `UPDATE qstash_messages SET bound = ?2, expires = max(expires, ?2) WHERE key = ?1`,
		&s.forgetMessage: `DELETE FROM qstash_messages WHERE key = ?1`,
		&s.sweepMessages: `DELETE FROM qstash_messages WHERE expires <= ?1 AND id IN ` + oldest,

		&s.forgetOver: `DELETE FROM qstash_messages WHERE bound <= ?1 AND id IN ` + oldest,
		&s.findLong: `SELECT id, status, header FROM qstash_messages
			WHERE length(body) + length(header) > ?1 ORDER BY id LIMIT ?2`,
		&s.shorten: `UPDATE qstash_messages SET type = ?2, header = ?3, body = NULL WHERE id = ?1`,
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

func run(stmt *sql.Stmt, args ...any) error {
	_, err := stmt.Exec(args...)
	return err
}

func changed(stmt *sql.Stmt, args ...any) (rows int64, err error) {
	result, err := stmt.Exec(args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// sweep forgets at least as many rows that have expired as a batch can add.
func (s *Store) sweep(now time.Time, batch int) error {
	at, rows := now.UnixMilli(), 2*batch+6
	s.leases.sweep(at)
	return errors.Join(
		run(s.sweepMessages, at, rows),
		run(s.sweepTokens, firstValid(at), rows),
	)
}

// decide is Claim within a transaction.
func (s *Store) decide(c once.Claim, now time.Time) (once.Decision, error) {
	at := now.UnixMilli()
	bound := at + once.Milliseconds(c.TokenTTL)
	key, err := s.bind(c, bound, at)
	if err != nil {
		return once.Decision{}, fmt.Errorf("bind a token in SQLite: %w", err)
	}
	if key != c.Key {
		return once.Decision{State: once.Replayed}, nil
	}
	l := s.leases.of[c.Key]
	if !l.running {
		m, err := s.find(c.Key, at)
		if err != nil {
			return once.Decision{}, err
		}
		if m.finished && bound > m.bound {
			err = run(s.extend, c.Key[:], bound)
		}
		if m.finished {
			return once.Decision{State: once.Finished, Answer: m.answer}, err
		}
	}
	l.bound = max(l.bound, bound)
	d := once.Decision{State: once.Claimed}
	switch {
	case l.running && (c.Look || l.holder != c.Holder):
		left := time.Duration(l.until-at) * time.Millisecond
		d = once.Decision{State: once.Running, Left: once.LivingLease(left, c.Lease)}
	case c.Look:
		d.State = once.Free
	default:
		l.running, l.holder, l.until = true, c.Holder, at+once.Milliseconds(c.Lease)
	}
	s.leases.set(c.Key, l)
	return d, nil
}

// bind returns the key of the message that c's token is bound to, which is c's if it was to none.
func (s *Store) bind(c once.Claim, bound, at int64) (once.Key, error) {
	for {
		s.tokens++
		added, err := changed(s.bindToken, tokenID(bound, s.tokens), c.Token[:], c.Key[:])
		if err != nil || added == 1 {
			return c.Key, err
		}
		var id int64
		var key []byte
		if err := s.findToken.QueryRow(c.Token[:]).Scan(&id, &key); err != nil {
			return once.Key{}, err
		}
		if id >= firstValid(at) {
			return once.Key(key), nil
		}
		if err := run(s.forgetToken, c.Token[:]); err != nil { // it has expired
			return once.Key{}, err
		}
	}
}

// tokenID is the id of a token that expires at a time: the next full second, and below it a number that tells tokens
// apart.
func tokenID(expires, number int64) int64 {
	const lowBits, lastSecond = 30, 1<<33 - 1
	return min((expires+999)/1000, lastSecond)<<lowBits | number&(1<<lowBits-1)
}

// firstValid is the least id that a token which has not expired can have.
func firstValid(now int64) int64 { return tokenID(now+1, 0) }

// message is a row of a finished message.
type message struct {
	finished bool
	holder   string
	bound    int64
	answer   once.Answer
}

func (s *Store) find(key once.Key, at int64) (m message, err error) {
	var contentType, header string
	var body []byte
	var short bool
	err = s.findMessage.QueryRow(key[:], at).Scan(&m.holder, &m.bound, &m.answer.Status, &contentType, &header, &body, &short)
	if errors.Is(err, sql.ErrNoRows) {
		return message{}, nil
	}
	if err == nil {
		m.answer.Header, err = readHeader(contentType, header)
	}
	if err != nil {
		return message{}, fmt.Errorf("read the answer of a message from SQLite: %w", err)
	}
	m.finished, m.answer.Body = true, body
	if short {
		m.answer = m.answer.Short()
	}
	return m, nil
}

// finish makes a the answer of a message. It returns false where another holder has finished the message or holds it
// now.
func (s *Store) finish(key once.Key, holder string, a once.Answer, now time.Time) (held bool, err error) {
	at := now.UnixMilli()
	l := s.leases.of[key]
	if l.running && l.holder != holder {
		return false, nil
	}
	if !l.running {
		m, err := s.find(key, at)
		if err != nil || m.finished {
			return m.holder == holder, err // a repeat
		}
	}
	contentType, header := writeHeader(a.Header)
	add := func() (int64, error) {
		return changed(s.addMessage, key[:], holder, l.bound, max(at+once.Milliseconds(s.ttl), l.bound),
			a.Status, contentType, header, append([]byte{}, a.Body...)) // a nil body would be NULL
	}
	added, err := add()
	if err == nil && added == 0 { // there is one that has expired
		if err = run(s.forgetMessage, key[:]); err == nil {
			_, err = add()
		}
	}
	if err != nil {
		return false, fmt.Errorf("complete a message in SQLite: %w", err)
	}
	s.leases.remove(key)
	return true, nil
}

// release gives a message back. It returns false where holder is not the last that claimed it.
func (s *Store) release(key once.Key, holder string) (held bool, err error) {
	l, known := s.leases.of[key]
	if !known {
		m, err := s.find(key, time.Now().UnixMilli())
		return m.finished && m.holder == holder, err // then it has no effect
	}
	if l.holder != holder {
		return false, nil
	}
	l.running = false
	s.leases.set(key, l)
	return true, nil
}
