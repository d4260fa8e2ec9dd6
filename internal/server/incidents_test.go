package server_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"qstash-receiver/internal/qstashtest"
)

type (
	env      = map[string]string
	sending  = qstashtest.Sending
	instance = qstashtest.Process
)

// incident is something that goes wrong, as the owner reads of it.
type incident struct {
	name string
	// happens makes it happen to a program that it starts, and returns that, and parts of the last line of its log.
	happens func(t *testing.T, start func(env) *instance) (p *instance, last string)
}

// delivered is the incident of deliveries, one after another, to a program with settings.
func delivered(settings env, deliveries ...sending) func(*testing.T, func(env) *instance) (*instance, string) {
	return func(t *testing.T, start func(env) *instance) (*instance, string) {
		p := start(settings)
		for i, s := range deliveries {
			send(t, p, s)
			awaitLines(t, p, `"msg":"delivery"`, i+1)
		}
		return p, `"msg":"delivery"`
	}
}

// send has QStash deliver s, which is message msg_1 to /orders where s does not say otherwise.
func send(t *testing.T, p *instance, s sending) qstashtest.Reply {
	t.Helper()
	return qstashtest.Do(t, request(t, p, s))
}

func request(t *testing.T, p *instance, s sending) *http.Request {
	t.Helper()
	if s.ID == "" {
		s.ID = "msg_1"
	}
	if s.Path == "" {
		s.Path = "/orders"
	}
	return s.Request(t, p.URL)
}

// inBackground has QStash deliver s, and returns once business logic runs it.
func inBackground(t *testing.T, p *instance, s sending) {
	t.Helper()
	r := request(t, p, s)
	go func() { _, _ = qstashtest.TryDo(r) }()
	p.Log.Await(t, "shipping order 7")
}

// awaitLines waits until the log has n lines with part.
func awaitLines(t *testing.T, p *instance, part string, n int) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); len(p.Log.Lines(t, part)) < n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the log has not %d lines with %s: %s", n, part, p.Log)
		}
	}
}

// app is the URL of a service behind FORWARD_URL.
func app(t *testing.T, answer http.HandlerFunc) string {
	web := httptest.NewServer(answer)
	t.Cleanup(web.Close)
	return web.URL
}

