package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestForwardedAnswers(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name       string
		service    http.HandlerFunc
		status     int
		body       string
		header     map[string]string
		outcome    string
		runs       int64 // of two deliveries
		secondBody string
	}{
		{"200 with a reply", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/csv")
			io.WriteString(w, "a,b")
		}, 200, "a,b", map[string]string{"Content-Type": "text/csv"}, "ok", 1, ""},
		{"what a workflow tells QStash of itself", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Upstash-Workflow-Sdk-Version", "1")
			w.Header().Set("X-Other", "2")
		}, 200, "", map[string]string{"Upstash-Workflow-Sdk-Version": "1", "X-Other": ""}, "ok", 1, ""},
		{"201", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(201) }, 201, "", nil, "ok", 1, ""},
		{"204", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }, 204, "", nil, "ok", 1, ""},
		{"a success over MAX_BODY_BYTES", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(202)
			io.WriteString(w, strings.Repeat("x", 20_001))
		}, 202, `{"message":"ok"}`, nil, "ok", 1, ""},
		{"a success too long to keep", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, strings.Repeat("x", 20_000))
		}, 200, strings.Repeat("x", 20_000), nil, "ok", 1, `{"message":"ok"}`},
		{"a success that is cut short", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "half")
		}, 200, `{"message":"ok"}`, nil, "ok", 1, ""},
		{"489 with its header", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Upstash-NonRetryable-Error", "true")
			w.WriteHeader(489)
			io.WriteString(w, "never")
		}, 489, "never", map[string]string{"Upstash-Nonretryable-Error": "true"}, "permanent", 1, ""},
		{"489 without it", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(489) }, 489, "", map[string]string{"Upstash-Nonretryable-Error": ""}, "upstream", 2, ""},
		{"400", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "bad", 400) }, 400, "bad\n", nil, "upstream", 2, ""},
		{"429 with Retry-After", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", "17")
			http.Error(w, "slowly", http.StatusTooManyRequests)
		}, 429, "slowly\n", map[string]string{"Retry-After": "17"}, "upstream", 2, ""},
		{"500", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "oops", 500) }, 500, "oops\n", nil, "upstream", 2, ""},
		{"a redirect is not followed", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
			302, "", map[string]string{"Location": ""}, "upstream", 2, ""},
		{"a switched protocol", func(w http.ResponseWriter, r *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				defer c.Close()
				_, err = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			}
			if err != nil {
				panic(err)
			}
		}, 502, `{"error":"FORWARD_URL answered 101, which is no answer to a POST"}`, nil, "upstream", 2, ""},
		{"no answer", func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) },
			502, `{"error":"no answer from FORWARD_URL: EOF"}`, nil, "upstream", 2, ""},
		{"no answer by the deadline", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
			504, `{"error":"no answer from FORWARD_URL by HANDLER_TIMEOUT: context deadline exceeded"}`, nil, "timeout", 2, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			var runs atomic.Int64
			service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, err := io.Copy(io.Discard, r.Body); err != nil {
					t.Error(err)
				}
				runs.Add(1)
				row.service(w, r)
			}))
			defer service.Close()
			url, log := startServer(t, map[string]string{"FORWARD_URL": service.URL, "MAX_BODY_BYTES": "20000", "HANDLER_TIMEOUT": "500ms"}, func(*server) {})
			s := sending{id: "msg_1", body: "x"}
			for i := range 2 {
				got := do(t, s.request(t, url))
				body := row.body
				if i == 1 && row.secondBody != "" {
					body = row.secondBody
				}
				if got.status != row.status || got.body != body {
					t.Errorf("delivery %d got %d %q", i, got.status, got.body)
				}
				for name, value := range row.header {
					if got.header.Get(name) != value {
						t.Errorf("delivery %d: %s: %q, want %q", i, name, got.header.Get(name), value)
					}
				}
			}
			line := log.await(t, `"outcome":"`+row.outcome+`"`)
			if reason, _ := line["reason"].(string); row.status == 502 && !strings.Contains(row.body, reason) || row.status == 500 && reason != "FORWARD_URL answered 500" {
				t.Errorf("logged %v", line)
			}
			if runs.Load() != row.runs {
				t.Errorf("the service was asked %d times, want %d", runs.Load(), row.runs)
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
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		requests <- seen{r.RequestURI, string(body), r.Header}
	}))
	defer service.Close()
	for _, row := range []struct{ base, path, want string }{
		{"", "/", "/"},
		{"", "/failure", "/failure"},
		{"/", "/a//b/../c%2Fd/?x=%20&y", "/a//b/../c%2Fd/?x=%20&y"},
		{"", `/a|b"{}`, `/a|b"{}`},
		{"", "//evil.example/x?y", "//evil.example/x?y"},
		{"/base/", "/x?", "/base/x?"},
		{"", "//a%2Fb?", "//a%2Fb?"},
		{"", "//a%20b", "//a%20b"},
		{"", "http://evil.example/a|b?", "/a|b?"},
		{"", "http://evil.example//a%2Fb", "//a%2Fb"},
		{"", "http://evil.example?x", "/?x"},
		{"", "http://evil.example", "/"},
		{"/ba%2Fse", "//x", "/ba%2Fse//x"},
	} {
		url, _ := startServer(t, map[string]string{"FORWARD_URL": service.URL + row.base}, func(*server) {})
		got, _, _ := raw(t, url, sending{body: "x"}.head(t, url, row.path, "Content-Length: 1\r\n")+"x")
		if got.StatusCode != 200 {
			t.Fatalf("%s: status %d", row.path, got.StatusCode)
		}
		if r := <-requests; r.target != row.want {
			t.Errorf("%s under %q arrived as %s, want %s", row.path, row.base, r.target, row.want)
		}
	}

	for _, bearer := range []string{"", "secret"} {
		url, _ := startServer(t, map[string]string{"FORWARD_URL": service.URL, "BEARER_TOKEN": bearer}, func(*server) {})
		s := sending{body: "\x00raw\xff", header: map[string]string{
			"Accept-Encoding": "br", "Connection": "X-Hop, keep-alive", "X-Hop": "1", "Te": "trailers", "Proxy-Authorization": "Basic eA==",
			"X-Kept": "2", "Authorization": "Bearer secret",
		}}
		r := s.request(t, url)
		r.Header.Add("X-Kept", "3")
		if got := do(t, r); got.status != 200 {
			t.Fatalf("status %d", got.status)
		}
		got := <-requests
		want := r.Header.Clone()
		for _, name := range []string{"Accept-Encoding", "Connection", "X-Hop", "Te", "Proxy-Authorization"} {
			want.Del(name)
		}
		if bearer != "" {
			want.Del("Authorization")
		}
		want.Set("Content-Length", "5")
		if got.body != s.body || fmt.Sprint(got.header) != fmt.Sprint(want) {
			t.Errorf("got body %q and headers\n%v, want\n%v", got.body, got.header, want)
		}
	}
}

