package dev_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v4"

	"qstash-receiver/internal/dev"
	"qstash-receiver/internal/qstash"
	"qstash-receiver/internal/signing"
)

// claimsOf verifies a delivery's token with key and returns its claims. A token that has expired is one too.
func claimsOf(t *testing.T, a arrival, key string) jwt.MapClaims {
	t.Helper()
	claims := jwt.MapClaims{}
	parser := jwt.NewParser(jwt.WithValidMethods([]string{"HS256"}), jwt.WithoutClaimsValidation())
	if _, err := parser.ParseWithClaims(a.header.Get("Upstash-Signature"), claims, func(*jwt.Token) (any, error) {
		return []byte(key), nil
	}); err != nil {
		t.Fatalf("verify with %s: %v", key, err)
	}
	return claims
}

func TestDeliveryIsAsPublished(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting})
	r := receive(t, status(500))
	id := q.publish(r.url+"/orders?a=b", `{"order":1}`,
		"Authorization", "Bearer a token", "Content-Type", "application/json", "Upstash-Forward-Shop", "7",
		"Upstash-Forward-Authorization", "Bearer the app's", "Upstash-Forward-Upstash-Message-Id", "msg_other",
		"Upstash-Forward-Connection", "close", "Upstash-Label", "red, blue", "Upstash-Retries", "4", "X-Own", "not forwarded")
	q.await(id)

	arrivals := r.all()
	if len(arrivals) != 2 {
		t.Fatalf("%d deliveries, want 2", len(arrivals))
	}
	ids := map[any]bool{}
	for i, a := range arrivals {
		if a.method != "POST" || a.target != "/orders?a=b" || a.body != `{"order":1}` {
			t.Errorf("%s %s %s", a.method, a.target, a.body)
		}
		wantHeader(t, a.header,
			"User-Agent", "Upstash-QStash",
			"Content-Type", "application/json",
			"Shop", "7",
			"Authorization", "Bearer the app's",
			"Upstash-Message-Id", id,
			"Upstash-Retried", strconv.Itoa(i),
			"Upstash-Max-Retries", "4",
			"Upstash-Caller-Ip", "127.0.0.1",
			"Upstash-Region", "EU-CENTRAL-1",
			"Upstash-Label", "red, blue",
			"X-Own", "",
			"Upstash-Retries", "",
			"Accept-Encoding", "",
		)
		claims := claimsOf(t, a, signing.DevCurrent)
		if claims["sub"] != r.url+"/orders?a=b" || claims["iss"] != "Upstash" {
			t.Errorf("claims: %v", claims)
		}
		if ids[claims["jti"]] {
			t.Errorf("attempt %d has the jti of another", i)
		}
		ids[claims["jti"]] = true
	}
}

func TestTargetKeepsItsBytes(t *testing.T) {
	for _, target := range []string{"/", "//orders", "/a//b", "/a%2Fb", "/a/../b", "/./a", "/a?b=c%20d&e=http://x//y", "/a?",
		"/a;b", "/a%2fb%41", "/a\\b", `/a"<b>`, "/\u00e4", "/a?b=\u00e4"} {
		t.Run(target, func(t *testing.T) {
			q := start(t, dev.Config{Speed: dev.NoWaiting})
			r := receive(t)
			q.publish(r.url+target, "{}")
			a := r.next()
			if a.target != target {
				t.Errorf("delivered to %q", a.target)
			}
			if claims := claimsOf(t, a, signing.DevCurrent); claims["sub"] != r.url+target {
				t.Errorf("sub is %q", claims["sub"])
			}
		})
	}
	t.Run("no path", func(t *testing.T) {
		q := start(t, dev.Config{Speed: dev.NoWaiting})
		r := receive(t)
		for destination, target := range map[string]string{r.url: "/", r.url + "?a=b": "/?a=b"} {
			q.publish(destination, "{}")
			if a := r.next(); a.target != target || claimsOf(t, a, signing.DevCurrent)["sub"] != destination {
				t.Errorf("%s: delivered to %q", destination, a.target)
			}
		}
	})
}

