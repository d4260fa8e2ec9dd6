package deliver

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// forwarding returns a Deliverer that forwards to base, whose replies have at most 20,000 bytes.
func forwarding(t *testing.T, base string, timing Timing) service {
	t.Helper()
	to, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	return start(NewForwarder(to, 20_000, false).Run, func(c *Config) { c.Timing = timing })
}

// app is a service that answers every request, of which it has read all, with the text that answer returns, as it is.
// A text of "" is none: the connection is closed.
func app(t *testing.T, answer func() string) (base string, posts *atomic.Int64) {
	t.Helper()
	posts = &atomic.Int64{}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Error(err)
		}
		posts.Add(1)
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, answer())
	}))
	t.Cleanup(web.Close)
	return web.URL, posts
}

// reply is an answer of an app.
func reply(status int, headers, body string) string {
	return fmt.Sprintf("HTTP/1.1 %d x\r\nContent-Length: %d\r\n%s\r\n%s", status, len(body), headers, body)
}

func TestForwardedAnswers(t *testing.T) {
	t.Parallel()
	type header = map[string]string
	const never = "Upstash-NonRetryable-Error: true\r\n"
	cut := `{"error":"the body of FORWARD_URL's answer was cut short or too large"}`
	x := strings.Repeat("x", 20_001)
	for _, row := range []struct {
		sentence string
		answer   string
		status   int
		body     string
		header   header
		reason   Reason
		second   string // the body of the second answer, if it is another
		detail   string // what the log says
	}{
		{"200 with a reply", reply(200, "Content-Type: text/csv\r\n", "a,b"), 200, "a,b", header{"Content-Type": "text/csv"}, Handled, "", ""},
		{"200 without a content type", reply(200, "", "a,b"), 200, "a,b", header{"Content-Type": ""}, Handled, "", ""},
		{"what a workflow tells QStash of itself", reply(200, "Upstash-Workflow-Sdk-Version: 1\r\nX-Other: 2\r\n", ""),
			200, "", header{"Upstash-Workflow-Sdk-Version": "1", "X-Other": ""}, Handled, "", ""},
		{"a coded body", reply(200, "Content-Type: application/json\r\nContent-Encoding: gzip\r\n", "\x1f\x8b..."),
			200, "\x1f\x8b...", header{"Content-Encoding": "gzip", "Content-Type": "application/json"}, Handled, "", ""},
		{"a success that says when to retry", reply(200, "Retry-After: 5\r\nX-RateLimit-Reset: 5\r\n", ""), 200, "",
			header{"Retry-After": "", "X-RateLimit-Reset": ""}, Handled, "", ""},
		{"201", reply(201, "", ""), 201, "", nil, Handled, "", ""},
		{"204", "HTTP/1.1 204 No Content\r\n\r\n", 204, "", nil, Handled, "", ""},
		{"early hints", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + reply(200, "", "ok"), 200, "ok", nil, Handled, "", ""},
		{"a success of MAX_BODY_BYTES", reply(202, "", x[1:]), 202, x[1:], nil, Handled, `{"message":"ok"}`, ""},
		{"a success over MAX_BODY_BYTES", reply(202, "Content-Encoding: gzip\r\n", x), 202, `{"message":"ok"}`,
			header{"Content-Type": "application/json", "Content-Encoding": ""}, Handled, "", ""},
		{"a coded success too long to keep", reply(200, "Content-Encoding: br\r\n", x[:17_000]), 200, x[:17_000], nil, Handled, `{"message":"ok"}`, ""},
		{"a success that is cut short", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\nContent-Encoding: gzip\r\n\r\nhalf", 200, `{"message":"ok"}`,
			header{"Content-Type": "application/json", "Content-Encoding": ""}, Handled, "", ""},
		{"489 with its header", reply(489, never+"Retry-After: 5\r\n", "never"), 489, "never",
			header{"Upstash-NonRetryable-Error": "true", "Retry-After": ""}, AppPermanent, "", "FORWARD_URL answered 489"},
		{"489 without it", reply(489, "", ""), 489, "", header{"Upstash-NonRetryable-Error": ""}, AppFailed, "", "FORWARD_URL answered 489"},
		{"its header without 489", reply(500, never, ""), 500, "", header{"Upstash-NonRetryable-Error": "true"}, AppFailed, "", "FORWARD_URL answered 500"},
		{"400", reply(400, "Content-Type: text/plain\r\n", "bad"), 400, "bad", header{"Content-Type": "text/plain"}, AppFailed, "", "FORWARD_URL answered 400"},
		{"429 that says when to retry", reply(429, "Retry-After: 17\r\nX-RateLimit-Reset: 18\r\nX-RateLimit-Reset-Requests: 6m5s\r\nX-RateLimit-Reset-Tokens: 20\r\nX-RateLimit-Limit: 3\r\n", "slowly"),
			429, "slowly", header{"Retry-After": "17", "X-RateLimit-Reset": "18", "X-RateLimit-Reset-Requests": "6m5s", "X-RateLimit-Reset-Tokens": "20", "X-RateLimit-Limit": ""},
			AppFailed, "", "FORWARD_URL answered 429"},
		{"a coded failure", reply(500, "Content-Encoding: gzip\r\nUpstash-X: 1\r\n", "\x1f\x8b"), 500, "\x1f\x8b", header{"Content-Encoding": "gzip", "Upstash-X": "1"}, AppFailed, "", "answered 500"},
		{"a failure over MAX_BODY_BYTES", reply(500, "Content-Encoding: gzip\r\n", x), 500, cut, header{"Content-Type": "application/json", "Content-Encoding": ""}, AppFailed, "", "answered 500"},
		{"a failure that is cut short", "HTTP/1.1 500 x\r\nContent-Length: 10\r\n\r\nhalf", 500, cut, header{"Content-Type": "application/json"}, AppFailed, "", "answered 500"},
		{"a redirect", reply(308, "Location: https://www.example/orders\r\n", ""), 308, "", header{"Location": ""}, AppFailed, "", `/" to "https://www.example/orders"`},
		{"a redirect that leads nowhere", reply(302, "", ""), 302, "", nil, AppFailed, "", "FORWARD_URL answered 302"},
		{"304", "HTTP/1.1 304 Not Modified\r\n\r\n", 304, "", nil, AppFailed, "", "FORWARD_URL answered 304"},
		{"a switched protocol", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", 502,
			`{"error":"FORWARD_URL answered 101, which is no answer to a POST"}`, nil, AppFailed, "", "answered 101"},
		{"no answer", "", 502, "APP", nil, AppCut, "", "to a message that it was sent: the connection was closed"},
		{"half a header", "HTTP/1.1 200 OK\r\nContent-Le", 502, "APP", nil, AppCut, "", "its answer is no HTTP"},
		{"what is no HTTP", "secret data\r\n\r\n", 502, "APP", nil, AppCut, "", "its answer is no HTTP"},
		{"headers of less than 64 KiB", reply(200, "X: "+strings.Repeat("x", 63<<10)+"\r\n", "ok"), 200, "ok", nil, Handled, "", ""},
		{"headers of more", reply(200, "X: "+strings.Repeat("x", 64<<10)+"\r\n", "ok"), 502, "APP", nil, AppCut, "", "the headers of its answer are over 65536 bytes"},
		{"a status line of 5 MB", "HTTP/1.1 200 " + strings.Repeat("x", 5<<20) + "\r\n\r\n", 502, "APP", nil, AppCut, "", "the headers of its answer are over 65536 bytes"},
		{"a content type of 60 KB", reply(200, "Content-Type: "+strings.Repeat("x", 60<<10)+"\r\n", "ok"), 200, "ok",
			header{"Content-Type": "application/octet-stream"}, Handled, "", ""},
		{"a Retry-After that is none", reply(503, "Retry-After: "+strings.Repeat("1", 65)+"\r\n", ""), 503, "", header{"Retry-After": ""}, AppFailed, "", "answered 503"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			base, posts := app(t, func() string { return row.answer })
			s := forwarding(t, base, NewTiming(20*time.Second))
			m := message{id: "msg_1", body: "x"}
			final := row.status <= 299 || row.reason == AppPermanent
			for i := range 2 {
				o := s.send(m)
				body := row.body
				if i == 1 && row.second != "" {
					body = row.second
				}
				if body == "APP" {
					body = `{"error":"no answer from FORWARD_URL (` + base + `) to a message that it was sent: `
					if !strings.HasPrefix(string(o.Answer.Body), body) || o.Answer.Status != 502 {
						t.Errorf("got %d %s", o.Answer.Status, o.Answer.Body)
					}
				} else {
					expect(t, o, row.status, body, i == 1 && final)
				}
				if i == 1 && final {
					break
				}
				if o.Reason != row.reason || !strings.Contains(o.Detail, row.detail) || strings.Contains(o.Detail, "secret") {
					t.Errorf("got %s: %s", o.Reason.Row().Reason, o.Detail)
				}
				for name, value := range row.header {
					if got := o.Answer.Header.Get(name) + o.Retry.Get(name); got != value {
						t.Errorf("%s: %q, want %q", name, got, value)
					}
				}
			}
			want := int64(2)
			if final {
				want = 1
			}
			if posts.Load() != want {
				t.Errorf("the app was asked %d times, want %d", posts.Load(), want)
			}
			s.stops(t, 10*time.Second)
		})
	}
}

func TestForwardedWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body); <-r.Context().Done() }))
	t.Cleanup(silent.Close)
	stalling := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	t.Cleanup(stalling.Close)
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	for _, row := range []struct {
		sentence, base string
		timeout        time.Duration
		status         int
		reason         Reason
		next           Next
		detail         string
	}{
		{"nobody listens", "http://" + nobody.Addr().String(), 20 * time.Second, 502, AppAway, NotRunRetried, "connection refused"},
		{"there is no such host", "http://nobody.invalid", 20 * time.Second, 502, AppAway, NotRunRetried, "nobody.invalid"},
		{"it is not who it says", secure.URL, 20 * time.Second, 502, AppAway, NotRunRetried, "certificate"},
		{"it speaks no TLS", "https" + strings.TrimPrefix(silent.URL, "http"), 20 * time.Second, 502, AppAway, NotRunRetried, "no connection"},
		{"it does not answer by the deadline", silent.URL, time.Second, 504, AppLate, MaybeRetried, "within HANDLER_TIMEOUT"},
		{"it has succeeded by the deadline", stalling.URL, time.Second, 202, Handled, Done, ""},
		{"a login in the URL is not told", "http://user:password@" + nobody.Addr().String(), 20 * time.Second, 502, AppAway, NotRunRetried, "user:xxxxx@"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			s := forwarding(t, row.base, NewTiming(row.timeout))
			x := message{}.delivery()
			o := s.send(message{id: "msg_1", body: "x"})
			if o.Answer.Status != row.status || o.Reason != row.reason || o.Next(&x.Message.Unverified) != row.next || !strings.Contains(o.Detail, row.detail) {
				t.Errorf("got %d %s, %s: %s", o.Answer.Status, o.Reason.Row().Reason, o.Next(&x.Message.Unverified), o.Detail)
			}
		})
	}
}

