package server

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"qstash-receiver/internal/deliver"
	"qstash-receiver/internal/logs"
	"qstash-receiver/internal/qstash"
	"qstash-receiver/internal/qstashtest"
)

// newLog returns a log, and its lines so far.
func newLog(level slog.Level) (*slog.Logger, func(t *testing.T) []map[string]any) {
	file := qstashtest.NewLog()
	return logs.New(file, level, false), func(t *testing.T) []map[string]any {
		t.Helper()
		return file.Lines(t)
	}
}

func TestTraceOf(t *testing.T) {
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	for _, c := range []struct{ name, header, want string }{
		{"a trace", "00-" + id + "-00f067aa0ba902b7-01", id},
		{"a later version, which has more", "01-" + id + "-00f067aa0ba902b7-01-more", id},
		{"none", "", ""},
		{"the version that is none", "ff-" + id + "-00f067aa0ba902b7-01", ""},
		{"an id of zeros", "00-" + strings.Repeat("0", 32) + "-00f067aa0ba902b7-01", ""},
		{"capital letters", "00-" + strings.ToUpper(id) + "-00f067aa0ba902b7-01", ""},
		{"no hexadecimal", "00-" + strings.Repeat("g", 32) + "-00f067aa0ba902b7-01", ""},
		{"a short id", "00-4bf9-00f067aa0ba902b7-01", ""},
		{"the id alone", id, ""},
		{"a line break", "00-" + id[:31] + "\n-00f067aa0ba902b7-01", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := traceOf(c.header); got != c.want {
				t.Errorf("the trace of %q is %q, want %q", c.header, got, c.want)
			}
		})
	}
}

func TestSender(t *testing.T) {
	for _, c := range []struct {
		name, address, fly string
		onFly              bool
		want               string
	}{
		{"the connection's", "192.0.2.1:1234", "", true, "192.0.2.1"},
		{"an IPv6 connection's", "[2001:db8::1]:1234", "", true, "2001:db8::1"},
		{"that which Fly's proxy names", "172.16.0.1:1234", "203.0.113.9", true, "203.0.113.9"},
		{"the connection's, where the sender says that it is Fly's proxy", "192.0.2.1:1234", "203.0.113.9", false, "192.0.2.1"},
		{"an address without a port, as Lambda has it", "192.0.2.1", "", false, "192.0.2.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, "/", nil)
			r.RemoteAddr = c.address
			if c.fly != "" {
				r.Header.Set("Fly-Client-IP", c.fly)
			}
			l := newLine(r, c.onFly)
			if got := l.from(); got != c.want {
				t.Errorf("it is from %q, want %q", got, c.want)
			}
		})
	}
}

func TestSignatureOnTheLine(t *testing.T) {
	for _, c := range []struct {
		name  string
		proof deliver.Proof
		err   error
		want  string
	}{
		{"the current key's", deliver.Proof{Key: "current"}, nil, "current"},
		{"the next key's, on a token that is refused", deliver.Proof{Key: "next"}, deliver.Refuse(deliver.Expired, "x"), "next"},
		{"none", deliver.Proof{}, deliver.Refuse(deliver.Missing, "x"), "absent"},
		{"another key's", deliver.Proof{}, deliver.Refuse(deliver.Signature, "x"), "wrong"},
		{"no token", deliver.Proof{}, deliver.Refuse(deliver.Malformed, "x"), "wrong"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := line{signature: "unchecked"}
			if l.verified(c.proof, c.err); l.signature != c.want {
				t.Errorf("it is %q, want %q", l.signature, c.want)
			}
		})
	}
}

