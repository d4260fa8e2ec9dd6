package server_test

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"qstash-receiver/internal/qstashtest"
)

const (
	lambdaDomain = "q3x5r7t9v2b4n6m8q3x5r7t9v2b4n6m8.lambda-url.eu-central-1.on.aws"
)

// lambdaEvent is one request to the function URL. A test changes one thing of it.
type lambdaEvent struct {
	method, path, query string
	body                string
	base64              bool
	headers             map[string]string // as AWS gives them: lower-case names, one value each
	subject             string
	key                 string
	timeout             time.Duration // what is left until Lambda ends the invocation
}

type lambdaChange = func(e *lambdaEvent)

func newLambdaEvent(changes ...lambdaChange) *lambdaEvent {
	e := &lambdaEvent{
		method:  http.MethodPost,
		path:    "/orders",
		query:   "x=1",
		body:    `{"order":"№ 1"}`,
		subject: "https://" + lambdaDomain + "/orders?x=1",
		key:     qstashtest.CurrentKey,
		timeout: 30 * time.Second,
		headers: map[string]string{
			"content-type":       "application/json",
			"host":               lambdaDomain,
			"user-agent":         "Upstash-QStash",
			"upstash-message-id": "msg_" + rand.Text(),
			"upstash-retried":    "0",
			"x-forwarded-proto":  "https",
		},
	}
	for _, change := range changes {
		change(e)
	}
	return e
}

func lambdaPath(path, query string) lambdaChange {
	return func(e *lambdaEvent) {
		e.path, e.query, e.subject = path, query, "https://"+lambdaDomain+path
		if query != "" {
			e.subject += "?" + query
		}
	}
}

func lambdaSubject(subject string) lambdaChange {
	return func(e *lambdaEvent) { e.subject = subject }
}

func lambdaHeader(name, value string) lambdaChange {
	return func(e *lambdaEvent) { e.headers[name] = value }
}

