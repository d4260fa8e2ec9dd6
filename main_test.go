package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/pelletier/go-toml/v2"

	"qstash-receiver/internal/qstashtest"
	settingspkg "qstash-receiver/internal/settings"
)

func TestProgram(t *testing.T) {
	t.Parallel()
	p := qstashtest.Start(t, run, map[string]string{
		"RECEIVER_URL": "https://app.example/, http://localhost", "BEARER_TOKEN": "bearer-secret", "FORWARD_URL": qstashtest.NewOKService(t),
	})
	bearer := map[string]string{"Authorization": "Bearer bearer-secret"}
	s := qstashtest.Sending{ID: "msg_1", Path: "/orders", Body: `{"n":1}`, Subject: "https://app.example/orders", Header: bearer, Proxied: true}
	if got := qstashtest.Do(t, s.Request(t, p.URL)); got.Status != 200 || got.Body != `{"message":"ok"}` {
		t.Errorf("got %+v", got)
	}
	p.Log.Await(t, `"outcome":"ok"`, "msg_1")
	got := qstashtest.Do(t, qstashtest.Sending{Path: "/orders", Body: "x", Header: bearer}.Request(t, p.URL))
	if got.Status != 401 || got.Body != `{"error":"unauthorized"}` {
		t.Errorf("for another URL: %+v", got)
	}
	p.Log.Await(t, `"reason":"subject"`, p.URL+"/orders", "https://app.example/orders", "RECEIVER_URL")
	began := p.Log.Await(t, `"msg":"receiving"`)
	if fmt.Sprint(began["urls"]) != "[https://app.example http://localhost]" || began["store"] != "memory" || began["keys"] != 2.0 ||
		!strings.Contains(fmt.Sprint(began["keys_from"]), "QSTASH_CURRENT_SIGNING_KEY") {
		t.Errorf("the start is logged as %v", began)
	}
	p.Stop()
	if err := <-p.Done; err != nil {
		t.Error(err)
	}
	for _, secret := range []string{qstashtest.CurrentKey, qstashtest.NextKey, "bearer-secret", "eyJ"} {
		if strings.Contains(p.Log.String(), secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
}

func TestWarningsAtStart(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		sentence string
		env      map[string]string
		want     string // a warning; "": none
	}{
		{"the development keys", map[string]string{"QSTASH_DEV": "1"}, "ANYONE CAN SIGN"},
		{"memory on Fly", map[string]string{"FLY_APP_NAME": "app", "METRICS_PORT": "0"}, "flyctl redis create"},
		{"a file on Fly", map[string]string{"FLY_APP_NAME": "app", "METRICS_PORT": "0", "STORE_URL": t.TempDir() + "/receiver.db"}, ""},
		{"own keys", nil, ""},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			p := qstashtest.Start(t, run, row.env)
			p.Stop()
			<-p.Done
			warnings := p.Log.Lines(t, `"level":"WARN"`)
			if row.want == "" && len(warnings) > 0 || row.want != "" && len(p.Log.Lines(t, `"level":"WARN"`, row.want)) != 1 {
				t.Errorf("warned of %v", warnings)
			}
		})
	}
}

// The key pair that Upstash publishes signs where QSTASH_DEV is set, and nowhere else.
func TestPublishedKeys(t *testing.T) {
	t.Parallel()
	for _, key := range []string{"sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r", "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs"} {
		for dev, want := range map[string]int{"true": 200, "1": 200, "": 401, "false": 401} {
			p := qstashtest.Start(t, run, map[string]string{"QSTASH_DEV": dev, "FORWARD_URL": qstashtest.NewOKService(t)})
			if got := qstashtest.Do(t, qstashtest.Sending{Key: key}.Request(t, p.URL)); got.Status != want {
				t.Errorf("with QSTASH_DEV=%s: got %d, want %d", dev, got.Status, want)
			}
		}
	}
}

