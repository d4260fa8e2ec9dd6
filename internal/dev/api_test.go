package dev_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"qstash-receiver/internal/dev"
)

// errorOf returns the text of an error.
func errorOf(t *testing.T, a answer) string {
	t.Helper()
	if got := a.header.Get("Content-Type"); got != "application/json" {
		t.Errorf("the error's content type is %q", got)
	}
	return into[struct{ Error string }](t, a).Error
}

func TestWhatIsRefused(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting})
	const to = "/v2/publish/http://localhost:1/orders"
	tests := []struct {
		name         string
		method, path string
		header       [2]string
		status       int
		text         string // in the error
	}{
		{"retries that are no number", "POST", to, [2]string{"Upstash-Retries", "many"}, 400, `Upstash-Retries: "many"`},
		{"retries below nothing", "POST", to, [2]string{"Upstash-Retries", "-1"}, 400, "Upstash-Retries"},
		{"half a retry", "POST", to, [2]string{"Upstash-Retries", "1.5"}, 400, "Upstash-Retries"},
		{"far too many retries", "POST", to, [2]string{"Upstash-Retries", "101"}, 400, "from 0 to 100"},
		{"a delay without a unit", "POST", to, [2]string{"Upstash-Delay", "5"}, 400, `Upstash-Delay: "5"`},
		{"a delay in words", "POST", to, [2]string{"Upstash-Delay", "soon"}, 400, "Upstash-Delay"},
		{"a delay of more than a year", "POST", to, [2]string{"Upstash-Delay", "400d"}, 400, "too long"},
		{"a time in words", "POST", to, [2]string{"Upstash-Not-Before", "tomorrow"}, 400, "Upstash-Not-Before"},
		{"a time in milliseconds", "POST", to, [2]string{"Upstash-Not-Before", "1777636800000"}, 400, "Upstash-Not-Before"},
		{"no retry delay", "POST", to, [2]string{"Upstash-Retry-Delay", "soon"}, 400, "Upstash-Retry-Delay"},
		{"a retry delay below nothing", "POST", to, [2]string{"Upstash-Retry-Delay", "-5"}, 400, "Upstash-Retry-Delay"},
		{"an expression", "POST", to, [2]string{"Upstash-Retry-Delay", "pow(2, retried) * 1000"}, 501, "no expressions"},
		{"another method", "POST", to, [2]string{"Upstash-Method", "BREW"}, 400, "Upstash-Method"},
		{"a timeout in words", "POST", to, [2]string{"Upstash-Timeout", "short"}, 400, "Upstash-Timeout"},
		{"no timeout", "POST", to, [2]string{"Upstash-Timeout", "0s"}, 400, "Upstash-Timeout"},
		{"a timeout of a day", "POST", to, [2]string{"Upstash-Timeout", "1d"}, 400, "Upstash-Timeout"},
		{"neither true nor false", "POST", to, [2]string{"Upstash-Content-Based-Deduplication", "maybe"}, 400, "neither"},
		{"a fault that is none", "POST", to, [2]string{"Upstash-Dev-Fault", "flood"}, 400, "answer-lost, twice and late-token"},
		{"a callback to no URL", "POST", to, [2]string{"Upstash-Callback", "/called"}, 400, "Upstash-Callback: destination"},
		{"a callback to a URL group", "POST", to, [2]string{"Upstash-Failure-Callback", "group"}, 501, "Upstash-Failure-Callback: "},
		{"a schedule", "POST", to, [2]string{"Upstash-Cron", "* * * * *"}, 501, "schedules"},
		{"flow control", "POST", to, [2]string{"Upstash-Flow-Control-Key", "a"}, 501, "flow control"},
		{"a workflow", "POST", to, [2]string{"Upstash-Workflow-RunId", "wfr_1"}, 501, "workflows"},
		{"redaction", "POST", to, [2]string{"Upstash-Redact-Fields", "body"}, 501, "redaction"},
		{"a URL group", "POST", "/v2/publish/group", [2]string{}, 501, "URL groups"},
		{"an API", "POST", "/v2/publish/api/llm", [2]string{}, 501, "no APIs"},
		{"no destination", "POST", "/v2/publish/", [2]string{}, 400, "http://"},
		{"no scheme", "POST", "/v2/publish/localhost:8080/orders", [2]string{}, 400, "http://"},
		{"another scheme", "POST", "/v2/publish/ftp://localhost/orders", [2]string{}, 400, "http://"},
		{"no host", "POST", "/v2/publish/http:///orders", [2]string{}, 400, "no host"},
		{"a bad name of a queue", "POST", "/v2/enqueue/a%20b/http://localhost:1", [2]string{}, 400, "queue"},
		{"a queue alone", "POST", "/v2/enqueue/line", [2]string{}, 400, "destination"},
		{"a GET", "GET", to, [2]string{}, 405, "POST"},
		{"a DELETE of keys", "DELETE", "/v2/keys", [2]string{}, 405, "GET"},
		{"a GET that rolls", "GET", "/v2/keys/rotate", [2]string{}, 405, "POST"},
		{"a POST of a message", "POST", "/v2/messages/msg_1", [2]string{}, 405, "GET, DELETE"},
		{"a PUT of dead letters", "PUT", "/v2/dlq", [2]string{}, 405, "GET, DELETE"},
		{"a GET of a retry", "GET", "/v2/dlq/retry/1-1", [2]string{}, 405, "POST"},
		{"schedules", "GET", "/v2/schedules", [2]string{}, 501, "no schedules"},
		{"making a schedule", "POST", "/v2/schedules/http://localhost:1", [2]string{}, 501, "no schedules"},
		{"URL groups", "POST", "/v2/topics/a/endpoints", [2]string{}, 501, "no URL groups"},
		{"queues", "GET", "/v2/queues", [2]string{}, 501, "queues"},
		{"workflow runs", "DELETE", "/v2/workflows/runs/1", [2]string{}, 501, "no workflows"},
		{"flow control keys", "GET", "/v2/flowControl/a", [2]string{}, 501, "no flow control"},
		{"something else", "GET", "/v2/else", [2]string{}, 404, "/v2/else"},
		{"an unknown message", "GET", "/v2/messages/msg_1", [2]string{}, 404, "message msg_1 not found"},
		{"cancelling an unknown message", "DELETE", "/v2/messages/msg_1", [2]string{}, 404, "message msg_1 not found"},
		{"an unknown dead letter", "GET", "/v2/dlq/1-1", [2]string{}, 404, "dead letter 1-1 not found"},
		{"deleting an unknown dead letter", "DELETE", "/v2/dlq/1-1", [2]string{}, 404, "dead letter 1-1 not found"},
		{"retrying an unknown dead letter", "POST", "/v2/dlq/retry/1-1", [2]string{}, 404, "dead letter 1-1 not found"},
		{"retrying unknown dead letters", "POST", "/v2/dlq/retry?dlqIds=1-1", [2]string{}, 404, "dead letter 1-1 not found"},
		{"a state that is none", "GET", "/v2/logs?state=LOST", [2]string{}, 400, "state"},
		{"a count that is none", "GET", "/v2/logs?count=all", [2]string{}, 400, "count"},
		{"a cursor that was not given", "GET", "/v2/events?cursor=x", [2]string{}, 400, "cursor"},
		{"a date in words", "GET", "/v2/dlq?fromDate=today", [2]string{}, 400, "fromDate"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var headers []string
			if test.header[0] != "" {
				headers = test.header[:]
			}
			a := q.do(test.method, test.path, "{}", headers...)
			if got := errorOf(t, a); a.status != test.status || !strings.Contains(got, test.text) {
				t.Errorf("%d %s; want %d with %s", a.status, got, test.status, test.text)
			}
			if a.status == 405 && a.header.Get("Allow") != test.text {
				t.Errorf("Allow: %q", a.header.Get("Allow"))
			}
		})
	}
	if a := q.do("GET", "/v2/logs", ""); a.text != `{"logs":[]}` {
		t.Errorf("something was published: %s", a.text)
	}
}