func incidents() []incident {
	now := time.Now()
	early := qstashtest.Claims{"exp": fmt.Sprint(now.Add(20 * time.Minute).Unix()), "nbf": fmt.Sprint(now.Add(10 * time.Minute).Unix())}
	callback := `{"sourceMessageId":"msg_0","status":200,"body":"b2s=","url":"https://app.example.com/orders"}`
	return []incident{
		{"the keys are another account's", func(t *testing.T, start func(env) *instance) (*instance, string) {
			p := start(nil)
			for range 3 {
				send(t, p, sending{Key: qstashtest.EUCurrentKey})
			}
			return p, "no message has been accepted"
		}},
		{"RECEIVER_URL is not where messages are published to", delivered(env{"RECEIVER_URL": "https://app.fly.dev"}, sending{Subject: "https://hooks.example.com/orders"})},
		{"this machine's clock is behind", delivered(nil, sending{Claims: early})},
		{"this machine's clock is ahead", delivered(nil, sending{Issued: now.Add(-15 * time.Minute)})},
		{"a proxy changes the body", delivered(nil, sending{Body: `{"order": 7}`, Claims: qstashtest.Claims{"body": `"` + qstashtest.BodyHash(`{"order":7}`) + `"`}})},
		{"a message is too large", delivered(env{"MAX_BODY_BYTES": "1000"}, sending{Body: strings.Repeat("x", 3000)})},
		{"a captured delivery is sent again under another id", delivered(nil, sending{TokenID: "jwt_1"}, sending{TokenID: "jwt_1", ID: "msg_2"})},
		{"the store goes away and comes back", func(t *testing.T, start func(env) *instance) (*instance, string) {
			redis := qstashtest.NewRedis(t)
			p := start(env{"STORE_URL": redis.URL()})
			redis.Stop()
			send(t, p, sending{})
			redis.Start(t)
			for i := 0; len(p.Log.Lines(t, "works again")) == 0 && i < 100; i++ {
				send(t, p, sending{ID: "msg_2"})
				time.Sleep(100 * time.Millisecond)
			}
			return p, "works again"
		}},
		{"the app goes away and comes back", func(t *testing.T, start func(env) *instance) (*instance, string) {
			port := qstashtest.FreePort(t)
			p := start(env{"FORWARD_URL": "http://127.0.0.1:" + port})
			for range 3 {
				send(t, p, sending{})
			}
			p.Log.Await(t, "in a row")
			listener, err := net.Listen("tcp", "127.0.0.1:"+port)
			if err != nil {
				t.Fatal(err)
			}
			web := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
			go func() { _ = web.Serve(listener) }()
			t.Cleanup(func() { _ = web.Close() })
			send(t, p, sending{})
			return p, "FORWARD_URL answers again"
		}},
		{"the app is slow", func(t *testing.T, start func(env) *instance) (*instance, string) {
			return delivered(env{"HANDLER_TIMEOUT": "300ms", "FORWARD_URL": app(t, func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // or the server does not see that its caller has gone
				<-r.Context().Done()
			})}, sending{})(t, start)
		}},
		{"the program is stopped while a message runs", func(t *testing.T, start func(env) *instance) (*instance, string) {
			p := start(nil)
			inBackground(t, p, sending{Body: "a second"})
			p.Signal(t, syscall.SIGTERM)
			return p, `"msg":"stopped"`
		}},
		{"the keys were rolled", delivered(nil, sending{Key: qstashtest.NextKey}, sending{Key: qstashtest.NextKey, ID: "msg_2"})},
		{"somebody calls without a signature", delivered(nil, sending{Header: env{"Upstash-Signature": ""}})},
		{"a message is delivered twice", delivered(nil, sending{}, sending{})},
		{"a success callback comes to /failure", delivered(nil, sending{Path: "/failure", Body: callback})},

		{"handler.go fails", delivered(nil, sending{Body: "fail"})},
		{"handler.go fails again", delivered(nil, sending{Body: "fail", Header: env{"Upstash-Retried": "2"}})},
		{"handler.go fails for the fourth time", delivered(nil, sending{Body: "fail", Header: env{"Upstash-Retried": "3"}})},
		{"handler.go fails on the last attempt", delivered(nil, sending{Body: "fail", Header: env{"Upstash-Retried": "1", "Upstash-Max-Retries": "1"}})},
		{"handler.go gives up", delivered(nil, sending{Body: "fail for good"})},
		{"handler.go asks for a later retry", delivered(nil, sending{Body: "later"})},
		{"handler.go panics", delivered(nil, sending{Body: "panic"})},
		{"handler.go takes too long", delivered(env{"HANDLER_TIMEOUT": "300ms"}, sending{Body: "slow"})},
		{"two deliveries of one message at once", func(t *testing.T, start func(env) *instance) (*instance, string) {
			p := start(nil)
			inBackground(t, p, sending{Body: "a minute"})
			send(t, p, sending{Body: "a minute"})
			return p, `"msg":"delivery"`
		}},
		{"a message has not the bearer token", delivered(env{"BEARER_TOKEN": "s3cr3t-s3cr3t-s3cr3t"}, sending{})},
		{"a message is published with another method", func(t *testing.T, start func(env) *instance) (*instance, string) {
			p := start(nil)
			r := request(t, p, sending{Header: env{"Upstash-Method": "PUT"}})
			r.Method = http.MethodPut
			qstashtest.Do(t, r)
			return p, `"msg":"delivery"`
		}},
		{"a stranger looks round", func(t *testing.T, start func(env) *instance) (*instance, string) {
			p := start(nil)
			qstashtest.Get(t, p.URL+"/wp-login.php")
			return p, `"msg":"delivery"`
		}},
		{"a stranger makes up a token", delivered(nil, sending{Header: env{"Upstash-Signature": "eyJ.eyJ.x!"}})},
		{"the app fails", func(t *testing.T, start func(env) *instance) (*instance, string) {
			return delivered(env{"FORWARD_URL": app(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })}, sending{})(t, start)
		}},
		{"the app redirects", func(t *testing.T, start func(env) *instance) (*instance, string) {
			return delivered(env{"FORWARD_URL": app(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", "https://app.example.com"+r.URL.Path+"/")
				w.WriteHeader(http.StatusPermanentRedirect)
			})}, sending{})(t, start)
		}},
		{"the app dies as it works", func(t *testing.T, start func(env) *instance) (*instance, string) {
			return delivered(env{"FORWARD_URL": app(t, func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				panic(http.ErrAbortHandler)
			})}, sending{})(t, start)
		}},
	}
}