// json is the event, payload format 2.0, as AWS's documentation shows it.
func (e *lambdaEvent) json(t *testing.T) []byte {
	t.Helper()
	body := e.body
	if e.base64 {
		body = base64.StdEncoding.EncodeToString([]byte(body))
	}
	raw, err := json.Marshal(map[string]any{
		"version":         "2.0",
		"routeKey":        "$default",
		"rawPath":         e.path,
		"rawQueryString":  e.query,
		"cookies":         []string{"a=1", "b=2"},
		"headers":         e.headers,
		"body":            body,
		"isBase64Encoded": e.base64,
		"pathParameters":  nil,
		"stageVariables":  nil,
		"requestContext": map[string]any{
			"accountId": "anonymous", "apiId": "q3x5r7t9v2b4n6m8q3x5r7t9v2b4n6m8", "authentication": nil, "authorizer": nil,
			"domainName": lambdaDomain, "domainPrefix": "q3x5r7t9v2b4n6m8q3x5r7t9v2b4n6m8",
			"http":      map[string]any{"method": e.method, "path": e.path, "protocol": "HTTP/1.1", "sourceIp": "203.0.113.7", "userAgent": "Upstash-QStash"},
			"requestId": "e1506fd5-9e7b-434f-bd42-4f8fa224b599", "routeKey": "$default", "stage": "$default",
			"time": "01/Mar/2026:12:00:00 +0000", "timeEpoch": 1772366400000,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// lambdaAnswer is what the program told the runtime API of one invocation.
type lambdaAnswer struct {
	StatusCode      int
	Headers         map[string]string
	Body            string
	IsBase64Encoded bool

	failed bool // it was reported as an error, which a function URL answers with 502
	raw    []byte
}

type lambdaInvocation struct {
	event    []byte
	timeout  time.Duration
	answered chan lambdaAnswer
}

// lambdaProcess is the program in a process of its own, and the runtime API that hands it invocations.
type lambdaProcess struct {
	next    chan *lambdaInvocation
	mu      sync.Mutex
	running map[string]*lambdaInvocation
}

func (l *lambdaProcess) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	what, ok := strings.CutPrefix(r.URL.Path, "/2018-06-01/runtime/invocation/")
	id, end, _ := strings.Cut(what, "/")
	switch {
	case ok && r.Method == http.MethodGet && what == "next":
		select {
		case i := <-l.next:
			id := rand.Text()
			l.mu.Lock()
			l.running[id] = i
			l.mu.Unlock()
			w.Header().Set("Lambda-Runtime-Aws-Request-Id", id)
			w.Header().Set("Lambda-Runtime-Deadline-Ms", fmt.Sprint(time.Now().Add(i.timeout).UnixMilli()))
			w.Header().Set("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:eu-central-1:123456789012:function:qstash-receiver")
			_, _ = w.Write(i.event)
		case <-r.Context().Done():
		}
	case ok && r.Method == http.MethodPost && (end == "response" || end == "error"):
		a := lambdaAnswer{failed: end == "error"}
		a.raw, _ = io.ReadAll(r.Body)
		_ = json.Unmarshal(a.raw, &a)
		l.mu.Lock()
		i := l.running[id]
		delete(l.running, id)
		l.mu.Unlock()
		if i == nil {
			http.Error(w, "no such invocation, or answered twice", http.StatusBadRequest)
			return
		}
		i.answered <- a
		w.WriteHeader(http.StatusAccepted)
	default:
		http.Error(w, "not in the runtime API", http.StatusNotFound)
	}
}

// startLambda starts program as Lambda does. When the test ends it is told to stop, and must do that well.
func startLambda(t *testing.T, program qstashtest.Binary, env map[string]string) *lambdaProcess {
	t.Helper()
	l := &lambdaProcess{next: make(chan *lambdaInvocation), running: map[string]*lambdaInvocation{}}
	api := httptest.NewServer(l)
	t.Cleanup(api.Close)
	log := qstashtest.NewLog()
	all := map[string]string{"AWS_LAMBDA_RUNTIME_API": strings.TrimPrefix(api.URL, "http://"), "AWS_LAMBDA_FUNCTION_NAME": "receiver"}
	maps.Copy(all, env)
	c := program.Command(all)
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		if err := c.Wait(); err != nil {
			t.Errorf("it ended with %v", err)
		}
		for _, secret := range []string{qstashtest.CurrentKey, qstashtest.NextKey, "eyJ"} {
			if strings.Contains(log.String(), secret) {
				t.Errorf("its log has %q", secret)
			}
		}
		if t.Failed() {
			t.Logf("its log:\n%s", log)
		}
	})
	return l
}

// invoke hands over event and returns the answer, which must come before timeout.
func (l *lambdaProcess) invoke(t *testing.T, event []byte, timeout time.Duration) lambdaAnswer {
	t.Helper()
	i := &lambdaInvocation{event: event, timeout: timeout, answered: make(chan lambdaAnswer, 1)}
	select {
	case l.next <- i:
	case <-time.After(30 * time.Second):
		t.Fatal("it did not ask for an invocation")
	}
	select {
	case a := <-i.answered:
		if a.failed {
			t.Fatalf("it reported an error: %s", a.raw)
		}
		if a.IsBase64Encoded {
			body, err := base64.StdEncoding.DecodeString(a.Body)
			if err != nil {
				t.Fatal(err)
			}
			a.Body = string(body)
		}
		return a
	case <-time.After(timeout):
		t.Fatal("Lambda's deadline passed without an answer")
	}
	panic("unreachable")
}

// deliver signs e and invokes the program with it.
func (l *lambdaProcess) deliver(t *testing.T, e *lambdaEvent) lambdaAnswer {
	t.Helper()
	signed := e.headers["upstash-signature"] != "" || e.headers["Upstash-Signature"] != ""
	if !signed && e.method == http.MethodPost {
		e.headers["upstash-signature"] = lambdaToken(e.body, e.subject, e.key)
	}
	return l.invoke(t, e.json(t), e.timeout)
}

func lambdaToken(body, subject, key string) string {
	return qstashtest.Sending{Body: body, Subject: subject, Key: key}.Token("")
}

// buildLambda builds the program for Lambda, with handler in the place of handler.go.
func buildLambda(t *testing.T, handler string) qstashtest.Binary {
	t.Helper()
	dir := t.TempDir()
	here, err := filepath.Abs("../../handler.go")
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{here: filepath.Join(dir, "handler.go")}})
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"handler.go": handler, "overlay.json": string(overlay)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return qstashtest.Build(t, "-tags", "lambda,lambda.norpc", "-overlay", filepath.Join(dir, "overlay.json"))
}