func TestMethods(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting})
	r := receive(t)
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "patch"} {
		q.publish(r.url, "x", "Upstash-Method", method)
		if a := r.next(); a.method != strings.ToUpper(method) || a.body != "x" {
			t.Errorf("%s: %s with %q", method, a.method, a.body)
		}
	}
}

func TestPublishersOwnHeadersCanBeForwarded(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting})
	r := receive(t)
	q.publish(r.url, "{}", "Upstash-Header-Forward", "true", "X-Hub", "1", "Authorization", "Bearer for QStash")
	if a := r.next(); a.header.Get("X-Hub") != "1" || a.header.Get("Authorization") != "" {
		t.Errorf("delivered with %v", a.header)
	}
}

// What an answer leads to.
func TestAnswers(t *testing.T) {
	type answers []http.HandlerFunc
	type headers []string
	const byItself = "retries in 12s (backoff), here in 0s"
	final := status(489, "Upstash-NonRetryable-Error", "true")
	cut := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	tests := []struct {
		name     string
		headers  headers
		answers  answers
		state    dev.State
		attempts int
		then     string // of the first attempt
	}{
		{"success", nil, nil, dev.Delivered, 1, "done"},
		{"another success", nil, answers{status(204)}, dev.Delivered, 1, "done"},
		{"a redirect", headers{"Upstash-Retries", "0"}, answers{status(307, "Location", "/x")}, dev.Failed, 1, "dead letter queue: 0 retries were made"},
		{"a failure", nil, answers{status(500)}, dev.Delivered, 2, byItself},
		{"an answer that asks for a wait", nil, answers{status(429, "Retry-After", "6m5s")}, dev.Delivered, 2, "retries in 6m5s (Retry-After), here in 0s"},
		{"failures to the end", nil, answers{status(500), status(404), status(400), status(503)}, dev.Failed, 4, byItself},
		{"one retry", headers{"Upstash-Retries", "1"}, answers{status(500), status(500)}, dev.Failed, 2, byItself},
		{"a failure for good", nil, answers{final}, dev.Failed, 1, "dead letter queue: the answer says that no retry helps"},
		{"489 alone", nil, answers{status(489)}, dev.Delivered, 2, byItself},
		{"another status with its header", nil, answers{status(500, "Upstash-NonRetryable-Error", "true")}, dev.Delivered, 2, byItself},
		{"a retry delay", headers{"Upstash-Retry-Delay", "1500"}, answers{status(500)}, dev.Delivered, 2, "retries in 1.5s (Upstash-Retry-Delay), here in 0s"},
		{"a connection that is cut", nil, answers{cut}, dev.Delivered, 2, byItself},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			q := start(t, dev.Config{Speed: dev.NoWaiting})
			r := receive(t, test.answers...)
			m := q.await(q.publish(r.url, "{}", test.headers...))
			if m.State != test.state || len(m.Attempts) != test.attempts || m.Attempts[0].Then != test.then {
				t.Errorf("%s after %d attempts, first %q; want %s after %d, %q",
					m.State, len(m.Attempts), m.Attempts[0].Then, test.state, test.attempts, test.then)
			}
			for i, a := range m.Attempts {
				if a.Retried != i {
					t.Errorf("attempt %d has Upstash-Retried %d", i, a.Retried)
				}
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting})
	m := q.await(q.publish("http://127.0.0.1:1/orders", "{}", "Upstash-Retries", "1"))
	if m.State != dev.Failed || !strings.Contains(m.Attempts[1].Err, "connection refused") || m.Attempts[1].Status != 0 {
		t.Errorf("%s: %+v", m.State, m.Attempts)
	}
}

