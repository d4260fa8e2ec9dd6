package keys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"qstash-receiver/internal/api"
	"qstash-receiver/internal/signing"
)

const token = "eyJVc2VySUQiOiJtZSIsIlBhc3N3b3JkIjoiaHVudGVyMiJ9"

// key is the n-th key of a region's life; a pair is two that follow one another.
func key(region string, n int) signing.Key {
	return signing.NewKey("current", "", fmt.Sprintf("sig_%sKeyNumber1234567890x%d", strings.ReplaceAll(region, "_", ""), n))
}

// upstash answers as QStash's API does.
type upstash struct {
	*httptest.Server
	mu      sync.Mutex
	region  string
	rolls   int
	fails   string // answered in place of the keys, with 500
	fetches int
}

func newUpstash(t *testing.T, region string) *upstash {
	u := &upstash{region: region}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.fetches++
		switch {
		case u.fails != "":
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, u.fails)
		case r.Header.Get("Authorization") != "Bearer "+token:
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprintf(w, `{"error":"no such token: %s"}`, r.Header.Get("Authorization"))
		default:
			secret := func(n int) string {
				return fmt.Sprintf("sig_%sKeyNumber1234567890x%d", strings.ReplaceAll(u.region, "_", ""), n)
			}
			fmt.Fprintf(w, `{"current":%q,"next":%q}`, secret(u.rolls), secret(u.rolls+1))
		}
	}))
	t.Cleanup(u.Close)
	return u
}

func (u *upstash) roll() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.rolls++
}

func (u *upstash) fail(body string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.fails = body
}

func (u *upstash) fetched() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.fetches
}

func (u *upstash) client(t *testing.T, withToken string) *api.Client {
	base, err := url.Parse(u.URL)
	if err != nil {
		t.Fatal(err)
	}
	return api.New(u.region, base, withToken)
}

// clock stands still until a test moves it.
type clock struct {
	mu     sync.Mutex
	now    time.Time
	timers map[chan time.Time]time.Time
	set    chan time.Duration // each timer that somebody begins to wait for
}

func newClock() *clock {
	return &clock{now: time.Unix(1_800_000_000, 0), timers: map[chan time.Time]time.Time{}, set: make(chan time.Duration, 1000)}
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	timer := make(chan time.Time, 1)
	c.timers[timer] = c.now.Add(d)
	c.set <- d
	c.fire()
	return timer
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	c.fire()
}

func (c *clock) fire() {
	for timer, at := range c.timers {
		if !at.After(c.now) {
			timer <- c.now
			delete(c.timers, timer)
		}
	}
}

// asleep waits until somebody waits for a timer, and returns for how long.
func (c *clock) asleep(t *testing.T) time.Duration {
	t.Helper()
	select {
	case d := <-c.set:
		return d
	case <-time.After(20 * time.Second):
		t.Fatal("nobody waits for the clock")
		return 0
	}
}

// world is a Fetcher that runs on a clock of the test's.
type world struct {
	*Fetcher
	t     *testing.T
	clock *clock
	log   *bytes.Buffer // to be read while the Fetcher sleeps
	sleep time.Duration // that it has begun
}

func newWorld(t *testing.T, fixed []signing.Key, apis ...*api.Client) *world {
	w := &world{t: t, clock: newClock(), log: &bytes.Buffer{}}
	w.Fetcher = New(Config{
		Set: signing.NewSet(), Fixed: fixed, APIs: apis, Log: slog.New(slog.NewJSONHandler(w.log, nil)), Now: w.clock.Now, After: w.clock.After,
	})
	return w
}

// run starts the Fetcher, which runs until the test ends.
func (w *world) run() {
	w.t.Helper()
	if err := w.Start(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.clock.asleep(w.t) // the timer that would have ended Start
	var running sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	running.Go(func() { w.Run(ctx) })
	w.t.Cleanup(func() { stop(); running.Wait() })
	w.sleep = w.clock.asleep(w.t)
}

// wakes moves the clock on until the Fetcher wakes, and waits until it sleeps again. It returns how far that was.
func (w *world) wakes() time.Duration {
	w.t.Helper()
	slept := w.sleep
	w.clock.advance(slept)
	w.sleep = w.clock.asleep(w.t)
	return slept
}

// wants has the Fetcher know that a signature failed.
func (w *world) wants() {
	w.t.Helper()
	w.Wanted()
	w.sleep = w.clock.asleep(w.t)
}

// has wants the set to have these keys and no others.
func (w *world) has(when string, keys ...signing.Key) {
	w.t.Helper()
	got := w.Set.Keys()
	same := len(got) == len(keys)
	for i := 0; same && i < len(got); i++ {
		same = got[i].Equal(keys[i])
	}
	if !same {
		w.t.Errorf("%s: the set has %d keys %v, which are not the %d wanted", when, len(got), got, len(keys))
	}
}

func TestKeysAreFetchedAtStart(t *testing.T) {
	t.Parallel()
	eu, us := newUpstash(t, "EU_CENTRAL_1_"), newUpstash(t, "US_EAST_1_")
	fixed := []signing.Key{signing.NewKey("current", "", "a"), signing.NewKey("next", "", "b")}
	w := newWorld(t, fixed, eu.client(t, token), us.client(t, token))
	w.has("before", fixed...)
	w.run()
	w.has("after", fixed[0], fixed[1], key("EU_CENTRAL_1_", 0), key("US_EAST_1_", 0), key("EU_CENTRAL_1_", 1), key("US_EAST_1_", 1))
	if names := fmt.Sprint(w.Set.Keys()); names != "[current next EU_CENTRAL_1_current US_EAST_1_current EU_CENTRAL_1_next US_EAST_1_next]" {
		t.Errorf("they are called %s", names)
	}
}

func TestNothingIsFetchedWithoutAToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, []signing.Key{signing.NewKey("current", "", "a")})
	if err := w.Start(t.Context()); err != nil {
		t.Error(err)
	}
	w.Wanted()
	w.Run(t.Context()) // returns
	w.has("always", signing.NewKey("", "", "a"))
}