func TestPortTaken(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	for _, name := range []string{"PORT", "METRICS_PORT"} {
		env := qstashtest.Environment(map[string]string{name: port})
		err := run(t.Context(), nil, qstashtest.Getenv(env), nil, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), port) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestMetricsHaveTheirOwnPort(t *testing.T) {
	t.Parallel()
	port := qstashtest.FreePort(t)
	p := qstashtest.Start(t, run, map[string]string{"METRICS_PORT": port})
	if got := qstashtest.Get(t, "http://localhost:"+port+"/metrics"); got.Status != 200 || !strings.Contains(got.Body, "\nqstash_in_flight 0\n") {
		t.Errorf("the metrics are %+v", got)
	}
	if got := qstashtest.Get(t, p.URL+"/metrics"); got.Status != 405 {
		t.Errorf("on the public port: %+v", got)
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range addresses {
		ip, ok := address.(*net.IPNet)
		if !ok || ip.IP.IsLoopback() || ip.IP.To4() == nil {
			continue
		}
		if c, err := net.Dial("tcp", net.JoinHostPort(ip.IP.String(), port)); err == nil {
			c.Close()
			t.Errorf("the metrics are served on %s too", ip.IP)
		}
	}
}

func TestStopFinishesWhatRuns(t *testing.T) {
	t.Parallel()
	app, metrics := qstashtest.NewService(t), qstashtest.FreePort(t)
	p := qstashtest.Start(t, run, map[string]string{"FORWARD_URL": app.URL, "METRICS_PORT": metrics})
	s := qstashtest.Sending{ID: "msg_1", Body: "x"}
	send := func() <-chan qstashtest.Reply {
		r, replies := s.Request(t, p.URL), make(chan qstashtest.Reply, 1)
		go func() {
			got, _ := qstashtest.TryDo(r)
			replies <- got
		}()
		return replies
	}
	claimed := send()
	<-app.Begun
	waiting := send()
	for !strings.Contains(qstashtest.Get(t, "http://localhost:"+metrics+"/metrics").Body, "\nqstash_in_flight 2\n") {
		time.Sleep(time.Millisecond)
	}
	arriving := qstashtest.Dial(t, p.URL)
	arriving.Send(t, qstashtest.Sending{Body: "hello"}.Head(p.URL, "/", "Content-Length: 5\r\nExpect: 100-continue\r\n"))
	if got := arriving.Reply(t); got.Status != 100 { // it is read now
		t.Fatal(got)
	}
	qstashtest.Dial(t, p.URL).Send(t, "POST / HTTP/1.1\r\n") // a stranger, who is not waited for

	p.Stop()
	for sentence, got := range map[string]qstashtest.Reply{"whose body is arriving": arriving.Reply(t), "that waits": <-waiting} {
		if got.Status != 503 || got.Header["Retry-After"] != nil {
			t.Errorf("a delivery %s got %+v", sentence, got)
		}
	}
	for refused := false; !refused; { // one that still gets in is not begun
		got, err := qstashtest.TryDo(qstashtest.Sending{Body: "y"}.Request(t, p.URL))
		if refused = errors.Is(err, syscall.ECONNREFUSED); err == nil && got.Status != 503 {
			t.Errorf("a new delivery got %+v", got)
		}
	}
	app.Finish <- 200
	if got := <-claimed; got.Status != 200 {
		t.Errorf("the delivery that ran got %+v", got)
	}
	if err := <-p.Done; err != nil {
		t.Error(err)
	}
}

// TestProcess is what only a process of its own shows.
func TestProcess(t *testing.T) {
	t.Parallel()
	program := qstashtest.Build(t)

	t.Run("exits", func(t *testing.T) {
		t.Parallel()
		foreign := t.TempDir() + "/notes.txt"
		if err := os.WriteFile(foreign, []byte("milk, bread"), 0o600); err != nil {
			t.Fatal(err)
		}
		taken, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		_, takenPort, _ := net.SplitHostPort(taken.Addr().String())
		for _, row := range []struct {
			sentence string
			args     []string
			env      map[string]string
			code     int
			says     []string
		}{
			{"help", []string{"-h"}, nil, 0, []string{"QSTASH_CURRENT_SIGNING_KEY", "HANDLER_TIMEOUT", "45s", "doctor"}},
			{"an unknown command", []string{"sevre"}, nil, 2, []string{`unknown command "sevre"`}},
			{"an unknown flag", []string{"sign", "-x"}, nil, 2, []string{"-x"}},
			{"no keys", nil, map[string]string{"QSTASH_CURRENT_SIGNING_KEY": "", "QSTASH_NEXT_SIGNING_KEY": ""}, 1, []string{"QSTASH_CURRENT_SIGNING_KEY", "QSTASH_TOKEN"}},
			{"half a pair", nil, map[string]string{"QSTASH_NEXT_SIGNING_KEY": " "}, 1, []string{"QSTASH_NEXT_SIGNING_KEY"}},
			{"every wrong setting", nil, map[string]string{
				"PORT": "http", "QSTASH_CURRENT_SIGNING_KEY": "sig_...", "EU_CENTRAL_1_QSTASH_NEXT_SIGNING_KEY": qstashtest.EUNextKey, "RECEIVER_URL": "https://app.example/orders",
				"CLOCK_TOLERANCE": "1", "MAX_BODY_BYTES": "67108865", "HANDLER_TIMEOUT": "soon", "STORE_URL": "mysql://pa55word@db", "STORE_TTL": "-1s", "DEDUPE_KEY": "order",
				"FORWARD_URL": "localhost:3000", "METRICS_PORT": "65536", "LOG_LEVEL": "loud", "LOG_FORMAT": "xml", "QSTASH_DEV": "perhaps",
			}, 1, []string{
				"PORT", "QSTASH_CURRENT_SIGNING_KEY", "EU_CENTRAL_1_QSTASH_CURRENT_SIGNING_KEY", "RECEIVER_URL", "https://app.example", "CLOCK_TOLERANCE", "MAX_BODY_BYTES",
				"HANDLER_TIMEOUT", "STORE_URL", "STORE_TTL", "DEDUPE_KEY", "FORWARD_URL", "METRICS_PORT", "LOG_LEVEL", "LOG_FORMAT", "QSTASH_DEV",
			}},
			{"a wrong setting, and a store that shows to be wrong once it is opened", nil, map[string]string{"LOG_LEVEL": "loud", "STORE_URL": foreign}, 1,
				[]string{"LOG_LEVEL", "STORE_URL", "no SQLite database"}},
			{"a port that is taken, and such a store", nil, map[string]string{"PORT": takenPort, "STORE_URL": foreign}, 1, []string{"set PORT", "STORE_URL", "no SQLite database"}},
			{"the directory of a file is not there", nil, map[string]string{"STORE_URL": t.TempDir() + "/none/receiver.db"}, 1, []string{"none"}},
		} {
			cmd := program.Command(row.env, row.args...)
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != row.code {
				t.Errorf("%s: %v, want exit code %d: %s", row.sentence, err, row.code, out)
			}
			for _, word := range row.says {
				if !strings.Contains(string(out), word) {
					t.Errorf("%s: %q is not in %s", row.sentence, word, out)
				}
			}
			for _, word := range []string{"goroutine", "pa55word", qstashtest.CurrentKey, qstashtest.EUNextKey} {
				if strings.Contains(string(out), word) {
					t.Errorf("%s: %q is in %s", row.sentence, word, out)
				}
			}
		}
	})

	t.Run("a signal that finds nothing to do ends it well", func(t *testing.T) {
		t.Parallel()
		p := program.Start(t, nil)
		p.Signal(t, syscall.SIGTERM)
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
	})
	t.Run("two signals within a second are one, which waits for what runs", func(t *testing.T) {
		t.Parallel()
		app := qstashtest.NewService(t)
		p := program.Start(t, map[string]string{"FORWARD_URL": app.URL})
		go qstashtest.TryDo(qstashtest.Sending{Body: "x"}.Request(t, p.URL))
		<-app.Begun
		p.Signal(t, syscall.SIGTERM)
		p.Signal(t, syscall.SIGTERM)
		p.Log.Await(t, `"msg":"stopping`)
		app.Finish <- 200
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
		p.Log.Await(t, `"outcome":"ok"`)
	})
	t.Run("a later one ends it at once", func(t *testing.T) {
		t.Parallel()
		app := qstashtest.NewService(t)
		p := program.Start(t, map[string]string{"FORWARD_URL": app.URL})
		go qstashtest.TryDo(qstashtest.Sending{Body: "x"}.Request(t, p.URL))
		<-app.Begun
		began := time.Now()
		p.Signal(t, syscall.SIGINT)
		p.Log.Await(t, `"msg":"stopping`)
		ended := make(chan error, 1)
		go func() { ended <- p.Wait() }()
		for again := time.Tick(100 * time.Millisecond); ; {
			select {
			case <-again:
				_ = p.Process.Signal(syscall.SIGINT)
			case err := <-ended:
				if p.ProcessState.ExitCode() != 1 || time.Since(began) < time.Second {
					t.Errorf("ended after %s: %v", time.Since(began), err)
				}
				return
			}
		}
	})

	// What Go's own packages print is a line like all others, without what the app sent.
	t.Run("an app that speaks without being asked", func(t *testing.T) {
		t.Parallel()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		answered := make(chan bool)
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = c.Read(make([]byte, 64<<10))
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			<-answered
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX-App: secret\r\n\r\n")
		}()
		p := program.Start(t, map[string]string{"FORWARD_URL": "http://" + l.Addr().String()})
		if got := qstashtest.Do(t, qstashtest.Sending{}.Request(t, p.URL)); got.Status != 200 {
			t.Errorf("got %+v", got)
		}
		answered <- true
		p.Log.Await(t, `"level":"WARN"`, "without being asked")
		p.Signal(t, syscall.SIGTERM)
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
		p.Log.Lines(t) // each of which must be JSON
		if strings.Contains(p.Log.String(), "secret") {
			t.Errorf("the app's data is in the log: %s", p.Log)
		}
	})

	for sentence, row := range map[string]struct {
		storeURL  func(t testing.TB) string
		processes int
	}{
		"killed under load, with a SQLite file":               {func(t testing.TB) string { return t.TempDir() + "/receiver.db" }, 1},
		"killed under load, with two processes and a Redis":   {func(t testing.TB) string { return qstashtest.NewRedis(t).URL() }, 2},
		"killed under load, with two processes on a Postgres": {qstashtest.PostgresURL, 2},
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			checkKilled(t, program, row.storeURL(t), row.processes)
		})
	}
}

