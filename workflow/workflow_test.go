//go:build workflow

// These tests put the receiver in front of real @upstash/workflow endpoints (server.mjs) and play QStash: what the
// SDK publishes is kept, and delivered, signed, to the receiver. They need Node, and npm the first time:
//
//	go test -tags workflow -v ./workflow
package workflow_test

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	publicURL  = "https://workflow.example.com" // RECEIVER_URL, and where the SDK says that it is
	currentKey = "sig_currentcurrentcurrentcurre"
	nextKey    = "sig_nextnextnextnextnextnextne"
	apiToken   = "token-of-the-qstash-api"
)

func TestWorkflowRunsToItsEnd(t *testing.T) {
	tests := []struct {
		name  string
		begin func(*world) *run
	}{
		{"triggered by the SDK's client", func(w *world) *run { return w.trigger("/order?shop=7", `{}`, nil) }},
		{"steps left out of the body, for the SDK to fetch", func(w *world) *run {
			w.qstash.lazy = true
			return w.trigger("/order?shop=7", `{}`, nil)
		}},
		{"published like any message", func(w *world) *run {
			m := &message{id: newID("msg_"), destination: publicURL + "/order?shop=7", body: `{}`}
			w.wantStatus(w.qstash.delivery(nil, m).send(), 200)
			return w.qstash.onlyRun()
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := start(t, nil, nil)
			r := test.begin(w)
			before := len(w.seen().Calls)
			answers := w.drive(r)

			for _, a := range answers {
				w.wantStatus(a, 200)
			}
			if want := `{"charged":"charge done","packed":"pack done","mailed":"mail done"}`; !r.over || r.result != want {
				t.Errorf("the run is over: %t, with %s; want %s", r.over, r.result, want)
			}
			seen := w.seen()
			if got, want := seen.steps(r), []string{"charge", "mail", "pack"}; !slices.Equal(got, want) {
				t.Errorf("steps run: %q, want each of %q once", got, want)
			}
			if got := len(seen.Calls) - before; got != len(r.messages) {
				t.Errorf("%d calls reached the app, want one for each of %d messages", got, len(r.messages))
			}
			for _, m := range r.messages {
				if m.destination != publicURL+"/order?shop=7" {
					t.Errorf("the SDK published to %s, which is not the receiver's path and query", m.destination)
				}
			}
			for _, c := range seen.Calls {
				if c.Path != "/order?shop=7" || c.Headers["upstash-signature"] == "" || c.Headers["accept-encoding"] != "" {
					t.Errorf("the app was called at %s with %v", c.Path, c.Headers)
				}
			}

			// QStash delivers at least once.
			for i, m := range r.messages {
				again := w.qstash.delivery(r, m).send()
				if again.status != 200 || again.header.Get("Idempotent-Replayed") != "true" {
					t.Errorf("message %d again: %v, want the first answer", i, again)
				}
			}
			if got := w.seen(); len(got.Calls) != len(seen.Calls) || len(got.Steps) != len(seen.Steps) {
				t.Errorf("delivered again, messages reached the app: %d calls, then %d", len(seen.Calls), len(got.Calls))
			}
		})
	}
}

func TestStepThatFailsOnceIsRunAgain(t *testing.T) {
	t.Parallel()
	w := start(t, nil, nil)
	r := w.trigger("/order", `{"fails":"once"}`, nil)
	answers := w.drive(r)
	w.wantStatus(answers[0], 500)
	w.wantStatus(answers[1], 200) // the SDK read Upstash-Retried, or it would have failed again
	if got, want := w.seen().steps(r), []string{"charge", "charge", "mail", "pack"}; !r.over || !slices.Equal(got, want) {
		t.Errorf("steps run: %q, want %q; over: %t", got, want, r.over)
	}
}

