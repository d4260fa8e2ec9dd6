package main

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	qstashdev "qstash-receiver/internal/dev" // dev is left to you
	"qstash-receiver/internal/qstash"
	"qstash-receiver/internal/qstashtest"
)

// These are the tests of handler.go: edit them with it. All other tests bring business logic of their own.

func TestHandle(t *testing.T) {
	t.Parallel()
	log := qstashtest.NewLog()
	ctx := qstash.NewContext(t.Context(), &qstash.Run{MessageID: "msg_1", Log: slog.NewJSONHandler(log, nil)})
	long := strings.Repeat("x", 5000)
	for _, body := range []string{`{"hello":"world"}`, "", long} {
		reply, err := handle(ctx, &qstash.Message{URL: &url.URL{Path: "/orders"}, Body: []byte(body)})
		if reply != nil || err != nil {
			t.Errorf("%.20q: got %q, %v", body, reply, err)
		}
	}
	if line := log.Await(t, `"msg":"message"`, "hello"); line["body"] != `{"hello":"world"}` || line["path"] != "/orders" || line["message"] != "msg_1" {
		t.Errorf("logged %v", line)
	}
	if strings.Contains(log.String(), long) {
		t.Error("a long body is logged whole")
	}
}

func TestHandleFailure(t *testing.T) {
	t.Parallel()
	log := qstashtest.NewLog()
	ctx := qstash.NewContext(t.Context(), &qstash.Run{MessageID: "msg_callback", Log: slog.NewJSONHandler(log, nil)})
	err := handleFailure(ctx, &qstash.Callback{
		MessageID: "msg_failed", DLQID: "dlq_1", Status: 500, Retried: 3, Body: []byte("boom"), SourceBody: []byte("xyz"),
	})
	if err != nil {
		t.Error(err)
	}
	line := log.Await(t, "failed for good", "msg_failed")
	if line["level"] != "ERROR" || line["dlq_id"] != "dlq_1" || line["answer"] != "boom" || line["body"] != "xyz" || line["retries"] != 3.0 {
		t.Errorf("logged %v", line)
	}
}

// The stand-in for QStash delivers to the whole program, and waits for nothing: retries that take QStash minutes are over
// in milliseconds. As shipped, handle never fails, so the way to it does: where yours can, have it fail instead.
func TestMessageThatFailsTwice(t *testing.T) {
	t.Parallel()
	receiver := qstashtest.Start(t, run, map[string]string{"QSTASH_DEV": "true"})
	to, err := url.Parse(receiver.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }}
	way := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upstash-Retried") < "2" {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	defer way.Close()

	q := qstashdev.New(qstashdev.Config{Speed: qstashdev.NoWaiting})
	defer q.Close()
	id, err := q.Publish(way.URL+"/orders", nil, []byte(`{"order":1}`))
	if err != nil {
		t.Fatal(err)
	}
	m, err := q.Await(t.Context(), id)
	if err != nil || m.State != qstashdev.Delivered || len(m.Attempts) != 3 || m.Attempts[1].Status != 502 || m.Attempts[2].Status != 200 {
		t.Errorf("%+v, %v; want it delivered in the third attempt", m, err)
	}
	if line := receiver.Log.Await(t, `"msg":"message"`, id); line["attempt"] != 2.0 || line["body"] != `{"order":1}` {
		t.Errorf("handle logged %v", line)
	}
}
