package server

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"qstash-receiver/internal/deliver"
)

func TestPatterns(t *testing.T) {
	refused := func(p *patterns, looksOurs bool, times int) {
		for range times {
			p.heard(&line{proof: deliver.Proof{LooksOurs: looksOurs}}, &deliver.Outcome{Reason: deliver.Signature})
		}
	}
	ended := func(p *patterns, reasons ...deliver.Reason) {
		for _, reason := range reasons {
			p.heard(&line{began: time.Now()}, &deliver.Outcome{Reason: reason})
		}
	}
	verified := func(p *patterns, key, region string) { p.verified(&deliver.Proof{Key: key, Region: region}) }
	for _, c := range []struct {
		name   string
		happen func(p *patterns)
		want   []string // level and beginning of each line
	}{
		{"two messages with wrong keys say nothing yet", func(p *patterns) { refused(p, true, 2) }, nil},
		{"three say that the keys are wrong, once", func(p *patterns) { refused(p, true, 10) }, []string{"ERROR no message has been accepted since the start"}},
		{"a stranger's tokens say nothing", func(p *patterns) { refused(p, false, 10) }, nil},
		{"nor does anything once a message was accepted", func(p *patterns) { verified(p, "current", ""); refused(p, true, 10) }, nil},

		{"the next key says that the keys were rolled, once a day", func(p *patterns) {
			for range 48 {
				verified(p, "next", "")
				time.Sleep(time.Hour)
			}
		}, []string{"WARN messages verify with the next signing key", "WARN messages verify with the next signing key"}},
		{"and so does each region's", func(p *patterns) {
			for range 3 {
				verified(p, "next", "")
				verified(p, "next", "EU_CENTRAL_1_")
				verified(p, "current", "")
			}
		}, []string{"WARN messages verify with the next signing key", "WARN messages verify with the next signing key"}},

		{"two deliveries that the app does not answer say nothing yet", func(p *patterns) { ended(p, deliver.AppAway, deliver.AppLate, deliver.Handled) }, nil},
		{"three begin an event, and its next answer ends it", func(p *patterns) {
			ended(p, deliver.AppAway, deliver.AppCut, deliver.AppLate, deliver.AppAway)
			time.Sleep(time.Minute)
			ended(p, deliver.AppFailed, deliver.AppAway, deliver.Handled)
		}, []string{"ERROR the service behind FORWARD_URL has left 3 deliveries in a row without an answer; it has not answered since this program started",
			"INFO the service behind FORWARD_URL answers again"}},
		{"an app that did answer is said to have", func(p *patterns) {
			ended(p, deliver.Handled, deliver.AppAway, deliver.AppAway, deliver.AppAway)
		}, []string{"ERROR the service behind FORWARD_URL has left 3 deliveries in a row without an answer; it last answered at 2000-01-01T00:00:00Z"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // in which it is 2000-01-01
				log, lines := newLog(slog.LevelInfo)
				c.happen(newPatterns(log))
				got := lines(t)
				for i, line := range got {
					if said := line["level"].(string) + " " + line["msg"].(string); i >= len(c.want) || !strings.HasPrefix(said, c.want[i]) {
						t.Errorf("line %d is %q", i+1, said)
					}
				}
				if len(got) != len(c.want) {
					t.Errorf("there are %d lines, want %d", len(got), len(c.want))
				}
			})
		})
	}
}

func TestTheCountOfAnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, lines := newLog(slog.LevelInfo)
		p := newPatterns(log)
		for range 5 {
			p.app.silent(time.Now())
			time.Sleep(10 * time.Second)
		}
		p.app.answered()
		all := lines(t)
		last := all[len(all)-1]
		if last["unanswered"] != 5.0 || last["seconds"] != 50.0 || last["since"] != "2000-01-01T00:00:00Z" {
			t.Errorf("the event ends with %v", last)
		}
	})
}

// TestWrongKeysAreSaidAtEveryLevel: a log of errors alone has no line of a stranger's, and still says this.
func TestWrongKeysAreSaidAtEveryLevel(t *testing.T) {
	log, lines := newLog(slog.LevelError)
	s := &Server{Config: Config{Log: log}, refusals: &lineLimit{log: log}, patterns: newPatterns(log)}
	for range 3 {
		s.log(&line{proof: deliver.Proof{LooksOurs: true}}, &deliver.Outcome{Reason: deliver.Signature})
	}
	if all := lines(t); len(all) != 1 || !strings.HasPrefix(all[0]["msg"].(string), "no message has been accepted") {
		t.Errorf("the log has %v", all)
	}
}