func TestOnlyQStashReachesTheApp(t *testing.T) {
	t.Parallel()
	w := start(t, nil, nil)
	r := w.trigger("/order", `{}`, nil)
	other := w.trigger("/order", `{"fails":"always"}`, nil)
	forgeries := []struct {
		name  string
		spoil func(*delivery)
	}{
		{"unsigned", func(d *delivery) { d.sign = func(*delivery) string { return "" } }},
		{"signed with another key", func(d *delivery) { d.key = "sig_notthekeynotthekeynottheke" }},
		{"signed with no key", func(d *delivery) { d.key = "" }},
		{"alg none", func(d *delivery) { d.jose = `{"alg":"none","typ":"JWT"}`; d.sign = unsignedToken }},
		{"another body", func(d *delivery) { d.sent = strings.Replace(d.body, "[", "[ ", 1) }},
		{"the token of another message", func(d *delivery) {
			token := token(w.qstash.delivery(other, other.trigger))
			d.sign = func(*delivery) string { return token }
		}},
		{"signed for another path", func(d *delivery) { d.claims["sub"] = publicURL + "/plain" }},
		{"signed for another host", func(d *delivery) { d.claims["sub"] = "https://other.example.com/order" }},
		{"signed by another issuer", func(d *delivery) { d.claims["iss"] = "Upstart" }},
		{"expired", func(d *delivery) { d.claims["exp"] = time.Now().Add(-time.Minute).Unix() }},
	}
	for _, forgery := range forgeries {
		d := w.qstash.delivery(r, r.trigger)
		forgery.spoil(d)
		if got := d.send(); got.status != 401 || got.body != `{"error":"unauthorized"}` {
			t.Errorf("%s: %v, want 401", forgery.name, got)
		}
	}
	if seen := w.seen(); len(seen.Calls) != 0 || len(seen.Steps) != 0 {
		t.Errorf("forged calls reached the app: %d, and ran %d steps", len(seen.Calls), len(seen.Steps))
	}

	genuine := w.qstash.delivery(r, r.trigger)
	w.wantStatus(genuine.send(), 200)
	d := w.qstash.delivery(r, r.trigger)
	d.header.Set("Upstash-Message-Id", newID("msg_"))
	captured := token(genuine)
	d.sign = func(*delivery) string { return captured }
	if got := d.send(); got.status != 401 {
		t.Errorf("a captured call sent again under another id: %v, want 401", got)
	}
	if seen := w.seen(); len(seen.Calls) != 1 {
		t.Errorf("%d calls reached the app, want the genuine one alone", len(seen.Calls))
	}

	last := w.qstash.delivery(r, w.qstash.published(r)[1])
	last.key = nextKey
	w.wantStatus(last.send(), 200)
}

// All of these answers are the SDK's own.
func TestAnswersGoBackAsTheyAre(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, order string
		status      int
		text        string // in the answer's body
		nonRetry    string // Upstash-NonRetryable-Error
		retryAfter  string
		final       bool // a further delivery is answered for the app
	}{
		{"a step ran", `{}`, 200, `"finishCondition":"success"`, "", "", true},
		{"the SDK's authorization failed", `{"stranger":true}`, 400, "Failed to authenticate Workflow request", "", "", false},
		{"WorkflowNonRetryableError", `{"fails":"for good"}`, 489, `"message":"the card is stolen"`, "true", "", true},
		{"a step threw", `{"fails":"always"}`, 500, `"message":"the card reader is away"`, "", "", false},
		{"WorkflowRetryAfterError", `{"fails":"for now"}`, 429, `"message":"the bank is closed"`, "", "90", false},
	}
	w := start(t, nil, nil)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := w.in(t)
			r := w.trigger("/order", test.order, nil)
			got := w.qstash.delivery(r, r.trigger).send()
			seen := w.seen()
			app := seen.Calls[len(seen.Calls)-1].Answer
			if got.status != test.status || app.Status != test.status || !strings.Contains(got.body, test.text) {
				t.Errorf("QStash got %v\nthe app answered %d\nwant %d with %s", got, app.Status, test.status, test.text)
			}
			if got.body != app.Body {
				t.Errorf("QStash got the body %q\nthe app answered %q", got.body, app.Body)
			}
			for name, want := range map[string]string{
				"Content-Type":               app.Headers["content-type"],
				"Upstash-NonRetryable-Error": test.nonRetry,
				"Retry-After":                test.retryAfter,
			} {
				if h := got.header.Get(name); h != want || h != app.Headers[strings.ToLower(name)] {
					t.Errorf("QStash got %s %q, the app answered %q, want %q", name, h, app.Headers[strings.ToLower(name)], want)
				}
			}

			d := w.qstash.delivery(r, r.trigger)
			d.header.Set("Upstash-Retried", "1")
			again := d.send()
			calls := len(w.seen().Calls) - len(seen.Calls)
			if want := map[bool]int{true: 0, false: 1}[test.final]; calls != want {
				t.Errorf("the next delivery reached the app %d times, want %d", calls, want)
			}
			if again.status != test.status || again.header.Get("Upstash-NonRetryable-Error") != test.nonRetry {
				t.Errorf("the next delivery: %v, want %d again", again, test.status)
			}
		})
	}
}

