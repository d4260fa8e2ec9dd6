//go:build !lambda

package server

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"qstash-receiver/internal/deliver"
	"qstash-receiver/internal/logs"
	"qstash-receiver/internal/once"
	"qstash-receiver/internal/qstash"
	"qstash-receiver/internal/qstashtest"
)

// verify takes what qstashtest signs with its ordinary keys. It looks at no more of a token than that.
func verify(r *http.Request) (deliver.Proof, error) {
	token := r.Header.Get("Upstash-Signature")
	if token == "" {
		return deliver.Proof{}, deliver.Refuse(deliver.Missing, "there is no token")
	}
	signed, signature, _ := cutLast(token, ".")
	proof := deliver.Proof{URL: r.URL, Target: r.RequestURI, Expires: time.Now().Add(5 * time.Minute)}
	switch signature {
	case qstashtest.HMAC(sha256.New, signed, qstashtest.CurrentKey):
		proof.Key = "current"
	case qstashtest.HMAC(sha256.New, signed, qstashtest.NextKey):
		proof.Key = "next"
	default:
		return deliver.Proof{}, deliver.Refuse(deliver.Signature, "nobody's")
	}
	_, payload, _ := strings.Cut(signed, ".")
	decoded, _ := base64.RawURLEncoding.DecodeString(payload)
	var claims struct{ Body, Jti, Sub string }
	if err := json.Unmarshal(decoded, &claims); err != nil {
		return proof, deliver.Refuse(deliver.Malformed, "%v", err)
	}
	proof.Subject, proof.BodyHash, proof.Token = claims.Sub, claims.Body, once.KeyOf(claims.Jti)
	proof.Check = func(body []byte) error {
		if qstashtest.BodyHash(string(body)) != claims.Body {
			return deliver.Refuse(deliver.BodyHash, "another body")
		}
		return nil
	}
	return proof, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	at := strings.LastIndex(s, sep)
	if at < 0 {
		return s, "", false
	}
	return s[:at], s[at+len(sep):], true
}

// instance is a Server under test, on a port of its own.
type instance struct {
	*Server
	url string
	log *qstashtest.Log
}

// start serves until t ends: bodies of at most 10 MiB, with run as the business logic, unless change says otherwise.
func start(t testing.TB, run deliver.Runner, change func(*Config, *http.Server)) instance {
	t.Helper()
	p := instance{log: qstashtest.NewLog()}
	c := Config{Verify: verify, Run: run, Store: once.NewMemory(time.Hour), Timing: deliver.NewTiming(20 * time.Second), MaxBody: 10 << 20,
		Log: logs.New(p.log, slog.LevelInfo, false)}
	web := httpServer(nil)
	if change != nil {
		change(&c, web)
	}
	p.Server = New(c)
	web.Handler = p.Server
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go web.Serve(l)
	t.Cleanup(func() { web.Close() })
	p.url = "http://" + l.Addr().String()
	return p
}

type handler = func(ctx context.Context, m *qstash.Message) ([]byte, error)

// runner makes h the business logic.
func runner(h handler) deliver.Runner {
	return deliver.Handlers(h, func(context.Context, *qstash.Callback) error { return errors.New("not expected here") })
}

// counting is business logic that succeeds, and counts.
func counting(runs *atomic.Int64) deliver.Runner {
	return runner(func(context.Context, *qstash.Message) ([]byte, error) { runs.Add(1); return nil, nil })
}

func (p instance) send(t testing.TB, s qstashtest.Sending) qstashtest.Reply {
	t.Helper()
	return qstashtest.Do(t, s.Request(t, p.url))
}

// begin sends s, and returns where the answer will be; none has the status 0.
func (p instance) begin(t testing.TB, s qstashtest.Sending) <-chan qstashtest.Reply {
	t.Helper()
	r, reply := s.Request(t, p.url), make(chan qstashtest.Reply, 1)
	go func() {
		got, _ := qstashtest.TryDo(r)
		reply <- got
	}()
	return reply
}

// await returns when is has become true.
func await(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what)
		}
	}
}

