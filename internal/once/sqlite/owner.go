package sqlite

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
)

const (
	// applicationID stands in the header of a file of ours: "qsth".
	applicationID = 0x71737468
	// schemaVersion stands there as well.
	schemaVersion = 2
)

// owner is whose a database is.
type owner int

const (
	another owner = iota
	nobody        // it is empty
	ours
	earlier // of the first version of this program
)

var (
	errAnother = fmt.Errorf("it is another program's database, so it was left as it is; give another path, or let the two share it with PRAGMA application_id = %d", applicationID)
	errLater   = errors.New("it was made by a later version of this program, so it was left as it is; run that version, or give another path")
)

// checkOwner returns nil if the file at path may be made ours. It writes nothing to the file nor beside it.
func checkOwner(ctx context.Context, path string) error {
	log, err := os.Stat(path + "-wal")
	hasLog := err == nil && log.Size() > 0
	header, err := readStart(path, 100)
	switch {
	case err != nil:
		return err
	case len(header) == 0 && hasLog:
		return fmt.Errorf("%s-wal is the log of another file, which SQLite would delete; move it away, or put its file back", path)
	case len(header) == 0:
		return nil
	case len(header) < 100 || string(header[:16]) != "SQLite format 3\x00":
		return errors.New("it is no SQLite database, so it was left as it is; give another path")
	}
	found := contents{application: int(binary.BigEndian.Uint32(header[68:])), version: int(binary.BigEndian.Uint32(header[60:]))}
	if found.application == 0 {
		if found, err = look(ctx, path, hasLog); err != nil {
			return err
		}
	}
	switch {
	case found.owner() == another:
		return errAnother
	case found.application == applicationID && found.version > schemaVersion:
		return errLater
	}
	return nil
}

// readStart returns the first n bytes of a file, or all of a shorter one; of a file that is not there, none.
func readStart(path string, n int) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	start := make([]byte, n)
	got, err := io.ReadFull(f, start)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil
	}
	return start[:got], err
}

// look reads a database in such a way that nothing is written. While the file itself is empty, all there is may be in
// the log, which can only be read together with a copy.
func look(ctx context.Context, path string, hasLog bool) (contents, error) {
	found, err := readContents(ctx, path, url.Values{"mode": {"ro"}, "immutable": {"1"}})
	if err != nil || !hasLog || found.owner() != nobody {
		return found, err
	}
	dir, err := os.MkdirTemp("", "receiver")
	if err != nil {
		return contents{}, err
	}
	defer os.RemoveAll(dir)
	copied := filepath.Join(dir, "copy.db")
	if err := errors.Join(copyFile(path, copied), copyFile(path+"-wal", copied+"-wal")); err != nil {
		return contents{}, err
	}
	return readContents(ctx, copied, nil)
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

// contents is what a database has, as far as that says whose it is.
type contents struct {
	application, version int
	tables               int    // and indexes, and all else
	messages, tokens     string // the columns of the tables that the first version had
}

const (
	earlierMessages = "id,key,holder,until,expires,status,type,permanent,body,upstash"
	earlierTokens   = "id,token,key,expires"
	// takeOver makes the first version's tables ours. It touches few rows, for the disk may be full.
	takeOver = `
DELETE FROM messages WHERE status IS NULL;
ALTER TABLE messages RENAME TO qstash_messages;
ALTER TABLE qstash_messages RENAME COLUMN until TO bound;
ALTER TABLE qstash_messages RENAME COLUMN upstash TO header;
UPDATE qstash_messages SET header = 'Upstash-Nonretryable-Error: true' || x'0d0a' || header WHERE permanent;
ALTER TABLE tokens RENAME TO qstash_tokens;
UPDATE qstash_tokens SET id = ((expires + 999) / 1000 << 30) + id; -- as tokenID does
ALTER TABLE qstash_tokens DROP COLUMN expires;`
)

func (c contents) owner() owner {
	switch {
	case c.application == applicationID:
		return ours
	case c.application != 0 || c.version != 0:
		return another
	case c.tables == 0:
		return nobody
	case c.tables == 4 && c.messages == earlierMessages && c.tokens == earlierTokens: // two of them indexes
		return earlier
	}
	return another
}

func readContents(ctx context.Context, path string, query url.Values) (contents, error) {
	db, err := sql.Open("sqlite", dsn(path, query))
	if err != nil {
		return contents{}, err
	}
	defer db.Close()
	return contentsOf(ctx, db)
}

func contentsOf(ctx context.Context, db interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}) (c contents, err error) {
	const columns = "SELECT ifnull(group_concat(name), '') FROM pragma_table_info"
	for query, value := range map[string]any{
		"PRAGMA application_id":              &c.application,
		"PRAGMA user_version":                &c.version,
		"SELECT count(*) FROM sqlite_schema": &c.tables,
		columns + "('messages')":             &c.messages,
		columns + "('tokens')":               &c.tokens,
	} {
		if err := db.QueryRowContext(ctx, query).Scan(value); err != nil {
			return contents{}, err
		}
	}
	return c, nil
}
