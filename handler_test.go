package main

import (
	"context"
	"log/slog"
	"net/url"
	"strings"
	"testing"
)

// These are the tests of handler.go: edit them with it. All other tests bring business logic of their own.

// withTestLog is a context whose Log a test can read.
func withTestLog(t *testing.T) (context.Context, *testLog) {
	log := newTestLog()
	m := &Message{Unverified: Unverified{ID: "msg_1"}}
	return withLog(t.Context(), slog.New(slog.NewJSONHandler(log, nil)), m), log
}

func TestHandle(t *testing.T) {
	t.Parallel()
	ctx, log := withTestLog(t)
	long := strings.Repeat("x", 5000)
	for _, body := range []string{`{"hello":"world"}`, "", long} {
		reply, err := handle(ctx, &Message{URL: &url.URL{Path: "/orders"}, Body: []byte(body)})
		if reply != nil || err != nil {
			t.Errorf("%.20q: got %q, %v", body, reply, err)
		}
	}
	if line := log.await(t, `"msg":"message"`, "hello"); line["body"] != `{"hello":"world"}` || line["path"] != "/orders" || line["message"] != "msg_1" {
		t.Errorf("logged %v", line)
	}
	if strings.Contains(log.String(), long) {
		t.Error("a long body is logged whole")
	}
}

func TestHandleFailure(t *testing.T) {
	t.Parallel()
	ctx, log := withTestLog(t)
	if err := handleFailure(ctx, &Failure{MessageID: "msg_failed", DLQID: "dlq_1", Status: 500, Retried: 3, Body: []byte("boom"), SourceBody: []byte("xyz")}); err != nil {
		t.Error(err)
	}
	line := log.await(t, "failed for good", "msg_failed")
	if line["level"] != "ERROR" || line["dlq_id"] != "dlq_1" || line["answer"] != "boom" || line["body"] != "xyz" || line["retries"] != 3.0 {
		t.Errorf("logged %v", line)
	}
}