func TestForwardedRequest(t *testing.T) {
	t.Parallel()
	type seen struct {
		target, body string
		header       http.Header
	}
	requests := make(chan seen, 1)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		requests <- seen{r.RequestURI, string(body), r.Header}
	}))
	t.Cleanup(web.Close)
	for _, row := range []struct{ base, target, want string }{
		{"", "/", "/"},
		{"", "/failure", "/failure"},
		{"/", "/a//b/../c%2Fd/?x=%20&y", "/a//b/../c%2Fd/?x=%20&y"},
		{"//", "/orders", "/orders"},
		{"", `/a|b"{}`, `/a|b"{}`},
		{"", "/%zz"[:1] + "a%2fb", "/a%2fb"},
		{"", "//evil.example/x?y", "//evil.example/x?y"},
		{"/base/", "/x?", "/base/x?"},
		{"/base//", "/x", "/base/x"},
		{"", "//a%2Fb?", "//a%2Fb?"},
		{"", "//a%20b", "//a%20b"},
		{"", "/?", "/?"},
		{"", "/a?u=https://y/admin", "/a?u=https://y/admin"},
		{"/ba%2Fse", "//x", "/ba%2Fse//x"},
	} {
		if o := forwarding(t, web.URL+row.base, NewTiming(20*time.Second)).send(message{target: row.target, body: "x"}); o.Answer.Status != 200 {
			t.Fatalf("%s: got %+v", row.target, o)
		}
		if r := <-requests; r.target != row.want {
			t.Errorf("%s under %q arrived as %s, want %s", row.target, row.base, r.target, row.want)
		}
	}

	to, _ := url.Parse(web.URL)
	for _, bearer := range []bool{false, true} {
		s := start(NewForwarder(to, 1000, bearer).Run, nil)
		sent := message{body: "\x00raw\xff", header: map[string]string{
			"Accept-Encoding": "br", "Connection": "X-Hop, keep-alive", "X-Hop": "1", "Te": "trailers", "Proxy-Authorization": "Basic eA==", "Expect": "100-continue",
			"X-Kept": "2", "Authorization": "Bearer secret", "Upstash-Signature": "a.b.c", "Idempotency-Key": "3", "Content-Type": "text/plain",
		}}
		if o := s.send(sent); o.Answer.Status != 200 {
			t.Fatalf("got %+v", o)
		}
		got := <-requests
		want := http.Header{"X-Kept": {"2"}, "Upstash-Signature": {"a.b.c"}, "Idempotency-Key": {"3"}, "Content-Type": {"text/plain"}, "Content-Length": {"5"}}
		if !bearer {
			want.Set("Authorization", "Bearer secret")
		}
		if got.body != sent.body || fmt.Sprint(got.header) != fmt.Sprint(want) {
			t.Errorf("got body %q and headers\n%v, want\n%v", got.body, got.header, want)
		}
	}
}

