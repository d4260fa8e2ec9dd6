package dev_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"qstash-receiver/internal/dev"
)

func wantAll(t *testing.T, page string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(page, part) {
			t.Errorf("%q is not in\n%s", part, page)
		}
	}
}

func TestListPage(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting, Destination: "http://localhost:8080/orders"})
	a := q.do("GET", "/", "")
	wantAll(t, a.text, `<html lang="en">`, "<title>Messages", `<div id="empty">`,
		"curl -X POST "+q.url+"/v2/publish/http://localhost:8080/orders",
		`value="http://localhost:8080/orders"`, ">Publish</button>", `value="answer-lost"`, `value="twice"`, `value="late-token"`)
	policy := a.header.Get("Content-Security-Policy")
	if !strings.HasPrefix(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") {
		t.Errorf("policy: %s", policy)
	}

	r := receive(t, status(500))
	id := q.publish(r.url+"/<script>", "{}")
	q.await(id)
	q.Heard(id, 1, "ok", "", "done")
	a = q.do("GET", "/", "")
	wantAll(t, a.text, `href="/messages/`+id+`"`, r.url+"/&lt;script&gt;", "1 message", "2 attempts", "delivered", "· ok",
		`<div id="empty" hidden>`)
}

func TestMessagePage(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting})
	r := receive(t, status(500, "X-Why", "not yet"))
	id := q.publish(r.url+"/orders", `{"order":{"id":1}}`,
		"Content-Type", "application/json", "Upstash-Forward-Shop", "7's", "Upstash-Label", "red")
	q.await(id)
	q.Heard(id, 0, "failed", "error", "failed, QStash retries")
	wantAll(t, q.do("GET", "/messages/"+id, "").text, "<title>"+id, r.url+"/orders", "First attempt", "Retry 1", "<b>500</b>", "<b>200</b>",
		"failed, QStash retries", "retries in 12s (backoff)", "{&#34;error&#34;:&#34;not now&#34;}", "X-Why: not yet", "Upstash-Signature: ey",
		"&#34;order&#34;: {\n    &#34;id&#34;: 1\n  }", "Shop: 7&#39;s", "Deliver the next attempt now", "Send again as the same message",
		"Send again as a new message", "Copy as curl", "--data-raw", "Upstash-Label: red")
	if a := q.do("GET", "/messages/msg_other", ""); a.status != 404 || !strings.Contains(a.text, "message msg_other not found") {
		t.Errorf("another message: %d %s", a.status, a.text)
	}
	a := q.do("GET", "/messages/"+id+"/body", "")
	if a.text != `{"order":{"id":1}}` {
		t.Errorf("body: %q", a.text)
	}
	wantHeader(t, a.header, "Content-Type", "application/octet-stream", "X-Content-Type-Options", "nosniff")
}

// form sends a form as the page does with its script, or as a browser does without.
func (q *standIn) form(path string, values url.Values, script bool) answer {
	headers := []string{"Origin", q.url, "Content-Type", "application/x-www-form-urlencoded"}
	if script {
		headers = append(headers, "Accept", "application/json")
	}
	return q.do("POST", path, values.Encode(), headers...)
}

func TestForms(t *testing.T) {
	for _, script := range []bool{true, false} {
		t.Run(fmt.Sprintf("script: %t", script), func(t *testing.T) {
			q := start(t, dev.Config{}) // it waits as long as QStash does
			r := receive(t, status(500))
			wantDone := func(a answer, location string) {
				t.Helper()
				if script && a.status != 200 || !script && (a.status != 303 || !strings.HasPrefix(a.header.Get("Location"), location)) {
					t.Errorf("%d %s, Location %q", a.status, a.text, a.header.Get("Location"))
				}
			}
			wantDone(q.form("/messages", url.Values{"destination": {" " + r.url}, "body": {"{\r\n}"}, "fault": {""}}, script), "/")
			first := r.next()
			if first.body != "{\n}" || first.header.Get("Content-Type") != "application/json" {
				t.Errorf("delivered %q with %v", first.body, first.header)
			}
			id := first.header.Get("Upstash-Message-Id")
			until(q.live(t.Context(), "/messages/"+id+"/live"), "for the next attempt")
			wantDone(q.form("/messages/"+id+"/again", nil, script), "/messages/"+id)
			if a := r.next(); a.header.Get("Upstash-Message-Id") != id || a.header.Get("Upstash-Retried") != "0" {
				t.Errorf("again: %v", a.header)
			}
			wantDone(q.form("/messages/"+id+"/now", nil, script), "/messages/"+id)
			if a := r.next(); a.header.Get("Upstash-Message-Id") != id || a.header.Get("Upstash-Retried") != "1" {
				t.Errorf("now: %v", a.header)
			}
			if m := q.await(id); m.State != dev.Delivered || len(m.Attempts) != 3 {
				t.Errorf("%+v", m)
			}
			wantDone(q.form("/messages/"+id+"/new", nil, script), "/messages/msg_")
			if a := r.next(); a.header.Get("Upstash-Message-Id") == id || a.body != first.body {
				t.Errorf("new: %v", a.header)
			}
			if a := q.form("/messages/"+id+"/now", nil, script); a.status != 409 || !strings.Contains(a.text, "no attempt is to come") {
				t.Errorf("now, when it is over: %d %s", a.status, a.text)
			}
			a := q.form("/messages", url.Values{"destination": {"nowhere/"}}, script)
			if a.status != 400 || !strings.Contains(a.text, "http://") {
				t.Errorf("to nowhere: %d %s", a.status, a.text)
			}
		})
	}
}