func TestTimeoutIsNotDividedBySpeed(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting})
	r := receive(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	m := q.await(q.publish(r.url, "{}", "Upstash-Timeout", "1s", "Upstash-Retries", "0"))
	a := m.Attempts[0]
	if a.Err != "no answer within 1s" || a.Ended.Sub(a.Started) < time.Second {
		t.Errorf("%q after %s", a.Err, a.Ended.Sub(a.Started))
	}
}

// Each wait is as long as it must be: not a millisecond shorter, and longer only by what a busy machine takes.
func TestRetriesHaveQStashsRhythm(t *testing.T) {
	const speed = 2000
	q := start(t, dev.Config{Speed: speed})
	r := receive(t, status(500), status(500), status(500))
	id := q.publish(r.url, "{}")
	m := q.await(id)
	for i, seconds := range []int{12, 148, 1808} {
		want := time.Duration(seconds) * time.Second / speed
		if got := m.Attempts[i+1].Started.Sub(m.Attempts[i].Ended); got < want || got > want+10*time.Second {
			t.Errorf("before retry %d: %s, want %s", i+1, got, want)
		}
	}
	logs := into[struct {
		Logs []struct{ NextDeliveryTime, Time int64 }
	}](t, q.do("GET", "/v2/logs?state=RETRY&messageId="+id, "")).Logs
	for i, milliseconds := range []int64{904, 74, 6} { // the newest first
		if got := logs[i].NextDeliveryTime - m.Attempts[2-i].Ended.UnixMilli(); got < milliseconds || got > milliseconds+1 {
			t.Errorf("entry %d: the next delivery is %d ms later, want %d", i, got, milliseconds)
		}
	}
}

func TestDelays(t *testing.T) {
	soon := strconv.FormatInt(time.Now().Add(30*time.Second).Unix(), 10)
	tests := []struct {
		name    string
		headers []string
		least   time.Duration // here, at speed 100
	}{
		{"none", nil, 0},
		{"a delay", []string{"Upstash-Delay", "20s"}, 200 * time.Millisecond},
		{"not before", []string{"Upstash-Not-Before", soon}, 200 * time.Millisecond},
		{"not before counts more than a delay", []string{"Upstash-Delay", "10h", "Upstash-Not-Before", "1"}, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			q := start(t, dev.Config{Speed: 100})
			r := receive(t)
			m := q.await(q.publish(r.url, "{}", test.headers...))
			got := m.Attempts[0].Started.Sub(m.Created)
			if got < test.least || got > test.least+10*time.Second {
				t.Errorf("delivered after %s, want %s", got, test.least)
			}
		})
	}
}

func TestFaults(t *testing.T) {
	t.Run("the answer is lost", func(t *testing.T) {
		q := start(t, dev.Config{Speed: dev.NoWaiting})
		r := receive(t)
		m := q.await(q.publish(r.url, "{}", "Upstash-Dev-Fault", "answer-lost"))
		first := m.Attempts[0]
		if len(r.all()) != 2 || len(m.Attempts) != 2 || first.Status != 0 || first.Err != "the answer, 200, was lost on the way" {
			t.Errorf("%d deliveries: %+v", len(r.all()), m.Attempts)
		}
	})
	t.Run("twice at the same time", func(t *testing.T) {
		q := start(t, dev.Config{Speed: dev.NoWaiting})
		both := make(chan struct{})
		wait := func(http.ResponseWriter, *http.Request) { <-both }
		r := receive(t, wait, wait)
		id := q.publish(r.url, "{}", "Upstash-Dev-Fault", "twice")
		first, second := r.next(), r.next()
		close(both)
		if m := q.await(id); m.State != dev.Delivered || len(m.Attempts) != 2 {
			t.Errorf("%+v", m)
		}
		if first.header.Get("Upstash-Message-Id") != id || second.header.Get("Upstash-Message-Id") != id ||
			second.header.Get("Upstash-Retried") != "0" || first.header.Get("Upstash-Signature") == second.header.Get("Upstash-Signature") {
			t.Errorf("deliveries with %v and %v", first.header, second.header)
		}
	})
	t.Run("the token is late", func(t *testing.T) {
		q := start(t, dev.Config{Speed: dev.NoWaiting})
		r := receive(t, status(401))
		q.await(q.publish(r.url, "{}", "Upstash-Dev-Fault", "late-token"))
		for i, expired := range []bool{true, false} {
			claims := claimsOf(t, r.next(), signing.DevCurrent)
			if claims.VerifyExpiresAt(time.Now().Unix(), true) == expired {
				t.Errorf("attempt %d: expired %t, want %t", i, !expired, expired)
			}
		}
	})
}

