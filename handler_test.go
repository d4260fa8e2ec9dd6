package main

import (
	"log/slog"
	"net/url"
	"strings"
	"testing"

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
