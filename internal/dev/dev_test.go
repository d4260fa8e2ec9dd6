package dev_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"qstash-receiver/internal/dev"
)

// standIn is a stand-in on a listener of its own.
type standIn struct {
	*dev.QStash
	url string
	t   *testing.T
}

func start(t *testing.T, config dev.Config) *standIn {
	t.Helper()
	q := dev.New(config)
	server := httptest.NewServer(q)
	t.Cleanup(func() {
		q.Close()
		server.CloseClientConnections() // open pages
		server.Close()
	})
	return &standIn{q, server.URL, t}
}

// answer is what the API said.
type answer struct {
	status int
	header http.Header
	text   string
}

// into decodes a's JSON.
func into[T any](t *testing.T, a answer) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(a.text), &v); err != nil {
		t.Fatalf("%d %s: %v", a.status, a.text, err)
	}
	return v
}

// do sends a request to path, whose bytes are kept. Headers are in pairs.
func (q *standIn) do(method, path, body string, headers ...string) answer {
	q.t.Helper()
	request, err := http.NewRequest(method, q.url, strings.NewReader(body))
	if err != nil {
		q.t.Fatal(err)
	}
	request.URL.Opaque = path
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			request.Host = headers[i+1]
		} else {
			request.Header.Add(headers[i], headers[i+1])
		}
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(request)
	if err != nil {
		q.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		q.t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, strings.TrimSpace(string(text))}
}

// publish publishes and returns the message's id.
func (q *standIn) publish(destination, body string, headers ...string) string {
	q.t.Helper()
	a := q.do("POST", "/v2/publish/"+destination, body, headers...)
	if a.status != 200 {
		q.t.Fatalf("publish: %d %s", a.status, a.text)
	}
	return into[struct{ MessageID string }](q.t, a).MessageID
}

// await returns the message at its end.
func (q *standIn) await(id string) dev.Message {
	q.t.Helper()
	m, err := q.Await(q.t.Context(), id)
	if err != nil {
		q.t.Fatal(err)
	}
	return m
}

// arrival is a delivery as it came.
type arrival struct {
	method, target string
	header         http.Header
	body           string
	at             time.Time
}

// receiver answers as it is told and keeps what came.
type receiver struct {
	url string
	t   *testing.T

	answer http.HandlerFunc // after the answers of receive; nil: 200

	mu       sync.Mutex
	arrivals []arrival
	came     chan arrival
}

// receive starts a receiver. Its nth answer is the nth of answers, which write it; after the last all are 200.
func receive(t *testing.T, answers ...http.HandlerFunc) *receiver {
	r := &receiver{t: t, came: make(chan arrival, 1000)}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		a := arrival{req.Method, req.RequestURI, req.Header, string(body), time.Now()}
		r.mu.Lock()
		n := len(r.arrivals)
		r.arrivals = append(r.arrivals, a)
		r.mu.Unlock()
		r.came <- a
		switch {
		case n < len(answers):
			answers[n](w, req)
		case r.answer != nil:
			r.answer(w, req)
		}
	}))
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

func (r *receiver) all() []arrival {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]arrival(nil), r.arrivals...)
}

// next waits for the next arrival.
func (r *receiver) next() arrival {
	r.t.Helper()
	select {
	case a := <-r.came:
		return a
	case <-time.After(20 * time.Second):
		r.t.Fatal("nothing arrived")
		return arrival{}
	}
}

// wantHeader compares headers, which are in pairs.
func wantHeader(t *testing.T, header http.Header, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if got := header.Get(pairs[i]); got != pairs[i+1] {
			t.Errorf("%s is %q, want %q", pairs[i], got, pairs[i+1])
		}
	}
}

// status returns an answer with headers in pairs.
func status(code int, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(code)
		_, _ = io.WriteString(w, `{"error":"not now"}`)
	}
}

// Business logic can be tested through retries without waiting for them.
func TestMessageThatFailsTwice(t *testing.T) {
	r := receive(t, status(500), status(503))
	q := dev.New(dev.Config{Speed: dev.NoWaiting})
	defer q.Close()
	id, err := q.Publish(r.url+"/orders", nil, []byte(`{"order":1}`))
	if err != nil {
		t.Fatal(err)
	}
	m, err := q.Await(t.Context(), id)
	if err != nil || m.State != dev.Delivered || len(m.Attempts) != 3 || m.Attempts[1].Status != 503 {
		t.Errorf("%+v, %v; want it delivered in the third attempt", m, err)
	}
}
