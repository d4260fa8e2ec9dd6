package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestProgram(t *testing.T) {
	t.Parallel()
	p := startProgram(t, map[string]string{"RECEIVER_URL": "https://app.example/, http://localhost", "BEARER_TOKEN": "bearer-secret", "FORWARD_URL": succeedingService(t)})
	bearing := map[string]string{"Authorization": "Bearer bearer-secret"}
	got := do(t, sending{id: "msg_1", path: "/orders", body: `{"n":1}`, subject: "https://app.example/orders", header: bearing}.request(t, p.url))
	if got.status != 200 || got.body != `{"message":"ok"}` {
		t.Errorf("got %+v", got)
	}
	p.log.await(t, `"outcome":"ok"`, "msg_1")
	got = do(t, sending{path: "/orders", body: "x", header: bearing}.request(t, p.url))
	if got.status != 401 || got.body != `{"error":"unauthorized"}` {
		t.Errorf("for another URL: %+v", got)
	}
	p.log.await(t, `"reason":"subject"`, p.url+"/orders", "https://app.example/orders", "RECEIVER_URL")
	started := p.log.await(t, `"msg":"receiving"`)
	if fmt.Sprint(started["urls"]) != "[https://app.example http://localhost]" || started["store"] != "memory" || started["keys"] != 2.0 {
		t.Errorf("the start is logged as %v", started)
	}
	p.stop()
	if err := <-p.done; err != nil {
		t.Error(err)
	}
	for _, secret := range []string{currentKey, nextKey, "bearer-secret", "eyJ"} {
		if strings.Contains(p.log.String(), secret) {
			t.Errorf("%q is in the log", secret)
		}
	}
}

func TestWarningsAtStart(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name string
		env  map[string]string
		want string // a warning; "": none
	}{
		{"the development keys", map[string]string{"QSTASH_DEV": "1"}, "ANYONE CAN SIGN"},
		{"memory on Fly", map[string]string{"FLY_APP_NAME": "app", "METRICS_PORT": "0"}, "flyctl redis create"},
		{"a file on Fly", map[string]string{"FLY_APP_NAME": "app", "METRICS_PORT": "0", "STORE_URL": t.TempDir() + "/receiver.db"}, ""},
		{"own keys", nil, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			p := startProgram(t, row.env)
			p.stop()
			<-p.done
			if log := p.log.String(); row.want == "" && strings.Contains(log, "WARN") || strings.Count(log, row.want) != 1 && row.want != "" {
				t.Errorf("logged %s", log)
			}
		})
	}
}

func TestPortTaken(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
	for name, env := range map[string]map[string]string{
		"serve on port " + port:         {"PORT": port},
		"serve metrics on port " + port: {"METRICS_PORT": port},
	} {
		err = run(t.Context(), nil, testEnv(env), nil, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("got %v", err)
		}
	}
}

// waiter is an upstream whose answers wait for the test.
func waiter(t *testing.T) (url string, begun chan string, finish chan bool) {
	begun, finish = make(chan string, 100), make(chan bool)
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		begun <- string(body)
		<-finish
	}))
	t.Cleanup(service.Close)
	return service.URL, begun, finish
}

func TestStopFinishesWhatRuns(t *testing.T) {
	t.Parallel()
	upstream, begun, finish := waiter(t)
	metricsPort := freePort(t)
	p := startProgram(t, map[string]string{"FORWARD_URL": upstream, "METRICS_PORT": metricsPort})
	s := sending{id: "msg_1", body: "x"}
	claimed, waiting := make(chan reply, 1), make(chan reply, 1)
	go func() { got, _ := tryDo(s.request(t, p.url)); claimed <- got }()
	<-begun
	go func() { got, _ := tryDo(s.request(t, p.url)); waiting <- got }()
	for r, _ := http.NewRequest(http.MethodGet, "http://localhost:"+metricsPort, nil); !strings.Contains(do(t, r).body, "\nqstash_in_flight 2\n"); {
		time.Sleep(time.Millisecond)
	}
	arriving, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer arriving.Close()
	_, _ = io.WriteString(arriving, sending{body: "hello"}.head(t, p.url, "/", "Content-Length: 5\r\nExpect: 100-continue\r\n"))
	fromArriving := bufio.NewReader(arriving)
	if got, err := http.ReadResponse(fromArriving, nil); err != nil || got.StatusCode != 100 { // it is read now
		t.Fatal(got, err)
	}
	stranger, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	_, _ = io.WriteString(stranger, "POST / HTTP/1.1\r\n")

	p.stop()
	got, err := http.ReadResponse(fromArriving, nil)
	if err != nil || got.StatusCode != 503 || got.Header.Get("Retry-After") != "1" {
		t.Errorf("a delivery whose body is arriving got %+v, %v", got, err)
	}
	if got := <-waiting; got.status != 503 || got.header.Get("Retry-After") != "1" {
		t.Errorf("a delivery that waits got %+v", got)
	}
	for refused := false; !refused; { // one that still gets in is not begun
		got, err := tryDo(sending{body: "y"}.request(t, p.url))
		if refused = errors.Is(err, syscall.ECONNREFUSED); err == nil && got.status != 503 {
			t.Errorf("a new delivery got %+v", got)
		}
	}
	finish <- true
	if got := <-claimed; got.status != 200 {
		t.Errorf("the delivery that ran got %+v", got)
	}
	if err := <-p.done; err != nil {
		t.Error(err)
	}
}