// live reads an open page's events.
func (q *standIn) live(ctx context.Context, path string) func() string {
	q.t.Helper()
	request, err := http.NewRequestWithContext(ctx, "GET", q.url+path, nil)
	if err != nil {
		q.t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		q.t.Fatal(err)
	}
	q.t.Cleanup(func() { _ = response.Body.Close() })
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 10<<20)
	return func() string {
		q.t.Helper()
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				return data
			}
		}
		q.t.Fatalf("the stream ended: %v", lines.Err())
		return ""
	}
}

// until reads events up to one that has all parts.
func until(next func() string, parts ...string) {
	missing := func(event string) bool {
		return slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(event, part) })
	}
	for event := next(); missing(event); event = next() {
	}
}

func TestPagesAreLive(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting})
	release := make(chan struct{})
	r := receive(t, func(w http.ResponseWriter, _ *http.Request) { <-release; w.WriteHeader(500) })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	list := q.live(ctx, "/messages/live")
	if got := list(); !strings.Contains(got, `"rows":[]`) {
		t.Errorf("at first: %s", got)
	}
	id := q.publish(r.url, "{}")
	message := q.live(ctx, "/messages/"+id+"/live")
	until(list, id, "delivering", "1 message")
	until(message, "First attempt", "on its way")
	close(release)
	until(message, "Retry 1", "done", "delivered")
	until(list, "2 attempts", "delivered")
	q.Heard(id, 1, "ok", "", "done, word for word")
	until(message, "done, word for word")
	until(list, "· ok")
}

func TestCurlPublishesTheSame(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("curl is not here")
	}
	for _, body := range []string{"", "{}", "it's $HOME \\ \"x\"\n@y\n", "@file", "\x00\xff", strings.Repeat("a", 40<<10)} {
		t.Run(fmt.Sprintf("%.10q", body), func(t *testing.T) {
			q := start(t, dev.Config{Speed: dev.NoWaiting})
			r := receive(t)
			q.await(q.publish(r.url+"/a/../b?x[1]={y}'", body,
				"Content-Type", "text/plain", "Upstash-Forward-Shop", "7's", "Upstash-Forward-Empty", ""))
			first := r.next()
			page := q.do("GET", "/messages/"+first.header.Get("Upstash-Message-Id"), "").text
			_, command, _ := strings.Cut(page, `<pre id="curl">`)
			command, _, _ = strings.Cut(command, "</pre>")
			command = strings.NewReplacer("&#39;", "'", "&#34;", `"`, "&lt;", "<", "&gt;", ">", "&amp;", "&", "&#43;", "+").Replace(command)
			if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			second := r.next()
			for _, name := range []string{"Content-Type", "Shop", "Empty"} {
				if first.header.Get(name) != second.header.Get(name) {
					t.Errorf("%s: %q, then %q", name, first.header.Get(name), second.header.Get(name))
				}
			}
			if second.target != first.target || second.body != first.body || second.method != first.method {
				t.Errorf("%s %q, then %s %q", first.target, first.body, second.target, second.body)
			}
		})
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	q := &standIn{dev.New(dev.Config{}), "http://" + listener.Addr().String(), t}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- q.Serve(ctx, listener) }()
	q.live(t.Context(), "/messages/live")()
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it still serves")
	}
}
