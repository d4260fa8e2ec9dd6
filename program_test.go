package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// sending is a delivery as QStash makes it; what is "" is made up anew for each.
type sending struct {
	path, body string
	id, jti    string
	subject    string
	key        string
	header     map[string]string
}

// request is s as a request to base, signed now by the tests' own signer.
func (s sending) request(t testing.TB, base string) *http.Request {
	t.Helper()
	or := func(v, other string) string {
		if v == "" {
			return other
		}
		return v
	}
	id, jti := or(s.id, "msg_"+rand.Text()), or(s.jti, "jwt_"+rand.Text())
	target := base + or(s.path, "/")
	now := time.Now().Unix()
	payload := fmt.Sprintf(`{"aud":"","body":%q,"exp":%d,"iat":%d,"iss":"Upstash","jti":%q,"nbf":-62135596800,"sub":%q}`,
		hashOf(s.body), now+300, now, jti, or(s.subject, target))
	r, err := http.NewRequest(http.MethodPost, target, strings.NewReader(s.body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"Content-Type": "application/json", "User-Agent": "Upstash-QStash", "Upstash-Retried": "0", "Upstash-Message-Id": id,
		"Upstash-Signature": hmacToken(sha256.New, `{"alg":"HS256","typ":"JWT"}`, payload, or(s.key, currentKey)),
	} {
		r.Header.Set(name, value)
	}
	for name, value := range s.header {
		r.Header.Set(name, value)
	}
	return r
}

// reply is what came back.
type reply struct {
	status int
	header http.Header
	body   string
}

func do(t testing.TB, r *http.Request) reply {
	t.Helper()
	got, err := tryDo(r)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// testTransport keeps enough connections for every test that runs at once.
var testTransport = &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}

func tryDo(r *http.Request) (reply, error) {
	answer, err := testTransport.RoundTrip(r) // follows no redirects
	if err != nil {
		return reply{}, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return reply{answer.StatusCode, answer.Header, string(body)}, err
}

// testLog is a log that tests read while it is written.
type testLog struct {
	mu      sync.Mutex
	changed *sync.Cond
	text    bytes.Buffer
}

func newTestLog() *testLog {
	l := &testLog{}
	l.changed = sync.NewCond(&l.mu)
	return l
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.changed.Broadcast()
	return l.text.Write(p)
}

func (l *testLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// await returns the first line that holds all of parts, once it is there.
func (l *testLog) await(t testing.TB, parts ...string) map[string]any {
	t.Helper()
	late := time.AfterFunc(15*time.Second, l.changed.Broadcast)
	defer late.Stop()
	begun := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
	lines:
		for line := range strings.Lines(l.text.String()) {
			for _, part := range parts {
				if !strings.Contains(line, part) {
					continue lines
				}
			}
			var fields map[string]any
			if err := json.Unmarshal([]byte(line), &fields); err != nil {
				t.Fatalf("a log line is not JSON: %s", line)
			}
			return fields
		}
		if time.Since(begun) > 14*time.Second {
			t.Fatalf("no log line with %q in:\n%s", parts, l.text.String())
		}
		l.changed.Wait()
	}
}

// program is the whole program, running.
type program struct {
	url  string
	log  *testLog
	stop context.CancelFunc // as the first SIGTERM does
	done chan error         // what run returned
}

// testEnv is the least that the program starts with, and changes to it.
func testEnv(changes map[string]string) func(string) string {
	env := map[string]string{"PORT": "0", "QSTASH_CURRENT_SIGNING_KEY": currentKey, "QSTASH_NEXT_SIGNING_KEY": nextKey}
	for name, value := range changes {
		env[name] = value
	}
	return func(name string) string { return env[name] }
}

// startProgram runs run. It is stopped, and must stop well, at the test's end at the latest.
func startProgram(t testing.TB, env map[string]string) *program {
	t.Helper()
	p := &program{log: newTestLog(), done: make(chan error, 1)}
	var ctx context.Context
	ctx, p.stop = context.WithCancel(context.Background())
	go func() {
		defer close(p.done)
		p.done <- run(ctx, nil, testEnv(env), strings.NewReader(""), io.Discard, p.log)
	}()
	t.Cleanup(func() {
		p.stop()
		if err, ok := <-p.done; ok && err != nil {
			t.Errorf("the program ended with: %v", err)
		}
	})
	address := p.log.await(t, `"msg":"receiving"`)["address"].(string)
	p.url = "http://localhost" + address[strings.LastIndex(address, ":"):]
	return p
}

// succeedingService is the business logic of tests that run the whole program, whatever handler.go holds.
func succeedingService(t testing.TB) string {
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(okBody)
	}))
	t.Cleanup(service.Close)
	return service.URL
}

// startServer serves what newServer makes of the environment, after change. Its answers are the program's, its
// business logic and its times are the test's.
func startServer(t testing.TB, env map[string]string, change func(*server)) (string, *testLog) {
	t.Helper()
	c, err := loadConfig(testEnv(env))
	if err != nil {
		t.Fatal(err)
	}
	log := newTestLog()
	logger := slog.New(slog.NewJSONHandler(log, nil))
	remembered, err := openStore(t.Context(), c.store, c.storeTTL, time.Second, logger)
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(c, remembered, logger)
	if c.forward == nil {
		s.deliverer.run = succeed // whatever handler.go holds
	}
	change(s)
	url, _ := serveTest(t, newHTTPServer(s, logger))
	return url, log
}

// built is the built program, for tests that kill it.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "receiver")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "receiver")
	if out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, out)
	}
	return path, nil
})
