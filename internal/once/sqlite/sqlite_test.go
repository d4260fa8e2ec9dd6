package sqlite

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"qstash-receiver/internal/once"
	"qstash-receiver/internal/once/oncetest"
)

var (
	quietLog = slog.New(slog.DiscardHandler)
	done     = once.Answer{Status: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: []byte("{}")}
)

func open(t testing.TB, path string, ttl time.Duration) *Store {
	t.Helper()
	s, err := Open(t.Context(), path, ttl, time.Second, quietLog)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func engine() oncetest.Engine {
	return oncetest.Engine{Open: func(t testing.TB, ttl time.Duration) once.Store {
		s := open(t, filepath.Join(t.TempDir(), "receiver.db"), ttl)
		t.Cleanup(func() { _ = s.Close() })
		return s
	}}
}

func TestContract(t *testing.T) {
	t.Parallel()
	oncetest.Run(t, engine())
}

func TestCommitter(t *testing.T) {
	t.Parallel()
	oncetest.RunCommitter(t, engine())
}

// earlierSchema is what the first version of this program made.
const earlierSchema = `
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

// finish claims and completes a message with a body of n bytes whose token expires at once.
func finish(s *Store, n int) (once.Claim, error) { return finishFor(s, n, 0) }

func finishFor(s *Store, n int, tokenTTL time.Duration) (once.Claim, error) {
	c := oncetest.NewClaim()
	c.TokenTTL = tokenTTL
	if _, err := s.Claim(c); err != nil {
		return c, err
	}
	a := done
	a.Body = bytes.Repeat([]byte("x"), n)
	return c, s.Complete(c.Key, c.Holder, a)
}

func TestReopened(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "receiver.db")
	s := open(t, path, time.Hour)
	finished, cutOff := oncetest.NewClaim(), oncetest.NewClaim()
	oncetest.Want(t, s, finished, once.Claimed)
	oncetest.Want(t, s, cutOff, once.Claimed)
	if err := s.Complete(finished.Key, finished.Holder, done); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path, time.Hour)
	defer s.Close()
	if d := oncetest.Want(t, s, oncetest.Again(finished), once.Finished); string(d.Answer.Body) != "{}" {
		t.Errorf("the answer is %+v", d.Answer)
	}
	oncetest.Want(t, s, oncetest.Again(cutOff), once.Claimed) // a dead process's lease is void
	stolen := oncetest.NewClaim()
	stolen.Token = finished.Token
	oncetest.Want(t, s, stolen, once.Replayed)
}

func TestSecondProcessIsRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "receiver.db")
	s := open(t, path, time.Hour)
	defer s.Close()
	db, err := sql.Open("sqlite", dsn(path, nil)) // in this process, but SQLite tells connections apart
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("CREATE TABLE other (x)"); !hasCode(err, 5) {
		t.Errorf("another connection got %v", err)
	}
}

// TestWhose checks that a file that is not ours is left byte for byte.
func TestWhose(t *testing.T) {
	t.Parallel()
	database := func(statements ...string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			db, err := sql.Open("sqlite", dsn(path, nil))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			db.SetMaxOpenConns(1)
			for _, statement := range statements {
				if _, err := db.Exec(statement); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	text := func(s string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	// A process that dies leaves its log behind: here it is what was on the disk while a connection was open.
	leftInLog := func(statements ...string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			live := path + ".live"
			db, err := sql.Open("sqlite", dsn(live, url.Values{"_journal_mode": {"WAL"}}))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			db.SetMaxOpenConns(1)
			for _, statement := range statements {
				if _, err := db.Exec(statement); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(copyFile(live, path), copyFile(live+"-wal", path+"-wal")); err != nil {
				t.Fatal(err)
			}
		}
	}
	leftLog := func(beside func(t *testing.T, path string)) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			leftInLog("CREATE TABLE notes (x)")(t, path)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			beside(t, path)
		}
	}
	nothing := func(*testing.T, string) {}
	for _, row := range []struct {
		name string
		make func(t *testing.T, path string)
		want string // in the error; "": it is taken
	}{
		{"no file", nothing, ""},
		{"an empty file", text(""), ""},
		{"the earlier version's", database(earlierSchema), ""},
		{"the earlier version's, still in its log", leftInLog(earlierSchema), ""},
		{"an empty database", database("CREATE TABLE x (y)", "DROP TABLE x"), ""},
		{"another program's, with a table messages", database("CREATE TABLE messages (id INTEGER PRIMARY KEY, text TEXT)"), "another program's"},
		{"another program's, with the earlier version's tables and one more", database(earlierSchema, "CREATE TABLE more (x)"), "another program's"},
		{"another program's, in its log", leftInLog("CREATE TABLE notes (x)"), "another program's"},
		{"another program's, by its application id", database("PRAGMA application_id = 1"), "another program's"},
		{"a later version's", database(fmt.Sprintf("PRAGMA application_id = %d", applicationID), "PRAGMA user_version = 99"), "later version"},
		{"a log whose file is gone", leftLog(nothing), "the log of another file"},
		{"a log beside an empty file", leftLog(text("")), "the log of another file"},
		{"another program's, by its user version", database("PRAGMA user_version = 3"), "another program's"},
		{"one that its owner shares", database("CREATE TABLE messages (id INTEGER PRIMARY KEY, text TEXT)",
			fmt.Sprintf("PRAGMA application_id = %d", applicationID)), ""},
		{"text", text("hello, this is no database at all"), "no SQLite database"},
		{"one byte", text("S"), "no SQLite database"},
		{"a database cut off in the middle", func(t *testing.T, path string) {
			database("CREATE TABLE a (x)", "CREATE TABLE b (x)", "CREATE TABLE c (x)")(t, path)
			if err := os.Truncate(path, 5000); err != nil {
				t.Fatal(err)
			}
		}, "left as it is|damaged"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "file.db")
			row.make(t, path)
			before := fingerprint(t, dir)
			s, err := Open(t.Context(), path, time.Hour, time.Second, quietLog)
			if row.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				_, err = finish(s, 10)
				if err := errors.Join(err, s.Close()); err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil {
				_ = s.Close()
				t.Fatal("it was taken")
			}
			if after := fingerprint(t, dir); after != before {
				t.Errorf("before %s\nafter  %s", before, after)
			}
			said := false
			for _, want := range strings.Split(row.want, "|") {
				said = said || strings.Contains(err.Error(), want)
			}
			if !said {
				t.Errorf("got %v, want %s", err, row.want)
			}
		})
	}
}

// fingerprint names each file in dir and what is in it.
func fingerprint(t *testing.T, dir string) string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(content)
		fmt.Fprintf(&b, "%s %s ", e.Name(), hex.EncodeToString(sum[:4]))
	}
	return b.String()
}

func TestEarlierVersionIsTakenOver(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "receiver.db")
	db, err := sql.Open("sqlite", dsn(path, nil))
	if err != nil {
		t.Fatal(err)
	}
	good, bad, cutOff, spent, expired := oncetest.NewKey(), oncetest.NewKey(), oncetest.NewKey(), oncetest.NewKey(), oncetest.NewKey()
	now := time.Now().UnixMilli()
	later := now + 3_600_000
	for statement, args := range map[string][]any{
		`INSERT INTO messages (key, holder, until, expires, status, type, permanent, body, upstash) VALUES
			(?1, 'a', 0, ?4, 200, 'text/plain', 0, x'6f6b', 'Upstash-Workflow-Sdk-Version: 1' || x'0d0a'),
			(?2, 'b', 0, ?4, 489, 'application/json', 1, x'7b7d', ''),
			(?3, 'c', ?4, ?4, NULL, NULL, NULL, NULL, NULL)`: {good[:], bad[:], cutOff[:], later},
		`INSERT INTO tokens (token, key, expires) VALUES (?1, ?2, ?3), (?4, ?2, ?5)`: {spent[:], good[:], later, expired[:], now - 1000},
	} {
		if _, err := db.Exec(earlierSchema); err != nil {
			t.Fatal(err)
		}
		if _, err := db.Exec(statement, args...); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s := open(t, path, time.Hour)
	defer s.Close()
	for _, row := range []struct {
		key  once.Key
		want once.Answer
	}{
		{good, once.Answer{Status: 200, Body: []byte("ok"), Header: http.Header{"Content-Type": {"text/plain"}, "Upstash-Workflow-Sdk-Version": {"1"}}}},
		{bad, once.Answer{Status: 489, Body: []byte("{}"), Header: http.Header{"Content-Type": {"application/json"}, "Upstash-Nonretryable-Error": {"true"}}}},
	} {
		c := oncetest.NewClaim()
		c.Key = row.key
		d := oncetest.Want(t, s, c, once.Finished)
		if fmt.Sprint(d.Answer) != fmt.Sprint(row.want) {
			t.Errorf("got %v, want %v", d.Answer, row.want)
		}
	}
	c := oncetest.NewClaim()
	c.Key = cutOff
	oncetest.Want(t, s, c, once.Claimed)
	c = oncetest.NewClaim()
	c.Token = spent
	oncetest.Want(t, s, c, once.Replayed)
	c.Token = expired
	oncetest.Want(t, s, c, once.Claimed)
}

func TestRowsAreBounded(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "receiver.db")
	s := open(t, path, time.Hour)
	defer s.Close()
	s.room.limit = 2 << 20 / 4096
	first, err := finish(s, 16_000)
	var last once.Claim
	for range 400 {
		if err == nil {
			last, err = finish(s, 16_000)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	oncetest.Want(t, s, oncetest.Again(last), once.Finished)
	oncetest.Want(t, s, oncetest.Again(first), once.Claimed)
	if info, err := os.Stat(path); err != nil || info.Size() > 3<<20 {
		t.Errorf("the file has %d bytes, %v", info.Size(), err)
	}
}

func TestBoundSparesValidTokens(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "receiver.db"), time.Hour)
	defer s.Close()
	s.room.limit = 1 << 20 / 4096
	a := done
	a.Body = bytes.Repeat([]byte("x"), 16_000)
	var claims []once.Claim
	for range 200 {
		c := oncetest.NewClaim() // whose token is valid for a minute
		oncetest.Want(t, s, c, once.Claimed)
		if err := s.Complete(c.Key, c.Holder, a); err != nil {
			t.Fatal(err)
		}
		claims = append(claims, c)
	}
	if d := oncetest.Want(t, s, oncetest.Again(claims[0]), once.Finished); string(d.Answer.Body) != `{"message":"ok"}` {
		t.Errorf("the oldest answer is %.40s", d.Answer.Body)
	}
}

// smallDisk mounts a file system of its own.
func smallDisk(t *testing.T, megabytes int) string {
	dir := t.TempDir()
	mount := exec.Command("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", megabytes), "tmpfs", dir)
	if output, err := mount.CombinedOutput(); err != nil {
		t.Skipf("needs leave to mount a file system: %v: %s", err, output)
	}
	t.Cleanup(func() {
		if output, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, output)
		}
	})
	return dir
}

// takeAll fills what is left of a disk, to the last byte, and returns what gives it back.
func takeAll(t *testing.T, dir string) (giveBack func()) {
	t.Helper()
	hog, err := os.Create(filepath.Join(dir, "hog"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = hog.Close() })
	for size := 1 << 20; size > 0; {
		if _, err := hog.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	return func() {
		if err := hog.Truncate(0); err != nil {
			t.Error(err)
		}
	}
}

// soundness is what SQLite says of a file that no store has open.
func soundness(t *testing.T, path string) (said string) {
	t.Helper()
	db, err := sql.Open("sqlite", dsn(path, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&said); err != nil {
		t.Fatal(err)
	}
	return said
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name                          string
		megabytes, messages, body, at int // at once
		tokenTTL                      time.Duration
		first                         once.State // of the first messages in the end; "": they may have had room
	}{
		{"long answers", 6, 600, 16_000, 1, 0, once.Claimed},
		{"long answers, many at once", 12, 1200, 16_000, 64, 0, once.Claimed},
		{"long answers whose tokens are valid", 6, 800, 16_000, 16, time.Hour, once.Finished}, // they are shortened
		{"short answers, many at once", 8, 6000, 16, 64, 0, ""},
		{"a tiny disk", 1, 1000, 1000, 16, 0, once.Claimed},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			dir := smallDisk(t, row.megabytes)
			path := filepath.Join(dir, "receiver.db")
			s := open(t, path, time.Hour)
			closed := false
			t.Cleanup(func() {
				if !closed {
					_ = s.Close()
				}
			})
			finishAll := func(messages int) (last once.Claim) {
				var mu sync.Mutex
				var all sync.WaitGroup
				for range row.at {
					all.Go(func() {
						for range messages / row.at {
							c, err := finishFor(s, row.body, row.tokenTTL)
							if err != nil {
								t.Error(err)
								return
							}
							mu.Lock()
							last = c
							mu.Unlock()
						}
					})
				}
				all.Wait()
				return last
			}
			first := finishAll(row.at)
			finishAll(row.messages)
			giveBack := takeAll(t, dir)
			last := finishAll(row.messages / 10)
			if t.Failed() {
				return
			}
			if row.first != "" {
				oncetest.Want(t, s, oncetest.Again(first), row.first)
			}
			oncetest.Want(t, s, oncetest.Again(last), once.Finished)
			giveBack()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			closed = true
			if said := soundness(t, path); said != "ok" {
				t.Errorf("the file: %s", said)
			}
			again := open(t, path, time.Hour)
			oncetest.Want(t, again, oncetest.Again(last), once.Finished)
			if err := again.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRecovers has a store fail for want of room, where there is nothing to forget, and go on when there is some.
func TestRecovers(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, 2)
	s := open(t, filepath.Join(dir, "receiver.db"), time.Hour)
	t.Cleanup(func() { _ = s.Close() })
	commit := func(statement string) error {
		c := oncetest.NewClaim()
		if _, err := s.Claim(c); err != nil {
			return err
		}
		return s.Commit(t.Context(), c.Key, c.Holder, c.Lease, func(tx *sql.Tx) (once.Answer, error) {
			_, err := tx.ExecContext(t.Context(), statement)
			return done, err
		})
	}
	if err := commit("CREATE TABLE letters (text TEXT)"); err != nil {
		t.Fatal(err)
	}
	giveBack := takeAll(t, dir)
	if err := commit("INSERT INTO letters VALUES (zeroblob(3000000))"); !isFull(err) {
		t.Fatalf("got %v, want that the disk is full", err)
	}
	failed := false
	for range 1000 { // tokens alone are not forgotten
		_, err := s.Claim(oncetest.NewClaim())
		failed = failed || err != nil
	}
	giveBack()
	if _, err := finish(s, 10); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if err := commit("INSERT INTO letters VALUES (zeroblob(100000))"); err != nil {
		t.Errorf("with room again: %v", err)
	}
	t.Logf("a claim failed on the full disk: %v", failed)
}

func TestFullDiskIsSaidAtStart(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, 1)
	if err := os.WriteFile(filepath.Join(dir, "hog"), make([]byte, 1<<20-8<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), filepath.Join(dir, "receiver.db"), time.Hour, time.Second, quietLog)
	if err == nil {
		_ = s.Close()
		t.Fatal("it was opened")
	}
	if !strings.Contains(err.Error(), "free space") {
		t.Errorf("got %v", err)
	}
}

func TestCannotOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for path, want := range map[string]string{
		dir:                            "is a directory",
		filepath.Join(dir, "no", "db"): "make it, or mount the volume there",
	} {
		if _, err := Open(t.Context(), path, time.Hour, time.Second, quietLog); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", path, err, want)
		}
	}
}

// lines is a log to read.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
	came chan struct{}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	select {
	case l.came <- struct{}{}:
	default:
	}
	return len(p), nil
}

func TestDeletedFileIsSaidOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "receiver.db")
	log := &lines{came: make(chan struct{}, 1)}
	s, err := Open(t.Context(), path, time.Hour, time.Second, slog.New(slog.NewJSONHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	<-log.came
	c, err := finish(s, 10)
	if err != nil {
		t.Fatal(err)
	}
	oncetest.Want(t, s, oncetest.Again(c), once.Finished)
	log.mu.Lock()
	defer log.mu.Unlock()
	if strings.Count(log.text.String(), `"level":"ERROR"`) != 1 || !strings.Contains(log.text.String(), "deleted or replaced") {
		t.Errorf("logged %s", log.text.String())
	}
}

// hold has the writer wait in a Commit until the function that it returns is called.
func hold(t *testing.T, s *Store) (letGo func()) {
	t.Helper()
	c := oncetest.NewClaim()
	oncetest.Want(t, s, c, once.Claimed)
	begun, end, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- s.Commit(context.Background(), c.Key, c.Holder, c.Lease, func(*sql.Tx) (once.Answer, error) {
			close(begun)
			<-end
			return done, nil
		})
	}()
	<-begun
	return func() {
		close(end)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestEndsOfRunsAreNeverDropped(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "receiver.db"), time.Hour)
	runs := make([]once.Claim, 2*batchSize) // more than may wait in line
	for i := range runs {
		runs[i] = oncetest.NewClaim()
		oncetest.Want(t, s, runs[i], once.Claimed)
	}
	released, late := oncetest.NewClaim(), oncetest.NewClaim()
	oncetest.Want(t, s, released, once.Claimed)
	letGo := hold(t, s)
	var callers sync.WaitGroup
	gaveUp := func(err error) {
		if !errors.Is(err, errSlow) {
			t.Errorf("got %v, want %v", err, errSlow)
		}
	}
	for _, c := range runs {
		callers.Go(func() { gaveUp(s.Complete(c.Key, c.Holder, done)) })
	}
	callers.Go(func() { gaveUp(s.Release(released.Key, released.Holder)) })
	callers.Go(func() { _, err := s.Claim(late); gaveUp(err) })
	callers.Wait() // nobody waits any more
	letGo()
	if err := s.Forget(oncetest.NewKey(), oncetest.NewKey()); err != nil {
		t.Fatal(err)
	}
	s.late.Wait()
	for _, c := range runs {
		oncetest.Want(t, s, oncetest.Again(c), once.Finished)
	}
	oncetest.Want(t, s, oncetest.Again(released), once.Claimed)
	oncetest.Want(t, s, oncetest.Again(late), once.Claimed) // it was not begun
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestOneBadDecisionFailsAlone(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "receiver.db"), time.Hour)
	defer s.Close()
	c, failed := oncetest.NewClaim(), errors.New("failed")
	oncetest.Want(t, s, c, once.Claimed)
	requests := []*request{
		{decide: func(now time.Time) error { _, err := s.finish(c.Key, c.Holder, done, now); return err }},
		{decide: func(time.Time) error { return failed }},
		{decide: func(time.Time) error { return nil }},
	}
	letGo := hold(t, s)
	for _, r := range requests { // they wait together
		r.ctx, r.done = t.Context(), make(chan error, 1)
		s.requests <- r
	}
	letGo()
	for i, want := range []error{nil, failed, nil} {
		if err := <-requests[i].done; !errors.Is(err, want) {
			t.Errorf("request %d: %v, want %v", i, err, want)
		}
	}
	oncetest.Want(t, s, oncetest.Again(c), once.Finished)
}

// TestCommitOutsideItsTransaction has functions lose their transaction, and go on as if they had not.
func TestCommitOutsideItsTransaction(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(tx *sql.Tx) error{
		"it commits": func(tx *sql.Tx) error { _, err := tx.Exec("COMMIT"); return err },
		"it rolls back, and begins anew": func(tx *sql.Tx) error {
			_, err := tx.Exec("ROLLBACK; BEGIN")
			return err
		},
		"a statement that writes is interrupted": func(tx *sql.Tx) error {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			defer cancel()
			_, err := tx.ExecContext(ctx, "INSERT INTO letters WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n")
			if err == nil {
				return errors.New("it was not interrupted")
			}
			return nil // a function that does not look at its errors
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, filepath.Join(t.TempDir(), "receiver.db"), time.Hour)
			defer s.Close()
			commit := func(c once.Claim, effects func(tx *sql.Tx) error) error {
				oncetest.Want(t, s, c, once.Claimed)
				return s.Commit(t.Context(), c.Key, c.Holder, c.Lease, func(tx *sql.Tx) (once.Answer, error) {
					return done, effects(tx)
				})
			}
			err := commit(oncetest.NewClaim(), func(tx *sql.Tx) error { _, err := tx.Exec("CREATE TABLE letters (text TEXT)"); return err })
			if err != nil {
				t.Fatal(err)
			}
			c := oncetest.NewClaim()
			err = commit(c, func(tx *sql.Tx) error {
				if _, err := tx.Exec("INSERT INTO letters VALUES ('dear sir')"); err != nil {
					return err
				}
				return lose(tx)
			})
			if !errors.Is(err, errEnded) {
				t.Errorf("got %v, want %v", err, errEnded)
			}
			oncetest.Want(t, s, oncetest.Again(c), once.Running)
			if _, err := finish(s, 10); err != nil { // the store is as good as before
				t.Error(err)
			}
		})
	}
}

// TestUsersTablesDoNotCount fills the file with a user's rows, and then with answers.
func TestUsersTablesDoNotCount(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "receiver.db")
	s := open(t, path, time.Hour)
	s.room.limit = 1 << 20 / 4096
	c := oncetest.NewClaim()
	oncetest.Want(t, s, c, once.Claimed)
	err := s.Commit(t.Context(), c.Key, c.Holder, c.Lease, func(tx *sql.Tx) (once.Answer, error) {
		_, err := tx.Exec("CREATE TABLE letters (text BLOB); INSERT INTO letters VALUES (zeroblob(4000000))")
		return done, err
	})
	if err != nil {
		t.Fatal(err)
	}
	var claims []once.Claim
	for range 150 {
		c, err := finish(s, 16_000)
		if err != nil {
			t.Fatal(err)
		}
		claims = append(claims, c)
	}
	kept := 0
	for _, c := range claims {
		look := oncetest.Again(c)
		look.Look = true
		if d, err := s.Claim(look); err == nil && d.State == once.Finished {
			kept++
		}
	}
	if kept < 40 || kept > 65 { // a megabyte of them
		t.Errorf("%d of 150 messages are remembered", kept)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() > 5_200_000 {
		t.Errorf("the file has %d bytes, %v", info.Size(), err)
	}
}

func TestSweeps(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "receiver.db"), time.Millisecond)
	defer s.Close()
	long := oncetest.NewClaim() // its rows are the oldest, and stay
	long.TokenTTL = time.Hour
	oncetest.Want(t, s, long, once.Claimed)
	for range 150 {
		if _, err := finish(s, 10); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.count(t, "qstash_messages"); n > 10 {
		t.Errorf("%d messages, most of them expired", n)
	}
	for end := time.Now().Add(10 * time.Second); s.count(t, "qstash_tokens") > 10; { // they are kept to the second
		if _, err := finish(s, 10); err != nil || time.Now().After(end) {
			t.Fatalf("%d tokens, most of them expired: %v", s.count(t, "qstash_tokens"), err)
		}
	}
	replay := oncetest.NewClaim()
	replay.Token = long.Token
	oncetest.Want(t, s, replay, once.Replayed)
}

func TestOpenLeavesNothing(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "receiver.db"), time.Hour)
	defer s.Close()
	if messages, tokens := s.count(t, "qstash_messages"), s.count(t, "qstash_tokens"); messages+tokens > 0 {
		t.Errorf("%d messages and %d tokens", messages, tokens)
	}
}

// BenchmarkSQLite is one message, a claim and a completion, of 64 callers. It reports how many rows are left of each.
func BenchmarkSQLite(b *testing.B) {
	for _, row := range []struct {
		name          string
		ttl, tokenTTL time.Duration
	}{{"remembered", time.Hour, time.Hour}, {"expiring", time.Second, time.Second}} {
		b.Run(row.name, func(b *testing.B) {
			dir, err := os.MkdirTemp(os.Getenv("BENCH_DIR"), "sqlite") // another disk, if there is one to measure
			if err != nil {
				b.Fatal(err)
			}
			defer os.RemoveAll(dir)
			s := open(b, filepath.Join(dir, "receiver.db"), row.ttl)
			b.SetParallelism(64 / runtime.GOMAXPROCS(0))
			b.ResetTimer()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					if _, err := finishFor(s, 16, row.tokenTTL); err != nil {
						b.Error(err)
					}
				}
			})
			b.StopTimer()
			b.ReportMetric(float64(s.count(b, "qstash_messages"))/float64(b.N), "messages/op")
			b.ReportMetric(float64(s.count(b, "qstash_tokens"))/float64(b.N), "tokens/op")
			if err := s.Close(); err != nil {
				b.Error(err)
			}
		})
	}
}

// count returns how many rows a table has.
func (s *Store) count(t testing.TB, table string) (rows int) {
	t.Helper()
	err := s.do(true, func(time.Time) error {
		return s.conn.QueryRowContext(t.Context(), "SELECT count(*) FROM "+table).Scan(&rows)
	})
	if err != nil {
		t.Fatal(err)
	}
	return rows
}