// checkKilled kills processes while messages come. Each message that was answered 200 has run once, and none is lost.
func checkKilled(t *testing.T, program qstashtest.Binary, storeURL string, processes int) {
	const messages, workers, kills = 300, 10, 4
	var mu sync.Mutex
	ran := map[string]int{} // how often the business logic ended, by message
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		ran[string(body)]++
	}))
	defer app.Close()
	env := map[string]string{"STORE_URL": storeURL, "FORWARD_URL": app.URL, "HANDLER_TIMEOUT": "1s"}
	running := make([]atomic.Pointer[qstashtest.Process], processes)
	for i := range running {
		running[i].Store(program.Start(t, env))
	}
	unsure := map[string]bool{} // messages with an attempt that was cut off: it may have run without an answer
	var replays atomic.Int64
	answered := make(chan bool, messages)
	var load sync.WaitGroup
	for worker := range workers {
		load.Go(func() {
			for n := range messages / workers {
				s := qstashtest.Sending{ID: fmt.Sprintf("msg_%d_%d", worker, n), Body: fmt.Sprint(worker, n), Subject: "https://app.example/"}
				cut := false
				for attempt := 0; !cut; attempt++ {
					p := running[(worker+attempt)%processes].Load()
					got, err := qstashtest.TryDo(s.Request(t, p.URL))
					if err == nil && got.Status == 200 {
						break
					}
					if err == nil && got.Status != 503 && got.Status != 502 {
						t.Errorf("got %+v", got)
					}
					if err != nil || got.Status == 502 {
						mu.Lock()
						unsure[s.Body] = true
						mu.Unlock()
						cut = processes > 1 // its lease has to lapse first
					}
				}
				answered <- true
				if cut {
					continue
				}
				// QStash has its 200. One more delivery, to whichever process there is, must not run it.
				got, err := qstashtest.TryDo(s.Request(t, running[n%processes].Load().URL))
				if err == nil && got.Status == 200 && got.Header.Get("Idempotent-Replayed") == "true" {
					replays.Add(1)
				}
			}
		})
	}
	for kill := 1; kill <= kills; kill++ {
		for range messages / (kills + 1) {
			<-answered
		}
		p := &running[kill%processes]
		p.Load().Kill()
		p.Store(program.Start(t, env))
	}
	load.Wait()
	mu.Lock()
	defer mu.Unlock()
	if len(ran) < messages-len(unsure) || processes == 1 && len(ran) != messages || replays.Load() == 0 {
		t.Errorf("%d of %d messages ran, %d were cut off, %d replays", len(ran), messages, len(unsure), replays.Load())
	}
	for body, times := range ran {
		if times != 1 && !unsure[body] {
			t.Errorf("message %q ran %d times", body, times)
		}
	}
}