func TestStopNamesWhatIsLeft(t *testing.T) {
	t.Parallel()
	c, err := loadConfig(testEnv(nil))
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(c, newMemoryStore(time.Hour), discard)
	begun, finish := make(chan bool), make(chan bool)
	withHandler(func(context.Context, *Message) ([]byte, error) { begun <- true; <-finish; return nil, nil })(s)
	web := newHTTPServer(s, discard)
	url, _ := serveTest(t, web)
	go tryDo(sending{id: "msg_1", path: "/orders", body: "x"}.request(t, url))
	<-begun
	err = stop(web, s.inFlight, 20*time.Millisecond, discard)
	if err == nil || !strings.Contains(err.Error(), `still running after 20ms: message "msg_1" to /orders`) {
		t.Errorf("got %v", err)
	}
	finish <- true
}

// started is the built program as a process.
type started struct {
	url string
	log *testLog
	cmd *exec.Cmd
}

func startBinary(t *testing.T, env map[string]string) *started {
	t.Helper()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	p := &started{log: newTestLog(), cmd: exec.Command(path)}
	getenv := testEnv(env)
	for _, name := range []string{"PORT", "QSTASH_CURRENT_SIGNING_KEY", "QSTASH_NEXT_SIGNING_KEY", "STORE_URL", "FORWARD_URL", "HANDLER_TIMEOUT"} {
		p.cmd.Env = append(p.cmd.Env, name+"="+getenv(name))
	}
	p.cmd.Stderr = p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	address := p.log.await(t, `"msg":"receiving"`)["address"].(string)
	p.url = "http://localhost" + address[strings.LastIndex(address, ":"):]
	return p
}

func TestSignals(t *testing.T) {
	t.Parallel()
	upstream, begun, finish := waiter(t)
	t.Run("one that finds nothing to do ends the program well", func(t *testing.T) {
		p := startBinary(t, nil)
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		if err := p.cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	t.Run("a second one ends it at once", func(t *testing.T) {
		p := startBinary(t, map[string]string{"FORWARD_URL": upstream})
		go tryDo(sending{body: "x"}.request(t, p.url))
		<-begun
		_ = p.cmd.Process.Signal(syscall.SIGINT)
		p.log.await(t, `"msg":"stopping`)
		_ = p.cmd.Process.Signal(syscall.SIGINT)
		if err := p.cmd.Wait(); err == nil {
			t.Error("it ended well, with a message unanswered")
		}
		finish <- true
	})
	t.Run("the first waits for what runs", func(t *testing.T) {
		p := startBinary(t, map[string]string{"FORWARD_URL": upstream})
		go tryDo(sending{body: "x"}.request(t, p.url))
		<-begun
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		p.log.await(t, `"msg":"stopping`)
		finish <- true
		if err := p.cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// Every message that was answered 200 has run once, and none is lost, however the processes end.
func TestKilledUnderLoad(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		storeURL  func(t *testing.T) string
		processes int
	}{
		"a SQLite file":             {func(t *testing.T) string { return t.TempDir() + "/receiver.db" }, 1},
		"two processes and a Redis": {func(t *testing.T) string { return "redis://127.0.0.1:" + newOwnRedis(t).port }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			ran := map[string]int{} // times the business logic ended, by message
			upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				mu.Lock()
				defer mu.Unlock()
				ran[string(body)]++
			}))
			defer upstream.Close()
			env := map[string]string{"STORE_URL": row.storeURL(t), "FORWARD_URL": upstream.URL, "HANDLER_TIMEOUT": "100ms"}
			processes := make([]atomic.Pointer[started], row.processes)
			for i := range processes {
				processes[i].Store(startBinary(t, env))
			}
			// unsure is a message with an attempt that was never answered: it ran once more than that, at most.
			unsure, replays := map[string]bool{}, 0
			var load sync.WaitGroup
			var answered atomic.Int64
			const messages = 300
			for worker := range 10 {
				load.Go(func() {
					for n := range messages / 10 {
						s := sending{id: fmt.Sprintf("msg_%d_%d", worker, n), body: fmt.Sprintf("%s %d %d", t.Name(), worker, n), subject: "https://app.example/"}
						for attempt := 0; ; attempt++ {
							p := processes[(worker+attempt)%len(processes)].Load()
							got, err := tryDo(s.request(t, p.url))
							if err == nil && got.status == 200 {
								answered.Add(1)
								break
							}
							if err != nil {
								mu.Lock()
								unsure[s.body] = true
								mu.Unlock()
							} else if got.status == 502 || got.status == 504 { // it may have run
								mu.Lock()
								unsure[s.body] = true
								mu.Unlock()
							} else if got.status != 503 {
								t.Errorf("got %+v", got)
								return
							}
						}
						// QStash has its 200. One more delivery, to whichever process there is, must not run it.
						got, err := tryDo(s.request(t, processes[n%len(processes)].Load().url))
						if err == nil && got.status == 200 && got.header.Get("Idempotent-Replayed") == "true" {
							mu.Lock()
							replays++
							mu.Unlock()
						}
					}
				})
			}
			for kill := int64(1); kill <= 4; kill++ {
				for answered.Load() < kill*messages/5 {
					time.Sleep(time.Millisecond)
				}
				i := int(kill) % len(processes)
				p := processes[i].Load()
				_ = p.cmd.Process.Kill()
				_ = p.cmd.Wait()
				processes[i].Store(startBinary(t, env))
			}
			load.Wait()
			mu.Lock()
			defer mu.Unlock()
			if len(ran) != messages || replays == 0 {
				t.Errorf("%d of %d messages ran, %d replays", len(ran), messages, replays)
			}
			for body, times := range ran {
				if times != 1 && !unsure[body] {
					t.Errorf("%q ran %d times", body, times)
				}
			}
			t.Logf("%d messages, %d of them with an attempt that was cut off", len(ran), len(unsure))
		})
	}
}

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := built(); err == nil {
		os.RemoveAll(path)
	}
	os.Exit(code)
}