func TestFailureFunction(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, order, message string
		status, deliveries   int
	}{
		{"after an error for good", `{"fails":"for good"}`, "the card is stolen", 489, 1},
		{"after the last retry", `{"fails":"always"}`, "the card reader is away", 500, 3},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := start(t, nil, nil)
			r := w.trigger("/order", test.order, nil)
			answers := w.drive(r) // to where QStash gives up
			if len(answers) != test.deliveries || r.over || r.failed == nil {
				t.Fatalf("%d deliveries, want %d, and a run that failed", len(answers), test.deliveries)
			}
			wantNone := func(what string, got answer, status int) {
				t.Helper()
				if got.status != status {
					t.Errorf("%s: %v, want %d", what, got, status)
				}
				if seen := w.seen(); len(seen.Failures) != 0 || len(seen.Calls) != test.deliveries {
					t.Errorf("%s: %d calls, failure function run %d times, want it refused", what, len(seen.Calls), len(seen.Failures))
				}
			}
			callback := w.qstash.failureCallback(r)

			d := w.qstash.delivery(r, callback)
			d.sign = func(*delivery) string { return "" }
			wantNone("unsigned", d.send(), 401)
			d = w.qstash.delivery(r, callback)
			d.key = "sig_notthekeynotthekeynottheke"
			wantNone("forged", d.send(), 401)

			// The headers that make a call a failure callback are not signed. Put on a call that QStash once made, they
			// do nothing: under its id it is known, under another its token is spent.
			captured := r.last
			for name, value := range callback.header {
				captured.header[name] = value
			}
			if test.status == 489 {
				wantNone("a captured call as a failure callback", captured.send(), 489)
			}
			captured.header.Set("Upstash-Message-Id", newID("msg_"))
			wantNone("a captured call as a failure callback under another id", captured.send(), 401)

			got := w.qstash.delivery(r, callback).send()
			if got.status != 200 || got.body != `{"result":"the owner was told"}` {
				t.Errorf("the genuine one: %v, want 200 with the failure function's result", got)
			}
			want := failure{Run: r.id, Status: test.status, Message: test.message}
			if seen := w.seen(); len(seen.Failures) != 1 || seen.Failures[0] != want {
				t.Errorf("the failure function was run with %+v, want %+v once", seen.Failures, want)
			}
			again := w.qstash.delivery(r, callback).send()
			if seen := w.seen(); again.body != got.body || len(seen.Failures) != 1 {
				t.Errorf("delivered again: %v, the failure function was run %d times", again, len(seen.Failures))
			}

			// The control: nothing but the receiver guards it.
			d = w.qstash.delivery(r, w.qstash.failureCallback(r))
			d.receiver = w.app
			d.sign = func(*delivery) string { return "" }
			if got, seen := d.send(), w.seen(); got.status != 200 || len(seen.Failures) != 2 {
				t.Errorf("unsigned and past the receiver: %v, failure function run %d times; then this test proves nothing", got, len(seen.Failures))
			}
		})
	}
}

// The app may check signatures too: Upstash-Signature and the body reach it as QStash sent them.
func TestAppThatKeepsItsKeys(t *testing.T) {
	t.Parallel()
	w := start(t, []string{"QSTASH_CURRENT_SIGNING_KEY=" + currentKey, "QSTASH_NEXT_SIGNING_KEY=" + nextKey}, nil)
	r := w.trigger("/order", `{}`, nil)
	d := w.qstash.delivery(r, r.trigger)
	d.receiver = w.app
	d.sign = func(*delivery) string { return "" }
	if got := d.send(); got.status != 500 || !strings.Contains(got.body, "Failed to verify") {
		t.Errorf("unsigned and past the receiver: %v, want the SDK's own refusal", got)
	}
	for _, a := range w.drive(r) {
		w.wantStatus(a, 200)
	}
	if !r.over {
		t.Error("the run did not end")
	}
}

// This is why the README asks for UPSTASH_WORKFLOW_URL.
func TestAppThatDoesNotKnowItsURL(t *testing.T) {
	t.Parallel()
	w := start(t, []string{"UPSTASH_WORKFLOW_URL="}, nil)
	r := w.trigger("/order", `{}`, nil)
	w.wantStatus(w.qstash.delivery(r, r.trigger).send(), 200)
	if got := w.qstash.published(r)[1].destination; got != w.app+"/order" {
		t.Errorf("the next step was published to %s, want FORWARD_URL's %s/order", got, w.app)
	}
}