func TestCallbacks(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting})
	r := receive(t, status(500, "X-Why", "a"), status(500))
	calls, failures := receive(t), receive(t)
	id := q.publish(r.url+"/orders", `{"order":1}`, "Upstash-Retries", "1", "Upstash-Forward-Shop", "7",
		"Upstash-Callback", calls.url+"/called", "Upstash-Callback-Method", "PUT",
		"Upstash-Callback-Forward-Own", "8", "Upstash-Callback-Retries", "2",
		"Upstash-Failure-Callback", failures.url+"/failure", "Upstash-Failure-Callback-Forward-Own", "9")
	m := q.await(id)

	for attempt := range 2 {
		a := calls.next()
		c, err := qstash.ParseCallback([]byte(a.body))
		if err != nil {
			t.Fatal(err)
		}
		if a.method != "PUT" || a.target != "/called" {
			t.Errorf("callback %d: %s %s", attempt, a.method, a.target)
		}
		wantHeader(t, a.header, "Own", "8", "Shop", "", "Upstash-Max-Retries", "2")
		if c.MessageID != id || c.DLQID != "" || c.Status != 500 || c.Retried > 1 || string(c.SourceBody) != `{"order":1}` {
			t.Errorf("callback %d: %+v", attempt, c)
		}
		claimsOf(t, a, signing.DevCurrent)
	}

	a := failures.next()
	c, err := qstash.ParseCallback([]byte(a.body))
	if err != nil {
		t.Fatal(err)
	}
	if a.method != "POST" || a.target != "/failure" {
		t.Errorf("failure callback: %s %s", a.method, a.target)
	}
	wantHeader(t, a.header, "Own", "9", "Content-Type", "application/json", "Upstash-Max-Retries", "1")
	got := fmt.Sprintln(c.MessageID, c.DLQID, c.Status, c.Retried, c.MaxRetries, c.Method, c.URL, c.CallerIP, string(c.Body), string(c.SourceBody))
	want := fmt.Sprintln(id, m.DLQID, 500, 1, 1, "POST", r.url+"/orders", "127.0.0.1", `{"error":"not now"}`, `{"order":1}`)
	if got != want || m.DLQID == "" || c.CreatedAt.IsZero() || c.SourceHeader.Get("Shop") != "7" {
		t.Errorf("failure callback: %s, want %s", got, want)
	}
}

func TestCallbackOfSuccess(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting})
	r := receive(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "\xff\xfe") })
	calls := receive(t)
	q.publish(r.url, "{}", "Upstash-Callback", calls.url, "Upstash-Failure-Callback", calls.url+"/failure")
	a := calls.next()
	var fields map[string]any
	if err := json.Unmarshal([]byte(a.body), &fields); err != nil {
		t.Fatal(err)
	}
	if fields["status"] != 200.0 || fields["body"] != base64.StdEncoding.EncodeToString([]byte("\xff\xfe")) {
		t.Errorf("callback: %s", a.body)
	}
	for _, name := range []string{"retried", "dlqId"} {
		if _, ok := fields[name]; ok {
			t.Errorf("the callback has %s", name)
		}
	}
	if a.target != "/" || len(calls.all()) != 1 {
		t.Errorf("%d callbacks, first at %s", len(calls.all()), a.target)
	}
}