// TestImports keeps the order in which packages see each other. What a fork adds is its own affair.
func TestImports(t *testing.T) {
	t.Parallel()
	allowed := map[string][]string{
		"qstash":        {},
		"signing":       {},
		"once":          {},
		"logs":          {},
		"once/sqlite":   {"once"},
		"once/redis":    {"once"},
		"once/postgres": {"once"},
		"once/oncetest": {"once"},
		"api":           {"signing"},
		"keys":          {"api", "signing"},
		"deliver":       {"qstash", "once"},
		"server":        {"deliver", "qstash", "once", "logs", "prometheus"},
		"settings":      {"api", "signing", "once", "once/sqlite", "once/redis", "once/postgres", "deliver"},
		"dev":           {"signing", "prometheus"},
		"command":       {"settings", "dev", "api", "keys", "signing", "once", "once/sqlite", "once/redis", "once/postgres", "deliver", "logs"},
		"qstashtest":    {},
	}
	module := checkGo(t, "list", "-m")
	short := func(path string) string {
		if strings.HasPrefix(path, "github.com/prometheus/") {
			return "prometheus"
		}
		return strings.TrimPrefix(path, module+"/internal/")
	}
	for _, tags := range []string{"", "lambda,lambda.norpc"} {
		for line := range strings.Lines(checkGo(t, "list", "-tags", tags, "-f", "{{.ImportPath}} {{join .Imports ` `}}", "./...")) {
			imports := strings.Fields(line)
			name := short(imports[0])
			for _, path := range imports[1:] {
				other := short(path)
				_, ours := allowed[other]
				may, known := allowed[name]
				if known && (ours || other == "prometheus") && !slices.Contains(may, other) {
					t.Errorf("%s imports %s", name, other)
				}
				if name == module && (other == "prometheus" || other == "qstashtest" || other == "once/oncetest") {
					t.Errorf("package main imports %s", other)
				}
			}
		}
	}
}

