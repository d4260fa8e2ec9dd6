package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	sqlite3 "modernc.org/sqlite/lib"

	"qstash-receiver/internal/once"
)

// CheckPath returns nil if path may be that of a store, as far as that shows without opening it.
func CheckPath(path string) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return fmt.Errorf("%q is a directory; add a file name, like %s", path, filepath.Join(path, "receiver.db"))
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return fmt.Errorf("the directory of %q: %w; make it, or mount the volume there", path, err)
	}
	return nil
}

// ErrInUse says that another process has the file.
var ErrInUse = errors.New("another process has it open, and only one can have it: stop that one, or give this one a file of its own")

// Open opens or makes the file at path; finished messages are remembered for ttl. Another process that has the file
// gets wait to end, 10 s at most. A file that is not a store of this program's is an error, and left as it is. It
// must not be open in this process already.
func Open(ctx context.Context, path string, ttl, wait time.Duration, log *slog.Logger) (_ *Store, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("STORE_URL: open the SQLite file %q: %w", path, explain(err))
		}
	}()
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	if err := checkOwner(ctx, path); err != nil {
		return nil, err
	}
	// To close the file would give up this process's locks on it: it stays open for as long as the database.
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", dsn(path, url.Values{"_busy_timeout": {"100"}, "_txlock": {"immediate"}}))
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	db.SetMaxOpenConns(1)
	s := &Store{
		requests: make(chan *request, batchSize), stopped: make(chan struct{}),
		db: db, file: file, ttl: ttl, leases: leases{of: map[once.Key]lease{}}, tokens: time.Now().UnixNano(),
		room: room{limit: maxBytes, users: -1},
	}
	for end := time.Now().Add(min(wait, 10*time.Second)); ; { // in small steps, so that a signal ends it
		if err = s.start(ctx); err == nil {
			break
		}
		if !hasCode(err, sqlite3.SQLITE_BUSY) || time.Now().After(end) || ctx.Err() != nil {
			return nil, errors.Join(err, s.closeFiles())
		}
	}
	watching, stop := context.WithCancel(context.Background())
	s.stopWatch = stop
	go watch(watching, path, file, log)
	go s.write()
	if err := once.Try(s); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func dsn(path string, query url.Values) string {
	u := url.URL{Scheme: "file", Path: path, RawQuery: query.Encode()}
	return u.String()
}

// start locks the file, makes it ours if it is not, and prepares to use it.
func (s *Store) start(ctx context.Context) (err error) {
	if s.conn, err = s.db.Conn(ctx); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.conn.Close())
			s.conn = nil
		}
	}()
	// Locked for as long as it is open, so that the log needs no shared memory, and before anything is written.
	if _, err := s.conn.ExecContext(ctx, "PRAGMA locking_mode = EXCLUSIVE; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY"); err != nil {
		return err
	}
	if err := s.own(ctx); err != nil {
		return err
	}
	if _, err := s.conn.ExecContext(ctx, "PRAGMA journal_mode = WAL"); err != nil {
		return err
	}
	if err := s.prepare(ctx); err != nil {
		return err
	}
	if !s.checkpoint() {
		return nil // the disk is full, or fails: a trial will tell
	}
	s.room.pageBytes = s.pragma("page_size")
	s.room.limit /= s.room.pageBytes
	s.pin()
	if s.pragma("freelist_count") < spare {
		s.growBy(s.pragma("page_count"), spare)
	} else {
		_ = s.fill(spare) // so that the log has some length
	}
	return nil
}

// own makes the file ours, which it may be already.
func (s *Store) own(ctx context.Context) error {
	tx, err := s.conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	found, err := contentsOf(ctx, tx)
	if err != nil {
		return err
	}
	script := schema
	switch found.owner() {
	case another:
		return errAnother
	case earlier:
		script = takeOver + schema
	}
	script += fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d", applicationID, schemaVersion)
	if found.application == applicationID && found.version == schemaVersion {
		script = schema // the tables are there, unless a user gave us the file
	}
	if _, err := tx.ExecContext(ctx, script); err != nil {
		return err
	}
	return tx.Commit()
}

// watch says once, within seconds, that the file was deleted or replaced. The store goes on in the file that is open.
func watch(ctx context.Context, path string, file *os.File, log *slog.Logger) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		there, err := os.Stat(path)
		open, openErr := file.Stat()
		if openErr != nil || err == nil && os.SameFile(there, open) {
			continue
		}
		log.Error("the store's file was deleted or replaced while it is in use: what is remembered ends with this process, and handled messages may be run again after it",
			"path", path, "fix", "restart the program, and leave the file to it")
		return
	}
}

// explain adds to err the fix that fits.
func explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS), hasCode(err, sqlite3.SQLITE_CANTOPEN),
		hasCode(err, sqlite3.SQLITE_READONLY), hasCode(err, sqlite3.SQLITE_PERM):
		return fmt.Errorf("%w; this user must be able to write to the file and to its directory", err)
	case hasCode(err, sqlite3.SQLITE_BUSY):
		return fmt.Errorf("%w (%w)", ErrInUse, err)
	case isFull(err), errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("%w; free space on its disk, or give a path on another", err)
	case hasCode(err, sqlite3.SQLITE_NOTADB), hasCode(err, sqlite3.SQLITE_CORRUPT):
		return fmt.Errorf("%w; the file is damaged: move it away, which forgets what was handled, or give another path", err)
	case hasCode(err, sqlite3.SQLITE_IOERR):
		return fmt.Errorf("%w; the disk fails: look at it, or give a path on another", err)
	}
	return err
}