func TestStartTriesForFifteenSeconds(t *testing.T) {
	t.Parallel()
	u := newUpstash(t, "")
	u.fail(`{"error":"starting up"}`)
	w := newWorld(t, nil, u.client(t, token))
	ended := make(chan error, 1)
	go func() { ended <- w.Start(t.Context()) }()
	if wait := w.clock.asleep(t); wait != 15*time.Second {
		t.Errorf("it gives up after %s", wait)
	}
	w.clock.asleep(t)
	u.fail("")
	w.clock.advance(time.Second)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	w.has("after the second try", key("", 0), key("", 1))
	if got := strings.Count(w.log.String(), `"level":"WARN"`); got != 1 {
		t.Errorf("%d warnings, one try failed:\n%s", got, w.log)
	}
}

func TestStartFails(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		sentence string
		token    string
		fails    string
		says     []string
	}{
		{"the token is refused", "eyJAnotherTokenThatIsSecret", "", []string{
			"within 15s: EU_CENTRAL_1_QSTASH_TOKEN: GET ", "the API answers 401 Unauthorized (no such token: Bearer [redacted])", "copy the token of that region",
		}},
		{"the API is broken", token, `{"error":"out of order"}`, []string{
			"EU_CENTRAL_1_QSTASH_TOKEN: GET ", "500 Internal Server Error (out of order)", "see that this machine reaches the API",
		}},
	} {
		u := newUpstash(t, "EU_CENTRAL_1_")
		u.fail(row.fails)
		w := newWorld(t, nil, u.client(t, row.token))
		ended := make(chan error, 1)
		go func() { ended <- w.Start(t.Context()) }()
		w.clock.asleep(t)
		w.clock.asleep(t)
		w.clock.advance(15 * time.Second)
		err := <-ended
		for _, piece := range row.says {
			if err == nil || !strings.Contains(err.Error(), piece) {
				t.Errorf("%s: %q is not in %v", row.sentence, piece, err)
			}
		}
		if err != nil && strings.Contains(err.Error()+w.log.String(), row.token) {
			t.Errorf("%s: %v tells the token", row.sentence, err)
		}
	}
}

func TestStartDoesNotWaitForAnAPIThatHangs(t *testing.T) {
	t.Parallel()
	asked := make(chan bool)
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
	}))
	defer hangs.Close()
	base, _ := url.Parse(hangs.URL)
	w := newWorld(t, nil, api.New("", base, token))
	ended := make(chan error, 1)
	go func() { ended <- w.Start(t.Context()) }()
	<-asked
	w.clock.advance(15 * time.Second)
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "within 15s: QSTASH_TOKEN: ") || !strings.Contains(err.Error(), "no answer") {
		t.Error(err)
	}
}

func TestStartEndsWithItsContext(t *testing.T) {
	t.Parallel()
	u := newUpstash(t, "")
	u.fail("no")
	w := newWorld(t, nil, u.client(t, token))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Start(ctx) }()
	w.clock.asleep(t)
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestKeysAreFetchedEveryTenMinutesOrSo(t *testing.T) {
	t.Parallel()
	u := newUpstash(t, "")
	w := newWorld(t, nil, u.client(t, token))
	w.run()
	waits := map[time.Duration]bool{}
	for range 5 {
		wait := w.wakes()
		if wait < 9*time.Minute || wait > 11*time.Minute {
			t.Errorf("it waits for %s", wait)
		}
		waits[wait] = true
	}
	if u.fetched() != 6 {
		t.Errorf("%d fetches, not 6", u.fetched())
	}
	if len(waits) == 1 {
		t.Errorf("it always waits for as long: %v", waits)
	}
}

func TestTwoRollsHeal(t *testing.T) {
	t.Parallel()
	u := newUpstash(t, "")
	w := newWorld(t, nil, u.client(t, token))
	w.run()
	w.clock.advance(time.Minute)
	u.roll()
	u.roll()
	w.wants() // a message was signed with key 2, which the set has not
	w.has("after two rolls: the new pair, then the old one", key("", 2), key("", 3), key("", 0), key("", 1))
	if u.fetched() != 2 {
		t.Errorf("%d fetches, not 2", u.fetched())
	}
	if !strings.Contains(w.log.String(), "the signing keys were rolled") {
		t.Errorf("the log does not say so:\n%s", w.log)
	}
}