// lambdaUpstream is the service behind FORWARD_URL: it tells what came.
func lambdaUpstream(t *testing.T) string {
	stop := make(chan struct{})
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "text/plain")
		switch r.URL.Path {
		case "/hangs":
			select {
			case <-r.Context().Done():
			case <-stop:
			}
			return
		case "/binary":
			w.Header().Set("Content-Type", "application/octet-stream")
		case "/permanent":
			w.Header().Set("Upstash-NonRetryable-Error", "true")
			w.WriteHeader(489)
		case "/later":
			w.Header().Set("Retry-After", "77")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintf(w, "%s cookie=%s message=%s\n%s", r.RequestURI, r.Header.Get("Cookie"), r.Header.Get("Upstash-Message-Id"), body)
	}))
	t.Cleanup(upstream.Close)
	t.Cleanup(func() { close(stop) })
	return upstream.URL
}

func TestOrdinaryBuildHasNoLambda(t *testing.T) {
	t.Parallel()
	for _, tags := range []string{"", "lambda,lambda.norpc"} {
		deps, err := exec.Command("go", "list", "-deps", "-tags", tags, "../..").Output()
		if err != nil {
			t.Fatal(err)
		}
		if got, want := strings.Contains(string(deps), "github.com/aws/aws-lambda-go/"), tags != ""; got != want {
			t.Errorf("with the tags %q it has aws-lambda-go: %v", tags, got)
		}
	}
}

