package qstash

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"
)

// withoutTime leaves out when a line was written.
func withoutTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

func TestLogNamesTheMessage(t *testing.T) {
	for _, c := range []struct {
		name string
		log  func(*slog.Logger)
		want string
	}{
		{"first on each line", func(l *slog.Logger) { l.Info("shipped", "order", 7) }, "level=INFO msg=shipped message=msg_1 order=7"},
		{"of a line without more", func(l *slog.Logger) { l.Warn("late") }, "level=WARN msg=late message=msg_1"},
		{"before what With adds", func(l *slog.Logger) { l.With("order", 7).Info("shipped", "by", "sea") }, "level=INFO msg=shipped message=msg_1 order=7 by=sea"},
		{"once, however often With is called", func(l *slog.Logger) { l.With("a", 1).With("b", 2).Info("shipped") }, "level=INFO msg=shipped message=msg_1 a=1 b=2"},
		{"outside a group", func(l *slog.Logger) { l.WithGroup("order").Info("shipped", "id", 7) }, "level=INFO msg=shipped message=msg_1 order.id=7"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			handler := slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: withoutTime})
			c.log(Log(NewContext(context.Background(), &Run{MessageID: "msg_1", Log: handler})))
			if got := strings.TrimSpace(out.String()); got != c.want {
				t.Errorf("the line is %s, want %s", got, c.want)
			}
		})
	}
}

func TestLogOfAnyContext(t *testing.T) {
	if Log(context.Background()) != slog.Default() {
		t.Error("a context that is no message's has another log than slog's default")
	}
}

func TestExcerpt(t *testing.T) {
	for _, c := range []struct{ name, body, want string }{
		{"a short body is whole", "hello", "hello"},
		{"none is nothing", "", ""},
		{"a long one says how long it is", strings.Repeat("x", 2000), strings.Repeat("x", 1024) + "... (2000 bytes)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Excerpt(c.body).LogValue().String(); got != c.want {
				t.Errorf("it is %q, want %q", got, c.want)
			}
		})
	}
}

// BenchmarkLog is a line as the function writes it that is shipped.
func BenchmarkLog(b *testing.B) {
	ctx := NewContext(context.Background(), &Run{MessageID: "msg_26hZCxZCuWyyTWPmSVBrNCtiJGNk2YV1kKmDtpJS", Log: slog.NewJSONHandler(io.Discard, nil)})
	body := bytes.Repeat([]byte("x"), 1000)
	b.ReportAllocs()
	for b.Loop() {
		Log(ctx).Info("message", "path", "/orders", "attempt", 0, "body", Excerpt(body))
	}
}
