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
	"path/filepath"
	"strings"
	"sync"
	"syscall"
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

// finish claims and completes a message with a body of n bytes whose token is valid for a millisecond.
func finish(s *Store, n int) (once.Claim, error) {
	c := oncetest.NewClaim()
	c.TokenTTL = time.Millisecond
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
	for _, row := range []struct {
		name string
		make func(t *testing.T, path string)
		want string // in the error; "": it is taken
	}{
		{"no file", func(*testing.T, string) {}, ""},
		{"an empty file", text(""), ""},
		{"the earlier version's", database(earlierSchema), ""},
		{"the earlier version's, still in its log", leftInLog(earlierSchema), ""},
		{"an empty database", database("CREATE TABLE x (y)", "DROP TABLE x"), ""},
		{"another program's, with a table messages", database("CREATE TABLE messages (id INTEGER PRIMARY KEY, text TEXT)"), "another program's"},
		{"another program's, with the earlier version's tables and one more", database(earlierSchema, "CREATE TABLE more (x)"), "another program's"},
		{"another program's, in its log", leftInLog("CREATE TABLE notes (x)"), "another program's"},
		{"another program's, by its application id", database("PRAGMA application_id = 1"), "another program's"},
		{"a later version's", database(fmt.Sprintf("PRAGMA application_id = %d", applicationID), "PRAGMA user_version = 99"), "later version"},
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
	good, bad := oncetest.NewKey(), oncetest.NewKey()
	later := time.Now().Add(time.Hour).UnixMilli()
	for _, err := range []error{
		func() error { _, err := db.Exec(earlierSchema); return err }(),
		func() error {
			_, err := db.Exec(`INSERT INTO messages (key, holder, until, expires, status, type, permanent, body, upstash) VALUES
				(?1, 'a', 0, ?3, 200, 'text/plain', 0, x'6f6b', 'Upstash-Workflow-Sdk-Version: 1' || x'0d0a'), (?2, 'b', 0, ?3, 489, 'application/json', 1, x'7b7d', '')`, good[:], bad[:], later)
			return err
		}(),
		db.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
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
}

func TestRowsAreBounded(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "receiver.db")
	s := open(t, path, time.Hour)
	defer s.Close()
	s.room.limit = 2 << 20
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
	s.room.limit = 1 << 20
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
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", megabytes)); err != nil {
		t.Skipf("needs leave to mount a file system: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

func TestSmallDisk(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, 24)
	s := open(t, filepath.Join(dir, "receiver.db"), time.Hour)
	defer s.Close()
	for i := range 3000 {
		if _, err := finish(s, 16_000); err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	// Somebody else takes what is left of the disk, to the last byte.
	hog, err := os.Create(filepath.Join(dir, "hog"))
	if err != nil {
		t.Fatal(err)
	}
	for size := 1 << 20; size > 0; {
		if _, err := hog.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	for i := range 500 {
		if _, err := finish(s, 16_000); err != nil {
			t.Fatalf("on the full disk, message %d: %v", i, err)
		}
	}
	_ = hog.Close()
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

func TestCommitDoesNotWedgeTheWriter(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "receiver.db"), time.Hour)
	defer s.Close()
	c := oncetest.NewClaim()
	oncetest.Want(t, s, c, once.Claimed)
	ctx, cancel := context.WithCancel(t.Context())
	begun, finish := make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- s.Commit(ctx, c.Key, c.Holder, c.Lease, func(*sql.Tx) (once.Answer, error) {
			close(begun)
			<-finish
			return done, nil
		})
	}()
	<-begun
	cancel() // and the function goes on
	oncetest.Want(t, s, oncetest.NewClaim(), once.Claimed)
	close(finish)
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the commit ended with %v", err)
	}
	oncetest.Want(t, s, oncetest.Again(c), once.Running)
}

func BenchmarkSQLite(b *testing.B) {
	for _, expiring := range []bool{false, true} {
		b.Run(fmt.Sprintf("expiring=%v", expiring), func(b *testing.B) {
			ttl := time.Hour
			if expiring {
				ttl = time.Millisecond
			}
			s := open(b, filepath.Join(b.TempDir(), "receiver.db"), ttl)
			defer s.Close()
			b.SetParallelism(32) // 64 callers on two CPUs
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					if _, err := finish(s, 16); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
