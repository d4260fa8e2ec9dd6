package qstashtest

import (
	"cmp"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// RedisURL returns the URL of the Redis that tests share: TEST_REDIS_URL, or database 15 of the one on this machine.
// It skips the test where there is none. Keys in it are random, so nothing has to be cleaned before.
func RedisURL(t testing.TB) string {
	t.Helper()
	v := cmp.Or(os.Getenv("TEST_REDIS_URL"), "redis://127.0.0.1:6379/15")
	u, err := url.Parse(v)
	if err != nil {
		t.Fatalf("read TEST_REDIS_URL: %v", err)
	}
	skipUnlessListening(t, u.Host, "start a Redis, or name one in TEST_REDIS_URL")
	return v
}

// Redis is a server of the test's own, on a port that stays the same when it is started again.
type Redis struct {
	Port string
	args []string
	process
}

// NewRedis starts a Redis that keeps nothing on disk, with args on its command line. It is stopped when t ends.
func NewRedis(t testing.TB, args ...string) *Redis {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("no redis-server on this machine to start and stop: install redis")
	}
	port := FreePort(t)
	r := &Redis{Port: port, args: append([]string{
		"--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", t.TempDir(),
	}, args...)}
	r.Start(t)
	t.Cleanup(r.Stop)
	return r
}

// URL returns its redis:// URL.
func (r *Redis) URL() string { return "redis://127.0.0.1:" + r.Port }

// Start starts it again after Stop.
func (r *Redis) Start(t testing.TB) {
	t.Helper()
	r.start(t, exec.Command("redis-server", r.args...))
	awaitListening(t, "127.0.0.1:"+r.Port)
}

// process is a program that a test starts, stops and pauses.
type process struct{ cmd *exec.Cmd }

func (p *process) start(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.cmd = cmd
}

// Stop kills it.
func (p *process) Stop() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// Pause keeps it from answering, Resume lets it go on.
func (p *process) Pause()  { _ = p.cmd.Process.Signal(syscall.SIGSTOP) }
func (p *process) Resume() { _ = p.cmd.Process.Signal(syscall.SIGCONT) }

// FreePort returns a port that nobody listens on, outside of those that the system gives to whoever asks for any.
func FreePort(t testing.TB) string {
	t.Helper()
	for range 1000 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		// Below the range that is in use, and as random.
		port := strconv.Itoa(10_000 + l.Addr().(*net.TCPAddr).Port%20_000)
		l.Close()
		if l, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return ""
}

// awaitListening returns when something listens at addr.
func awaitListening(t testing.TB, addr string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func skipUnlessListening(t testing.TB, addr, fix string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		t.Skipf("nobody answers at %s: %s: %v", addr, fix, err)
	}
	c.Close()
}