// The SDK puts the trigger's headers on the trigger and the failure callback, not on the steps. That QStash repeats
// them on each step is this test's guess of what QStash does.
func TestBearerToken(t *testing.T) {
	t.Parallel()
	w := start(t, nil, []string{"BEARER_TOKEN=secret"})
	bare := w.trigger("/order", `{}`, nil)
	w.wantStatus(w.qstash.delivery(bare, bare.trigger).send(), 401)
	for _, order := range []string{`{}`, `{"fails":"for good"}`} {
		r := w.trigger("/order", order, map[string]string{"Authorization": "Bearer secret", "Shop": "7"})
		for _, a := range w.drive(r) {
			if a.status == 401 {
				t.Errorf("%s: %v", order, a)
			}
		}
		if r.failed != nil {
			w.wantStatus(w.qstash.delivery(r, w.qstash.failureCallback(r)).send(), 200)
		} else if w.qstash.published(r)[1].header.Get("Upstash-Forward-Authorization") != "" {
			t.Error("the SDK now puts Authorization on steps too: the README says that it does not")
		}
	}
	for _, c := range w.seen().Calls {
		if c.Headers["authorization"] != "" || c.Headers["shop"] != "7" {
			t.Errorf("the app was called with %v, want the publisher's headers without Authorization", c.Headers)
		}
	}
	if failures := w.seen().Failures; len(failures) != 1 {
		t.Errorf("the failure function was run %d times, want once", len(failures))
	}

	// A run that begins with a plain message, as a schedule's does, is triggered by the app, which knows of no bearer.
	w = start(t, nil, []string{"BEARER_TOKEN=secret"})
	m := &message{id: newID("msg_"), destination: publicURL + "/order", body: `{}`, header: http.Header{"Authorization": {"Bearer secret"}}}
	w.wantStatus(w.qstash.delivery(nil, m).send(), 200)
	r := w.qstash.onlyRun()
	w.wantStatus(w.qstash.delivery(r, r.trigger).send(), 401)
}

// A step is cut off from the receiver, not ended, and then run again: HANDLER_TIMEOUT must be longer than any.
func TestStepSlowerThanHandlerTimeout(t *testing.T) {
	t.Parallel()
	w := start(t, nil, []string{"HANDLER_TIMEOUT=200ms"})
	r := w.trigger("/order", `{"milliseconds":1000}`, nil)
	for n := 1; n <= 2; n++ {
		w.wantStatus(w.qstash.delivery(r, r.trigger).send(), 504)
		if got := len(w.seen().Steps); got != n {
			t.Errorf("the step was run %d times, want %d", got, n)
		}
	}
}

// QStash reads these headers of the SDK's answers. Without Upstash-Workflow-Sdk-Version it fails a triggered run with
// "detected a non-workflow destination for trigger/invoke" (upstash/workflow-js, pull requests 120 and 163).
func TestAnswersNameTheSDK(t *testing.T) {
	t.Parallel()
	w := start(t, nil, nil)
	ok, throws, plain := w.trigger("/order", `{}`, nil), w.trigger("/order", `{"fails":"always"}`, nil), w.trigger("/plain", `{}`, nil)
	tests := []struct {
		name    string
		r       *run
		m       *message
		headers []string
	}{
		{"a step ran", ok, ok.trigger, []string{"Upstash-Workflow-Sdk-Version", "Upstash-Workflow-Sdk"}},
		{"the same again", ok, ok.trigger, []string{"Upstash-Workflow-Sdk-Version", "Upstash-Workflow-Sdk"}},
		{"a step threw", throws, throws.trigger, []string{"Upstash-Workflow-Sdk-Version", "Upstash-Error-Step-Name"}},
		{"no failure function", plain, w.qstash.failureCallback(plain), []string{"Upstash-Workflow-Sdk-Version", "Upstash-Workflow-Failure-Callback-Notfound"}},
	}
	var lost []string
	var app map[string]string
	for _, test := range tests {
		got := w.qstash.delivery(test.r, test.m).send()
		if got.header.Get("Idempotent-Replayed") == "" {
			seen := w.seen()
			app = seen.Calls[len(seen.Calls)-1].Answer.Headers
		}
		for _, name := range test.headers {
			want := app[strings.ToLower(name)]
			if want == "" {
				t.Errorf("%s: the SDK answered without %s: %v", test.name, name, app)
			}
			if h := got.header.Get(name); h != want {
				lost = append(lost, fmt.Sprintf("%s: %s is %q, the SDK answered %q", test.name, name, h, want))
			}
		}
	}
	if len(lost) > 0 {
		t.Errorf("the receiver drops headers of the SDK's answers that QStash reads:\n%s", strings.Join(lost, "\n"))
	}
}

