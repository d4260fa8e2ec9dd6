package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// serveTest serves on a free port until the test's end.
func serveTest(t testing.TB, web *http.Server) (url, address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go web.Serve(l)
	t.Cleanup(func() { web.Close() })
	return "http://" + l.Addr().String(), l.Addr().String()
}

// runs counts how often the business logic ran.
func countRuns(runs *atomic.Int64, then runner) func(*server) {
	return func(s *server) {
		s.deliverer.run = func(ctx context.Context, m *Message) (answer, error) {
			runs.Add(1)
			return then(ctx, m)
		}
	}
}

func succeed(context.Context, *Message) (answer, error) { return okAnswer(nil), nil }

// raw sends text as it is and returns the answer without waiting for more.
func raw(t *testing.T, url, text string) (*http.Response, net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	answer, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return answer, c, r
}

// head is the request line and the headers of s, for raw, with extra ones.
func (s sending) head(t *testing.T, url, target, extra string) string {
	t.Helper()
	r := s.request(t, url)
	text := "POST " + target + " HTTP/1.1\r\nHost: localhost\r\n" + extra
	for name, values := range r.Header {
		text += name + ": " + values[0] + "\r\n"
	}
	return text + "\r\n"
}

func TestAnswersBeforeTheBody(t *testing.T) {
	t.Parallel()
	var runs atomic.Int64
	url, _ := startServer(t, map[string]string{"MAX_BODY_BYTES": "2000"}, func(s *server) {
		countRuns(&runs, succeed)(s)
	})
	busy, _ := startServer(t, nil, func(s *server) {
		countRuns(&runs, succeed)(s)
		s.verifier.bodies.held.Store(maxHeldBytes - 100)
	})
	const promise = "Content-Length: 1000\r\n"
	stranger := "POST / HTTP/1.1\r\nHost: localhost\r\nUpstash-Signature: a.b.c\r\n"
	signed := func(extra string) string { return sending{body: "x"}.head(t, url, "/", extra) }
	for _, row := range []struct {
		name, url, text string
		status          int
		body            string
		header          map[string]string
	}{
		{"a stranger's promised body is not waited for", url, stranger + promise + "\r\n", 401, `{"error":"unauthorized"}`, map[string]string{"Connection": "close"}},
		{"nor one in chunks", url, stranger + "Transfer-Encoding: chunked\r\n\r\n", 401, `{"error":"unauthorized"}`, map[string]string{"Connection": "close"}},
		{"nor one that waits for 100 Continue", url, stranger + promise + "Expect: 100-continue\r\n\r\n", 401, `{"error":"unauthorized"}`, map[string]string{"Connection": "close"}},
		{"nor that of another method", url, "PUT / HTTP/1.1\r\nHost: localhost\r\n" + promise + "\r\n", 405, `{"error":"method not allowed"}`, map[string]string{"Connection": "close", "Allow": "POST"}},
		{"a declared length over the limit", url, signed("Content-Length: 2001\r\n"), 413,
			`{"error":"too large: the body has 2001 bytes, MAX_BODY_BYTES allows 2000"}`, map[string]string{"Connection": "close"}},
		{"a body that the other bodies leave no room for", busy, signed(promise), 503,
			`{"error":"busy: the bodies of other messages fill the 67108864 bytes that this machine gives them"}`, map[string]string{"Retry-After": "5", "Connection": "close"}},
		{"a health check that promises a body", url, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + promise + "\r\n", 200, "ok", map[string]string{"Connection": "close"}},
		{"OPTIONS *", url, "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, `{"error":"method not allowed"}`, map[string]string{"Allow": "POST"}},
		{"CONNECT", url, "CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, `{"error":"method not allowed"}`, map[string]string{"Allow": "POST"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			begun := time.Now()
			got, _, _ := raw(t, row.url, row.text)
			body, err := io.ReadAll(got.Body)
			if err != nil {
				t.Fatal(err)
			}
			if got.StatusCode != row.status || string(body) != row.body {
				t.Errorf("got %d %s", got.StatusCode, body)
			}
			if time.Since(begun) > 10*time.Second {
				t.Errorf("the answer took %s", time.Since(begun))
			}
			for name, value := range row.header {
				if name == "Connection" { // http.ReadResponse keeps it here
					if !got.Close {
						t.Error("the connection stays open")
					}
				} else if got.Header.Get(name) != value {
					t.Errorf("%s: %q, want %q", name, got.Header.Get(name), value)
				}
			}
		})
	}
	t.Cleanup(func() {
		if runs.Load() != 0 {
			t.Errorf("the business logic ran %d times", runs.Load())
		}
	})
}