func TestForwardReusesConnections(t *testing.T) {
	t.Parallel()
	service := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	var connections atomic.Int64
	service.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	service.Start()
	defer service.Close()
	url, _ := startServer(t, map[string]string{"FORWARD_URL": service.URL}, func(*server) {})
	for range 20 {
		if got := do(t, sending{body: "x"}.request(t, url)); got.status != 200 {
			t.Fatalf("got %+v", got)
		}
	}
	if connections.Load() != 1 {
		t.Errorf("20 messages, one after the other, took %d connections", connections.Load())
	}
}

// Go's transport repeats a request with an idempotency key when a connection breaks.
func TestForwardDoesNotRepeat(t *testing.T) {
	t.Parallel()
	var posts atomic.Int64
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		posts.Add(1)
		if _, err := io.Copy(io.Discard, r.Body); err != nil || r.Header.Get("Idempotency-Key") == "break" {
			panic(http.ErrAbortHandler)
		}
	}))
	defer service.Close()
	url, _ := startServer(t, map[string]string{"FORWARD_URL": service.URL}, func(*server) {})
	for key, status := range map[string]int{"keep": 200, "break": 502} {
		do(t, sending{body: "warm up the connection"}.request(t, url))
		posts.Store(0)
		got := do(t, sending{body: "x", header: map[string]string{"Idempotency-Key": key}}.request(t, url))
		if got.status != status || posts.Load() != 1 {
			t.Errorf("%s: got %+v after %d posts", key, got, posts.Load())
		}
	}
}

func TestForwardedOnce(t *testing.T) {
	t.Parallel()
	var runs atomic.Int64
	finish := make(chan bool)
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		runs.Add(1)
		<-finish
		io.WriteString(w, "done")
	}))
	defer service.Close()
	url, _ := startServer(t, map[string]string{"FORWARD_URL": service.URL}, func(*server) {})
	s := sending{id: "msg_1", body: "x"}
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			r := s.request(t, url)
			if i == 0 {
				r = r.WithContext(ctx)
			}
			got, err := tryDo(r)
			if i != 0 && (err != nil || got.status != 200 || got.body != "done") {
				t.Error(got, err)
			}
		})
	}
	time.AfterFunc(50*time.Millisecond, hangUp) // whether it is the one that runs or one that waits, nothing is lost
	finish <- true
	all.Wait()
	if runs.Load() != 1 {
		t.Errorf("the service was asked %d times", runs.Load())
	}
}