func TestSequel(t *testing.T) {
	const (
		console = " (console.upstash.com, QStash, DLQ)"
		inQueue = "in the dead letter queue: mend the cause and retry it there, or delete it" + console
		fine    = "; nothing has to be done if that succeeds"
		last    = ": mend the cause before then, or the message is in the dead letter queue" + console
	)
	known := func(attempt, most int) qstash.Unverified {
		return qstash.Unverified{Attempt: attempt, MaxRetries: most, LastAttempt: most >= 0 && attempt >= most}
	}
	for _, c := range []struct {
		name   string
		reason deliver.Reason
		u      qstash.Unverified
		retry  http.Header
		want   string
	}{
		{"a success", deliver.Handled, known(0, -1), nil, ""},
		{"the first failure", deliver.Failed, known(0, -1), nil, "QStash tries again in about 12s, unless it was published with another delay" + fine},
		{"the second", deliver.Failed, known(1, -1), nil,
			"This was try 2. QStash tries again in about 2m28s, unless it was published with another delay" + fine},
		{"the third", deliver.Failed, known(2, 5), nil,
			"This was try 3. QStash tries again in about 30m8s, unless it was published with another delay"},
		{"the fifth of many", deliver.Failed, known(5, 9), nil,
			"This was try 6. QStash tries again in about 24h0m0s, unless it was published with another delay"},
		{"the last by default", deliver.Failed, known(3, -1), nil, "This was try 4: unless the message was published with more than the usual 3 retries, it is " + inQueue},
		{"the last but one by default", deliver.Failed, known(2, -1), nil,
			"This was try 3. QStash tries again in about 30m8s, unless it was published with another delay; that is the last try, if it was published with the usual 3 retries" + last},
		{"the last but one that is known to be", deliver.Failed, known(0, 1), nil,
			"QStash tries again in about 12s, unless it was published with another delay, for the last time" + last},
		{"the last that is known to be", deliver.Failed, known(2, 2), nil, "This was the last of 3 tries, and the message is " + inQueue},
		{"the only one", deliver.Failed, known(0, 0), nil, "The message is " + inQueue},
		{"the last, which was not run", deliver.StoreAway, known(2, 2), nil, "This was the last of 3 tries, and the message is " + inQueue},
		{"one for good", deliver.Permanent, known(0, -1), nil, "The message is " + inQueue},
		{"a callback for good", deliver.NotFailure, known(0, -1), nil, "What it reports on is not affected. This callback is in the dead letter queue: delete it there" + console},
		{"one that says when", deliver.RetryAfter, known(0, -1), http.Header{"Retry-After": {"90"}}, "QStash tries again in 1m30s, as the answer asks"},
		{"one that says when in another way", deliver.AppFailed, known(0, -1), http.Header{"X-Ratelimit-Reset": {"6m5s"}},
			"QStash tries again when the answer's Retry-After or X-RateLimit-Reset says" + fine},
		{"one that runs elsewhere", deliver.InFlight, known(1, -1), http.Header{"Retry-After": {"55"}}, "QStash tries again in 55s, as the answer asks: that try gets the run's answer if it succeeds, and runs the message if it fails. Nothing has to be done"},
		{"what retries cannot mend", deliver.Method, known(0, -1), nil, "QStash's retries of this one are refused as well; then it is in the dead letter queue: delete it there" + console},
		{"what may be a stranger's", deliver.Expired, known(0, -1), nil,
			"If it was QStash that sent it, QStash tries again in about 12s, unless it was published with another delay"},
		{"a replay", deliver.Replayed, known(0, -1), nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := &line{proof: deliver.Proof{Key: "current"}, unverified: c.u}
			o := &deliver.Outcome{Reason: c.reason, Retry: c.retry}
			if got := sequel(l, o, o.Next(&c.u)); got != c.want {
				t.Errorf("it is\n%s, want\n%s", got, c.want)
			}
		})
	}
	if got := sequel(&line{}, &deliver.Outcome{Reason: deliver.Method}, deliver.NeverRetried); got != "" {
		t.Errorf("a stranger's is %q", got)
	}
}

func TestEnough(t *testing.T) {
	s := &Server{Config: Config{MaxBody: 10 << 20}}
	for _, c := range []struct {
		name string
		size int64
		want string
	}{
		{"a little more", 10<<20 + 1, "MAX_BODY_BYTES=16777216"},
		{"a power of two", 32 << 20, "MAX_BODY_BYTES=33554432"},
		{"nobody knows how much", -1, "MAX_BODY_BYTES=16777216"},
		{"as much as can be", 64 << 20, "MAX_BODY_BYTES=67108864"},
		{"more than can be", 64<<20 + 1, "no more than 67108864 can be allowed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := s.enough(c.size); !strings.Contains(got, c.want) {
				t.Errorf("it is %q, want %q", got, c.want)
			}
		})
	}
}

func TestLonger(t *testing.T) {
	for _, c := range []struct {
		name    string
		timeout time.Duration
		want    string
	}{
		{"a moment", 300 * time.Millisecond, "HANDLER_TIMEOUT = '30s' under [env] and kill_timeout = '45s'"},
		{"the default", 45 * time.Second, "HANDLER_TIMEOUT = '1m30s' under [env] and kill_timeout = '1m45s'"},
		{"more than half of what Fly allows", 200 * time.Second, "HANDLER_TIMEOUT = '4m45s' under [env] and kill_timeout = '5m0s'"},
		{"all that Fly allows", 285 * time.Second, "not on Fly"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &Server{Config: Config{Timing: deliver.NewTiming(c.timeout)}}
			if got := s.longer(); !strings.Contains(got, c.want) {
				t.Errorf("it is %q, want %q", got, c.want)
			}
		})
	}
}

func TestAtMostTenRefusedLinesASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, lines := newLog(slog.LevelInfo)
		limit := &lineLimit{log: log}
		refuse := func(level slog.Level) {
			limit.line(level, func(leftOut int) { log.Log(t.Context(), level, "delivery", "left_out", leftOut) })
		}
		for i := range 25 {
			level := slog.LevelInfo
			if i == 20 {
				level = slog.LevelError
			}
			refuse(level)
		}
		if got := len(lines(t)); got != 10 {
			t.Fatalf("25 at once made %d lines", got)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		all := lines(t)
		if len(all) != 11 || all[10]["left_out"] != 15.0 || all[10]["level"] != "ERROR" {
			t.Fatalf("a second later there are %d lines, the last is %v", len(all), all[len(all)-1])
		}
		for range 12 { // nine of them in the same second as the count
			refuse(slog.LevelInfo)
		}
		time.Sleep(999 * time.Millisecond)
		synctest.Wait()
		if all = lines(t); len(all) != 20 {
			t.Fatalf("there are %d lines within the next second", len(all)-10)
		}
		time.Sleep(time.Millisecond)
		refuse(slog.LevelInfo)
		time.Sleep(time.Minute)
		synctest.Wait()
		all = lines(t)
		var leftOut float64
		for _, line := range all[20:] {
			leftOut += line["left_out"].(float64)
		}
		if leftOut != 3 {
			t.Errorf("%v are counted as left out, of 3: %v", leftOut, all[20:])
		}
	})
}