func TestAnswersBeforeTheBody(t *testing.T) {
	t.Parallel()
	var runs atomic.Int64
	p := start(t, counting(&runs), func(c *Config, _ *http.Server) { c.MaxBody = 2000 })
	busy := start(t, counting(&runs), func(c *Config, _ *http.Server) { c.Timing.Wait = 20 * time.Millisecond })
	busy.room.held = MaxHeldBytes - 100
	const promise = "Content-Length: 1000\r\n"
	stranger := "POST / HTTP/1.1\r\nHost: localhost\r\nUpstash-Signature: a.b.c\r\n"
	signed := func(extra string) string { return qstashtest.Sending{Body: "x"}.Head(p.url, "", extra) }
	const unauthorized = `{"error":"unauthorized"}`
	for _, row := range []struct {
		sentence, url, text string
		status              int
		body                string
		close               bool
	}{
		{"a stranger's promised body is not waited for", p.url, stranger + promise + "\r\n", 401, unauthorized, true},
		{"nor one in chunks", p.url, stranger + "Transfer-Encoding: chunked\r\n\r\n", 401, unauthorized, true},
		{"nor one that waits for 100 Continue", p.url, stranger + promise + "Expect: 100-continue\r\n\r\n", 401, unauthorized, true},
		{"a stranger without a body may go on", p.url, stranger + "\r\n", 401, unauthorized, false},
		{"nobody's message", p.url, "POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", 401, unauthorized, false},
		{"another method's body", p.url, "PUT / HTTP/1.1\r\nHost: localhost\r\n" + promise + "\r\n", 405, `{"error":"method not allowed"}`, true},
		{"a genuine message by another method", p.url, strings.Replace(signed(promise), "POST", "PATCH", 1), 405, `{"error":"method not allowed"}`, true},
		{"a declared length over the limit", p.url, signed("Content-Length: 2001\r\n"), 413, `{"error":"too large: the body has 2001 bytes, MAX_BODY_BYTES allows 2000"}`, true},
		{"one that waits for 100 Continue", p.url, signed("Content-Length: 2001\r\nExpect: 100-continue\r\n"), 413,
			`{"error":"too large: the body has 2001 bytes, MAX_BODY_BYTES allows 2000"}`, true},
		{"a body that the other bodies leave no room for", busy.url, signed(promise), 503,
			`{"error":"busy: waited 20ms for room: the bodies of other messages fill the 67108864 bytes that this machine gives them together"}`, true},
		{"one that waits for 100 Continue gets none meanwhile", busy.url, signed(promise + "Expect: 100-continue\r\n"), 503,
			`{"error":"busy: waited 20ms for room: the bodies of other messages fill the 67108864 bytes that this machine gives them together"}`, true},
		{"a health check that promises a body", p.url, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + promise + "\r\n", 200, "ok", true},
		{"a GET of another path", p.url, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, `{"error":"method not allowed"}`, false},
		{"a GET of nearly /healthz", p.url, "GET /%68ealthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, `{"error":"method not allowed"}`, false},
		{"DELETE /healthz", p.url, "DELETE /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, `{"error":"method not allowed"}`, false},
		{"OPTIONS *", p.url, "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, `{"error":"method not allowed"}`, false},
		{"CONNECT", p.url, "CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, `{"error":"method not allowed"}`, false},
		{"an unsigned POST /healthz", p.url, "POST /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 401, unauthorized, false},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			got := qstashtest.Raw(t, row.url, row.text) // which waits 20 s at most
			if got.Status != row.status || got.Body != row.body {
				t.Errorf("got %d %s", got.Status, got.Body)
			}
			if (got.Header.Get("Connection") == "close") != row.close {
				t.Errorf("Connection: %q", got.Header.Get("Connection"))
			}
			if want := map[bool]string{true: "POST"}[row.status == 405]; got.Header.Get("Allow") != want {
				t.Errorf("Allow: %q", got.Header.Get("Allow"))
			}
			if got.Header.Get("Retry-After") != "" {
				t.Errorf("Retry-After: %q", got.Header.Get("Retry-After"))
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
	p := start(t, counting(&runs), func(c *Config, web *http.Server) { c.MaxBody, web.ReadTimeout = 2000, 500*time.Millisecond })
	chunk := func(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }
	x := strings.Repeat("x", 2000)
	head := func(body, extra string) string { return qstashtest.Sending{Body: body}.Head(p.url, "", extra) }
	for _, row := range []struct {
		sentence, text string
		then           string // what is sent when 100 Continue has come
		close          bool   // the sender says that no more comes
		status         int
		runs           int64
	}{
		{"a body in chunks is taken", head("hello", "Transfer-Encoding: chunked\r\n") + chunk("hel") + chunk("lo") + chunk(""), "", false, 200, 1},
		{"one of just the limit", head(x, "Transfer-Encoding: chunked\r\n") + chunk(x) + chunk(""), "", false, 200, 1},
		{"one that is over the limit", head(x+"x", "Transfer-Encoding: chunked\r\n") + chunk(x+"x"), "", false, 413, 0},
		{"one that is no chunks", head("hello", "Transfer-Encoding: chunked\r\n") + "zz\r\n", "", false, 408, 0},
		{"one that ends too early", head("hello", "Transfer-Encoding: chunked\r\n") + chunk("hel"), "", true, 408, 0},
		{"a body of just the limit", head(x, "Content-Length: 2000\r\n") + x, "", false, 200, 1},
		{"a body that waits for 100 Continue", head("hello", "Content-Length: 5\r\nExpect: 100-continue\r\n"), "hello", false, 200, 1},
		{"a body that stalls", head("hello", "Content-Length: 5\r\n") + "hel", "", false, 408, 0},
		{"a body that is shorter than declared", head("hello", "Content-Length: 5\r\n") + "hel", "", true, 408, 0},
		{"a body that is not the one that was signed", head("hello", "Content-Length: 5\r\n") + "hellO", "", false, 401, 0},
		{"no body", head("", ""), "", false, 200, 1},
		{"an empty body", head("", "Content-Length: 0\r\n"), "", false, 200, 1},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			before := runs.Load()
			c := qstashtest.Dial(t, p.url)
			c.Send(t, row.text)
			if row.close {
				_ = c.CloseWrite()
			}
			got := c.Reply(t)
			if row.then != "" {
				if got.Status != 100 {
					t.Errorf("got %d instead of 100", got.Status)
				}
				c.Send(t, row.then)
				got = c.Reply(t)
			}
			if got.Status != row.status || runs.Load()-before != row.runs {
				t.Errorf("got %d %s after %d runs", got.Status, got.Body, runs.Load()-before)
			}
		})
	}
	await(t, "there are bytes that nobody holds", func() bool { return p.room.Held() == 0 })
}

// What a server's own deadlines would cut: business logic that outlasts them, and a caller that is gone.
func TestBusinessLogicIsNotCut(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan context.Context), make(chan bool)
	const deadline = 20 * time.Millisecond
	ended := make(chan bool, 8) // the request's own context, which a hang-up ends
	p := start(t, runner(func(ctx context.Context, _ *qstash.Message) ([]byte, error) {
		begun <- ctx
		<-finish
		return []byte("late"), ctx.Err()
	}), func(c *Config, web *http.Server) {
		if web.WriteTimeout != 0 {
			t.Error("a WriteTimeout cuts long business logic")
		}
		web.ReadTimeout, web.ReadHeaderTimeout, web.IdleTimeout = deadline, deadline, deadline
		verify := c.Verify
		c.Verify = func(r *http.Request) (deliver.Proof, error) {
			context.AfterFunc(r.Context(), func() { ended <- true })
			return verify(r)
		}
	})
	t.Run("by the server's timeouts", func(t *testing.T) {
		got := p.begin(t, qstashtest.Sending{Body: "x"})
		<-begun
		time.Sleep(5 * deadline) // what is tested is that nothing happens
		finish <- true
		if r := <-got; r.Status != 200 || r.Body != "late" {
			t.Errorf("got %+v", r)
		}
		<-ended
	})
	t.Run("by a caller that hangs up", func(t *testing.T) {
		ctx, hangUp := context.WithCancel(t.Context())
		message := qstashtest.Sending{ID: "msg_hangs_up", Body: "x"}
		failed := make(chan error, 1)
		r := message.Request(t, p.url).WithContext(ctx)
		go func() {
			_, err := qstashtest.TryDo(r)
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
		next := p.begin(t, message)
		finish <- true
		if r := <-next; r.Status != 200 || r.Body != "late" || r.Header.Get("Idempotent-Replayed") != "true" {
			t.Errorf("the next attempt got %+v, not the first one's answer", r)
		}
	})
}

// Business logic that does not return is answered for while it runs, and the answer is whole.
func TestOverdueIsAnswered(t *testing.T) {
	t.Parallel()
	finish := make(chan bool)
	p := start(t, runner(func(context.Context, *qstash.Message) ([]byte, error) { <-finish; return nil, nil }), func(c *Config, _ *http.Server) {
		c.Timing.Timeout, c.Timing.Grace = 10*time.Millisecond, 10*time.Millisecond
	})
	got := p.send(t, qstashtest.Sending{Body: "x"})
	if got.Status != 504 || !strings.HasPrefix(got.Body, `{"error":"`) || !strings.HasSuffix(got.Body, `"}`) || got.Header.Get("Retry-After") != "" {
		t.Errorf("got %+v", got)
	}
	finish <- true
	p.log.Await(t, "returned late")
}

func TestGoroutineThatEndsIsAnswered(t *testing.T) {
	t.Parallel()
	p := start(t, runner(func(context.Context, *qstash.Message) ([]byte, error) { runtime.Goexit(); return nil, nil }), nil)
	if got := p.send(t, qstashtest.Sending{Body: "x"}); got.Status != 500 || got.Body != `{"error":"panic"}` {
		t.Errorf("got %+v", got)
	}
	await(t, "there are bytes that nobody holds", func() bool { return p.room.Held() == 0 })
}

func TestPathsAreTakenAsSent(t *testing.T) {
	t.Parallel()
	seen := make(chan string, 1)
	p := start(t, runner(func(_ context.Context, m *qstash.Message) ([]byte, error) { seen <- m.URL.String(); return nil, nil }), nil)
	for _, path := range []string{"/", "/a/b?x=1", "//a", "/a//b", "/a/../b", "/a/./b", "/a%2Fb", "/a/", "/a?", "/a?x=%20&y", "/healthz/", "/%68ealthz", "/Healthz"} {
		s := qstashtest.Sending{Body: "x", Path: path}
		if got := qstashtest.Raw(t, p.url, s.Whole(p.url, path)); got.Status != 200 {
			t.Errorf("%s: got %+v", path, got)
			continue
		}
		if u := <-seen; u != path && (&url.URL{Path: path}).Path != path {
			t.Errorf("%s arrived as %s", path, u)
		}
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	var runs atomic.Int64
	p := start(t, counting(&runs), nil)
	now := time.Now()
	p.room.now = func() time.Time { return now }
	check := func(sentence string, status int) {
		t.Helper()
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			r, _ := http.NewRequest(method, p.url+"/healthz", nil)
			got := qstashtest.Do(t, r)
			if got.Status != status || method == http.MethodGet && status == 200 && got.Body != "ok" || method == http.MethodHead && got.Body != "" {
				t.Errorf("%s %s: got %+v", sentence, method, got)
			}
		}
	}
	check("nothing has happened", 200)
	if p.log.String() != "" {
		t.Errorf("a health check is logged: %s", p.log)
	}
	r := &reading{room: p.room}
	p.room.held = MaxHeldBytes // by others
	p.room.turnAway()
	check("a body was turned away", 200)
	now = now.Add(p.Timing.Lease + time.Second)
	check("none was given back for longer than a lease", 503)
	p.room.turnAway()
	check("another one was turned away", 503)
	r.giveBack()
	check("one that never was whole was given back", 503)
	r.whole = true
	r.giveBack()
	check("one that was", 200)
	now = now.Add(p.Timing.Lease + time.Second)
	check("nothing since", 200)
}

// Handlers that never return hold all room. The machine says so after a lease, and is well again when one returns.
func TestWedged(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan bool), make(chan bool)
	p := start(t, runner(func(context.Context, *qstash.Message) ([]byte, error) { begun <- true; <-finish; return nil, nil }),
		func(c *Config, _ *http.Server) { c.Timing.Wait = 20 * time.Millisecond })
	p.room.held = MaxHeldBytes - 5 // by others that do not return
	stuck := p.begin(t, qstashtest.Sending{Body: "hello"})
	<-begun
	if got := p.send(t, qstashtest.Sending{Body: "x"}); got.Status != 503 || got.Header.Get("Retry-After") != "" {
		t.Errorf("without room: got %+v", got)
	}
	p.room.now = func() time.Time { return time.Now().Add(p.Timing.Lease + time.Second) }
	if got := qstashtest.Get(t, p.url+"/healthz"); got.Status != 503 {
		t.Errorf("wedged: got %+v", got)
	}
	finish <- true
	if got := <-stuck; got.Status != 200 {
		t.Errorf("got %+v", got)
	}
	await(t, "no room is given back", func() bool { return p.room.Held() == MaxHeldBytes-5 })
	if got := qstashtest.Get(t, p.url+"/healthz"); got.Status != 200 {
		t.Errorf("no longer: got %+v", got)
	}
}

func TestSignedHealthCheck(t *testing.T) {
	t.Parallel()
	var runs atomic.Int64
	p := start(t, counting(&runs), nil)
	for key, name := range map[string]string{qstashtest.CurrentKey: "current", qstashtest.NextKey: "next"} {
		s := qstashtest.Sending{ID: "msg_1", TokenID: "jwt_" + name, Path: "/healthz?x=1", Body: "hello", Key: key}
		for range 2 {
			got := p.send(t, s)
			if want := `{"verified":true,"key":"` + name + `","url":"/healthz?x=1"}`; got.Status != 200 || got.Body != want || got.Header.Get("Content-Type") != "application/json" {
				t.Errorf("got %+v", got)
			}
		}
		// Its token is bound to nothing.
		s.Path, s.ID = "/orders", "msg_"+name
		if got := p.send(t, s); got.Status != 200 || got.Header.Get("Idempotent-Replayed") != "" {
			t.Errorf("a message then: %+v", got)
		}
	}
	if runs.Load() != 2 {
		t.Errorf("ran %d times", runs.Load())
	}
	for _, row := range []struct {
		sentence string
		s        qstashtest.Sending
	}{
		{"signed with another key", qstashtest.Sending{Path: "/healthz", Key: "sig_other"}},
		{"signed for another body", qstashtest.Sending{Path: "/healthz", Body: "x", Claims: qstashtest.Claims{"body": `"x"`}}},
	} {
		if got := p.send(t, row.s); got.Status != 401 || got.Body != `{"error":"unauthorized"}` {
			t.Errorf("%s: got %+v", row.sentence, got)
		}
	}
}

// The answer says what QStash is to know, and a repeat says that it is one.
func TestAnswers(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("x", 100_000)
	p := start(t, runner(func(_ context.Context, m *qstash.Message) ([]byte, error) {
		switch m.URL.Path {
		case "/permanent":
			return nil, qstash.Permanent(errors.New("boom"))
		case "/retry":
			return nil, qstash.RetryAfter(90*time.Second, errors.New("boom"))
		case "/error":
			return nil, errors.New("boom")
		case "/large":
			return []byte(large), nil
		}
		return []byte(`{"n":1}`), nil
	}), nil)
	type header = map[string]string
	for _, row := range []struct {
		path   string
		status int
		body   string
		header header
		second string
	}{
		{"/", 200, `{"n":1}`, header{"Content-Type": "application/json"}, `{"n":1}`},
		{"/large", 200, large, header{"Content-Type": "text/plain; charset=utf-8"}, `{"message":"ok"}`},
		{"/permanent", 489, `{"error":"boom"}`, header{"Content-Type": "application/json", "Upstash-NonRetryable-Error": "true"}, `{"error":"boom"}`},
		{"/retry", 503, `{"error":"boom"}`, header{"Retry-After": "90", "Idempotent-Replayed": ""}, ""},
		{"/error", 500, `{"error":"boom"}`, header{"Retry-After": "", "Idempotent-Replayed": ""}, ""},
	} {
		s := qstashtest.Sending{ID: "msg_1", Path: row.path, Body: "x"}
		got := p.send(t, s)
		if got.Status != row.status || got.Body != row.body {
			t.Errorf("%s: got %d %.80s", row.path, got.Status, got.Body)
		}
		for name, value := range row.header {
			if got.Header.Get(name) != value {
				t.Errorf("%s: %s: %q, want %q", row.path, name, got.Header.Get(name), value)
			}
		}
		if row.second == "" {
			continue
		}
		if got := p.send(t, s); got.Status != row.status || got.Body != row.second || got.Header.Get("Idempotent-Replayed") != "true" {
			t.Errorf("%s, again: got %+v", row.path, got)
		}
	}
}

func TestHeadersThatAreTooLarge(t *testing.T) {
	t.Parallel()
	var runs atomic.Int64
	p := start(t, counting(&runs), nil)
	for size, status := range map[int]int{10 << 10: 200, 17 << 10: 431} {
		c := qstashtest.Dial(t, p.url)
		text := qstashtest.Sending{}.Head(p.url, "", "Content-Length: 0\r\nX-Large: "+strings.Repeat("x", size)+"\r\n")
		go io.WriteString(c, text)
		if got := c.Reply(t); got.Status != status {
			t.Errorf("headers of %d bytes: got %d", size, got.Status)
		}
	}
}