// checkGo returns what the go command prints.
func checkGo(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command("go", args...)
	var failure bytes.Buffer
	cmd.Stderr = &failure
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, &failure)
	}
	return strings.TrimSpace(string(out))
}

// TestDevDelivers publishes to the stand-in, rolls its keys, and publishes again.
func TestDevDelivers(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	log, out, done := qstashtest.NewLog(), qstashtest.NewLog(), make(chan error, 1)
	go func() {
		done <- run(ctx, []string{"dev", "-port", "0", "-speed", "1000"}, qstashtest.Getenv(map[string]string{"PORT": "0", "STORE_URL": "/nowhere/at/all"}), nil, out, log)
	}()
	log.Await(t, `"msg":"receiving"`)
	words := strings.Fields(out.String())
	api := words[slices.Index(words, "at")+1]
	publish := words[slices.Index(words, "curl")+1]
	api = strings.TrimSuffix(api, ",")
	post := func(url string) string {
		answer, err := http.Post(url, "application/json", strings.NewReader(`{"order":1}`))
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil || answer.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s %s %v", url, answer.Status, text, err)
		}
		var said struct{ MessageID string }
		_ = json.Unmarshal(text, &said)
		return said.MessageID
	}
	log.Await(t, `"outcome":"ok"`, post(publish), `"signature":"current"`)
	post(api + "/v2/keys/rotate")
	log.Await(t, `"outcome":"ok"`, post(publish), `"signature":"next"`)
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestDevIsRefused(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		sentence string
		args     []string
		env      map[string]string
		want     string
	}{
		{"where the program is deployed", nil, map[string]string{"FLY_APP_NAME": "app", "METRICS_PORT": "0"}, "FLY_APP_NAME is set"},
		{"with a port that is none", []string{"-port", "70000"}, nil, "not a port"},
		{"with a speed that is none", []string{"-speed", "0"}, nil, "not a number from 1 on"},
		{"with a word too many", []string{"now"}, nil, "what is"},
	} {
		err := run(t.Context(), append([]string{"dev", "-port", "0"}, row.args...), qstashtest.Getenv(row.env), nil, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: got %v, want %s", row.sentence, err, row.want)
		}
	}
}