// world is the app, the receiver in front of it, and QStash.
type world struct {
	t            *testing.T
	qstash       *qstash
	app, control string // URLs
}

// start starts all three; they end with the test. Further settings are NAME=value.
func start(t *testing.T, appEnv, receiverEnv []string) *world {
	t.Helper()
	binary, node := programs(t)
	q := &qstash{t: t, runs: map[string]*run{}}
	api := httptest.NewServer(q.api())
	t.Cleanup(api.Close)

	app := exec.Command(node, "server.mjs")
	app.Env = append([]string{"PATH=" + os.Getenv("PATH"), "QSTASH_URL=" + api.URL, "QSTASH_TOKEN=" + apiToken, "UPSTASH_WORKFLOW_URL=" + publicURL}, appEnv...)
	stdin, err := app.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var ports struct{ App, Control int }
	stdout, err := app.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	begin(t, "the workflow app", app, stdout, func() { stdin.Close() }, func(line []byte) bool {
		return json.Unmarshal(line, &ports) == nil && ports.App != 0
	})
	w := &world{t: t, qstash: q, app: fmt.Sprintf("http://127.0.0.1:%d", ports.App), control: fmt.Sprintf("http://127.0.0.1:%d", ports.Control)}

	receiver := exec.Command(binary)
	receiver.Env = append([]string{"PORT=0", "QSTASH_CURRENT_SIGNING_KEY=" + currentKey, "QSTASH_NEXT_SIGNING_KEY=" + nextKey,
		"RECEIVER_URL=" + publicURL, "FORWARD_URL=" + w.app}, receiverEnv...)
	var ready struct{ Msg, Address string }
	stderr, err := receiver.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	begin(t, "the receiver", receiver, stderr, func() { _ = receiver.Process.Signal(syscall.SIGTERM) }, func(line []byte) bool {
		return json.Unmarshal(line, &ready) == nil && ready.Msg == "receiving"
	})
	_, port, _ := strings.Cut(ready.Address, "]:")
	q.receiver = "http://127.0.0.1:" + port
	return w
}

// begin starts command and waits for the line of output that makes it ready. Stop ends it with the test.
func begin(t *testing.T, name string, command *exec.Cmd, output io.Reader, stop func(), ready func(line []byte) bool) {
	t.Helper()
	var rest lockedBuffer
	if command.Stderr == nil { // not when output is it
		command.Stderr = &rest
	}
	if err := command.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	up, ended := make(chan bool, 1), make(chan error, 1)
	go func() {
		lines := bufio.NewScanner(output)
		lines.Buffer(nil, 1<<20)
		for isUp := false; lines.Scan(); {
			fmt.Fprintf(&rest, "%s\n", lines.Bytes())
			if !isUp && ready(lines.Bytes()) {
				isUp = true
				up <- true
			}
		}
		ended <- command.Wait()
	}()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("%s ended with %v", name, err)
			}
		case <-time.After(20 * time.Second):
			_ = command.Process.Kill()
			t.Errorf("%s did not end", name)
		}
		if t.Failed() {
			t.Logf("%s wrote:\n%s", name, rest.String())
		}
	})
	select {
	case <-up:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s is not ready after 20 s", name)
	case err := <-ended:
		ended <- err
		t.Fatalf("%s ended at once: %v", name, err)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // not embedded: its ReadFrom takes no lock
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var (
	binDir  string
	prepare sync.Once
	errPrep error
)

func TestMain(m *testing.M) {
	var err error
	if binDir, err = os.MkdirTemp("", "workflow-test"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(binDir)
	os.Exit(code)
}

// programs returns the receiver's binary, built once, and Node. It installs the npm packages where there are none.
func programs(t *testing.T) (receiver, node string) {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("SKIPPED, NOTHING WAS TESTED: Node is not installed (no node in PATH); this test runs a real @upstash/workflow app")
	}
	const installed = "node_modules/@upstash/workflow/package.json"
	if _, err := os.Stat(installed); err != nil {
		if _, err := exec.LookPath("npm"); err != nil {
			t.Skip("SKIPPED, NOTHING WAS TESTED: npm is not installed (no npm in PATH), and @upstash/workflow is not in workflow/node_modules yet")
		}
	}
	receiver = filepath.Join(binDir, "receiver")
	prepare.Do(func() {
		commands := [][]string{{"go", "build", "-o", receiver, ".."}}
		if _, err := os.Stat(installed); err != nil {
			commands = append(commands, []string{"npm", "ci", "--no-audit", "--no-fund"})
		}
		for _, c := range commands {
			if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
				errPrep = fmt.Errorf("%s: %w\n%s", strings.Join(c, " "), err, out)
				return
			}
		}
	})
	if errPrep != nil {
		t.Fatal(errPrep)
	}
	return receiver, node
}