func TestLargeBodyIsRefused(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting})
	r := receive(t)
	if a := q.do("POST", "/v2/publish/"+r.url, strings.Repeat("a", 10<<20+1)); a.status != 413 {
		t.Errorf("%d %s, want 413", a.status, a.text)
	}
	if m := q.await(q.publish(r.url, strings.Repeat("a", 10<<20))); m.State != dev.Delivered {
		t.Errorf("10 MiB: %s", m.State)
	}
}

func TestAnyTokenWillDo(t *testing.T) {
	q := start(t, dev.Config{})
	for _, headers := range [][]string{nil, {"Authorization", "Bearer x"}, {"Authorization", "nonsense"}} {
		if a := q.do("GET", "/v2/keys", "", headers...); a.status != 200 {
			t.Errorf("with %v: %d", headers, a.status)
		}
	}
}

func TestBatch(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting})
	r := receive(t)
	a := q.do("POST", "/v2/batch", fmt.Sprintf(`[
		{"destination": "%[1]s/a", "headers": {"upstash-forward-shop": "7", "Content-Type": "text/plain"}, "body": "1"},
		{"destination": "%[1]s/b", "headers": {"Upstash-Forward-Shop": ["8", "9"]}, "body": "2", "queue": "line"},
		{"destination": "%[1]s/c"}]`, r.url))
	if a.status != 200 {
		t.Fatalf("%d %s", a.status, a.text)
	}
	got := map[string]arrival{}
	for i, answer := range into[[]struct{ MessageID string }](t, a) {
		m := q.await(answer.MessageID)
		if queue := []string{"", "line", ""}[i]; m.Queue != queue {
			t.Errorf("message %d is in queue %q", i, m.Queue)
		}
	}
	for _, a := range r.all() {
		got[a.target] = a
	}
	if a := got["/a"]; a.body != "1" || a.header.Get("Shop") != "7" || a.header.Get("Content-Type") != "text/plain" {
		t.Errorf("%+v", a)
	}
	if a := got["/b"]; a.body != "2" || fmt.Sprint(a.header.Values("Shop")) != "[8 9]" {
		t.Errorf("%+v", a)
	}
	if a, ok := got["/c"]; a.body != "" || !ok {
		t.Errorf("%+v", a)
	}

	for body, want := range map[string]int{
		`{}`:                         400,
		`[{"destination": "group"}]`: 501,
		`[{"destination": "http://localhost:1"}, {"destination": "http://localhost:1/a b"}]`:                     400,
		`[{"destination": "http://localhost:1/#a"}]`:                                                             400,
		`[{"destination": "http://localhost:1/%zz"}]`:                                                            400,
		`[{"destination": "http://localhost:1", "headers": {"Upstash-Retries": ["x"]}}]`:                         400,
		`[{"destination": "http://localhost:1", "headers": {"Upstash-Forward-A b": "x"}}]`:                       400,
		`[{"destination": "http://localhost:1", "headers": {"Upstash-Forward-A": "x\r\nUpstash-Signature: y"}}]`: 400,
		`[{"destination": "http://localhost:1", "headers": {"A": 1}}]`:                                           400,
		`[{"destination": "http://localhost:1", "body": {}}]`:                                                    400,
		`[{"destination": "http://localhost:1", "queue": "a/b"}]`:                                                400,
	} {
		if a := q.do("POST", "/v2/batch", body); a.status != want || errorOf(t, a) == "" {
			t.Errorf("%s: %d %s, want %d", body, a.status, a.text, want)
		}
	}
	if n := len(into[struct{ Logs []any }](t, q.do("GET", "/v2/logs?state=CREATED", "")).Logs); n != 3 {
		t.Errorf("%d messages were published, want 3: one that is wrong refuses its batch", n)
	}
}