// TestFork builds what people make of handler.go.
func TestFork(t *testing.T) {
	t.Parallel()
	checkGo(t, "vet", "-overlay", checkOverlay(t, map[string]string{ // names that are anybody's, in tests too
		"handler.go": `package main

import (
	"context"

	"qstash-receiver/internal/qstash"
)

func handle(context.Context, *qstash.Message) ([]byte, error) { return nil, do(result{}) }
func handleFailure(context.Context, *qstash.Callback) error   { return nil }
`,
		"names.go": `package main

import "errors"

type (
	result   struct{ state }
	state    string
	message  struct{}
	delivery struct{}
	claims   map[string]any
	outcome  int
	answer   []byte
	reply    struct{}
	config   struct{}
	store    interface{ get() string }
	verifier struct{}
	server   struct{}
	program  struct{}
	sending  struct{}

	command  struct{}
	deliver  struct{}
	keys     []string
	logs     struct{}
	once     struct{}
	settings struct{}
	signing  struct{}
)

const (
	ok         = true
	currentKey = "mine"
)

var (
	log     = errors.New("log")
	discard = log
	body    []byte
	now     int
	token   = clip("x")
)

func do(result) error      { return nil }
func clip(s string) string { return s }
func newTestLog() store    { return nil }
func start()               {}
func sign()                {}
func dev()                 {}
func doctor()              {}
func load(config) config   { return config{} }
`,
		"names_test.go": `package main

import "testing"

func newLog(testing.TB) message { return message{} }

func TestMain(m *testing.M) { m.Run() }
`,
	}), ".")
	checkGo(t, "build", "-o", filepath.Join(t.TempDir(), "receiver"), "-overlay", checkOverlay(t, map[string]string{ // packages and files
		"handler.go": `package main

import (
	"context"
	"embed"

	"qstash-receiver/internal/qstash"
	"qstash-receiver/mail"
)

//go:embed mail/*.md mail/letter.txt
var files embed.FS

func handle(ctx context.Context, m *qstash.Message) ([]byte, error) {
	if _, err := files.ReadFile("mail/letter.txt"); err != nil {
		return nil, err
	}
	return []byte(mail.Letter), nil
}

func handleFailure(context.Context, *qstash.Callback) error { return nil }
`,
		"mail/mail.go":    "package mail\n\nimport _ \"embed\"\n\n//go:embed letter.md\nvar Letter string\n",
		"mail/letter.md":  "Hello\n",
		"mail/letter.txt": "Hello\n",
	}), ".")
}

