package qstashtest

import (
	"context"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Run is the whole program.
type Run = func(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error

// Environment returns the least that the program starts with, on a free port, and changes to it.
func Environment(changes map[string]string) map[string]string {
	env := map[string]string{"PORT": "0", "QSTASH_CURRENT_SIGNING_KEY": CurrentKey, "QSTASH_NEXT_SIGNING_KEY": NextKey}
	maps.Copy(env, changes)
	return env
}

// Getenv reads from env as os.Getenv does.
func Getenv(env map[string]string) func(string) string {
	return func(name string) string { return env[name] }
}

// Program is the whole program, running in this process.
type Program struct {
	URL  string
	Log  *Log
	Stop context.CancelFunc // as the first SIGTERM does
	Done <-chan error       // what run returned, once; then it is closed
}

// Start runs run in Environment(env), and waits until it receives. It is stopped, and must stop well, when t ends.
func Start(t testing.TB, run Run, env map[string]string) *Program {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	log, done := NewLog(), make(chan error, 1)
	go func() {
		defer close(done)
		done <- run(ctx, nil, Getenv(Environment(env)), strings.NewReader(""), io.Discard, log)
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("the program ended with: %v", err)
		}
	})
	return &Program{URL: urlOf(t, log), Log: log, Stop: stop, Done: done}
}

// Binary is the path of the built program.
type Binary string

// Build builds the program, with flags of go build, unless it has not changed since the last time. The file is removed
// when t ends.
func Build(t testing.TB, flags ...string) Binary {
	t.Helper()
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatalf("go env GOMOD: %v", err)
	}
	root := filepath.Dir(strings.TrimSpace(string(mod)))
	// A look at each directory, so that go test takes no result of its cache after a change of the program.
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if entry.Name() == ".git" || entry.Name() == "node_modules" {
			return fs.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "receiver")
	// Go's cache keeps what go run has linked, and not what go build has.
	cmd := exec.Command("go", slices.Concat([]string{"run"}, flags, []string{"-exec", "cp", ".", path})...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the program: %v\n%s", err, out)
	}
	return Binary(path)
}

// Command returns the command that runs b in Environment(env) and nothing else.
func (b Binary) Command(env map[string]string, args ...string) *exec.Cmd {
	cmd := exec.Command(string(b), args...)
	env = Environment(env)
	for _, name := range slices.Sorted(maps.Keys(env)) {
		cmd.Env = append(cmd.Env, name+"="+env[name])
	}
	return cmd
}

// Process is the whole program as a process of its own.
type Process struct {
	URL string
	Log *Log // its stderr
	*exec.Cmd
}

// Start starts b in Environment(env), and waits until it receives. It is killed when t ends.
func (b Binary) Start(t testing.TB, env map[string]string) *Process {
	t.Helper()
	p := &Process{Log: NewLog(), Cmd: b.Command(env)}
	p.Stderr = p.Log
	if err := p.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	p.URL = urlOf(t, p.Log)
	return p
}

// Kill ends p as kill -9 does, and waits until it has ended.
func (p *Process) Kill() {
	_ = p.Process.Kill()
	_ = p.Wait()
}

// Signal sends s to p.
func (p *Process) Signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := p.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// urlOf waits until the program that writes log receives, and returns the URL that it does so on.
func urlOf(t testing.TB, log *Log) string {
	t.Helper()
	address, _ := log.Await(t, `"msg":"receiving"`)["address"].(string)
	return "http://localhost" + address[strings.LastIndex(address, ":"):]
}

// Service is an HTTP service behind FORWARD_URL. Each answer waits for the test.
type Service struct {
	URL    string
	Begun  <-chan string // bodies, as they come
	Finish chan<- int    // the status of the next answer
}

// NewService returns a service that runs until t ends.
func NewService(t testing.TB) Service {
	begun, finish := make(chan string, 100), make(chan int)
	ended := make(chan struct{})
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		begun <- string(body)
		select {
		case status := <-finish:
			w.WriteHeader(status)
		case <-ended:
		}
	}))
	t.Cleanup(func() { close(ended); web.Close() })
	return Service{URL: web.URL, Begun: begun, Finish: finish}
}

// NewOKService returns the URL of a service that answers 200 at once: business logic for tests of the whole program,
// whatever handler.go holds.
func NewOKService(t testing.TB) string {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"message":"ok"}`)
	}))
	t.Cleanup(web.Close)
	return web.URL
}