func TestForwardReusesConnections(t *testing.T) {
	t.Parallel()
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	var connections atomic.Int64
	web.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	web.Start()
	t.Cleanup(web.Close)
	s := forwarding(t, web.URL, NewTiming(20*time.Second))
	for range 20 {
		expect(t, s.send(message{body: "x"}), 200, "", false)
	}
	if connections.Load() != 1 {
		t.Errorf("20 messages, one after the other, took %d connections", connections.Load())
	}
	if idle := NewForwarder(&url.URL{}, 0, false).kept.(*http.Transport).IdleConnTimeout; idle >= 5*time.Second {
		t.Errorf("an idle connection is kept for %s, Node closes it after 5 s", idle)
	}
}

// impatient is an app that closes a kept connection as the next message arrives on it, before a byte of an answer. Once
// is how often it does that; a connection's first message is always answered.
func impatient(t *testing.T, reset int64) (base string, answered, resets *atomic.Int64) {
	t.Helper()
	answered, resets = &atomic.Int64{}, &atomic.Int64{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	serve := func(c net.Conn) {
		defer c.Close()
		in := bufio.NewReader(c)
		for first := true; ; first = false {
			if _, err := in.Peek(1); err != nil {
				return
			}
			if !first || reset < 0 {
				resets.Add(1)
				_ = c.(*net.TCPConn).SetLinger(0) // a reset
				return
			}
			r, err := http.ReadRequest(in)
			if err != nil {
				t.Error(err)
				return
			}
			body, _ := io.ReadAll(r.Body)
			answered.Add(1)
			_, _ = io.WriteString(c, reply(200, "", string(body)))
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return "http://" + l.Addr().String(), answered, resets
}

func TestForwardOnAConnectionThatTheAppCloses(t *testing.T) {
	t.Parallel()
	base, answered, resets := impatient(t, 1)
	s := forwarding(t, base, NewTiming(20*time.Second))
	expect(t, s.send(message{body: "opens a connection"}), 200, "opens a connection", false)
	large := strings.Repeat("x", 19_000)
	expect(t, s.send(message{body: large}), 200, large, false)
	if answered.Load() != 2 || resets.Load() != 1 {
		t.Errorf("%d messages were answered, %d connections closed", answered.Load(), resets.Load())
	}
}

// A message is posted once more where a kept connection was closed, and only there; and no more than once.
func TestForwardDoesNotRepeat(t *testing.T) {
	t.Parallel()
	t.Run("on a new connection", func(t *testing.T) {
		base, answered, resets := impatient(t, -1)
		s := forwarding(t, base, NewTiming(20*time.Second))
		if o := s.send(message{body: "x", header: map[string]string{"Idempotency-Key": "1"}}); o.Reason != AppCut {
			t.Errorf("got %+v", o)
		}
		if answered.Load() != 0 || resets.Load() != 1 {
			t.Errorf("%d messages were answered, %d connections closed", answered.Load(), resets.Load())
		}
	})
	t.Run("where it breaks off again", func(t *testing.T) {
		var posts atomic.Int64
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			posts.Add(1)
			if _, err := io.Copy(io.Discard, r.Body); err != nil || r.Header.Get("Idempotency-Key") == "break" {
				panic(http.ErrAbortHandler)
			}
		}))
		t.Cleanup(web.Close)
		s := forwarding(t, web.URL, NewTiming(20*time.Second))
		s.send(message{body: "opens a connection"})
		posts.Store(0)
		o := s.send(message{body: "x", header: map[string]string{"Idempotency-Key": "break"}})
		if o.Reason != AppCut || posts.Load() != 2 {
			t.Errorf("got %+v after %d posts", o, posts.Load())
		}
	})
	t.Run("where the answer has begun", func(t *testing.T) {
		var posts atomic.Int64
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if posts.Add(1) == 1 {
				return
			}
			c, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_, _ = io.WriteString(c, "HTTP/1.1 2")
				c.Close()
			}
		}))
		t.Cleanup(web.Close)
		s := forwarding(t, web.URL, NewTiming(20*time.Second))
		s.send(message{body: "opens a connection"})
		if o := s.send(message{body: "x"}); o.Reason != AppCut || posts.Load() != 2 {
			t.Errorf("got %+v after %d posts", o, posts.Load())
		}
	})
	t.Run("where the app is gone then, it may have run", func(t *testing.T) {
		web := httptest.NewUnstartedServer(nil)
		var posts atomic.Int64
		web.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if posts.Add(1) == 2 {
				_ = web.Listener.Close()
				panic(http.ErrAbortHandler)
			}
		})
		web.Start()
		t.Cleanup(web.Close)
		s := forwarding(t, web.URL, NewTiming(20*time.Second))
		s.send(message{body: "opens a connection"})
		if o := s.send(message{body: "x"}); o.Reason != AppCut || posts.Load() != 2 {
			t.Errorf("got %+v after %d posts", o, posts.Load())
		}
	})
}

