//go:build !lambda

package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"qstash-receiver/internal/deliver"
	"qstash-receiver/internal/logs"
	"qstash-receiver/internal/once"
	"qstash-receiver/internal/qstash"
	"qstash-receiver/internal/qstashtest"
)

// serving is a Server as the program runs it.
type serving struct {
	instance
	metrics string
	stop    context.CancelFunc
	done    <-chan error
}

func serve(t *testing.T, run deliver.Runner, change func(*Config)) serving {
	t.Helper()
	l, err := Listen(":0", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := instance{log: qstashtest.NewLog(), url: "http://localhost" + l.Address()[strings.LastIndex(l.Address(), ":"):]}
	c := Config{Verify: verify, Run: run, Store: once.NewMemory(time.Hour), Timing: deliver.NewTiming(20 * time.Second), MaxBody: 1 << 20, Log: logs.New(p.log, -4, false)}
	if change != nil {
		change(&c)
	}
	p.Server = New(c)
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, l) }()
	return serving{p, "http://" + l.metrics.Addr().String(), stop, done}
}

func TestStopFinishesWhatRuns(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan bool), make(chan bool)
	p := serve(t, runner(func(context.Context, *qstash.Message) ([]byte, error) {
		begun <- true
		<-finish
		return []byte("done"), nil
	}), nil)
	s := qstashtest.Sending{ID: "msg_1", Body: "x"}
	running := p.begin(t, s)
	<-begun
	waiting := p.begin(t, s)
	await(t, "it does not wait", func() bool { return strings.Contains(qstashtest.Get(t, p.metrics).Body, "\nqstash_in_flight 2\n") })
	arriving := qstashtest.Dial(t, p.url)
	arriving.Send(t, qstashtest.Sending{Body: "hello"}.Head(p.url, "", "Content-Length: 5\r\nExpect: 100-continue\r\n"))
	if got := arriving.Reply(t); got.Status != 100 { // it is read now
		t.Fatal(got)
	}
	stranger := qstashtest.Dial(t, p.url)
	stranger.Send(t, "POST / HTTP/1.1\r\n")

	p.stop()
	for name, got := range map[string]qstashtest.Reply{"whose body is arriving": arriving.Reply(t), "that waits": <-waiting} {
		if got.Status != 503 || got.Header.Get("Retry-After") != "" || got.Body != `{"error":"stopping: this machine is stopping"}` {
			t.Errorf("a delivery %s got %+v", name, got)
		}
	}
	for refused := false; !refused; { // one that still gets in is not begun
		got, err := qstashtest.TryDo(qstashtest.Sending{Body: "y"}.Request(t, p.url))
		if refused = errors.Is(err, syscall.ECONNREFUSED); err == nil && got.Status != 503 {
			t.Errorf("a new delivery got %+v", got)
		}
	}
	finish <- true
	if got := <-running; got.Status != 200 || got.Body != "done" {
		t.Errorf("the delivery that ran got %+v", got)
	}
	began := time.Now()
	if err := <-p.done; err != nil || time.Since(began) > 5*time.Second { // the stranger is not waited for
		t.Errorf("got %v after %s", err, time.Since(began))
	}
}

func TestStopNamesWhatIsLeft(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan bool), make(chan bool)
	p := serve(t, runner(func(context.Context, *qstash.Message) ([]byte, error) { begun <- true; <-finish; return nil, nil }),
		func(c *Config) { c.Timing.Stop = 20 * time.Millisecond })
	p.begin(t, qstashtest.Sending{ID: "msg_1", Path: "/orders", Body: "x"})
	<-begun
	p.stop()
	if err := <-p.done; err == nil || !strings.Contains(err.Error(), `still running after 20ms: message "msg_1" to /orders`) {
		t.Errorf("got %v", err)
	}
	finish <- true
}

func TestPortTaken(t *testing.T) {
	t.Parallel()
	first, err := Listen(":0", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	_, port, _ := cutLast(first.Address(), ":")
	for _, row := range []struct{ address, metrics, says string }{
		{":" + port, "", "serve on :" + port + ": "},
		{":0", first.metrics.Addr().String(), "serve metrics on " + first.metrics.Addr().String() + ": "},
	} {
		if l, err := Listen(row.address, row.metrics); err == nil || !strings.Contains(err.Error(), row.says) || !strings.Contains(err.Error(), "set ") {
			t.Errorf("got %v, %v", l, err)
		}
	}
}

// More callers than there are places wait to be accepted; what they would take is needed for the store and the app.
func TestConnectionsAreLimited(t *testing.T) {
	t.Parallel()
	p := serve(t, runner(func(context.Context, *qstash.Message) ([]byte, error) { return nil, nil }), nil)
	limit := maxConnections()
	var idle []*qstashtest.Conn
	for range limit {
		c := qstashtest.Dial(t, p.url)
		c.Send(t, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		if got := c.Reply(t); got.Status != 200 {
			t.Fatalf("got %+v", got)
		}
		idle = append(idle, c)
	}
	waiting := qstashtest.Dial(t, p.url)
	waiting.Send(t, qstashtest.Sending{Body: "x"}.Whole(p.url, ""))
	_ = waiting.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := waiting.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Errorf("one more than %d was served", limit)
	}
	idle[0].Close()
	_ = waiting.SetReadDeadline(time.Now().Add(10 * time.Second))
	if got := waiting.Reply(t); got.Status != 200 {
		t.Errorf("then: got %+v", got)
	}
	p.stop()
	if err := <-p.done; err != nil {
		t.Error(err)
	}
}

func TestMaxConnections(t *testing.T) {
	t.Parallel()
	for files, want := range map[uint64]int{1 << 20: 400, 1024: 400, 464: 400, 463: 399, 256: 192, 80: 16, 64: 16, 10: 16} {
		if got := connectionsOf(files); got != want {
			t.Errorf("with %d descriptors: %d connections, want %d", files, got, want)
		}
	}
}

func TestLimitsOfTheServer(t *testing.T) {
	t.Parallel()
	web := httpServer(http.NotFoundHandler())
	got := [...]time.Duration{web.ReadHeaderTimeout, web.ReadTimeout, web.IdleTimeout, web.WriteTimeout}
	if want := [...]time.Duration{10 * time.Second, 30 * time.Second, 120 * time.Second, 0}; got != want || web.MaxHeaderBytes != 12<<10 {
		t.Errorf("got %v and headers of %d bytes", got, web.MaxHeaderBytes)
	}
}

// A caller that reads no answer holds its connection for as long as one may take to write, and no longer.
func TestAnswersHaveADeadline(t *testing.T) {
	t.Parallel()
	w := &deadlines{header: http.Header{}}
	respond(w, deliver.Outcome{})
	if left := time.Until(w.until); left < 25*time.Second || left > writeTimeout {
		t.Errorf("an answer has %s", left)
	}
}

// deadlines is a http.ResponseWriter that keeps the write deadline.
type deadlines struct {
	header http.Header
	until  time.Time
}

func (w *deadlines) Header() http.Header                { return w.header }
func (w *deadlines) WriteHeader(int)                    {}
func (w *deadlines) Write(p []byte) (int, error)        { return io.Discard.Write(p) }
func (w *deadlines) SetWriteDeadline(t time.Time) error { w.until = t; return nil }