func TestDeduplication(t *testing.T) {
	type headers []string
	const content = "Upstash-Content-Based-Deduplication"
	tests := []struct {
		name          string
		first, second headers
		body          string // of the second; the first one's is {}
		path          string
		duplicate     bool
	}{
		{"nothing", nil, nil, "{}", "/a", false},
		{"the same id", headers{"Upstash-Deduplication-Id", "1"}, headers{"Upstash-Deduplication-Id", "1"}, "[]", "/b", true},
		{"another id", headers{"Upstash-Deduplication-Id", "1"}, headers{"Upstash-Deduplication-Id", "2"}, "{}", "/a", false},
		{"the same content", headers{content, "true"}, headers{content, "true"}, "{}", "/a", true},
		{"another body", headers{content, "true"}, headers{content, "true"}, "[]", "/a", false},
		{"another destination", headers{content, "true"}, headers{content, "true"}, "{}", "/b", false},
		{"the same content, not asked for", headers{content, "true"}, headers{content, "false"}, "{}", "/a", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			q := start(t, dev.Config{Speed: dev.NoWaiting})
			r := receive(t)
			id := q.publish(r.url+"/a", "{}", test.first...)
			q.await(id)
			a := q.do("POST", "/v2/publish/"+r.url+test.path, test.body, test.second...)
			got := into[struct {
				MessageID    string
				Deduplicated bool
			}](t, a)
			if got.Deduplicated != test.duplicate || (a.status == 202) != test.duplicate || (got.MessageID == id) != test.duplicate {
				t.Errorf("%d %s; want a duplicate: %t", a.status, a.text, test.duplicate)
			}
			q.await(got.MessageID)
			if n := len(r.all()); (n == 1) != test.duplicate {
				t.Errorf("%d deliveries", n)
			}
		})
	}
}

