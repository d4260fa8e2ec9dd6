package dev_test

import (
	"encoding/json"
	"runtime"
	"strings"
	"testing"
	"time"

	"qstash-receiver/internal/dev"
)

func TestTenThousandMessagesAreHeldAndTheOldestForgotten(t *testing.T) {
	q := start(t, dev.Config{})
	const all, more = 10_000, 10
	items := make([]map[string]any, all)
	for i := range items {
		items[i] = map[string]any{"destination": "http://localhost:1/orders", "headers": map[string]string{"Upstash-Delay": "1h"}}
	}
	batch := func(items []map[string]any) []string {
		body, err := json.Marshal(items)
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, a := range into[[]struct{ MessageID string }](t, q.do("POST", "/v2/batch", string(body))) {
			ids = append(ids, a.MessageID)
		}
		return ids
	}
	ids := batch(items)
	began := time.Now()
	page := q.do("GET", "/", "").text
	if took := time.Since(began); took > 2*time.Second || len(page) > 200<<10 {
		t.Errorf("the page took %s and has %d bytes", took, len(page))
	}
	wantAll(t, page, "10000 messages", ids[all-1], "/?before="+ids[all-100])
	wantAll(t, q.do("GET", "/?before="+ids[all-100], "").text, ids[all-101])

	batch(items[:more])
	for i, want := range map[int]int{0: 404, more - 1: 404, more: 200, all - 1: 200} {
		if a := q.do("GET", "/v2/messages/"+ids[i], ""); a.status != want {
			t.Errorf("message %d: %d, want %d", i, a.status, want)
		}
	}
	wantAll(t, q.do("GET", "/", "").text, "10000 messages, 10 forgotten")
}

func TestBytesAreBounded(t *testing.T) {
	q := start(t, dev.Config{})
	const nowhere = "http://127.0.0.1:1" // what goes there is over at once
	body := strings.Repeat("a", 10<<20)
	waiting := q.publish(nowhere, "{}", "Upstash-Delay", "1h")
	over := q.publish(nowhere, body, "Upstash-Retries", "0")
	q.await(over)
	waitingLater := q.publish(nowhere, body, "Upstash-Delay", "1h")
	want := func(id string, status int) {
		t.Helper()
		if a := q.do("GET", "/v2/messages/"+id, ""); a.status != status {
			t.Errorf("%d, want %d", a.status, status)
		}
	}
	var last string
	for range 11 {
		last = q.publish(nowhere, body, "Upstash-Delay", "1h")
	}
	want(waiting, 200)
	want(over, 404) // forgotten first, though not the oldest
	want(waitingLater, 200)
	for range 13 {
		last = q.publish(nowhere, body, "Upstash-Delay", "1h")
	}
	want(waiting, 404)
	want(waitingLater, 404)
	want(last, 200)
	runtime.GC()
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	if memory.HeapAlloc > 200<<20 {
		t.Errorf("%d MiB are held", memory.HeapAlloc>>20)
	}
}
