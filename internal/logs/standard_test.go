package logs

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestCaptureStandard(t *testing.T) {
	for _, c := range []struct {
		name  string
		print func()
		want  string // "": nothing
	}{
		{"log.Printf", func() { log.Printf("a user's %s", "line") }, `"level":"INFO","msg":"a user's line"}`},
		{"a line break", func() { log.Print("a\nb\n") }, `"msg":"a\nb"}`},
		{"slog's default", func() { slog.Warn("a user's", "n", 1) }, `"level":"WARN","msg":"a user's","n":1}`},
		{"what net/http prints", func() { log.Printf("http: superfluous response.WriteHeader call") }, `"level":"WARN","msg":"http: superfluous response.WriteHeader call"}`},
		{"less than the level", func() { slog.Debug("x") }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			restore := CaptureStandard(New(&out, slog.LevelInfo, false))
			c.print()
			restore()
			if got := out.String(); !strings.HasSuffix(strings.TrimSpace(got), c.want) || c.want == "" && got != "" {
				t.Errorf("the line is %s, want %s", got, c.want)
			}
		})
	}
	if w := log.Writer(); w == io.Discard {
		t.Error("the standard log has not got its writer back")
	}
}

// TestUnsolicited has a server send an answer that nobody asked for, which net/http prints.
func TestUnsolicited(t *testing.T) {
	const secret = "HTTP/1.1 200 OK\r\nX-Secret: s3cr3t\r\nContent-Length: 0\r\n\r\n"
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		connection, err := listener.Accept()
		if err != nil {
			return
		}
		defer connection.Close()
		_, _ = http.ReadRequest(bufio.NewReader(connection))
		_, _ = io.WriteString(connection, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"+secret)
		_, _ = io.Copy(io.Discard, connection)
	}()
	var file notes
	defer CaptureStandard(New(&file, slog.LevelInfo, false))()
	reply, err := http.Get("http://" + listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, reply.Body)
	_ = reply.Body.Close()
	waitFor(t, func() bool { return len(file.has()) > 0 })
	got := file.has()[0]
	if !json.Valid([]byte(got)) || !strings.Contains(got, `"level":"WARN"`) || strings.Contains(got, "s3cr3t") || strings.Contains(got, "HTTP/1.1") {
		t.Errorf("the line is %s", got)
	}
}

// TestPanicServing has a http.Server print a panic and its stack, which are many lines.
func TestPanicServing(t *testing.T) {
	var file notes
	defer CaptureStandard(New(&file, slog.LevelInfo, false))()
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(strings.Repeat("boom\n", 10000)) }))
	defer server.Close()
	if reply, err := http.Get(server.URL); err == nil {
		_ = reply.Body.Close()
		t.Fatal("the panic was answered")
	}
	waitFor(t, func() bool { return len(file.has()) > 0 })
	if got := file.has()[0]; strings.Count(got, "\n") != 1 || len(got) > maxLine || !json.Valid([]byte(got)) {
		t.Errorf("the line is %.300s", got)
	}
}
