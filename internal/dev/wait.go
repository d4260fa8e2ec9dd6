package dev

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	day      = 24 * time.Hour
	maxDelay = 365 * day
)

// backoff is how long QStash waits before retry n, from 1: 12 s, 2m28s, 30m8s, 6h7m6s, then a day.
func backoff(n int) time.Duration {
	return time.Duration(math.Min(86400, math.Floor(math.Exp(2.5*float64(n))))) * time.Second
}

// The headers of an answer that say when to try again, in the order in which they count.
var waitHeaders = [...]string{"Retry-After", "X-RateLimit-Reset", "X-RateLimit-Reset-Requests", "X-RateLimit-Reset-Tokens"}

// waitFor is how long QStash waits after a failed attempt with the given answer, and whose wish that is.
func (p *publication) waitFor(retry int, answer http.Header, now time.Time) (time.Duration, string) {
	for _, name := range waitHeaders {
		if d, ok := parseWait(answer.Get(name), now); ok {
			return d, name
		}
	}
	if p.retryDelay >= 0 {
		return p.retryDelay, "Upstash-Retry-Delay"
	}
	return backoff(retry), "backoff"
}

// parseWait reads seconds, a date or a duration like 6m5s. What is over a day is not obeyed; a date that is past is now.
func parseWait(text string, now time.Time) (time.Duration, bool) {
	text = strings.TrimSpace(text)
	if seconds, err := strconv.ParseFloat(text, 64); err == nil {
		if !(seconds >= 0 && seconds <= day.Seconds()) {
			return 0, false
		}
		return time.Duration(seconds * float64(time.Second)), true
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		date, err := http.ParseTime(text)
		if err != nil {
			return 0, false
		}
		d = max(0, date.Sub(now))
	}
	return d, d >= 0 && d <= day
}

// parseDuration reads QStash's durations, like 1d10h30m.
func parseDuration(text string, most time.Duration) (time.Duration, error) {
	units := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': day}
	var total float64
	for rest := text; ; {
		i := strings.IndexAny(rest, "smhd")
		if i < 1 {
			return 0, fmt.Errorf("%q is no duration like 50s, 2m or 1d10h30m", text)
		}
		n, err := strconv.ParseUint(rest[:i], 10, 32)
		if err != nil {
			return 0, fmt.Errorf("%q is no duration like 50s, 2m or 1d10h30m", text)
		}
		total += float64(n) * float64(units[rest[i]])
		if rest = rest[i+1:]; rest == "" {
			break
		}
	}
	if total > float64(most) {
		return 0, fmt.Errorf("%q is too long: at most %s", text, most)
	}
	return time.Duration(total), nil
}

// scaled is how long a wait takes here.
func (q *QStash) scaled(d time.Duration) time.Duration {
	return time.Duration(min(float64(max(0, d))/q.config.Speed, float64(100*maxDelay)/2))
}
