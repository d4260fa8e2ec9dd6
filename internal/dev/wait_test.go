package dev

import (
	"net/http"
	"testing"
	"time"
)

func TestBackoffIsQStashs(t *testing.T) {
	for n, want := range map[int]time.Duration{
		1: 12 * time.Second,
		2: 2*time.Minute + 28*time.Second,
		3: 30*time.Minute + 8*time.Second,
		4: 6*time.Hour + 7*time.Minute + 6*time.Second,
		5: 24 * time.Hour,
		9: 24 * time.Hour,
	} {
		if got := backoff(n); got != want {
			t.Errorf("before retry %d: %s, want %s", n, got, want)
		}
	}
}

func TestWhatAnAnswerSaysAboutTheNextAttempt(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	const own = "backoff"
	type headers map[string]string
	tests := []struct {
		name   string
		answer headers
		delay  time.Duration // Upstash-Retry-Delay; 0: none
		want   time.Duration
		reason string
	}{
		{"nothing", nil, 0, 12 * time.Second, own},
		{"nothing, with a retry delay", nil, time.Second, time.Second, "Upstash-Retry-Delay"},
		{"seconds", headers{"Retry-After": "30"}, 0, 30 * time.Second, "Retry-After"},
		{"seconds, which count more than a retry delay", headers{"Retry-After": "30"}, time.Second, 30 * time.Second, "Retry-After"},
		{"no seconds", headers{"Retry-After": "0"}, 0, 0, "Retry-After"},
		{"a date", headers{"Retry-After": "Fri, 01 May 2026 12:01:30 GMT"}, 0, 90 * time.Second, "Retry-After"},
		{"a date that is past", headers{"Retry-After": "Fri, 01 May 2026 11:00:00 GMT"}, 0, 0, "Retry-After"},
		{"a duration", headers{"Retry-After": "6m5s"}, 0, 365 * time.Second, "Retry-After"},
		{"a day", headers{"Retry-After": "86400"}, 0, 24 * time.Hour, "Retry-After"},
		{"more than a day", headers{"Retry-After": "86401"}, 0, 12 * time.Second, own},
		{"a duration of more than a day", headers{"Retry-After": "24h1s"}, 0, 12 * time.Second, own},
		{"a date in more than a day", headers{"Retry-After": "Sun, 03 May 2026 12:00:00 GMT"}, 0, 12 * time.Second, own},
		{"less than nothing", headers{"Retry-After": "-1"}, 0, 12 * time.Second, own},
		{"no number", headers{"Retry-After": "NaN"}, 0, 12 * time.Second, own},
		{"words", headers{"Retry-After": "soon"}, 0, 12 * time.Second, own},
		{"a reset", headers{"X-RateLimit-Reset": "20"}, 0, 20 * time.Second, "X-RateLimit-Reset"},
		{"a reset of requests", headers{"X-RateLimit-Reset-Requests": "1m"}, 0, time.Minute, "X-RateLimit-Reset-Requests"},
		{"a reset of tokens", headers{"X-RateLimit-Reset-Tokens": "120ms"}, 0, 120 * time.Millisecond, "X-RateLimit-Reset-Tokens"},
		{"a reset as seconds since 1970", headers{"X-RateLimit-Reset": "1777636800"}, 0, 12 * time.Second, own},
		{"a bad Retry-After and a reset", headers{"Retry-After": "soon", "X-RateLimit-Reset": "20"}, 0, 20 * time.Second, "X-RateLimit-Reset"},
		{"both", headers{"Retry-After": "10", "X-RateLimit-Reset": "20"}, 0, 10 * time.Second, "Retry-After"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := &publication{retryDelay: -1}
			if test.delay > 0 {
				p.retryDelay = test.delay
			}
			answer := http.Header{}
			for name, value := range test.answer {
				answer.Set(name, value)
			}
			got, reason := p.waitFor(1, answer, now)
			if got != test.want || reason != test.reason {
				t.Errorf("%s for %s, want %s for %s", got, reason, test.want, test.reason)
			}
		})
	}
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"50s": 50 * time.Second, "0s": 0, "1d10h30m": 34*time.Hour + 30*time.Minute, "365d": maxDelay,
	} {
		if got, err := parseDuration(text, maxDelay); err != nil || got != want {
			t.Errorf("%q: %s, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "5", "s", "-5s", "5 s", "1.5s", "5ms", "5s5", "366d", "99999999999s", "4294967295d", "soon"} {
		if got, err := parseDuration(text, maxDelay); err == nil {
			t.Errorf("%q: %s, want an error", text, got)
		}
	}
}

func TestSpeedDividesWaits(t *testing.T) {
	for speed, want := range map[float64]time.Duration{1: time.Minute, 60: time.Second, 0.5: 2 * time.Minute, NoWaiting: 0} {
		if got := (&QStash{config: Config{Speed: speed}}).scaled(time.Minute); got != want {
			t.Errorf("a minute at speed %g: %s, want %s", speed, got, want)
		}
	}
	if got := (&QStash{config: Config{Speed: 1e-12}}).scaled(maxDelay); got <= 0 {
		t.Errorf("a year at hardly any speed: %s", got)
	}
}