func TestLambda(t *testing.T) {
	t.Parallel()
	program := buildLambda(t, `package main

import (
	"context"
	"errors"
	"time"

	"qstash-receiver/internal/qstash"
)

func handle(ctx context.Context, m *qstash.Message) ([]byte, error) {
	if string(m.Body) != "sleep" {
		return nil, nil
	}
	time.Sleep(5500 * time.Millisecond) // whatever ctx says
	return nil, errors.New("back at last")
}

func handleFailure(context.Context, *qstash.Callback) error { return nil }
`)
	const refused = `{"error":"unauthorized"}`

	t.Run("a function URL's requests", func(t *testing.T) {
		t.Parallel()
		l := startLambda(t, program, map[string]string{"FORWARD_URL": lambdaUpstream(t), "MAX_BODY_BYTES": "1000", "PORT": "1", "METRICS_PORT": "2"})
		for _, c := range []struct {
			sentence string
			change   lambdaChange
			status   int
			body     string // part of it, or if the status is 401 all
			header   [2]string
		}{
			{"a text body", func(*lambdaEvent) {}, 200, "\n{\"order\":\"№ 1\"}", [2]string{"Content-Type", "text/plain"}},
			{"a body in base64 is hashed decoded", func(e *lambdaEvent) { e.body, e.base64 = "\x00\xff\x89PNG", true }, 200, "\n\x00\xff\x89PNG", [2]string{}},
			{"an empty body", func(e *lambdaEvent) { e.body = "" }, 200, "\n", [2]string{}},
			{"a reply that is no text", func(e *lambdaEvent) {
				lambdaPath("/binary", "")(e)
				e.body, e.base64 = "\xff\xfe", true
			}, 200, "\xff\xfe", [2]string{"Content-Type", "application/octet-stream"}},
			{"headers come through", lambdaHeader("upstash-message-id", "msg_1"), 200, "message=msg_1\n", [2]string{}},
			{"cookies come through", func(*lambdaEvent) {}, 200, "cookie=a=1; b=2 ", [2]string{}},
			{"a permanent failure", lambdaPath("/permanent", ""), 489, "/permanent", [2]string{"Upstash-Nonretryable-Error", "true"}},
			{"a failure that says when to retry", lambdaPath("/later", ""), 503, "/later", [2]string{"Retry-After", "77"}},

			{"another signature", func(e *lambdaEvent) { e.key = "sig_other" }, 401, refused, [2]string{"Content-Type", "application/json"}},
			{"two signatures, joined as AWS joins them", func(e *lambdaEvent) {
				token := lambdaToken(e.body, e.subject, e.key)
				e.headers["upstash-signature"] = token + "," + token
			}, 401, refused, [2]string{}},
			{"a body other than the signed one", func(e *lambdaEvent) {
				e.headers["upstash-signature"] = lambdaToken(e.body+" ", e.subject, e.key)
			}, 401, refused, [2]string{}},
			{"a header in the case of HTTP/1", func(e *lambdaEvent) {
				e.headers["Upstash-Signature"] = lambdaToken(e.body, e.subject, e.key)
			}, 200, "", [2]string{}},

			{"the root, published with a slash", func(e *lambdaEvent) {
				e.path, e.query, e.subject = "/", "", "https://"+lambdaDomain+"/"
			}, 200, "/ ", [2]string{}},
			{"the root, published without", func(e *lambdaEvent) {
				e.path, e.query, e.subject = "/", "", "https://"+lambdaDomain
			}, 200, "/ ", [2]string{}},
			{"the root with a query, published without a slash", func(e *lambdaEvent) {
				e.path, e.query, e.subject = "/", "x=1", "https://"+lambdaDomain+"?x=1"
			}, 200, "/?x=1 ", [2]string{}},
			{"an escaped slash", lambdaPath("/a%2Fb", ""), 200, "/a%2Fb ", [2]string{}},
			{"an escape that needs none", lambdaPath("/%61", "%61=%62"), 200, "/%61?%61=%62 ", [2]string{}},
			{"a double slash in front", lambdaPath("//a//b", ""), 200, "//a//b ", [2]string{}},
			{"dots", lambdaPath("/a/../b/./", ""), 200, "/a/../b/./ ", [2]string{}},
			{"a query in no usual form", lambdaPath("/q", "b=2&a=%2F;c&&a=x+y?z"), 200, "/q?b=2&a=%2F;c&&a=x+y?z ", [2]string{}},
			{"a subject with another path", lambdaSubject("https://" + lambdaDomain + "/others?x=1"), 401, refused, [2]string{}},
			{"a subject with another query", lambdaSubject("https://" + lambdaDomain + "/orders?x=2"), 401, refused, [2]string{}},
			{"a subject unescaped", func(e *lambdaEvent) {
				lambdaPath("/a%2Fb", "")(e)
				e.subject = "https://" + lambdaDomain + "/a/b"
			}, 401, refused, [2]string{}},
			{"a subject of another function", lambdaSubject("https://other.lambda-url.eu-central-1.on.aws/orders?x=1"), 401, refused, [2]string{}},
			{"a subject without TLS", lambdaSubject("http://" + lambdaDomain + "/orders?x=1"), 401, refused, [2]string{}},
			{"the subject is not what the Host header says", func(e *lambdaEvent) {
				e.headers["host"], e.headers["x-forwarded-host"] = "evil.example", "evil.example"
				e.subject = "https://evil.example/orders?x=1"
			}, 401, refused, [2]string{}},
			{"another Host header changes nothing", lambdaHeader("host", "evil.example"), 200, "", [2]string{}},

			{"health", func(e *lambdaEvent) { e.method, e.path, e.query, e.body = "GET", "/healthz", "", "" }, 200, "ok", [2]string{}},
			{"another method", func(e *lambdaEvent) { e.method = "PUT" }, 405, "method not allowed", [2]string{"Allow", "POST"}},
			{"a body over the limit", func(e *lambdaEvent) { e.body = strings.Repeat("x", 1001) }, 413, "MAX_BODY_BYTES", [2]string{}},
			{"a body at the limit", func(e *lambdaEvent) { e.body = strings.Repeat("x", 1000) }, 200, "", [2]string{}},
			{"an escape that is none", lambdaPath("/%zz", ""), 400, "bad request", [2]string{}},
		} {
			a := l.deliver(t, newLambdaEvent(c.change))
			if a.StatusCode != c.status || !strings.Contains(a.Body, c.body) || c.status == 401 && a.Body != c.body {
				t.Errorf("%s: got %d %q, want %d %q", c.sentence, a.StatusCode, a.Body, c.status, c.body)
			}
			if name := c.header[0]; name != "" && a.Headers[name] != c.header[1] {
				t.Errorf("%s: got the headers %v, want %v", c.sentence, a.Headers, c.header)
			}
			if v, ok := a.Headers["Connection"]; ok {
				t.Errorf("%s: the answer has Connection: %s", c.sentence, v)
			}
		}
	})

	t.Run("a message is run once", func(t *testing.T) {
		t.Parallel()
		l := startLambda(t, program, nil)
		e := newLambdaEvent()
		for i, replayed := range []string{"", "true"} {
			delete(e.headers, "upstash-signature") // each attempt has a token of its own
			a := l.deliver(t, e)
			if a.StatusCode != 200 || a.Body != `{"message":"ok"}` || a.Headers["Idempotent-Replayed"] != replayed {
				t.Errorf("delivery %d: got %s", i+1, a.raw)
			}
		}
	})

	t.Run("RECEIVER_URL wins over the function URL", func(t *testing.T) {
		t.Parallel()
		l := startLambda(t, program, map[string]string{"RECEIVER_URL": "https://app.example/"})
		if a := l.deliver(t, newLambdaEvent(lambdaSubject("https://app.example/orders?x=1"))); a.StatusCode != 200 {
			t.Errorf("published to RECEIVER_URL: got %s", a.raw)
		}
		if a := l.deliver(t, newLambdaEvent()); a.StatusCode != 401 {
			t.Errorf("published to the function URL: got %s", a.raw)
		}
	})

	t.Run("an event of another kind", func(t *testing.T) {
		t.Parallel()
		l := startLambda(t, program, nil)
		for _, event := range []string{
			`{}`, `{"key":"value"}`, `{"Records":[{"body":"x"}]}`,
			`{"rawPath":"/","requestContext":{"http":{"method":"POST"}}}`,
			`{"requestContext":{"domainName":"a.example","http":{"method":"POST"}}}`,
			`{"rawPath":"/","body":"not base64!","isBase64Encoded":true,"requestContext":{"domainName":"a.example","http":{"method":"POST"}}}`,
		} {
			if a := l.invoke(t, []byte(event), 5*time.Second); a.StatusCode != 400 {
				t.Errorf("%s: got %s", event, a.raw)
			}
		}
	})

	t.Run("the function's deadline is before Lambda's", func(t *testing.T) {
		t.Parallel()
		l := startLambda(t, program, map[string]string{"FORWARD_URL": lambdaUpstream(t), "AWS_LAMBDA_MAX_CONCURRENCY": "2"})
		hangs := func() *lambdaEvent {
			return newLambdaEvent(lambdaPath("/hangs", ""), lambdaHeader("upstash-message-id", "msg_1"), func(e *lambdaEvent) { e.timeout = 3 * time.Second })
		}
		l.deliver(t, newLambdaEvent()) // it is up, and both that follow have all their time
		// A second delivery waits for the first, and that too ends in time.
		second := make(chan lambdaAnswer)
		go func() {
			defer close(second)
			time.Sleep(300 * time.Millisecond)
			second <- l.deliver(t, hangs())
		}()
		if a := l.deliver(t, hangs()); a.StatusCode != 504 {
			t.Errorf("got %s", a.raw)
		}
		if a := <-second; a.StatusCode != 503 || a.Headers["Retry-After"] == "" {
			t.Errorf("the second: got %s", a.raw)
		}
	})

	t.Run("no answer while the function runs", func(t *testing.T) {
		t.Parallel()
		l := startLambda(t, program, map[string]string{"HANDLER_TIMEOUT": "100ms"})
		if a := l.deliver(t, newLambdaEvent(func(e *lambdaEvent) { e.body = "sleep" })); a.StatusCode != 504 || a.Body != `{"error":"back at last"}` {
			t.Errorf("got %s", a.raw)
		}
	})

	t.Run("it does not start without keys", func(t *testing.T) {
		t.Parallel()
		c := program.Command(map[string]string{"AWS_LAMBDA_RUNTIME_API": "127.0.0.1:1", "QSTASH_CURRENT_SIGNING_KEY": "", "QSTASH_NEXT_SIGNING_KEY": ""})
		out, err := c.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "QSTASH_CURRENT_SIGNING_KEY") {
			t.Errorf("got %v, %s", err, out)
		}
	})
}