func TestMessageIsGot(t *testing.T) {
	q := start(t, dev.Config{})
	id := q.publish("http://localhost:1/orders?a=b", `{"order":1}`,
		"Upstash-Delay", "1h",
		"Upstash-Label", "a,b",
		"Upstash-Retries", "5",
		"Upstash-Callback", "http://localhost:1/called",
		"Upstash-Failure-Callback", "http://localhost:1/failure",
		"Upstash-Forward-Shop", "7")
	m := into[map[string]any](t, q.do("GET", "/v2/messages/"+id, ""))
	for name, want := range map[string]any{
		"messageId":       id,
		"url":             "http://localhost:1/orders?a=b",
		"method":          "POST",
		"body":            `{"order":1}`,
		"maxRetries":      5.0,
		"callerIP":        "127.0.0.1",
		"callback":        "http://localhost:1/called",
		"failureCallback": "http://localhost:1/failure",
		"label":           "a",
	} {
		if m[name] != want {
			t.Errorf("%s is %v, want %v", name, m[name], want)
		}
	}
	if wait := m["notBefore"].(float64) - m["createdAt"].(float64); wait != float64(time.Hour.Milliseconds()) {
		t.Errorf("it is to be delivered after %g ms", wait)
	}
	if got := fmt.Sprint(m["header"], m["labels"]); got != "map[Shop:[7]] [a b]" {
		t.Errorf("headers and labels: %s", got)
	}
	binary := q.publish("http://localhost:1", "\xff", "Upstash-Delay", "1h")
	m = into[map[string]any](t, q.do("GET", "/v2/messages/"+binary, ""))
	if m["bodyBase64"] != base64.StdEncoding.EncodeToString([]byte("\xff")) || m["body"] != nil {
		t.Errorf("a body that is no text: %v", m)
	}
}

func TestCancelling(t *testing.T) {
	tests := []struct {
		name, path, body string // {1} and {2} wait, {3} is delivered
		cancelled        int
		states           string
	}{
		{"one", "/v2/messages/{1}", "", 1, "cancelled waiting delivered"},
		{"one that is delivered", "/v2/messages/{3}", "", 0, "waiting waiting delivered"},
		{"ids in the body", "/v2/messages", `{"messageIds": ["{1}", "{3}", "msg_other"]}`, 1, "cancelled waiting delivered"},
		{"no ids in the body", "/v2/messages", `{"messageIds": []}`, 0, "waiting waiting delivered"},
		{"ids in the query", "/v2/messages?messageIds={1}&messageIds={2}", "", 2, "cancelled cancelled delivered"},
		{"ids in the query, with commas", "/v2/messages?messageIds={1},{2}", "", 2, "cancelled cancelled delivered"},
		{"a label", "/v2/messages?label=b", "", 1, "waiting cancelled delivered"},
		{"all", "/v2/messages", "", 2, "cancelled cancelled delivered"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			q := start(t, dev.Config{})
			r := receive(t)
			one := q.publish(r.url, "", "Upstash-Delay", "1h")
			two := q.publish(r.url, "", "Upstash-Delay", "1h", "Upstash-Label", "b")
			three := q.publish(r.url, "")
			q.await(three)
			names := strings.NewReplacer("{1}", one, "{2}", two, "{3}", three)
			a := q.do("DELETE", names.Replace(test.path), names.Replace(test.body))
			if a.status != 202 || a.text != fmt.Sprintf(`{"cancelled":%d}`, test.cancelled) {
				t.Errorf("%d %s, want %d cancelled", a.status, a.text, test.cancelled)
			}
			if got := stateOf(q, one) + " " + stateOf(q, two) + " " + stateOf(q, three); got != test.states {
				t.Errorf("%s, want %s", got, test.states)
			}
		})
	}
}

