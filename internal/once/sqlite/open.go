package sqlite

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"modernc.org/sqlite"
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
// gets wait to end, 10 s at most. A file that is not a store of this program's is an error, and left as it is.
func Open(ctx context.Context, path string, ttl, wait time.Duration, log *slog.Logger) (_ *Store, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("STORE_URL: open the SQLite file %q: %w", path, explain(err))
		}
	}()
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	origin, err := whose(ctx, absolute)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", dsn(absolute, url.Values{
		// In the order in which the driver applies them; locked before WAL, there is no shared memory file.
		"_busy_timeout": {"100"},
		"_pragma":       {"locking_mode(EXCLUSIVE)"},
		"_journal_mode": {"WAL"},
		"_synchronous":  {"FULL"},
		"_txlock":       {"immediate"},
	}))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	s := &Store{
		db: db, ttl: ttl, log: log, requests: make(chan *request, batchSize), stopped: make(chan struct{}),
		room: room{limit: maxBytes, disk: filepath.Dir(absolute)},
	}
	for end := time.Now().Add(min(wait, 10*time.Second)); ; { // in small steps, so that a signal ends it
		if err = s.start(ctx, origin); err == nil {
			break
		}
		if !hasCode(err, sqlite3.SQLITE_BUSY) || time.Now().After(end) || ctx.Err() != nil {
			return nil, errors.Join(err, db.Close())
		}
	}
	opened, err := os.Stat(absolute)
	if err != nil {
		return nil, errors.Join(err, s.closeFile())
	}
	watching, stop := context.WithCancel(context.Background())
	s.closing = stop
	go s.watch(watching, absolute, opened)
	go s.write()
	if err := once.Try(s); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func dsn(absolute string, query url.Values) string {
	u := url.URL{Scheme: "file", Path: absolute, RawQuery: query.Encode()}
	return u.String()
}

// start makes the file ours, if it is not, and prepares to use it.
func (s *Store) start(ctx context.Context, origin origin) (err error) {
	if s.conn, err = s.db.Conn(ctx); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = s.conn.Close()
		}
	}()
	tx, err := s.conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, origin.script()); err != nil {
		return err
	}
	// The leases of a process that died are void: this one could not have opened the file while that one lived.
	if _, err := tx.ExecContext(ctx, `UPDATE qstash_messages SET until = 0 WHERE status IS NULL AND until > 0`); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	// What says that the file is ours goes into the file itself.
	if _, err := s.conn.ExecContext(ctx, `PRAGMA wal_checkpoint(PASSIVE)`); err != nil {
		return err
	}
	if err := s.room.count(ctx, s.conn); err != nil {
		return err
	}
	return s.prepare(ctx)
}

// origin is whose file it is.
type origin int

const (
	nobodys origin = iota // empty, or not there
	ours
	earlier // the first version's of this program
)

// script makes a file of the given origin ours.
func (o origin) script() string {
	mark := fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d;", applicationID, schemaVersion)
	switch o {
	case nobodys:
		return schema + mark
	case earlier:
		return takeOver + mark
	}
	return ""
}

// earlierSchema is what the first version made, and takeOver makes it the present one.
const (
	earlierSchema = `
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
) STRICT;`
	takeOver = `
ALTER TABLE tokens RENAME TO qstash_tokens;
ALTER TABLE messages RENAME TO qstash_messages;
ALTER TABLE qstash_messages ADD COLUMN bound INTEGER NOT NULL DEFAULT 0;
ALTER TABLE qstash_messages ADD COLUMN header TEXT;
UPDATE qstash_messages SET bound = expires, header = iif(type = '', '', 'Content-Type: ' || type || x'0d0a')
  || iif(permanent, 'Upstash-Nonretryable-Error: true' || x'0d0a', '') || upstash WHERE status IS NOT NULL;
ALTER TABLE qstash_messages DROP COLUMN type;
ALTER TABLE qstash_messages DROP COLUMN permanent;
ALTER TABLE qstash_messages DROP COLUMN upstash;`
)

