//go:build browser

// The official client for Node against the stand-in, and its page in a real Chromium. They need Node and Chromium, and
// npm the first time:
//
//	go test -tags browser ./internal/dev
package dev_test

import (
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"qstash-receiver/internal/dev"
)

// node runs a script with the given environment.
func node(t *testing.T, script string, environment ...string) {
	t.Helper()
	const dir = "testdata/node"
	if _, err := os.Stat(dir + "/node_modules"); err != nil {
		install := exec.CommandContext(t.Context(), "npm", "ci", "--no-audit", "--no-fund")
		install.Dir = dir
		if out, err := install.CombinedOutput(); err != nil {
			t.Fatalf("npm ci: %v\n%s", err, out)
		}
	}
	command := exec.CommandContext(t.Context(), "node", script)
	command.Dir = dir
	command.Env = append(os.Environ(), environment...)
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

func retriedOf(r *http.Request) int {
	n, _ := strconv.Atoi(r.Header.Get("Upstash-Retried"))
	return n
}

func TestOfficialClient(t *testing.T) {
	q := start(t, dev.Config{Speed: 1000})
	node(t, "client.mjs", "QSTASH_URL="+q.url)
}

func TestPageInABrowser(t *testing.T) {
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("chromium is missing: apt-get install chromium")
	}
	q := start(t, dev.Config{Destination: "http://localhost:8080/orders"})
	failed := 0
	r := receive(t)
	r.answer = func(w http.ResponseWriter, req *http.Request) {
		outcome, next := "ok", "done"
		if req.URL.Path == "/twice" && failed < 2 {
			failed++
			outcome, next = "failed", "failed, QStash retries"
			w.WriteHeader(http.StatusInternalServerError)
		}
		_, _ = w.Write([]byte(`{"message":"` + outcome + `"}`))
		q.Heard(req.Header.Get("Upstash-Message-Id"), retriedOf(req), outcome, "", next)
	}
	node(t, "browser.mjs", "BASE="+q.url, "RECEIVER="+r.url, "CHROMIUM="+chromium)
}
