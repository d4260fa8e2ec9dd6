package logs

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The two lines of a delivery: that of the function as shipped, and the delivery's own.
func logDelivery(l *slog.Logger) {
	l.Info("message", "message", "msg_26hZCxZCuWyyTWPmSVBrNCtiJGNk2YV1kKmDtpJS", "path", "/orders", "attempt", 0, "body", benchmarkBody)
	r := slog.NewRecord(time.Now(), slog.LevelInfo, "delivery", 0)
	r.AddAttrs(slog.String("outcome", "ok"), slog.String("reason", "handled"), slog.String("next", "done"), slog.String("signature", "current"),
		slog.String("message", "msg_26hZCxZCuWyyTWPmSVBrNCtiJGNk2YV1kKmDtpJS"), slog.Int("attempt", 0), slog.String("path", "/orders"),
		slog.Int("status", 200), slog.Float64("ms", 0.349))
	_ = l.Handler().Handle(context.Background(), r)
}

var benchmarkBody = `{"order":"` + strings.Repeat("x", 1000) + `"}`

// BenchmarkDelivery measures the log of one delivery into a pipe, beside slog's own handler. CPU is that of the whole
// process, the reader's of the pipe included.
func BenchmarkDelivery(b *testing.B) {
	for _, way := range []struct {
		name string
		log  func(w io.Writer) (*slog.Logger, func())
	}{
		{"slog", func(w io.Writer) (*slog.Logger, func()) { return slog.New(slog.NewJSONHandler(w, nil)), func() {} }},
		{"appended", func(w io.Writer) (*slog.Logger, func()) { return New(w, slog.LevelInfo, false), func() {} }},
		{"appended and gathered", func(w io.Writer) (*slog.Logger, func()) {
			gathered := NewWriter(w)
			return New(gathered, slog.LevelInfo, false), func() { _ = gathered.Flush() }
		}},
	} {
		b.Run(way.name, func(b *testing.B) {
			read, write, err := os.Pipe()
			if err != nil {
				b.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = io.Copy(io.Discard, read)
			}()
			l, flush := way.log(write)
			before := cpu(b)
			b.ReportAllocs()
			for b.Loop() {
				logDelivery(l)
			}
			flush()
			_ = write.Close()
			<-done
			b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

func cpu(b *testing.B) time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
