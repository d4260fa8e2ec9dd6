package deliver

import (
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"qstash-receiver/internal/qstashtest"
)

// deaf is an Observer that counts nothing.
type deaf struct{}

func (deaf) Handled(time.Duration) {}
func (deaf) StoreFailed(string)    {}

func TestAnOutageIsOneEvent(t *testing.T) {
	away := errors.New("the store is away")
	// A step is a call of the store so many milliseconds after the last, and how it ended.
	type step struct {
		after int
		err   error
	}
	for _, c := range []struct {
		name        string
		steps       []step
		begin, over int // lines
	}{
		{"nothing fails", []step{{0, nil}, {10, nil}}, 0, 0},
		{"it lasts", []step{{0, away}, {500, away}, {500, away}}, 1, 0},
		{"it ends with the only call that comes after", []step{{0, away}, {20, nil}}, 1, 1},
		{"it comes and goes", []step{{0, away}, {20, nil}, {500, away}, {100, nil}}, 1, 1},
		{"it comes again before it was over", []step{{0, away}, {20, nil}, {500, away}}, 1, 0},
		{"two of them", []step{{0, away}, {20, nil}, {5000, away}, {20, nil}}, 2, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				file := qstashtest.NewLog()
				o := &outage{log: slog.New(slog.NewJSONHandler(file, nil)), observer: deaf{}}
				for _, s := range c.steps {
					time.Sleep(time.Duration(s.after) * time.Millisecond)
					o.note("claim", s.err)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				begin, over := len(file.Lines(t, `"level":"ERROR"`)), len(file.Lines(t, "works again"))
				if begin != c.begin || over != c.over {
					t.Errorf("%d lines begin it and %d end it, want %d and %d: %s", begin, over, c.begin, c.over, file)
				}
			})
		})
	}
}