func TestAnswersToBodies(t *testing.T) {
	t.Parallel()
	var runs atomic.Int64
	l := startLimits(t, &runs)
	chunk := func(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }
	for _, row := range []struct {
		name, text, then string // then: what is sent before the sender closes its side
		status           int
		runs             int64
	}{
		{"a body in chunks is taken", sending{body: "hello"}.head(t, l, "/", "Transfer-Encoding: chunked\r\n") + chunk("hel") + chunk("lo") + chunk(""), "", 200, 1},
		{"a body in chunks that is over the limit", sending{body: "x"}.head(t, l, "/", "Transfer-Encoding: chunked\r\n") + chunk(strings.Repeat("x", 2001)), "", 413, 0},
		{"a body of just the limit", sending{body: strings.Repeat("x", 2000)}.head(t, l, "/", "Content-Length: 2000\r\n") + strings.Repeat("x", 2000), "", 200, 1},
		{"a body that waits for 100 Continue", sending{body: "hello"}.head(t, l, "/", "Content-Length: 5\r\nExpect: 100-continue\r\n"), "hello", 100, 1},
		{"a body that stalls", sending{body: "hello"}.head(t, l, "/", "Content-Length: 5\r\n") + "hel", "", 408, 0},
		{"a body that is not the one that was signed", sending{body: "hello"}.head(t, l, "/", "Content-Length: 5\r\n") + "hellO", "", 401, 0},
		{"no body", sending{}.head(t, l, "/", ""), "", 200, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := runs.Load()
			got, c, r := raw(t, l, row.text)
			if got.StatusCode != row.status {
				t.Errorf("got %d, want %d", got.StatusCode, row.status)
			}
			if row.then != "" {
				if _, err := io.WriteString(c, row.then); err != nil {
					t.Fatal(err)
				}
				if final, err := http.ReadResponse(r, nil); err != nil || final.StatusCode != 200 {
					t.Errorf("then got %v, %v", final, err)
				}
			}
			if ran := runs.Load() - before; ran != row.runs {
				t.Errorf("ran %d times, want %d", ran, row.runs)
			}
		})
	}
	t.Run("a body shorter than declared", func(t *testing.T) {
		c, err := net.Dial("tcp", strings.TrimPrefix(l, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, sending{body: "hello"}.head(t, l, "/", "Content-Length: 5\r\n")+"hel")
		_ = c.(*net.TCPConn).CloseWrite()
		got, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || got.StatusCode != 408 {
			t.Errorf("got %v, %v, want 408", got, err)
		}
	})
}

// startLimits serves with a short ReadTimeout, so that a stalled body ends soon.
func startLimits(t *testing.T, runs *atomic.Int64) string {
	t.Helper()
	c, err := loadConfig(testEnv(map[string]string{"MAX_BODY_BYTES": "2000"}))
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(c, newMemoryStore(time.Hour), discard)
	countRuns(runs, succeed)(s)
	web := newHTTPServer(s, discard)
	web.ReadTimeout = 500 * time.Millisecond
	url, _ := serveTest(t, web)
	return url
}

// What a server's own deadlines would cut: business logic that outlasts them, and a caller that is gone.
func TestBusinessLogicIsNotCut(t *testing.T) {
	t.Parallel()
	c, err := loadConfig(testEnv(nil))
	if err != nil {
		t.Fatal(err)
	}
	begun, finish := make(chan context.Context), make(chan bool)
	s := newServer(c, newMemoryStore(time.Hour), discard)
	s.deliverer.run = func(ctx context.Context, m *Message) (answer, error) {
		begun <- ctx
		<-finish
		return okAnswer([]byte("late")), ctx.Err()
	}
	web := newHTTPServer(s, discard)
	if web.WriteTimeout != 0 {
		t.Error("a WriteTimeout cuts long business logic")
	}
	const deadline = 20 * time.Millisecond
	web.ReadTimeout, web.ReadHeaderTimeout, web.IdleTimeout = deadline, deadline, deadline
	ended := make(chan bool, 8) // the request's own context, which a hang-up ends
	web.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		context.AfterFunc(r.Context(), func() { ended <- true })
		s.ServeHTTP(w, r)
	})
	url, _ := serveTest(t, web)

	t.Run("by the server's timeouts", func(t *testing.T) {
		got := make(chan reply, 1)
		go func() {
			r, _ := tryDo(sending{body: "x"}.request(t, url))
			got <- r
		}()
		<-begun
		time.Sleep(5 * deadline) // what is tested is that nothing happens
		finish <- true
		if r := <-got; r.status != 200 || r.body != "late" {
			t.Errorf("got %+v", r)
		}
		<-ended
	})
	t.Run("by a caller that hangs up", func(t *testing.T) {
		ctx, hangUp := context.WithCancel(t.Context())
		message := sending{id: "msg_hangs_up", body: "x"}
		failed := make(chan error, 1)
		go func() {
			_, err := tryDo(message.request(t, url).WithContext(ctx))
			failed <- err
		}()
		logic := <-begun
		hangUp()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		<-ended
		if logic.Err() != nil {
			t.Errorf("the business logic's context has ended: %v", logic.Err())
		}
		go func() { finish <- true }()
		if r := do(t, message.request(t, url)); r.status != 200 || r.body != "late" || r.header.Get("Idempotent-Replayed") != "true" {
			t.Errorf("the next attempt got %+v, not the first one's answer", r)
		}
	})
}