// whose says whose file is at path, without writing to it or beside it. Another program's is an error.
func whose(ctx context.Context, path string) (origin, error) {
	// Closing a file gives up this process's locks on it: it must not have the store open already.
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nobodys, nil
	}
	if err != nil {
		return 0, err
	}
	header := make([]byte, 100)
	n, err := io.ReadFull(f, header)
	_ = f.Close()
	switch {
	case n == 0 && err == io.EOF:
		return nobodys, nil
	case string(header[:min(n, 16)]) != "SQLite format 3\x00":
		return 0, errors.New("it is no SQLite database, so it was left as it is; give another path")
	case n == len(header) && binary.BigEndian.Uint32(header[68:]) == applicationID:
		if version := binary.BigEndian.Uint32(header[60:]); version > schemaVersion {
			return 0, fmt.Errorf("it was made by a later version of this program (%d, this one knows %d), so it was left as it is; run that version, or give another path", version, schemaVersion)
		}
		return ours, nil
	}
	// A file that was cut off before its first checkpoint has what it says in its log. Both are read as copies: to
	// open the originals would change them.
	dir, err := os.MkdirTemp("", "receiver")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	found, err := look(ctx, path, url.Values{"mode": {"ro"}, "immutable": {"1"}})
	if err != nil {
		return 0, err
	}
	if _, err := os.Stat(path + "-wal"); err == nil && len(found.tables) == 0 {
		copied := filepath.Join(dir, "copy.db")
		if err := errors.Join(copyFile(path, copied), copyFile(path+"-wal", copied+"-wal")); err != nil {
			return 0, err
		}
		if found, err = look(ctx, copied, nil); err != nil {
			return 0, err
		}
	}
	first, err := earlierContents(ctx)
	switch {
	case err != nil:
		return 0, err
	case found.application == applicationID:
		return ours, nil
	case found.application == 0 && len(found.tables) == 0:
		return nobodys, nil
	case found.application == 0 && maps.Equal(found.tables, first.tables):
		return earlier, nil
	}
	return 0, errors.New("it is another program's database, so it was left as it is; give another path")
}

// contents is what a database has.
type contents struct {
	application int
	tables      map[string]string // by name: the statements that made them, and all else in the schema
}

func look(ctx context.Context, path string, query url.Values) (contents, error) {
	db, err := sql.Open("sqlite", dsn(path, query))
	if err != nil {
		return contents{}, err
	}
	defer db.Close()
	return contentsOf(ctx, db)
}

func earlierContents(ctx context.Context) (contents, error) {
	db, err := sql.Open("sqlite", ":memory:")
	if err != nil {
		return contents{}, err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(ctx, earlierSchema); err != nil {
		return contents{}, err
	}
	return contentsOf(ctx, db)
}

func contentsOf(ctx context.Context, db *sql.DB) (contents, error) {
	c := contents{tables: map[string]string{}}
	if err := db.QueryRowContext(ctx, "PRAGMA application_id").Scan(&c.application); err != nil {
		return c, err
	}
	rows, err := db.QueryContext(ctx, "SELECT name, ifnull(sql, '') FROM sqlite_schema")
	if err != nil {
		return c, err
	}
	defer rows.Close()
	for rows.Next() {
		var name, text string
		if err := rows.Scan(&name, &text); err != nil {
			return c, err
		}
		c.tables[name] = text
	}
	return c, rows.Err()
}

func copyFile(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}

// explain adds to err the fix that fits.
func explain(err error) error {
	switch {
	case errors.Is(err, os.ErrPermission), hasCode(err, sqlite3.SQLITE_CANTOPEN), hasCode(err, sqlite3.SQLITE_READONLY), hasCode(err, sqlite3.SQLITE_PERM):
		return fmt.Errorf("%w; this user must be able to write to the file and to its directory", err)
	case hasCode(err, sqlite3.SQLITE_BUSY):
		return fmt.Errorf("%w (%w)", ErrInUse, err)
	case isFull(err):
		return fmt.Errorf("%w; free space on its disk, or give a path on another", err)
	case hasCode(err, sqlite3.SQLITE_NOTADB), hasCode(err, sqlite3.SQLITE_CORRUPT):
		return fmt.Errorf("%w; the file is damaged: move it away, which forgets what was handled, or give another path", err)
	case hasCode(err, sqlite3.SQLITE_IOERR):
		return fmt.Errorf("%w; the disk fails, or has no room: look at it", err)
	}
	return err
}

func hasCode(err error, code int) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && e.Code()&0xff == code
}
