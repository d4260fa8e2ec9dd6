package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// testRedis is the Redis that the tests share. Their keys are random, so nothing has to be cleaned before.
func testRedis(t testing.TB) string {
	t.Helper()
	u := cmp.Or(os.Getenv("TEST_REDIS_URL"), "redis://127.0.0.1:6379/15")
	options, err := redis.ParseURL(u)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.DialTimeout("tcp", options.Addr, time.Second)
	if err != nil {
		t.Skipf("no Redis at %s: start one, or name one in TEST_REDIS_URL: %v", options.Addr, err)
	}
	c.Close()
	return u
}

// engines opens each kind of store.
var engines = []struct {
	name   string
	lapses bool // leases end by themselves
	open   func(t testing.TB, ttl time.Duration) store
}{
	{"memory", false, func(_ testing.TB, ttl time.Duration) store { return newMemoryStore(ttl) }},
	{"sqlite", true, func(t testing.TB, ttl time.Duration) store {
		return openTestStore(t, filepath.Join(t.TempDir(), "receiver.db"), ttl)
	}},
	{"redis", true, func(t testing.TB, ttl time.Duration) store { return openTestStore(t, testRedis(t), ttl) }},
}

func openTestStore(t testing.TB, u string, ttl time.Duration) store {
	t.Helper()
	parsed, err := parseStoreURL(u)
	if err != nil {
		t.Fatal(err)
	}
	s, err := openStore(t.Context(), parsed, ttl, 5*time.Second, discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

var discard = slog.New(slog.NewJSONHandler(io.Discard, nil))

func randomKey() (k messageKey) {
	_, _ = rand.Read(k[:])
	return k
}

func newTestClaim() claim {
	token := randomKey()
	return claim{key: randomKey(), holder: rand.Text(), lease: time.Minute, token: &token, tokenTTL: time.Minute}
}

// again is the claim of a later delivery of c's message, which has a token of its own.
func (c claim) again() claim {
	next := newTestClaim()
	next.key = c.key
	return next
}

// contract is a store under test.
type contract struct {
	*testing.T
	store
}

// want claims, and checks how things stand.
func (s contract) want(c claim, want state) decision {
	s.Helper()
	d, err := s.claim(c)
	if err != nil {
		s.Fatal(err)
	}
	if d.state != want {
		s.Fatalf("claim: %s, want %s", d.state, want)
	}
	return d
}

// await claims for a new holder each time until it gets want, for something that only time brings.
func (s contract) await(c claim, want state) claim {
	s.Helper()
	for end := time.Now().Add(10 * time.Second); ; {
		c.holder = rand.Text()
		d, err := s.claim(c)
		if err != nil {
			s.Fatal(err)
		}
		if d.state == want {
			return c
		}
		if time.Now().After(end) {
			s.Fatalf("claim: still %s after 10 s, want %s", d.state, want)
		}
		time.Sleep(time.Millisecond)
	}
}

func (s contract) wantErr(got, want error) {
	s.Helper()
	if !errors.Is(got, want) || want == nil && got != nil {
		s.Fatalf("got error %v, want %v", got, want)
	}
}

func TestStoreContract(t *testing.T) {
	t.Parallel()
	a := answer{status: 201, contentType: "text/plain", body: []byte("done\x00")}
	for _, engine := range engines {
		for name, test := range map[string]func(s contract){
			"of many concurrent claims one wins": func(s contract) {
				c := newTestClaim()
				var begin, end sync.WaitGroup
				begin.Add(1)
				states := make(chan state, 50)
				for range cap(states) {
					end.Go(func() {
						begin.Wait()
						d, err := s.claim(c.again())
						if err != nil {
							s.Error(err)
						}
						states <- d.state
					})
				}
				begin.Done()
				end.Wait()
				close(states)
				count := map[state]int{}
				for state := range states {
					count[state]++
				}
				if count[claimed] != 1 || count[running] != 49 {
					s.Errorf("got %v, want 1 claimed and 49 running", count)
				}
			},
			"a running message says what is left of its lease": func(s contract) {
				c := newTestClaim()
				s.want(c, claimed)
				if d := s.want(c.again(), running); d.left <= 50*time.Second || d.left > time.Minute {
					s.Errorf("%s left of a minute", d.left)
				}
			},
			"a finished message gives its answer to all": func(s contract) {
				c := newTestClaim()
				s.want(c, claimed)
				s.wantErr(s.complete(c.key, c.holder, a), nil)
				for range 2 {
					got := s.want(c.again(), finished).answer
					if got.status != a.status || got.contentType != a.contentType || string(got.body) != string(a.body) || got.permanent {
						s.Errorf("got %+v, want %+v", got, a)
					}
				}
			},
			"a permanent failure with an empty body is kept as one": func(s contract) {
				c := newTestClaim()
				s.want(c, claimed)
				s.wantErr(s.complete(c.key, c.holder, answer{status: 489, permanent: true}), nil)
				if got := s.want(c.again(), finished).answer; got.status != 489 || !got.permanent || len(got.body) != 0 {
					s.Errorf("got %+v", got)
				}
			},
			"a released message is claimed again": func(s contract) {
				c := newTestClaim()
				s.want(c, claimed)
				s.wantErr(s.release(c.key, c.holder), nil)
				s.want(c.again(), claimed)
			},
			"a message that was taken from its holder is no longer the holder's": func(s contract) {
				c := newTestClaim()
				s.want(c, claimed)
				s.wantErr(s.release(c.key, c.holder), nil)
				next := c.again()
				s.want(next, claimed)
				s.wantErr(s.complete(c.key, c.holder, a), errLeaseLost)
				s.wantErr(s.release(c.key, c.holder), errLeaseLost)
				s.want(c.again(), running)
				s.wantErr(s.complete(next.key, next.holder, a), nil)
			},
			"a message that nobody claimed cannot be completed or released": func(s contract) {
				s.wantErr(s.complete(randomKey(), "nobody", a), errLeaseLost)
				s.wantErr(s.release(randomKey(), "nobody"), errLeaseLost)
			},
			"what the same holder repeats succeeds": func(s contract) {
				c := newTestClaim()
				s.want(c, claimed)
				s.want(c, claimed)
				s.wantErr(s.release(c.key, c.holder), nil)
				s.wantErr(s.release(c.key, c.holder), nil)
				c = c.again()
				s.want(c, claimed)
				s.wantErr(s.complete(c.key, c.holder, a), nil)
				s.wantErr(s.complete(c.key, c.holder, answer{status: 500}), nil)
				if got := s.want(c.again(), finished).answer; got.status != a.status {
					s.Errorf("the repeat changed the answer to %+v", got)
				}
			},
			"a finished message cannot be released": func(s contract) {
				c := newTestClaim()
				s.want(c, claimed)
				s.wantErr(s.complete(c.key, c.holder, a), nil)
				s.wantErr(s.release(c.key, c.holder), nil)
				s.want(c.again(), finished)
			},
			"a token is bound to the first message it comes with": func(s contract) {
				c, other := newTestClaim(), newTestClaim()
				other.token = c.token
				s.want(c, claimed)
				s.want(other, replayed)
				other.token = nil
				s.want(other, claimed) // the replay has not spent that message
			},
			"a token is bound whatever the claim's answer": func(s contract) {
				c := newTestClaim()
				s.want(c, claimed)
				second := c.again()
				s.want(second, running)
				other := newTestClaim()
				other.token = second.token
				s.want(other, replayed)
			},
			"the same token with the same message goes on": func(s contract) {
				c := newTestClaim()
				s.want(c, claimed)
				s.wantErr(s.release(c.key, c.holder), nil)
				resent := c.again()
				resent.token = c.token
				s.want(resent, claimed)
			},
			"a token is free when its time is over": func(s contract) {
				c, other := newTestClaim(), newTestClaim()
				c.tokenTTL = 30 * time.Millisecond
				other.token = c.token
				s.want(c, claimed)
				s.await(other, claimed)
				s.want(func() claim { n := newTestClaim(); n.token = c.token; return n }(), replayed) // bound anew
			},
			"a message without a token is claimed": func(s contract) {
				c := newTestClaim()
				c.token = nil
				s.want(c, claimed)
				s.want(c.again(), running)
			},
		} {
			t.Run(engine.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				test(contract{t, engine.open(t, time.Hour)})
			})
		}
		t.Run(engine.name+"/what is finished is forgotten after STORE_TTL", func(t *testing.T) {
			t.Parallel()
			s := contract{t, engine.open(t, 50*time.Millisecond)}
			c := newTestClaim()
			s.want(c, claimed)
			s.wantErr(s.complete(c.key, c.holder, a), nil)
			s.await(c.again(), claimed)
		})
		t.Run(engine.name+"/a lease", func(t *testing.T) {
			t.Parallel()
			s := contract{t, engine.open(t, time.Hour)}
			c := newTestClaim()
			c.lease = 20 * time.Millisecond
			s.want(c, claimed)
			if !engine.lapses { // its holder is alive, however long it takes
				time.Sleep(2 * c.lease)
				if d := s.want(c.again(), running); d.left <= 0 || d.left > c.again().lease {
					t.Errorf("%s left of a lease that is renewed", d.left)
				}
				s.wantErr(s.complete(c.key, c.holder, a), nil)
				return
			}
			taken := s.await(c.again(), claimed)
			s.wantErr(s.complete(c.key, c.holder, a), errLeaseLost)
			s.wantErr(s.release(c.key, c.holder), errLeaseLost)
			s.wantErr(s.complete(taken.key, taken.holder, a), nil)
			s.want(c.again(), finished)
		})
		if engine.lapses {
			t.Run(engine.name+"/a lease that lapsed and was not taken will do to complete", func(t *testing.T) {
				t.Parallel()
				s := contract{t, engine.open(t, time.Hour)}
				c := newTestClaim()
				c.lease = time.Millisecond
				s.want(c, claimed)
				time.Sleep(10 * c.lease)
				s.wantErr(s.complete(c.key, c.holder, a), nil)
				s.want(c.again(), finished)
			})
		}
	}
}

func TestMemoryIsBounded(t *testing.T) {
	s := newMemoryStore(time.Hour)
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	held := newTestClaim() // the oldest, and running
	contract{t, s}.want(held, claimed)
	var last claim
	for range 200_000 {
		last = newTestClaim()
		contract{t, s}.want(last, claimed)
		if err := s.complete(last.key, last.holder, answer{status: 200, body: okBody}); err != nil {
			t.Fatal(err)
		}
	}
	if used := heap() - before; used > 32<<20 {
		t.Errorf("200,000 messages take %d bytes", used)
	}
	contract{t, s}.want(held.again(), running)
	contract{t, s}.want(last.again(), finished)
	for n := range 10_000 {
		big := answer{status: 200, body: make([]byte, maxKeptBody)}
		if n%100 == 0 {
			big.body = make([]byte, 1<<20)[:10] // all of which it would keep alive
		}
		c := newTestClaim()
		contract{t, s}.want(c, claimed)
		if err := s.complete(c.key, c.holder, big); err != nil {
			t.Fatal(err)
		}
	}
	if used := heap() - before; used > 33<<20 {
		t.Errorf("10,000 large answers take %d bytes", used)
	}
}

func TestSQLiteFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a b?c%20#.db") // a path, not a URL
	s, err := openSQLite(t.Context(), path, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	handled, left := newTestClaim(), newTestClaim()
	contract{t, s}.want(handled, claimed)
	contract{t, s}.want(left, claimed)
	if err := s.complete(handled.key, handled.holder, answer{status: 200}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}

	// A second process waits for the first to end.
	opened := make(chan error, 1)
	var second *sqliteStore
	go func() {
		var err error
		second, err = openSQLite(t.Context(), path, time.Hour)
		opened <- err
	}()
	select {
	case err := <-opened:
		t.Fatalf("a second one opened the file: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	defer second.close()
	contract{t, second}.want(handled.again(), finished)
	contract{t, second}.want(left.again(), claimed) // its holder is dead
}

func TestSQLiteCannotOpen(t *testing.T) {
	t.Parallel()
	garbage := filepath.Join(t.TempDir(), "receiver.db")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"a file that is no database":                       garbage,
		"a directory in which this user cannot make files": "/proc/receiver.db",
	} {
		if s, err := openSQLite(t.Context(), path, time.Hour); err == nil {
			s.close()
			t.Errorf("opened %s", name)
		} else if !strings.Contains(err.Error(), "STORE_URL") || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v names neither the setting nor the path", name, err)
		}
	}
}

func TestSQLiteSweeps(t *testing.T) {
	t.Parallel()
	s := openTestStore(t, filepath.Join(t.TempDir(), "receiver.db"), time.Millisecond).(*sqliteStore)
	for range 100 {
		c := newTestClaim()
		c.tokenTTL = time.Millisecond
		contract{t, s}.want(c, claimed)
		if err := s.complete(c.key, c.holder, answer{status: 200}); err != nil {
			t.Fatal(err)
		}
	}
	for _, table := range []string{"messages", "tokens"} {
		var rows int
		if err := s.db.QueryRow("SELECT count(*) FROM " + table).Scan(&rows); err != nil {
			t.Fatal(err)
		}
		if rows > 20 {
			t.Errorf("%d rows in %s, most of them expired", rows, table)
		}
	}
}

var lastPort atomic.Int64

// freePort is a port that stays free: below those that the system gives to whoever asks for any.
func freePort(t testing.TB) string {
	t.Helper()
	for range 1000 {
		port := strconv.FormatInt(20_000+lastPort.Add(1)+int64(os.Getpid()%100)*100, 10)
		if l, err := net.Listen("tcp", ":"+port); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return ""
}

// ownRedis is a Redis of the test's own, on a port that stays the same when it is started again.
type ownRedis struct {
	port    string
	args    []string
	process *exec.Cmd
}

func newOwnRedis(t *testing.T, args ...string) *ownRedis {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("no redis-server on this machine to start and stop: install redis")
	}
	port := freePort(t)
	r := &ownRedis{port: port, args: append([]string{"--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", t.TempDir()}, args...)}
	r.start(t)
	t.Cleanup(r.stop)
	return r
}

func (r *ownRedis) start(t *testing.T) {
	t.Helper()
	r.process = exec.Command("redis-server", r.args...)
	if err := r.process.Start(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", "127.0.0.1:"+r.port)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

func (r *ownRedis) stop() {
	_ = r.process.Process.Kill()
	_ = r.process.Wait()
}

func TestRedisRestartedUnderLoad(t *testing.T) {
	t.Parallel()
	r := newOwnRedis(t)
	s := openTestStore(t, "redis://127.0.0.1:"+r.port, time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	succeeded, failed := make(chan bool, 1), make(chan bool, 1)
	signal := func(c chan bool) {
		select {
		case c <- true:
		default:
		}
	}
	var load sync.WaitGroup
	for range 8 {
		load.Go(func() {
			for ctx.Err() == nil {
				c := newTestClaim()
				d, err := s.claim(c)
				if err == nil {
					err = s.complete(c.key, c.holder, answer{status: 200})
				}
				switch {
				case err != nil:
					signal(failed)
				case d.state != claimed:
					t.Errorf("a new message is %s", d.state)
				default:
					signal(succeeded)
				}
			}
		})
	}
	<-succeeded
	r.stop()
	<-failed
	for len(succeeded) > 0 {
		<-succeeded
	}
	r.start(t)
	<-succeeded // it recovers by itself, scripts and all
	cancel()
	load.Wait()
}

func TestRedisCannotOpen(t *testing.T) {
	t.Parallel()
	r := newOwnRedis(t, "--requirepass", "right")
	for _, row := range []struct{ name, url, want string }{
		{"no password", "redis://127.0.0.1:" + r.port, "NOAUTH"},
		{"a wrong password", "redis://:wr0ng-secret@127.0.0.1:" + r.port, "WRONGPASS"},
		{"a database that is not there", "redis://:right@127.0.0.1:" + r.port + "/99", "out of range"},
		{"nobody there", "redis://:wr0ng-secret@127.0.0.1:1", "did not answer"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			u, err := parseStoreURL(row.url)
			if err != nil {
				t.Fatal(err)
			}
			_, err = openStore(t.Context(), u, time.Hour, 700*time.Millisecond, discard)
			if err == nil || !strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), "STORE_URL") {
				t.Errorf("got %v, want %q", err, row.want)
			}
			if err != nil && strings.Contains(err.Error(), "wr0ng-secret") {
				t.Errorf("the password is in the error: %v", err)
			}
		})
	}
}

func TestRedisIsWaitedForAtStart(t *testing.T) {
	t.Parallel()
	r := newOwnRedis(t)
	r.stop()
	opened := make(chan error, 1)
	go func() {
		u, _ := parseStoreURL("redis://127.0.0.1:" + r.port)
		s, err := openStore(t.Context(), u, time.Hour, 15*time.Second, discard)
		if err == nil {
			err = s.close()
		}
		opened <- err
	}()
	r.start(t)
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

func TestMessageKey(t *testing.T) {
	t.Parallel()
	newMessage := func(id, jti, subject, hash string) *Message {
		return &Message{Unverified: Unverified{ID: id}, claims: claims{id: jti, subject: subject, bodyHash: hash, expires: time.Now().Add(time.Hour)}}
	}
	base, _ := newClaim(newMessage("msg_1", "jwt_1", "https://a/", "hash"), time.Minute, time.Hour)
	for name, m := range map[string]*Message{
		"another id":      newMessage("msg_2", "jwt_1", "https://a/", "hash"),
		"no id":           newMessage("", "jwt_1", "https://a/", "hash"),
		"another subject": newMessage("msg_1", "jwt_1", "https://b/", "hash"),
		"another body":    newMessage("msg_1", "jwt_1", "https://a/", "hasi"),
		"shifted parts":   newMessage("msg_1h", "jwt_1", "ttps://a/", "hash"),
	} {
		if c, ok := newClaim(m, time.Minute, time.Hour); !ok || c.key == base.key || *c.token != *base.token {
			t.Errorf("%s: the same message, or another token", name)
		}
	}
	retry, _ := newClaim(newMessage("msg_1", "jwt_2", "https://a/", "hash"), time.Minute, time.Hour)
	if retry.key != base.key || *retry.token == *base.token || retry.holder == base.holder {
		t.Error("a retry is not the same message with a token and a holder of its own")
	}
	if base.lease != time.Minute || base.tokenTTL > time.Hour || base.tokenTTL < time.Hour-time.Minute {
		t.Errorf("lease %s, token %s", base.lease, base.tokenTTL)
	}
	if c, _ := newClaim(newMessage("msg_1", "jwt_1", "", ""), time.Minute, time.Second); c.tokenTTL != time.Second {
		t.Errorf("a token is remembered for %s, STORE_TTL is 1s", c.tokenTTL)
	}
	if _, ok := newClaim(newMessage("", "", "https://a/", "hash"), time.Minute, time.Hour); ok {
		t.Error("a message without id and jti has a key")
	}
	if c, ok := newClaim(newMessage("msg_1", "", "https://a/", "hash"), time.Minute, time.Hour); !ok || c.token != nil {
		t.Error("a message with an id and without jti has no key, or a token")
	}
}

func TestKeptAnswer(t *testing.T) {
	t.Parallel()
	long := make([]byte, maxKeptBody+1)
	for _, row := range []struct {
		name    string
		a, want answer
	}{
		{"as it was", answer{status: 201, contentType: "text/csv", body: long[1:], upstash: "X: y\r\n"}, answer{status: 201, contentType: "text/csv", body: long[1:], upstash: "X: y\r\n"}},
		{"a long success", answer{status: 201, contentType: "text/csv", body: long, upstash: "X: y\r\n"}, answer{status: 201, contentType: "application/json", body: okBody, upstash: "X: y\r\n"}},
		{"a long failure", answer{status: 489, contentType: "text/csv", body: long, permanent: true},
			answer{status: 489, contentType: "application/json", body: []byte(`{"error":"the first answer was too long to keep"}`), permanent: true}},
		{"a Retry-After", answer{status: 489, body: okBody, permanent: true, retryAfter: "17"}, answer{status: 489, body: okBody, permanent: true}},
	} {
		if got := kept(row.a); !reflect.DeepEqual(got, row.want) {
			t.Errorf("%s: got %+.100v, want %+.100v", row.name, got, row.want)
		}
	}
}

func TestStoreURL(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for v, want := range map[string]string{
		"memory:":                   "memory",
		dir + "/receiver.db":        "sqlite",
		"receiver.db":               "sqlite",
		"redis://h:1/2":             "redis",
		"rediss://default:secret@h": "redis",
		"memory":                    `give memory:`,
		":memory:":                  `give memory:`,
		"file:x.db":                 `give memory:`,
		"postgres://h/db":           `it starts with "postgres"`,
		dir:                         "is a directory",
		dir + "/none/receiver.db":   "no such file or directory",
		"redis://:secret@h:port":    "not a Redis URL",
		"redis://:secret@h/x":       "not a Redis URL",
		"redis://me:secret/2@h:1":   "not a Redis URL",
		"redis://me:1/secret@h:1":   "not a Redis URL",
		"redis://me:1#secret@h:1":   "not a Redis URL",
		"redis://me:%zzsecret@h:1":  "not a Redis URL",
		"default:secret@h:6379":     `give memory:`,
	} {
		u, err := parseStoreURL(v)
		got := u.kind
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) || strings.Contains(got, "secret") {
			t.Errorf("%s: %s, want %s", v, got, want)
		}
	}
}

// BenchmarkStore is one message: a claim and a completion, among as many as are remembered already.
func BenchmarkStore(b *testing.B) {
	for _, engine := range engines {
		for _, remembered := range []int{0, 100_000, 1_000_000} {
			b.Run(fmt.Sprintf("%s/%d", engine.name, remembered), func(b *testing.B) {
				s := engine.open(b, time.Hour)
				one := func() {
					c := newTestClaim()
					if d, err := s.claim(c); err != nil || d.state != claimed {
						b.Error(d, err)
					}
					if err := s.complete(c.key, c.holder, answer{status: 200, contentType: "application/json", body: okBody}); err != nil {
						b.Error(err)
					}
				}
				var fill sync.WaitGroup
				for range 64 { // a batch for SQLite
					fill.Go(func() {
						for range remembered / 64 {
							one()
						}
					})
				}
				fill.Wait()
				for b.Loop() { // which comes here once: filling takes long
					one()
				}
			})
		}
	}
}