func TestPathsAreTakenAsSent(t *testing.T) {
	t.Parallel()
	var seen sync.Map
	url, _ := startServer(t, map[string]string{"RECEIVER_URL": "https://app.example"}, func(s *server) {
		s.deliverer.run = func(_ context.Context, m *Message) (answer, error) {
			seen.Store(m.Unverified.ID, m.URL.String())
			return okAnswer(nil), nil
		}
	})
	for _, path := range []string{"/", "/a/b?x=1", "//a", "/a//b", "/a/../b", "/a/./b", "/a%2Fb", "/a/", "/a?", "/a?x=%20&y", "/healthz", "/failure"} {
		s := sending{id: path, body: "x", subject: "https://app.example" + path}
		got, _, _ := raw(t, url, s.head(t, url, path, "Content-Length: 1\r\n")+"x")
		if u, _ := seen.Load(path); got.StatusCode != 200 || u != "https://app.example"+path {
			t.Errorf("%s: status %d, the message's URL is %v", path, got.StatusCode, u)
		}
	}
	absolute := sending{id: "absolute", body: "x", subject: "https://app.example/p?q"}
	got, _, _ := raw(t, url, absolute.head(t, url, "http://evil.example/p?q", "Content-Length: 1\r\n")+"x")
	if u, _ := seen.Load("absolute"); got.StatusCode != 200 || u != "https://app.example/p?q" {
		t.Errorf("an absolute request target: status %d, the message's URL is %v", got.StatusCode, u)
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	url, log := startServer(t, nil, func(*server) {})
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		r, _ := http.NewRequest(method, url+"/healthz", nil)
		want := map[string]string{http.MethodGet: "ok"}[method]
		if got := do(t, r); got.status != 200 || got.body != want {
			t.Errorf("%s: %+v", method, got)
		}
	}
	if log.String() != "" {
		t.Errorf("a health check is logged: %s", log)
	}
}

func TestRefusalsDoNotFillTheLog(t *testing.T) {
	t.Parallel()
	url, log := startServer(t, nil, func(*server) {})
	var strangers sync.WaitGroup
	for range 8 {
		strangers.Go(func() {
			for range 50 {
				r, _ := http.NewRequest(http.MethodPost, url, nil)
				if got, err := tryDo(r); err != nil || got.status != 401 {
					t.Error(got, err)
				}
			}
		})
	}
	strangers.Wait()
	log.await(t, `"msg":"refused deliveries left out of the log"`)
	var logged, leftOut float64
	for line := range strings.Lines(log.String()) {
		logged++
		leftOut += newTestLogOf(line).await(t, "left_out")["left_out"].(float64)
	}
	if rest := strings.Count(log.String(), "left out of the log"); logged-float64(rest)+leftOut != 400 {
		t.Errorf("%v lines (%d of the rest) that leave out %v, of 400", logged, rest, leftOut)
	}
}

func newTestLogOf(text string) *testLog {
	l := newTestLog()
	l.text.WriteString(text)
	return l
}

func TestLineLimit(t *testing.T) {
	t.Parallel()
	var l lineLimit
	l.rest = func(int) {}
	var through int
	for begun := time.Now(); time.Since(begun) < 900*time.Millisecond; {
		l.line(func(int) { through++ })
	}
	if through != 10 {
		t.Errorf("%d lines in less than a second", through)
	}
}

func TestRolledKeysAreLoggedOnce(t *testing.T) {
	t.Parallel()
	url, log := startServer(t, map[string]string{
		"EU_CENTRAL_1_QSTASH_CURRENT_SIGNING_KEY": euCurrent, "EU_CENTRAL_1_QSTASH_NEXT_SIGNING_KEY": euNext,
	}, func(*server) {})
	for _, row := range []struct {
		key         string
		next, again int // lines so far
	}{
		{currentKey, 0, 0}, {euCurrent, 0, 0}, // nothing to do
		{nextKey, 1, 0}, {nextKey, 1, 0}, {nextKey, 1, 0},
		{euCurrent, 1, 0}, {nextKey, 1, 0}, // another pair has nothing to do with it
		{euNext, 2, 0}, {euNext, 2, 0},
		{currentKey, 2, 1}, {currentKey, 2, 1},
		{nextKey, 3, 1},
	} {
		if got := do(t, sending{body: "x", key: row.key}.request(t, url)); got.status != 200 {
			t.Fatalf("got %+v", got)
		}
		next, again := strings.Count(log.String(), "now verify with the next signing key"), strings.Count(log.String(), "current signing key again")
		if next != row.next || again != row.again {
			t.Errorf("after a message signed with %s: %d and %d lines, want %d and %d", row.key, next, again, row.next, row.again)
		}
	}
}