func TestQueueIsStrictlyOneAfterAnother(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting})
	release := make(chan struct{})
	r := receive(t, func(w http.ResponseWriter, _ *http.Request) { <-release; w.WriteHeader(500) }, status(500))
	other := receive(t)
	enqueue := func(queue, destination, body string) string {
		a := q.do("POST", "/v2/enqueue/"+queue+"/"+destination, body)
		if a.status != 200 {
			t.Fatalf("%d %s", a.status, a.text)
		}
		return into[struct{ MessageID string }](t, a).MessageID
	}
	enqueue("line", r.url, "0")
	cancelled := enqueue("line", r.url, "1")
	enqueue("line", r.url, "2")
	last := enqueue("line", r.url, "3")
	enqueue("another", other.url, "")
	r.next()
	other.next() // no other queue waits
	q.do("DELETE", "/v2/messages/"+cancelled, "")
	if n := len(r.all()); n != 1 {
		t.Errorf("%d deliveries while the first is under way", n)
	}
	close(release)
	if m := q.await(last); m.Queue != "line" || m.State != dev.Delivered {
		t.Errorf("%+v", m)
	}
	got := ""
	for _, a := range r.all() {
		got += a.body
	}
	if want := "00023"; got != want {
		t.Errorf("delivered in the order %s, want %s", got, want)
	}
}

func TestKeysRoll(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting})
	r := receive(t)
	type pair struct{ Current, Next string }
	first := into[pair](t, q.do("GET", "/v2/keys", ""))
	if first.Current != signing.DevCurrent || first.Next != signing.DevNext {
		t.Errorf("keys: %+v, want the published ones", first)
	}
	second := into[pair](t, q.do("POST", "/v2/keys/rotate", ""))
	if second.Current != first.Next || !strings.HasPrefix(second.Next, "sig_") || len(second.Next) != 32 {
		t.Errorf("after a roll: %+v", second)
	}
	q.publish(r.url, "{}")
	claimsOf(t, r.next(), second.Current)
	third := into[pair](t, q.do("POST", "/v2/keys/rotate", ""))
	if third.Current != second.Next || into[pair](t, q.do("GET", "/v2/keys", "")) != third {
		t.Errorf("after two rolls: %+v", third)
	}
	q.publish(r.url, "{}")
	claimsOf(t, r.next(), third.Current)
}

func TestWhatTheReceiverSaysIsHeard(t *testing.T) {
	for _, when := range []string{"before its answer", "after its answer"} {
		t.Run(when, func(t *testing.T) {
			q := start(t, dev.Config{Speed: dev.NoWaiting})
			r := receive(t, func(w http.ResponseWriter, r *http.Request) {
				if when == "before its answer" {
					q.Heard(r.Header.Get("Upstash-Message-Id"), 0, "failed", "error", "failed, QStash retries")
				}
				w.WriteHeader(500)
			})
			id := q.publish(r.url, "{}")
			m := q.await(id)
			q.Heard(id, 1, "ok", "", "done")
			if when != "before its answer" {
				q.Heard(id, 0, "failed", "error", "failed, QStash retries")
			}
			q.Heard(id, 7, "of no attempt", "", "")
			q.Heard("msg_other", 0, "of no message", "", "")
			m = q.await(id)
			got := fmt.Sprint(m.Attempts[0].Outcome, m.Attempts[0].Reason, m.Attempts[0].Next, m.Attempts[1].Outcome, m.Attempts[1].Next)
			if got != "failederrorfailed, QStash retriesokdone" {
				t.Errorf("heard: %s", got)
			}
		})
	}
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	q := dev.New(dev.Config{})
	r := receive(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	id, err := q.Publish(r.url, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	waiting, err := q.Publish(r.url, http.Header{"Upstash-Delay": {"1h"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.next()
	q.Close()
	q.Close()
	for _, id := range []string{id, waiting} {
		if m, err := q.Await(t.Context(), id); err == nil {
			t.Errorf("awaited %+v of a stand-in that is closed", m)
		}
	}
}
