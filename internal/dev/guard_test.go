package dev_test

import (
	"net"
	"strings"
	"testing"

	"qstash-receiver/internal/dev"
)

func TestOtherNamesAndSitesAreRefused(t *testing.T) {
	q := start(t, dev.Config{Speed: dev.NoWaiting})
	r := receive(t)
	_, port, err := net.SplitHostPort(strings.TrimPrefix(q.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	publish, byName := "/v2/publish/"+r.url, "localhost:"+port
	tests := []struct {
		name         string
		method, path string
		headers      []string
		status       int
	}{
		{"by address", "GET", "/", nil, 200},
		{"by name", "GET", "/", []string{"Host", byName}, 200},
		{"by a name of another's", "GET", "/", []string{"Host", "rebound.example.com:" + port}, 421},
		{"by a name that begins like ours", "GET", "/v2/keys", []string{"Host", "localhost.example.com:" + port}, 421},
		{"with another port", "GET", "/v2/keys", []string{"Host", "localhost:1"}, 421},
		{"without a port", "GET", "/v2/keys", []string{"Host", "localhost"}, 421},
		{"publishing by a name of another's", "POST", publish, []string{"Host", "rebound.example.com"}, 421},
		{"publishing from our page", "POST", publish, []string{"Origin", q.url}, 200},
		{"publishing from our page by name", "POST", publish, []string{"Host", byName, "Origin", "http://" + byName}, 200},
		{"publishing from another site", "POST", publish, []string{"Origin", "https://example.com"}, 403},
		{"publishing from another port", "POST", publish, []string{"Origin", "http://127.0.0.1:1"}, 403},
		{"publishing from a file or a sandbox", "POST", publish, []string{"Origin", "null"}, 403},
		{"publishing from two", "POST", publish, []string{"Origin", q.url, "Origin", "https://example.com"}, 403},
		{"the form from another site", "POST", "/messages", []string{"Origin", "https://example.com"}, 403},
		{"rolling keys from another site", "POST", "/v2/keys/rotate", []string{"Origin", "https://example.com"}, 403},
		{"cancelling from another site", "DELETE", "/v2/messages", []string{"Origin", "https://example.com"}, 403},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a := q.do(test.method, test.path, "", test.headers...)
			if a.status != test.status {
				t.Errorf("%d %.200s, want %d", a.status, a.text, test.status)
			}
			wantHeader(t, a.header, "Access-Control-Allow-Origin", "")
		})
	}
}

func TestOnlyLoopbackIsServed(t *testing.T) {
	listener, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := dev.New(dev.Config{}).Serve(t.Context(), listener); err == nil || !strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("%v, want an error that says where to listen", err)
	}
}
