package sqlite

import (
	"context"
	"errors"
	"strconv"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"qstash-receiver/internal/once"
)

// A database that fills its disk cannot even delete: what it deletes has to be written to the log first, and the log
// can begin anew only when all of it has gone into the file, which has to grow for that. So the file grows here and
// nowhere else, before it is written to, and by room that the disk has really given. After that the log can always
// begin anew, rows can be deleted in what it takes already, and what they took is used again.

// room is what the file may take.
type room struct {
	limit     int // pages of the store's own
	users     int // pages of a user's tables; -1: not counted yet
	pageBytes int
}

const (
	// maxBytes bounds the file; the log beside it takes some megabytes.
	maxBytes = 1<<30 - 16<<20
	// spare is how many free pages there are after the start.
	spare = 64
	// unbounded is SQLite's own limit.
	unbounded = 1<<32 - 2
)

// decideWithRoom makes the decisions of a batch, and room for them if it has to.
func (s *Store) decideWithRoom(batch []*request) error {
	plenty := 8*len(batch) + spare/2 // pages that will do for the longest answers
	err := s.transact(batch)
	for rows := 8; isFull(err); rows *= 2 {
		if !s.checkpoint() {
			return err
		}
		free := s.pragma("freelist_count")
		if free < plenty && !s.grow() && !s.forget(rows) {
			return err
		}
		if err = s.transact(batch); free >= plenty {
			return err // what has no room is the log, to which smaller transactions may still be written
		}
	}
	return err
}

// isFull says whether err is the want of room in the file or on the disk. A quota ends a write in another way than a
// full disk does.
func isFull(err error) bool {
	return hasCode(err, sqlite3.SQLITE_FULL) || hasCode(err, sqlite3.SQLITE_IOERR_WRITE)
}

// hasCode says whether err is SQLite's, of this code or, if that is a primary one, of one that extends it.
func hasCode(err error, code int) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && (e.Code() == code || e.Code()&0xff == code)
}

// pragma returns a number that SQLite tells, or -1.
func (s *Store) pragma(name string) int {
	var n int
	if err := s.conn.QueryRowContext(context.Background(), "PRAGMA "+name).Scan(&n); err != nil {
		return -1
	}
	return n
}

// checkpoint brings all of the log into the file, so that the log begins anew.
func (s *Store) checkpoint() bool {
	var busy, logged, done int
	row := s.conn.QueryRowContext(context.Background(), "PRAGMA wal_checkpoint(PASSIVE)")
	return row.Scan(&busy, &logged, &done) == nil && busy == 0 && logged == done
}

// grow makes the file larger, by a quarter if it can, and reports whether that was possible.
func (s *Store) grow() bool {
	pages := s.pragma("page_count")
	limit := s.room.limit
	if pages+spare > limit {
		limit += s.countUsers()
	}
	for more := min(max(pages/4, spare), 2048, limit-pages); more >= spare/4; more /= 2 {
		if s.growBy(pages, more) {
			return true
		}
	}
	return false
}

// growBy makes a file of some pages, all of which is in it, larger by more.
func (s *Store) growBy(pages, more int) bool {
	end := int64(pages) * int64(s.room.pageBytes)
	if _, err := s.file.WriteAt(make([]byte, more*s.room.pageBytes), end); err != nil {
		_ = s.file.Truncate(end)
		return false
	}
	if s.pragma("max_page_count = "+strconv.Itoa(pages+more)) != pages+more {
		return false
	}
	free := s.pragma("freelist_count")
	err := s.fill(free + more)
	s.pin() // it fills some pages less
	if s.pragma("page_count") == pages {
		_ = s.file.Truncate(end)
	}
	return err == nil
}

// pin keeps the file from growing.
func (s *Store) pin() { s.pragma("max_page_count = 1") } // which SQLite takes as the present size

// fill writes some pages and frees them. Afterwards they are on the disk, and so is a log of that length.
func (s *Store) fill(pages int) error {
	const key = "x''" // of no message
	ctx := context.Background()
	defer s.conn.ExecContext(ctx, "DELETE FROM qstash_messages WHERE key = "+key)
	bytes := (pages - 4) * (s.room.pageBytes - 4) // some pages are needed for more than the bytes
	_, err := s.conn.ExecContext(ctx, "INSERT INTO qstash_messages (key, holder, bound, expires, body) VALUES ("+key+", '', 0, 0, zeroblob(?1))", bytes)
	if err == nil && !s.checkpoint() {
		err = errors.New("the log does not go into the file")
	}
	return err
}

// countUsers returns how many pages a user's tables take.
func (s *Store) countUsers() int {
	if s.room.users < 0 {
		row := s.conn.QueryRowContext(context.Background(), `SELECT ifnull(sum(pageno), 0) FROM dbstat
			WHERE aggregate = TRUE AND name IN (SELECT name FROM sqlite_schema WHERE tbl_name NOT IN ('qstash_messages', 'qstash_tokens'))`)
		if row.Scan(&s.room.users) != nil {
			return 0
		}
	}
	return s.room.users
}

// forget makes room by forgetting the oldest finished messages: those whose tokens have expired; then answers alone,
// for with a token that is still valid the message could be run again. It reports whether it forgot anything.
func (s *Store) forget(rows int) (forgot bool) {
	if run(s.begin) != nil {
		return false
	}
	n, err := changed(s.forgetOver, time.Now().UnixMilli(), rows)
	if err == nil && n == 0 {
		n, err = s.shortenOldest(rows)
	}
	if err == nil {
		err = run(s.end)
	}
	if err != nil {
		_ = run(s.rollback)
	}
	return err == nil && n > 0
}

// shortenOldest makes the oldest answers that are long short.
func (s *Store) shortenOldest(rows int) (shortened int64, err error) {
	const long = 256 // bytes
	type answer struct {
		id     int64
		status int
		header string
	}
	var all []answer
	found, err := s.findLong.Query(long, rows)
	if err != nil {
		return 0, err
	}
	for found.Next() {
		var a answer
		if err := found.Scan(&a.id, &a.status, &a.header); err != nil {
			return 0, errors.Join(err, found.Close())
		}
		all = append(all, a)
	}
	if err := found.Err(); err != nil {
		return 0, err
	}
	for _, a := range all {
		h, err := once.DecodeHeader(a.header)
		if err != nil {
			return 0, err
		}
		contentType, header := writeHeader(once.Answer{Status: a.status, Header: h}.Short().Header)
		if err := run(s.shorten, a.id, contentType, header); err != nil {
			return 0, err
		}
	}
	return int64(len(all)), nil
}