func (w *world) in(t *testing.T) *world {
	q := w.qstash
	return &world{t: t, qstash: q, app: w.app, control: w.control}
}

func (w *world) wantStatus(got answer, want int) {
	w.t.Helper()
	if got.status != want {
		w.t.Errorf("%v, want %d", got, want)
	}
}

// trigger starts a run with the SDK's client, with two retries. Nothing is delivered yet.
func (w *world) trigger(target, order string, headers map[string]string) *run {
	w.t.Helper()
	options, err := json.Marshal(map[string]any{"url": publicURL + target, "body": json.RawMessage(order), "retries": 2, "headers": headers})
	if err != nil {
		w.t.Fatal(err)
	}
	var started struct{ WorkflowRunID string }
	w.controlCall(http.MethodPost, options, &started)
	w.qstash.mu.Lock()
	defer w.qstash.mu.Unlock()
	r := w.qstash.runs[started.WorkflowRunID]
	if r == nil {
		w.t.Fatalf("the SDK's client says that it triggered %q, of which QStash knows nothing", started.WorkflowRunID)
	}
	return r
}

// seen is what reached the app.
func (w *world) seen() seen {
	w.t.Helper()
	var s seen
	w.controlCall(http.MethodGet, nil, &s)
	return s
}

func (w *world) controlCall(method string, body []byte, into any) {
	w.t.Helper()
	request, err := http.NewRequest(method, w.control, bytes.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	got, err := http.DefaultClient.Do(request)
	if err != nil {
		w.t.Fatal(err)
	}
	defer got.Body.Close()
	if err := json.NewDecoder(got.Body).Decode(into); err != nil {
		w.t.Fatal(err)
	}
}

type seen struct {
	Calls []struct {
		Path    string
		Headers map[string]string
		Answer  struct {
			Status  int
			Headers map[string]string
			Body    string
		}
	}
	Steps    []struct{ Run, Step string }
	Failures []failure
}

type failure struct {
	Run     string
	Status  int
	Message string
}

// steps returns the steps of r whose functions ran, sorted: those of one batch run in any order.
func (s seen) steps(r *run) []string {
	var names []string
	for _, step := range s.Steps {
		if step.Run == r.id {
			names = append(names, step.Step)
		}
	}
	slices.Sort(names)
	return names
}

// drive delivers what r's messages are, and those that the app publishes meanwhile, until there are none or QStash
// would give up. What was published together is delivered at the same time. It returns the answers in order.
func (w *world) drive(r *run) (answers []answer) {
	w.t.Helper()
	for next := 0; ; {
		batch := w.qstash.published(r)[next:]
		if len(batch) == 0 || r.failed != nil {
			return answers
		}
		if len(answers) > 50 {
			w.t.Fatal("the run does not end")
		}
		next += len(batch)
		got := make([][]answer, len(batch))
		var all sync.WaitGroup
		for i, m := range batch {
			all.Go(func() { got[i] = w.qstash.deliver(r, m) })
		}
		all.Wait()
		for i, m := range batch {
			answers = append(answers, got[i]...)
			if last := got[i][len(got[i])-1]; last.status > 299 {
				r.failed, r.failure = m, last
			}
		}
	}
}

// qstash is a QStash of its own: its API, which the SDK calls, and the side that delivers.
type qstash struct {
	t        *testing.T
	receiver string // URL; what RECEIVER_URL leads to
	lazy     bool   // leave the steps out of bodies, as QStash does where they are large

	mu   sync.Mutex
	runs map[string]*run
}

// run is a workflow run.
type run struct {
	id       string
	trigger  *message
	messages []*message // as published, the trigger too
	over     bool       // the SDK said that it is
	result   string     // what it returned
	failed   *message   // that QStash gave up on
	failure  answer     // the last one to failed
	last     *delivery  // the latest
}

// message is something published.
type message struct {
	id, destination, body string
	header                http.Header // as published; of a failure callback and what is of no run: as delivered
	callback              bool        // a failure callback
}

func (q *qstash) api() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v2/batch", func(w http.ResponseWriter, r *http.Request) {
		var published []struct {
			Destination, Body string
			Headers           map[string]string
		}
		if err := json.NewDecoder(r.Body).Decode(&published); err != nil || r.Header.Get("Authorization") != "Bearer "+apiToken {
			http.Error(w, "bad batch", http.StatusBadRequest)
			return
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		ids := []map[string]string{}
		for _, p := range published {
			m := &message{id: newID("msg_"), destination: p.Destination, body: p.Body, header: http.Header{}}
			for name, value := range p.Headers {
				m.header.Set(name, value)
			}
			id := m.header.Get("Upstash-Workflow-RunId")
			if m.header.Get("Upstash-Workflow-Init") == "true" {
				q.runs[id] = &run{id: id, trigger: m}
			}
			if q.runs[id] == nil || q.runs[id].over {
				http.Error(w, `{"error":"no such run"}`, http.StatusBadRequest)
				return
			}
			q.runs[id].messages = append(q.runs[id].messages, m)
			ids = append(ids, map[string]string{"messageId": m.id})
		}
		_ = json.NewEncoder(w).Encode(ids)
	})
	mux.HandleFunc("GET /v2/workflows/runs/{id}", func(w http.ResponseWriter, r *http.Request) {
		q.mu.Lock()
		defer q.mu.Unlock()
		if run := q.runs[r.PathValue("id")]; run != nil && !run.over {
			_, _ = w.Write(run.steps(nil))
			return
		}
		http.Error(w, `{"error":"no such run"}`, http.StatusNotFound)
	})
	mux.HandleFunc("DELETE /v2/workflows/runs/{id}", func(w http.ResponseWriter, r *http.Request) {
		result, _ := io.ReadAll(r.Body)
		q.mu.Lock()
		defer q.mu.Unlock()
		if run := q.runs[r.PathValue("id")]; run != nil && !run.over && r.FormValue("cancel") == "false" {
			run.over, run.result = true, string(result)
			return
		}
		http.Error(w, `{"error":"no such run"}`, http.StatusNotFound)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		q.t.Errorf("the SDK asked QStash for %s %s, which this test does not play", r.Method, r.URL)
		http.NotFound(w, r)
	})
	return mux
}