// checkOverlay returns a file that makes the go command see files in this directory that are not there.
func checkOverlay(t testing.TB, files map[string]string) string {
	t.Helper()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir, replace := t.TempDir(), map[string]string{}
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, text := range files {
		replace[filepath.Join(here, name)] = write(name, text)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	return write("overlay.json", string(overlay))
}

// checkIgnored returns whether .dockerignore keeps a file out of the image.
func checkIgnored(t testing.TB) func(path string) bool {
	t.Helper()
	text, err := os.ReadFile(".dockerignore")
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a fork that has no image of this kind
		t.Fatal(err)
	}
	patterns, err := ignorefile.ReadAll(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	matcher, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	return func(path string) bool {
		ignored, err := matcher.MatchesOrParentMatches(path)
		if err != nil {
			t.Fatal(err)
		}
		return ignored
	}
}

// The files that deploy the program say what the program is by default. A fork may have none of them.
func TestDeploy(t *testing.T) {
	t.Parallel()
	t.Run("fly.toml", func(t *testing.T) {
		t.Parallel()
		text, err := os.ReadFile("fly.toml")
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		checkFly(t, string(text))
	})
	t.Run("fly.toml as flyctl rewrites it", func(t *testing.T) {
		t.Parallel()
		text, err := os.ReadFile("fly.toml")
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		checkFly(t, checkRewrite(t, string(text)))
	})
	t.Run("Dockerfile", func(t *testing.T) {
		t.Parallel()
		text, err := os.ReadFile("Dockerfile")
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		c := checkSettings(t, nil)
		exposed := regexp.MustCompile(`(?m)^EXPOSE (.+)$`).FindAllStringSubmatch(string(text), -1)
		if len(exposed) == 0 {
			t.Error("no port is exposed")
		}
		for _, line := range exposed {
			if line[1] != strconv.Itoa(c.Port) {
				t.Errorf("%q, PORT is %d by default", line[0], c.Port)
			}
		}
		stages := regexp.MustCompile(`(?m)^FROM `).Split(string(text), -1)
		if last := stages[len(stages)-1]; !strings.Contains(last, "\nUSER nonroot\n") { // the one that is built by default
			t.Errorf("the last stage runs as root: FROM %s", last)
		}
		if !strings.Contains(string(text), "\nCOPY . .\n") {
			t.Error("the image is not built from all that .dockerignore lets through")
		}
	})
	t.Run(".dockerignore", func(t *testing.T) {
		t.Parallel()
		if _, err := os.Stat(".dockerignore"); errors.Is(err, fs.ErrNotExist) {
			return
		}
		ignored := checkIgnored(t)
		for path, want := range map[string]bool{
			"handler.go": false, "orders/orders.go": false, "orders/README.md": false, "docs/letter.txt": false, "mail/letter.html": false, "handler_test.go": false,
			"data/seed.db": false, "testdata/x.json": false, "go.sum": false, "vendor/modules.txt": false, "volume/main.go": false,
			".git": true, ".git/config": true, "node_modules/x/index.js": true, "workflow/node_modules/x/index.js": true, "receiver.db": true, "receiver.db-wal": true, ".env": true,
		} {
			if got := ignored(path); got != want {
				t.Errorf("%s is kept out: %v, want %v", path, got, want)
			}
		}
	})
}

// checkSettings returns the settings on Fly with env, which must be right.
func checkSettings(t testing.TB, env map[string]string) settingspkg.Settings {
	t.Helper()
	all := qstashtest.Environment(map[string]string{"PORT": "", "FLY_APP_NAME": "app"})
	maps.Copy(all, env)
	c, err := settingspkg.Load(qstashtest.Getenv(all), false)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// checkFly wants the fly.toml to fit the program.
func checkFly(t *testing.T, text string) {
	t.Helper()
	var file map[string]any
	if err := toml.Unmarshal([]byte(text), &file); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for _, table := range checkTables(file["env"]) {
		for name, value := range table {
			env[name] = fmt.Sprint(value)
		}
	}
	c := checkSettings(t, env)
	if file["kill_signal"] != "SIGTERM" {
		t.Errorf("kill_signal is %v, SIGTERM lets what runs finish", file["kill_signal"])
	}
	least, most := c.HandlerTimeout+15*time.Second, 300*time.Second
	if d := checkDuration(file["kill_timeout"]); d < least || d > most {
		t.Errorf("kill_timeout is %v, with a HANDLER_TIMEOUT of %s it must be from %s to %s", file["kill_timeout"], c.HandlerTimeout, least, most)
	}
	service := checkTables(file["http_service"])
	if len(service) != 1 || fmt.Sprint(service[0]["internal_port"]) != strconv.Itoa(c.Port) {
		t.Fatalf("http_service is %v, PORT is %d", service, c.Port)
	}
	if service[0]["auto_stop_machines"] == "suspend" {
		t.Error("a suspended machine's clock lags when it resumes")
	}
	checks := checkTables(service[0]["checks"])
	if len(checks) == 0 {
		t.Error("there are no checks")
	}
	for _, check := range checks {
		if check["path"] != "/healthz" || !strings.EqualFold(fmt.Sprint(check["method"]), "GET") {
			t.Errorf("a check is %v, the program has GET /healthz", check)
		}
	}
	for _, metrics := range checkTables(file["metrics"]) {
		if fmt.Sprint(metrics["port"]) != strconv.Itoa(c.MetricsPort) || metrics["path"] != "/metrics" {
			t.Errorf("metrics are at %v, METRICS_PORT is %d", metrics, c.MetricsPort)
		}
	}
}

// checkTables returns a table, or a list of tables, as such a list.
func checkTables(v any) []map[string]any {
	switch v := v.(type) {
	case map[string]any:
		return []map[string]any{v}
	case []any:
		var tables []map[string]any
		for _, item := range v {
			tables = append(tables, checkTables(item)...)
		}
		return tables
	}
	return nil
}

// checkDuration reads a duration as Fly does: a number is seconds. It returns 0 for what is none.
func checkDuration(v any) time.Duration {
	if seconds, ok := v.(int64); ok {
		return time.Duration(seconds) * time.Second
	}
	d, _ := time.ParseDuration(fmt.Sprint(v))
	return d
}

// checkRewrite returns a fly.toml as flyctl launch --copy-config leaves it: with a name and a region, without comments, in
// another order, durations spelled out and some tables as lists.
func checkRewrite(t testing.TB, text string) string {
	t.Helper()
	var file map[string]any
	if err := toml.Unmarshal([]byte(text), &file); err != nil {
		t.Fatal(err)
	}
	file["app"], file["primary_region"] = "app", "fra"
	if d := checkDuration(file["kill_timeout"]); d != 0 {
		file["kill_timeout"] = d.String()
	}
	for _, name := range []string{"metrics", "mounts"} {
		if tables := checkTables(file[name]); tables != nil {
			file[name] = tables
		}
	}
	var out strings.Builder
	if err := toml.NewEncoder(&out).Encode(file); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "\n[metrics]") || strings.Contains(out.String(), "60s") || strings.Contains(out.String(), "#") {
		t.Fatalf("this is not what flyctl leaves:\n%s", &out)
	}
	return out.String()
}