// stateOf asks the log how far a message is.
func stateOf(q *standIn, id string) string {
	logs := into[struct{ Logs []struct{ State string } }](q.t, q.do("GET", "/v2/logs?count=1&messageId="+id, "")).Logs
	return map[string]string{"CREATED": "waiting", "DELIVERED": "delivered", "CANCELED": "cancelled"}[logs[0].State]
}

func TestCancellingWhatIsUnderWayEndsItsRetries(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting})
	release := make(chan struct{})
	r := receive(t, func(w http.ResponseWriter, _ *http.Request) { <-release; w.WriteHeader(500) })
	id := q.publish(r.url, "")
	r.next()
	if a := q.do("DELETE", "/v2/messages/"+id, ""); a.text != `{"cancelled":1}` {
		t.Errorf("%d %s", a.status, a.text)
	}
	close(release)
	if m := q.await(id); m.State != dev.Cancelled || len(m.Attempts) != 1 {
		t.Errorf("%s after %d attempts", m.State, len(m.Attempts))
	}
}

type entry struct {
	MessageID, State, URL, Error, QueueName string
	Time                                    int64
	ResponseStatus                          int
	ResponseBody                            []byte
	Body                                    []byte
}

func TestLogs(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting})
	r := receive(t, status(500))
	first := q.publish(r.url+"/a", "first")
	q.await(first)
	a := q.do("POST", "/v2/enqueue/line/"+r.url+"/b", "second", "Upstash-Label", "x")
	second := into[struct{ MessageID string }](t, a).MessageID
	q.await(second)

	states := func(path string) (string, string) {
		a := into[struct {
			Cursor       string
			Logs, Events []entry
		}](t, q.do("GET", path, ""))
		var all []string
		for _, e := range append(a.Logs, a.Events...) {
			all = append(all, e.State)
		}
		return strings.Join(all, " "), a.Cursor
	}
	for path, want := range map[string]string{
		"/v2/logs":                      "DELIVERED ACTIVE CREATED DELIVERED ACTIVE RETRY ERROR ACTIVE CREATED",
		"/v2/events?messageId=" + first: "DELIVERED ACTIVE RETRY ERROR ACTIVE CREATED",
		"/v2/events?messageIds=" + first + "&state=delivered": "DELIVERED",
		"/v2/logs?state=IN_PROGRESS&messageId=" + second:      "ACTIVE",
		"/v2/logs?state=CREATED,ERROR":                        "CREATED ERROR CREATED",
		"/v2/logs?queueName=line":                             "DELIVERED ACTIVE CREATED",
		"/v2/logs?label=x":                                    "DELIVERED ACTIVE CREATED",
		"/v2/logs?url=" + r.url + "/a&state=CREATED":          "CREATED",
		"/v2/logs?messageId=msg_other":                        "",
		"/v2/logs?count=2":                                    "DELIVERED ACTIVE",
		"/v2/logs?count=1000&state=DELIVERED":                 "DELIVERED DELIVERED",
		"/v2/logs?toDate=1":                                   "",
		"/v2/logs?fromDate=1&state=DELIVERED":                 "DELIVERED DELIVERED",
	} {
		if got, _ := states(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}

	all, cursor := states("/v2/logs?count=4")
	for cursor != "" {
		var page string
		page, cursor = states("/v2/logs?count=4&cursor=" + cursor)
		all += " " + page
	}
	if want, _ := states("/v2/logs"); all != want {
		t.Errorf("page by page: %s, want %s", all, want)
	}

	e := into[struct{ Logs []entry }](t, q.do("GET", "/v2/logs?state=ERROR", "")).Logs[0]
	got := fmt.Sprintf("%s %d %s %s %s", e.MessageID, e.ResponseStatus, e.Error, e.ResponseBody, e.Body)
	if want := first + ` 500 500 Internal Server Error {"error":"not now"} first`; got != want || e.Time == 0 {
		t.Errorf("%s, want %s; at %d", got, want, e.Time)
	}
}