func TestForwardedOnce(t *testing.T) {
	t.Parallel()
	finish := make(chan bool)
	web, posts := app(t, func() string { <-finish; return reply(200, "", "done") })
	s := forwarding(t, web, NewTiming(20*time.Second))
	var all []<-chan Outcome
	for range 40 {
		all = append(all, s.begin(message{id: "msg_1", body: "x"}))
	}
	finish <- true
	for _, o := range all {
		o := <-o
		expect(t, o, 200, "done", o.Replayed)
	}
	if posts.Load() != 1 {
		t.Errorf("the app was asked %d times", posts.Load())
	}
}

// All replies have 40 MiB together. What does not fit is dropped, and all room is there again afterwards.
func TestRepliesShareTheirRoom(t *testing.T) {
	t.Parallel()
	const size = 8 << 20
	body := bytes.Repeat([]byte("x"), size)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = w.Write(body)
	}))
	t.Cleanup(web.Close)
	to, _ := url.Parse(web.URL)
	f := NewForwarder(to, size, false)
	s := start(f.Run, nil)
	var all sync.WaitGroup
	var whole, dropped atomic.Int64
	answered := make(chan bool)
	for range 10 {
		all.Go(func() {
			s.Deliver(context.Background(), message{}.delivery(), func(o Outcome) {
				switch {
				case o.Answer.Status == 200 && len(o.Answer.Body) == size:
					whole.Add(1)
				case o.Answer.Status == 200 && string(o.Answer.Body) == `{"message":"ok"}`:
					dropped.Add(1)
				default:
					t.Errorf("got %d with %d bytes", o.Answer.Status, len(o.Answer.Body))
				}
				<-answered // it is held while it is sent
			})
		})
	}
	await(t, "the replies do not come", func() bool { return whole.Load()+dropped.Load() == 10 })
	if held := f.held.Load(); held > maxHeldReplies || whole.Load() < 1 || dropped.Load() < 5 {
		t.Errorf("%d bytes are held, %d replies are whole and %d dropped", held, whole.Load(), dropped.Load())
	}
	close(answered)
	all.Wait()
	if held := f.held.Load(); held != 0 {
		t.Errorf("%d bytes are held by nobody", held)
	}
}

// Headers take many times their size in memory, so few are read at one time; the app's answers all come through.
func TestManyAnswersWithManyHeaders(t *testing.T) {
	t.Parallel()
	var headers strings.Builder
	for i := 0; headers.Len() < 20<<10; i++ {
		fmt.Fprintf(&headers, "%x:\r\n", i)
	}
	const n = 2 * maxHeaders
	var arrived sync.WaitGroup
	arrived.Add(n)
	web, _ := app(t, func() string { arrived.Done(); arrived.Wait(); return reply(200, headers.String(), "done") })
	to, _ := url.Parse(web)
	f := NewForwarder(to, 20_000, false)
	s := start(f.Run, nil)
	var all []<-chan Outcome
	for range n {
		all = append(all, s.begin(message{}))
	}
	for _, o := range all {
		expect(t, <-o, 200, "done", false)
	}
	if len(f.headers) != 0 {
		t.Errorf("%d places are nobody's", len(f.headers))
	}
}

// A place among those whose headers are read is given back also when the deadline has passed before it was there.
func TestTurn(t *testing.T) {
	t.Parallel()
	all := make(chan struct{}, 1)
	first, second := &turn{all: all}, &turn{all: all}
	first.take(t.Context())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	second.take(ctx)
	second.end()
	second.end()
	if len(all) != 1 {
		t.Error("the second has ended the first's turn")
	}
	first.end()
	second.take(t.Context()) // too late
	if len(all) != 0 {
		t.Error("a place is nobody's")
	}
}
