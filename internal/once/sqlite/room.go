package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"syscall"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// room is what the store may take, and takes. Only the writer uses it.
type room struct {
	limit  int64 // bytes of our own rows; a user's tables in the same file do not count
	held   int64 // about: counted at start, and kept up
	disk   string
	pinned bool // the file may not grow: little is left on the disk
}

const (
	maxBytes     = 1 << 30
	messageBytes = 256 // of a row without its answer, with its place in the index
	tokenBytes   = 192
	// diskReserve is what is left free on the disk, for what the write-ahead log and a checkpoint need to make room.
	diskReserve = 16 << 20
)

// rowBytes is the part of bytesOf that a deleted row tells.
const rowBytes = `ifnull(length(header), 0), ifnull(length(body), 0)`

// bytesOf is what an answer takes in the file: what does not fit into a row takes whole pages.
func bytesOf(header, body int) int64 {
	n := int64(header + body)
	if n > 3000 {
		return (n + 4095) / 4096 * 4096
	}
	return n
}

var errNoRoom = errors.New("SQLite: the store is full of messages that are being run or were finished minutes ago; free space on the disk, or give it a larger one")

// isFull says whether err is the want of room, on the disk or in the file.
func isFull(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && e.Code()&0xff == sqlite3.SQLITE_FULL
}

// count finds out what the rows take.
func (m *room) count(ctx context.Context, conn *sql.Conn) error {
	var messages, answers, tokens int64
	err := conn.QueryRowContext(ctx, `SELECT count(*), ifnull(sum(iif(ifnull(length(header), 0) + ifnull(length(body), 0) > 3000,
		(length(header) + length(body) + 4095) / 4096 * 4096, ifnull(length(header), 0) + ifnull(length(body), 0))), 0) FROM qstash_messages`).Scan(&messages, &answers)
	if err == nil {
		err = conn.QueryRowContext(ctx, `SELECT count(*) FROM qstash_tokens`).Scan(&tokens)
	}
	m.held = messages*messageBytes + answers + tokens*tokenBytes
	return err
}

// watchDisk lets the file grow only while the disk has more than the reserve.
func (m *room) watchDisk(s *Store) {
	var disk syscall.Statfs_t
	if syscall.Statfs(m.disk, &disk) != nil {
		return
	}
	free, total := int64(disk.Bavail)*int64(disk.Bsize), int64(disk.Blocks)*int64(disk.Bsize)
	reserve := min(diskReserve, total/4)
	switch {
	case !m.pinned && free < reserve:
		m.pin(s, "1") // which SQLite takes as the present size
	case m.pinned && free > 2*reserve:
		m.pin(s, "4294967294")
	}
}

func (m *room) pin(s *Store, pages string) {
	if _, err := s.conn.ExecContext(context.Background(), "PRAGMA max_page_count = "+pages); err == nil {
		m.pinned = !m.pinned
	}
}

// sweep takes out expired rows, more of them than the batch can add.
func (s *Store) sweep(now time.Time, added int) error {
	rows := 2*added + 8
	if _, err := s.delete(s.sweepMessages, now.UnixMilli(), rows); err != nil {
		return err
	}
	r, err := s.sweepTokens.Exec(now.UnixMilli(), rows)
	if err != nil {
		return err
	}
	n, err := r.RowsAffected()
	s.room.held -= n * tokenBytes
	return err
}

// delete runs a statement that deletes messages, and returns how many.
func (s *Store) delete(stmt *sql.Stmt, args ...any) (deleted int, err error) {
	rows, err := stmt.Query(args...)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for rows.Next() {
		var header, body int
		if err := rows.Scan(&header, &body); err != nil {
			return deleted, err
		}
		s.room.held -= messageBytes + bytesOf(header, body)
		deleted++
	}
	return deleted, rows.Err()
}

// bound forgets the oldest finished messages, within a transaction, until the rows take no more than they may.
func (s *Store) bound(now time.Time) error {
	for s.room.held > s.room.limit {
		freed, err := s.forget(now, 4)
		if err != nil {
			return err
		}
		if !freed {
			return errNoRoom
		}
	}
	return nil
}

// forget forgets the oldest finished messages, of those whose tokens have expired: with a token that is still valid a
// captured delivery could be run again. Where there are none, it forgets answers.
func (s *Store) forget(now time.Time, rows int) (freed bool, err error) {
	deleted, err := s.delete(s.forgetOldest, now.UnixMilli(), rows)
	if err != nil || deleted > 0 {
		return deleted > 0, err
	}
	found, err := s.longest.Query(rows)
	if err != nil {
		return false, err
	}
	defer found.Close()
	var ids []int64
	for found.Next() {
		var id int64
		var header, body int
		if err := found.Scan(&id, &header, &body); err != nil {
			return false, err
		}
		s.room.held -= bytesOf(header, body) - bytesOf(header, 0)
		ids = append(ids, id)
	}
	if err := errors.Join(found.Err(), found.Close()); err != nil {
		return false, err
	}
	for _, id := range ids {
		if err := s.exec(s.shorten, id); err != nil {
			return false, err
		}
	}
	return len(ids) > 0, nil
}

// makeRoom forgets some messages in a transaction of its own, after there was no room for another.
func (s *Store) makeRoom() bool {
	for range 2 {
		freed, err := s.forgetNow(16)
		if err == nil {
			return freed
		}
		if !isFull(err) {
			return false
		}
		// What the log has goes into the file, so that the log begins anew.
		_, _ = s.conn.ExecContext(context.Background(), "PRAGMA wal_checkpoint(RESTART)")
	}
	return false
}

func (s *Store) forgetNow(rows int) (freed bool, err error) {
	if err := s.exec(s.begin); err != nil {
		return false, err
	}
	before := s.room.held
	if freed, err = s.forget(time.Now(), rows); err == nil {
		err = s.exec(s.commit)
	}
	if err != nil {
		_ = s.exec(s.rollback)
		s.room.held = before
	}
	return freed, err
}