type letter struct {
	DLQID, MessageID, URL, Body, ResponseBody string
	ResponseStatus                            int
}

func TestDeadLetters(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting})
	r := receive(t, status(500), status(404), status(500))
	var ids []string
	for _, path := range []string{"/a", "/b", "/c"} {
		m := q.await(q.publish(r.url+path, path, "Upstash-Retries", "0", "Upstash-Delay", "10h",
			"Upstash-Deduplication-Id", path, "Upstash-Forward-Shop", "7"))
		ids = append(ids, m.DLQID)
	}
	list := func(path string) string {
		var paths []string
		for _, l := range into[struct{ Messages []letter }](t, q.do("GET", path, "")).Messages {
			paths = append(paths, l.Body)
		}
		return strings.Join(paths, " ")
	}
	for path, want := range map[string]string{
		"/v2/dlq":                    "/a /b /c",
		"/v2/dlq?count=2":            "/a /b",
		"/v2/dlq?responseStatus=404": "/b",
		"/v2/dlq?dlqIds=" + ids[0] + "&dlqIds=" + ids[2]: "/a /c",
		"/v2/dlq?url=" + r.url + "/c":                    "/c",
		"/v2/dlq?toDate=1":                               "",
	} {
		if got := list(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	cursor := into[struct{ Cursor string }](t, q.do("GET", "/v2/dlq?count=2", "")).Cursor
	if got := list("/v2/dlq?cursor=" + cursor); got != "/c" {
		t.Errorf("after the cursor: %q", got)
	}

	l := into[letter](t, q.do("GET", "/v2/dlq/"+ids[1], ""))
	if l.DLQID != ids[1] || l.ResponseStatus != 404 || l.ResponseBody != `{"error":"not now"}` || l.URL != r.url+"/b" {
		t.Errorf("%+v", l)
	}

	a := q.do("POST", "/v2/dlq/retry/"+ids[0], "", "Upstash-Label", "again")
	answer := into[struct {
		MessageID string
		Responses []struct{ MessageID string }
	}](t, a)
	if a.status != 201 || len(answer.Responses) != 1 || answer.Responses[0].MessageID == l.MessageID {
		t.Fatalf("%d %s", a.status, a.text)
	}
	m := q.await(answer.Responses[0].MessageID)
	if m.State != dev.Delivered || m.MaxRetries != 0 || m.Label != "again" || m.Header.Get("Shop") != "7" || string(m.Body) != "/a" {
		t.Errorf("%+v", m)
	}
	if got := list("/v2/dlq"); got != "/b /c" {
		t.Errorf("after a retry: %q", got)
	}

	if a := q.do("DELETE", "/v2/dlq", `{"dlqIds": ["`+ids[1]+`", "1-1"]}`); a.status != 200 || a.text != `{"deleted":1}` {
		t.Errorf("%d %s", a.status, a.text)
	}
	if a := q.do("DELETE", "/v2/dlq/"+ids[2], ""); a.status != 200 {
		t.Errorf("%d %s", a.status, a.text)
	}
	if a := q.do("GET", "/v2/dlq", ""); a.text != `{"messages":[]}` {
		t.Errorf("at last: %s", a.text)
	}
}

func TestManyDeadLettersAreRetriedAndDeleted(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting})
	r := receive(t, status(500), status(500), status(500))
	for range 3 {
		q.await(q.publish(r.url, "", "Upstash-Retries", "0"))
	}
	if a := q.do("DELETE", "/v2/dlq?count=1", ""); !strings.Contains(a.text, `"deleted":1`) || !strings.Contains(a.text, `"cursor":`) {
		t.Errorf("delete one: %d %s", a.status, a.text)
	}
	a := q.do("POST", "/v2/dlq/retry", "")
	responses := into[struct{ Responses []json.RawMessage }](t, a).Responses
	if a.status != 201 || len(responses) != 2 {
		t.Errorf("retry all: %d %s", a.status, a.text)
	}
	if a := q.do("POST", "/v2/dlq/retry", ""); a.status != 201 || a.text != `{"responses":[]}` {
		t.Errorf("retry none: %d %s", a.status, a.text)
	}
}
