package qstashtest

import (
	"cmp"
	"crypto/rand"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // database/sql's driver "pgx"
)

// PostgresURL returns the URL of a new, empty database in the Postgres that tests share: TEST_POSTGRES_URL, or the one
// on this machine. It skips the test where there is none. The database is dropped when t ends.
func PostgresURL(t testing.TB) string {
	t.Helper()
	v := cmp.Or(os.Getenv("TEST_POSTGRES_URL"), "postgres://postgres@127.0.0.1:5432/postgres")
	u, err := url.Parse(v)
	if err != nil {
		t.Fatalf("read TEST_POSTGRES_URL: %v", err)
	}
	skipUnlessListening(t, u.Host, "start a Postgres, or name one in TEST_POSTGRES_URL")
	name := "qstash_test_" + strings.ToLower(rand.Text())
	PostgresExec(t, v, "CREATE DATABASE "+name)
	t.Cleanup(func() { PostgresExec(t, v, "DROP DATABASE "+name+" WITH (FORCE)") })
	u.Path = "/" + name
	return u.String()
}

// PostgresExec runs statements in the database of url, on a connection of their own.
func PostgresExec(t testing.TB, url string, statements ...string) {
	t.Helper()
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

// Postgres is a server of the test's own, on a port that stays the same when it is started again.
type Postgres struct {
	Port string
	dir  string
	args []string
	process
}

// NewPostgres starts a Postgres with args on its command line. Its superuser is postgres, and nobody but a user
// called locked, if the test makes one, needs a password. It is stopped when t ends.
func NewPostgres(t testing.TB, args ...string) *Postgres {
	t.Helper()
	p := newPostgres(t, args)
	p.run(t, "initdb", "--pgdata", p.dir, "--username", "postgres", "--auth", "trust", "--no-sync")
	logins := "host all locked all scram-sha-256\nhost all all all trust\nhost replication all all trust\n"
	if err := os.WriteFile(filepath.Join(p.dir, "pg_hba.conf"), []byte(logins), 0o644); err != nil {
		t.Fatal(err)
	}
	p.Start(t)
	t.Cleanup(p.Stop)
	return p
}

// NewReplica starts a read-only replica of p.
func (p *Postgres) NewReplica(t testing.TB) *Postgres {
	t.Helper()
	r := newPostgres(t, nil)
	p.run(t, "pg_basebackup", "--dbname", p.URL("postgres"), "--pgdata", r.dir,
		"--write-recovery-conf", "--checkpoint", "fast", "--no-sync")
	r.Start(t)
	t.Cleanup(r.Stop)
	return r
}

func newPostgres(t testing.TB, args []string) *Postgres {
	t.Helper()
	if postgresProgram("postgres") == "" || postgresProgram("initdb") == "" {
		t.Skip("no Postgres on this machine to start and stop: install postgresql")
	}
	return &Postgres{Port: FreePort(t), dir: ownDir(t), args: args}
}

// URL returns its URL for username and the database postgres.
func (p *Postgres) URL(username string) string {
	return fmt.Sprintf("postgres://%s@127.0.0.1:%s/postgres", username, p.Port)
}

// Start starts it again after Stop.
func (p *Postgres) Start(t testing.TB) {
	t.Helper()
	// What a killed process has written is in the system's hands: there is no need to wait for the disk.
	args := append([]string{"-D", p.dir, "-p", p.Port, "-h", "127.0.0.1", "-k", p.dir, "-F"}, p.args...)
	p.start(t, asOther(exec.Command(postgresProgram("postgres"), args...)))
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		out, err := exec.Command(postgresProgram("pg_isready"), "--dbname", p.URL("postgres")).CombinedOutput()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("pg_isready: %v: %s", err, out)
		}
	}
}

// Stop ends it at once, as a crash would, with all that it has started.
func (p *Postgres) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGQUIT)
	_ = p.cmd.Wait()
}

func (p *Postgres) run(t testing.TB, program string, args ...string) {
	t.Helper()
	if out, err := asOther(exec.Command(postgresProgram(program), args...)).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
}

// PgBouncer is a pooler of the test's own.
type PgBouncer struct {
	Port string
	args []string
	process
}

// NewPgBouncer starts a PgBouncer in transaction mode with pool connections to the Postgres of url, under each
// database's own name. It is stopped when t ends.
func NewPgBouncer(t testing.TB, postgres string, pool int) *PgBouncer {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		t.Skip("no pgbouncer on this machine to start and stop: install pgbouncer")
	}
	u, err := url.Parse(postgres)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	b := &PgBouncer{Port: FreePort(t)}
	dir := ownDir(t)
	config, users := filepath.Join(dir, "pgbouncer.ini"), filepath.Join(dir, "users.txt")
	text := fmt.Sprintf(`
[databases]
* = host=%s port=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %s
unix_socket_dir =
auth_type = trust
auth_file = %s
pool_mode = transaction
default_pool_size = %d
server_login_retry = 1
`, u.Hostname(), cmp.Or(u.Port(), "5432"), b.Port, users, pool)
	for path, text := range map[string]string{config: text, users: fmt.Sprintf("%q %q\n", u.User.Username(), password)} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b.args = []string{program, "-q", config}
	b.Start(t)
	t.Cleanup(b.Stop)
	return b
}

// URL returns postgres, whose pooler it is, by way of it.
func (b *PgBouncer) URL(postgres string) string {
	u, err := url.Parse(postgres)
	if err != nil {
		return ""
	}
	u.Host = "127.0.0.1:" + b.Port
	return u.String()
}

// Start starts it again after Stop.
func (b *PgBouncer) Start(t testing.TB) {
	t.Helper()
	b.start(t, asOther(exec.Command(b.args[0], b.args[1:]...)))
	awaitListening(t, "127.0.0.1:"+b.Port)
}

// postgresProgram returns the path of one of Postgres's programs, of the newest version there is; "": none.
func postgresProgram(name string) string {
	// Debian keeps them out of the PATH.
	paths, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if len(paths) > 0 {
		return slices.MaxFunc(paths, func(a, b string) int { return versionOf(a) - versionOf(b) })
	}
	path, _ := exec.LookPath(name)
	return path
}

func versionOf(path string) int {
	version, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	return version
}

// asOther makes cmd run as an ordinary user, where root would run it: Postgres refuses to run as root.
func asOther(cmd *exec.Cmd) *exec.Cmd {
	if uid, gid, ok := otherUser(); ok {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		cmd.Dir = "/"
	}
	return cmd
}

// ownDir returns a new directory of the user that asOther runs programs as.
func ownDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "qstash-receiver-") // t.TempDir's own is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if uid, gid, ok := otherUser(); ok {
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// otherUser returns the user postgres, or nobody, if this is root.
func otherUser() (uid, gid int, ok bool) {
	if os.Geteuid() != 0 {
		return 0, 0, false
	}
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			uid, _ = strconv.Atoi(u.Uid)
			gid, _ = strconv.Atoi(u.Gid)
			return uid, gid, true
		}
	}
	return 0, 0, false
}