func (q *qstash) published(r *run) []*message {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(r.messages)
}

func (q *qstash) onlyRun() *run {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.runs) != 1 {
		q.t.Fatalf("QStash knows of %d runs, want one", len(q.runs))
	}
	for _, r := range q.runs {
		return r
	}
	return nil
}

// steps is r's body up to message m, or all of it: what each step was, the trigger's first.
func (r *run) steps(m *message) []byte {
	list := []map[string]string{}
	for _, step := range r.messages {
		list = append(list, map[string]string{"messageId": step.id, "body": base64.StdEncoding.EncodeToString([]byte(step.body)), "callType": "step"})
		if step == m {
			break
		}
	}
	text, _ := json.Marshal(list)
	return text
}

// deliver delivers m, and again, at once, as long as QStash would.
func (q *qstash) deliver(r *run, m *message) (answers []answer) {
	retries, err := strconv.Atoi(r.trigger.header.Get("Upstash-Retries"))
	if err != nil {
		retries = 3
	}
	for n := range retries + 1 {
		d := q.delivery(r, m)
		d.header.Set("Upstash-Retried", strconv.Itoa(n))
		got := d.send()
		q.mu.Lock()
		r.last = d
		q.mu.Unlock()
		answers = append(answers, got)
		if got.status <= 299 || got.status == 489 && got.header.Get("Upstash-NonRetryable-Error") == "true" {
			break
		}
	}
	return answers
}

// failureCallback is what QStash posts where the trigger's Upstash-Failure-Callback says.
func (q *qstash) failureCallback(r *run) *message {
	trigger := r.trigger
	m := &message{id: newID("msg_"), destination: trigger.header.Get("Upstash-Failure-Callback"), header: http.Header{}, callback: true}
	for name := range trigger.header {
		rest, ok := strings.CutPrefix(name, "Upstash-Failure-Callback-")
		if !ok {
			continue
		}
		if forwarded, ok := strings.CutPrefix(rest, "Forward-"); ok {
			m.header.Set(forwarded, trigger.header.Get(name))
		} else if strings.HasPrefix(rest, "Workflow-") {
			m.header.Set("Upstash-"+rest, trigger.header.Get(name))
		}
	}
	body, _ := json.Marshal(map[string]any{
		"status": r.failure.status, "header": r.failure.header, "body": base64.StdEncoding.EncodeToString([]byte(r.failure.body)),
		"retried": 0, "maxRetries": 2, "dlqId": newID("dlq_"), "sourceMessageId": trigger.id, "url": trigger.destination, "method": "POST",
		"sourceBody": base64.StdEncoding.EncodeToString([]byte(trigger.body)), "createdAt": time.Now().UnixMilli(),
		"workflowRunId": r.id, "workflowCreatedAt": time.Now().UnixMilli(),
	})
	m.body = string(body)
	return m
}