func TestVanishedKeysAreGoodForTenMoreMinutes(t *testing.T) {
	t.Parallel()
	u := newUpstash(t, "")
	w := newWorld(t, nil, u.client(t, token))
	w.run()
	w.clock.advance(time.Minute)
	u.roll()
	w.wants()
	w.has("after a roll", key("", 1), key("", 2), key("", 0))
	vanished := w.clock.Now()
	for w.clock.Now().Sub(vanished) < 10*time.Minute {
		w.has("for ten minutes", key("", 1), key("", 2), key("", 0))
		w.wakes()
	}
	if at := w.clock.Now().Sub(vanished); at > 10*time.Minute+time.Second {
		t.Errorf("it slept until %s", at)
	}
	w.has("after ten minutes", key("", 1), key("", 2))
}

func TestFloodCostsOneFetchEachThirtySeconds(t *testing.T) {
	t.Parallel()
	u := newUpstash(t, "")
	w := newWorld(t, nil, u.client(t, token))
	w.run()
	w.wants() // right after the fetch at start
	if w.sleep != 30*time.Second || u.fetched() != 1 {
		t.Errorf("it sleeps for %s after %d fetches, the next one is due 30 s after the one at start", w.sleep, u.fetched())
	}
	for n := range 20 {
		for range 1000 {
			w.Wanted() // does not block, and does not wake it
		}
		w.wakes()
		if got := u.fetched(); got != n+2 {
			t.Fatalf("%d fetches after %d times 30 s", got, n+1)
		}
		w.wants() // the flood goes on
		if w.sleep != 30*time.Second {
			t.Fatalf("it sleeps for %s", w.sleep)
		}
	}
}

func TestKeysStayWhereTheAPIIsAwayForAnHour(t *testing.T) {
	t.Parallel()
	u := newUpstash(t, "")
	w := newWorld(t, nil, u.client(t, token))
	w.run()
	began := w.clock.Now()
	u.fail(`{"error":"away"}`)
	for w.clock.Now().Sub(began) < time.Hour {
		w.wakes()
		w.has("while the API is away", key("", 0), key("", 1))
	}
	lines := strings.Split(strings.TrimSpace(w.log.String()), "\n")
	if len(lines) != u.fetched()-1 {
		t.Errorf("%d lines of %d failed fetches", len(lines), u.fetched()-1)
	}
	for _, line := range lines {
		if !strings.Contains(line, `"level":"WARN"`) || !strings.Contains(line, `"in_use_since":"`+began.UTC().Format(time.RFC3339)+`"`) || !strings.Contains(line, "(away)") {
			t.Errorf("it says %s", line)
		}
	}
	u.roll()
	u.roll()
	u.fail("")
	w.wants()
	for w.sleep < time.Minute { // until the fetch that was wanted
		w.wakes()
	}
	w.has("when it is back", key("", 2), key("", 3), key("", 0), key("", 1))
}

func TestRegionsDoNotDependOnEachOther(t *testing.T) {
	t.Parallel()
	eu, us := newUpstash(t, "EU_CENTRAL_1_"), newUpstash(t, "US_EAST_1_")
	w := newWorld(t, nil, eu.client(t, token), us.client(t, token))
	w.run()
	w.clock.advance(time.Minute)
	eu.fail("away")
	us.roll()
	w.wants()
	w.has("one rolled, one away", key("EU_CENTRAL_1_", 0), key("US_EAST_1_", 1), key("EU_CENTRAL_1_", 1), key("US_EAST_1_", 2), key("US_EAST_1_", 0))
}

func TestBadAnswersChangeNothing(t *testing.T) {
	t.Parallel()
	const good = "sig_KeyNumber1234567890x0"
	for _, answer := range []string{
		"", "null", "{}", "[]", `{"current":"` + good + `"}`, `{"current":"","next":""}`, `{"current":"sig_short","next":"` + good + `"}`,
		`{"current":"` + signing.DevCurrent + `","next":"` + signing.DevNext + `"}`, `{"current":"` + good + `","next":"` + good, "<html>",
	} {
		says := `{"current":"` + good + `","next":"sig_KeyNumber1234567890x1"}`
		var mu sync.Mutex
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprint(w, says)
		}))
		t.Cleanup(server.Close)
		base, _ := url.Parse(server.URL)
		w := newWorld(t, nil, api.New("", base, token))
		w.run()
		mu.Lock()
		says = answer
		mu.Unlock()
		w.wakes()
		w.has("after "+answer, key("", 0), key("", 1))
		if !strings.Contains(w.log.String(), `"in_use_since"`) || strings.Contains(w.log.String(), good) {
			t.Errorf("after %s the log says %s", answer, w.log)
		}
	}
}
