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
	fetched := map[string]bool{"US_EAST_1_": true}
	for _, c := range []struct {
		name    string
		fetched map[string]bool
		happen  func(p *patterns)
		want    []string // level and beginning of each line
	}{
		{"two messages with wrong keys say nothing yet", nil, func(p *patterns) { refused(p, true, 2) }, nil},
		{"three say that the keys are wrong, once", nil, func(p *patterns) { refused(p, true, 10) }, []string{"ERROR no message has been accepted since the start"}},
		{"a stranger's tokens say nothing", nil, func(p *patterns) { refused(p, false, 10) }, nil},
		{"nor does anything once a message was accepted", nil, func(p *patterns) { verified(p, "current", ""); refused(p, true, 10) }, nil},

		{"the next key says that the keys were rolled, once a day", nil, func(p *patterns) {
			for range 48 {
				verified(p, "next", "")
				time.Sleep(time.Hour)
			}
		}, []string{"WARN messages verify with the next signing key", "WARN messages verify with the next signing key"}},
		{"and so does each region's", nil, func(p *patterns) {
			for range 3 {
				verified(p, "next", "")
				verified(p, "next", "EU_CENTRAL_1_")
				verified(p, "current", "")
			}
		}, []string{"WARN messages verify with the next signing key", "WARN messages verify with the next signing key"}},
		{"keys that are fetched need nobody, but for a while", fetched, func(p *patterns) { verified(p, "next", "US_EAST_1_") },
			[]string{"WARN messages verify with the next signing key: the keys were rolled, and the new ones are not fetched yet. One more roll"}},
		{"a token of another account", fetched, func(p *patterns) { refused(p, true, 3) },
			[]string{"ERROR no message has been accepted since the start, and 3 were refused that look like QStash's for this service but are signed with other keys: the token"}},

		{"two deliveries that the app does not answer say nothing yet", nil, func(p *patterns) { ended(p, deliver.AppAway, deliver.AppLate, deliver.Handled) }, nil},
		{"three begin an event, and its next answer ends it", nil, func(p *patterns) {
			ended(p, deliver.AppAway, deliver.AppCut, deliver.AppLate, deliver.AppAway)
			time.Sleep(time.Minute)
			ended(p, deliver.AppFailed, deliver.AppAway, deliver.Handled)
		}, []string{"ERROR the service behind FORWARD_URL has left 3 deliveries in a row without an answer; it has not answered since this program started",
			"INFO the service behind FORWARD_URL answers again"}},
		{"an app that did answer is said to have", nil, func(p *patterns) {
			ended(p, deliver.Handled, deliver.AppAway, deliver.AppAway, deliver.AppAway)
		}, []string{"ERROR the service behind FORWARD_URL has left 3 deliveries in a row without an answer; it last answered at 2000-01-01T00:00:00Z"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // in which it is 2000-01-01
				log, lines := newLog(slog.LevelInfo)
				c.happen(newPatterns(log, c.fetched))
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
		p := newPatterns(log, nil)
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
	s := &Server{Config: Config{Log: log}, refusals: &lineLimit{log: log}, patterns: newPatterns(log, nil)}
	for range 3 {
		s.log(&line{proof: deliver.Proof{LooksOurs: true}}, &deliver.Outcome{Reason: deliver.Signature})
	}
	if all := lines(t); len(all) != 1 || !strings.HasPrefix(all[0]["msg"].(string), "no message has been accepted") {
		t.Errorf("the log has %v", all)
	}
}