// delivery is one attempt to deliver a message. A test may spoil it before it is sent.
type delivery struct {
	q        *qstash
	receiver string // URL to send it to
	target   string // the destination's path and query
	body     string // signed
	sent     string // the body that is sent; "": body
	header   http.Header
	jose     string
	claims   map[string]any
	key      string
	sign     func(*delivery) string // "": no signature
}

// delivery is a fresh attempt, as QStash makes it, with the headers of production. r is nil for a message that is of
// no run.
func (q *qstash) delivery(r *run, m *message) *delivery {
	q.mu.Lock()
	defer q.mu.Unlock()
	destination, err := url.Parse(m.destination)
	if err != nil || !strings.HasPrefix(m.destination, publicURL+"/") {
		q.t.Errorf("published to %q, which is not under %s", m.destination, publicURL)
		destination = &url.URL{Path: "/"}
	}
	header := http.Header{}
	body := m.body
	switch {
	case m.callback || r == nil:
		maps.Copy(header, m.header)
	default:
		for _, from := range []http.Header{r.trigger.header, m.header} {
			for name, value := range from {
				if forwarded, ok := strings.CutPrefix(name, "Upstash-Forward-"); ok {
					header[forwarded] = value
				}
			}
		}
		for _, name := range []string{"Upstash-Workflow-Runid", "Upstash-Workflow-Init", "Upstash-Workflow-Url"} {
			header[name] = m.header[name]
		}
		header.Set("Upstash-Workflow-Createdat", strconv.FormatInt(time.Now().UnixMilli(), 10))
		if body = string(r.steps(m)); q.lazy {
			body = ""
		}
	}
	maps.Copy(header, http.Header{ // after those that were forwarded: the SDK may forward headers of these names
		"Content-Type":       {"application/json"},
		"User-Agent":         {"Upstash-QStash"},
		"Upstash-Message-Id": {m.id},
		"Upstash-Retried":    {"0"},
		"Upstash-Caller-Ip":  {"192.0.2.1"},
		"Upstash-Region":     {"US-EAST-1"},
	})
	hash := sha256.Sum256([]byte(body))
	now := time.Now().Unix()
	return &delivery{
		q: q, receiver: q.receiver, target: destination.RequestURI(), body: body, header: header,
		jose: `{"alg":"HS256","typ":"JWT"}`,
		claims: map[string]any{
			"aud": "", "body": base64.URLEncoding.EncodeToString(hash[:]), "exp": now + 300, "iat": now, "iss": "Upstash",
			"jti": newID("jwt_"), "nbf": -62135596800, "sub": m.destination,
		},
		key:  currentKey,
		sign: token,
	}
}

// token is d's JWT, signed with d.key.
func token(d *delivery) string {
	claims, _ := json.Marshal(d.claims)
	signed := base64.RawURLEncoding.EncodeToString([]byte(d.jose)) + "." + base64.RawURLEncoding.EncodeToString(claims)
	mac := hmac.New(sha256.New, []byte(d.key))
	mac.Write([]byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func unsignedToken(d *delivery) string {
	t := token(d)
	return t[:strings.LastIndex(t, ".")+1]
}

// answer is what QStash got.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) String() string { return fmt.Sprintf("%d %q", a.status, a.body) }

func (d *delivery) send() answer {
	d.q.t.Helper()
	body := d.body
	if d.sent != "" {
		body = d.sent
	}
	request, err := http.NewRequest(http.MethodPost, d.receiver+d.target, strings.NewReader(body))
	if err != nil {
		d.q.t.Error(err)
		return answer{}
	}
	request.Host = strings.TrimPrefix(publicURL, "https://")
	request.Header = d.header.Clone()
	if signature := d.sign(d); signature != "" {
		request.Header.Set("Upstash-Signature", signature)
	}
	got, err := http.DefaultClient.Do(request)
	if err != nil {
		d.q.t.Error(err)
		return answer{}
	}
	defer got.Body.Close()
	text, err := io.ReadAll(got.Body)
	if err != nil {
		d.q.t.Error(err)
	}
	return answer{got.StatusCode, got.Header, string(text)}
}

func newID(prefix string) string { return prefix + (rand.Text() + rand.Text())[:28] }