// TestIncidents has the whole program meet what goes wrong, and compares the lines that its owner reads with those in
// testdata/incidents.txt. UPDATE_INCIDENTS=1 writes that file.
func TestIncidents(t *testing.T) {
	const golden = "testdata/incidents.txt"
	binary := build(t)
	all := incidents()
	got := make([]string, len(all))
	t.Run("lines", func(t *testing.T) {
		for i, c := range all {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				p, last := c.happens(t, func(settings env) *instance { return binary.Start(t, settings) })
				p.Log.Await(t, last)
				got[i] = "# " + c.name + "\n" + shown(p.Log.String())
			})
		}
	})
	text := strings.Join(got, "\n")
	if os.Getenv("UPDATE_INCIDENTS") != "" {
		if err := os.WriteFile(golden, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	read, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(string(read), "\n\n")
	for i := range got {
		if i >= len(want) || strings.TrimSpace(got[i]) != strings.TrimSpace(want[i]) {
			t.Errorf("the log is now\n%s", got[i])
		}
	}
	if len(want) != len(got) {
		t.Errorf("%s has %d incidents, the test has %d", golden, len(want), len(got))
	}
}

// shown is log without the lines of the start and those that repeat the one before, and with what varies replaced.
func shown(log string) string {
	varies := []struct{ pattern, instead string }{
		{`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`, "2026-11-22T09:13:11Z"},
		{`("since":"|expired \d+ s ago, at )[^Z]+`, "${1}2026-11-22T09:03:11"},
		{`(valid in \d+ s, from )[^Z]+`, "${1}2026-11-22T09:23:11"},
		{`"ms":[0-9.]+`, `"ms":0.5`},
		{`("outcome":"timeout".*"ms":)0.5`, "${1}300.5"},
		{`("outcome":"in_flight".*"ms":)0.5`, "${1}10000.5"},
		{`(localhost|127\.0\.0\.1|\[::1\]):\d+(->[0-9.:]+)?`, "127.0.0.1:3000"},
		{`(Redis: dial tcp 127\.0\.0\.1:)3000`, "${1}6379"},
		{`"from":"(::1|127\.0\.0\.1)"`, `"from":"192.0.2.7"`},
		{`(expired|valid in) \d+ s`, "$1 600 s"},
		{`"stack":".*?[^\\]"`, `"stack":"goroutine 34 [running]: ..."`},
		{`"(failed_calls|unanswered)":\d+`, `"$1":7`},
		{`"seconds":\d+`, `"seconds":600`},
		{`Retry-After (\d+)`, "Retry-After 55"},
		{`in \d\ds, as the answer asks`, "in 45s, as the answer asks"},
	}
	for _, v := range varies {
		log = regexp.MustCompile(v.pattern).ReplaceAllString(log, v.instead)
	}
	var b strings.Builder
	before := ""
	for line := range strings.Lines(log) {
		if line != before && !strings.Contains(line, `"msg":"receiving"`) && !strings.Contains(line, "RECEIVER_URL is not set") {
			b.WriteString(line)
		}
		before = line
	}
	return b.String()
}

// build builds the program with the business logic of the incidents in place of what is there.
func build(t *testing.T) qstashtest.Binary {
	t.Helper()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	root, dir := filepath.Join(here, "../.."), t.TempDir()
	files, err := filepath.Glob(filepath.Join(root, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	replace := map[string]string{}
	for _, file := range files {
		if name := filepath.Base(file); name != "main.go" && name != "verify.go" {
			replace[file] = "" // as if it was not there
		}
	}
	replace[filepath.Join(root, "handler.go")] = filepath.Join(here, "testdata", "handler.go.txt")
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "receiver")
	cmd := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", path, ".")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the program: %v\n%s", err, out)
	}
	return qstashtest.Binary(path)
}
