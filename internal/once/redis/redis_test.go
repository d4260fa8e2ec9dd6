package redis

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"qstash-receiver/internal/once"
	"qstash-receiver/internal/once/oncetest"
	"qstash-receiver/internal/qstashtest"
)

var discard = slog.New(slog.DiscardHandler)

func open(t testing.TB, url string, ttl time.Duration) *Store {
	t.Helper()
	options, err := Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), options, ttl, 10*time.Second, discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestContract(t *testing.T) {
	url := qstashtest.RedisURL(t)
	oncetest.Run(t, oncetest.Engine{Shared: true, Open: func(t testing.TB, ttl time.Duration) once.Store { return open(t, url, ttl) }})
}

func TestParse(t *testing.T) {
	for url, want := range map[string]string{
		"redis://h:1/2":             "",
		"rediss://default:secret@h": "",
		"redis://:secret@h:port":    "not a Redis URL",
		"redis://:secret@h:99999":   "not a Redis URL",
		"redis://:secret@h:0":       "not a Redis URL",
		"redis://:secret@h/x":       "not a Redis URL",
		"redis://:secret@[::1]:1":   "",
		"redis://me:secret/2@h:1":   "not a Redis URL",
		"redis://me:1/secret@h:1":   "not a Redis URL",
		"redis://me:1#secret@h:1":   "not a Redis URL",
		"redis://me:%zzsecret@h:1":  "not a Redis URL",
	} {
		_, err := Parse(url)
		if got := fmt.Sprint(err); want == "" && err != nil || !strings.Contains(got, want) || strings.Contains(got, "secret") {
			t.Errorf("%s: %s, want %q", url, got, want)
		}
	}
}

// What the version before this one has finished is answered as it did.
func TestEarlierVersion(t *testing.T) {
	t.Parallel()
	s := open(t, qstashtest.RedisURL(t), time.Hour)
	for _, row := range []struct {
		name   string
		fields []any
		want   once.Answer
	}{
		{"a success", []any{"holder", "H", "until", 1, "status", 200, "type", "application/json", "permanent", false, "body", `{"message":"ok"}`, "upstash", ""},
			once.Answer{Status: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: []byte(`{"message":"ok"}`)}},
		{"with headers", []any{"holder", "H", "until", 1, "status", 201, "type", "text/plain", "permanent", false, "body", "a\x00b", "upstash", "Upstash-Label: x\r\n"},
			once.Answer{Status: 201, Header: http.Header{"Content-Type": {"text/plain"}, "Upstash-Label": {"x"}}, Body: []byte("a\x00b")}},
		{"a permanent failure", []any{"holder", "H", "until", 1, "status", 489, "type", "application/json", "permanent", true, "body", "{}", "upstash", ""},
			once.Answer{Status: 489, Header: http.Header{"Content-Type": {"application/json"}, "Upstash-Nonretryable-Error": {"true"}}, Body: []byte("{}")}},
		{"without a content type", []any{"holder", "H", "until", 1, "status", 204, "type", "", "permanent", false, "body", "", "upstash", ""},
			once.Answer{Status: 204, Body: []byte{}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := oncetest.NewClaim()
			pipe := s.client.Pipeline()
			pipe.HSet(t.Context(), messageKey(c.Key), row.fields...)
			pipe.PExpire(t.Context(), messageKey(c.Key), time.Minute)
			if _, err := pipe.Exec(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := oncetest.Want(t, s, c, once.Finished).Answer; !reflect.DeepEqual(got, row.want) {
				t.Errorf("got %+v, want %+v", got, row.want)
			}
		})
	}
	t.Run("one that it runs is taken over when its lease has lapsed", func(t *testing.T) {
		c := oncetest.NewClaim()
		if err := s.client.HSet(t.Context(), messageKey(c.Key), "holder", "H", "until", time.Now().Add(time.Minute).UnixMilli()).Err(); err != nil {
			t.Fatal(err)
		}
		oncetest.Want(t, s, c, once.Running)
		if err := s.client.HSet(t.Context(), messageKey(c.Key), "until", 1).Err(); err != nil {
			t.Fatal(err)
		}
		oncetest.Want(t, s, c, once.Claimed)
	})
}

func TestKeysAndCommands(t *testing.T) {
	t.Parallel()
	s := open(t, qstashtest.NewRedis(t).URL(), time.Hour)
	if keys := s.client.Keys(t.Context(), "*").Val(); len(keys) > 0 {
		t.Errorf("opening it left %q", keys)
	}
	if err := s.client.ConfigResetStat(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	running, finished, released := oncetest.NewClaim(), oncetest.NewClaim(), oncetest.NewClaim()
	looked := oncetest.NewClaim()
	looked.Look = true
	for _, c := range []once.Claim{running, finished, released} {
		oncetest.Want(t, s, c, once.Claimed)
	}
	oncetest.Want(t, s, looked, once.Free)
	if err := s.Complete(finished.Key, finished.Holder, once.Answer{Status: 200}); err != nil {
		t.Fatal(err)
	}
	if err := s.Complete(oncetest.NewKey(), once.NewHolder(), once.Answer{Status: 200}); err != nil {
		t.Fatal(err)
	}
	if err := s.Release(released.Key, released.Holder); err != nil {
		t.Fatal(err)
	}
	stats := s.client.Info(t.Context(), "commandstats").Val()
	if !strings.Contains(stats, "cmdstat_evalsha:calls=7,") || strings.Contains(stats, "cmdstat_eval:") {
		t.Errorf("seven decisions are not seven scripts:\n%s", stats)
	}
	keys := s.client.Keys(t.Context(), "*").Val()
	if len(keys) != 9 {
		t.Errorf("%d keys, want 5 messages and 4 tokens", len(keys))
	}
	for _, key := range keys {
		if left := s.client.PTTL(t.Context(), key).Val(); left <= 0 || left > time.Hour+time.Minute {
			t.Errorf("%s expires in %s", key, left)
		}
	}
}

func TestRestartedUnderLoad(t *testing.T) {
	t.Parallel()
	r := qstashtest.NewRedis(t)
	s := open(t, r.URL(), time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	succeeded, failed := make(chan bool, 1), make(chan bool, 1)
	signal := func(c chan bool) {
		select {
		case c <- true:
		default:
		}
	}
	var load sync.WaitGroup
	for range 16 {
		load.Go(func() {
			for ctx.Err() == nil {
				c := oncetest.NewClaim()
				d, err := s.Claim(c)
				if err == nil {
					err = s.Complete(c.Key, c.Holder, once.Answer{Status: 200})
				}
				switch {
				case err != nil:
					signal(failed)
				case d.State != once.Claimed:
					t.Errorf("a new message is %s", d.State)
				default:
					signal(succeeded)
				}
			}
		})
	}
	<-succeeded
	r.Stop()
	<-failed
	for len(succeeded) > 0 {
		<-succeeded
	}
	r.Start(t)
	<-succeeded // it recovers by itself, scripts and all
	cancel()
	load.Wait()
}

// Each call ends in time, those whose decision is on its way as well as those that wait behind it, and what Redis does
// with the late ones harms nobody.
func TestNoReply(t *testing.T) {
	t.Parallel()
	r := qstashtest.NewRedis(t)
	s := open(t, r.URL(), time.Hour)
	held := oncetest.NewClaim()
	oncetest.Want(t, s, held, once.Claimed)
	r.Pause()
	var calls sync.WaitGroup
	for range 5 * longest {
		calls.Go(func() {
			begin := time.Now()
			d, err := s.Claim(oncetest.NewClaim())
			if took := time.Since(begin); err == nil || took > once.Timeout+time.Second {
				t.Errorf("%s, %v after %s", d.State, err, took)
			}
		})
	}
	calls.Go(func() {
		if err := s.Complete(held.Key, held.Holder, once.Answer{Status: 200}); err == nil {
			t.Error("completed by a Redis that is paused")
		}
	})
	calls.Wait()
	r.Resume()
	oncetest.Want(t, s, oncetest.NewClaim(), once.Claimed)
	if err := s.Complete(held.Key, held.Holder, once.Answer{Status: 200}); err != nil {
		t.Error(err)
	}
}

func TestCannotServe(t *testing.T) {
	t.Parallel()
	plain := qstashtest.NewRedis(t)
	locked := qstashtest.NewRedis(t, "--requirepass", "right")
	users := qstashtest.NewRedis(t,
		"--user", "noscripts", "on", ">right", "~*", "+@all", "-@scripting",
		"--user", "nowrites", "on", ">right", "~*", "+@all", "-@write",
		"--user", "otherkeys", "on", ">right", "~app:*", "+@all",
		"--user", "enough", "on", ">right", "~qstash:*", "-@all", "+eval", "+evalsha", "+set", "+get", "+hset", "+hmget", "+pttl", "+pexpire", "+time", "+ping", "+select",
	)
	replica := qstashtest.NewRedis(t, "--replicaof", "127.0.0.1 "+plain.Port)
	cluster := qstashtest.NewRedis(t, "--cluster-enabled", "yes")
	full := qstashtest.NewRedis(t, "--maxmemory", "1mb", "--maxmemory-policy", "noeviction")
	scriptless := qstashtest.NewRedis(t, "--rename-command", "EVALSHA", "")
	speaksTLS := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(speaksTLS.Close)
	speaksTLS.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	tlsAddr := strings.TrimPrefix(speaksTLS.URL, "https://")
	login := func(user string, r *qstashtest.Redis) string {
		return "redis://" + user + ":right@127.0.0.1:" + r.Port
	}
	for _, row := range []struct {
		name, url string
		want      []string // in the error; nil: it serves
	}{
		{"it can", login("default", locked), nil},
		{"a login that may do what is needed and nothing else", login("enough", users), nil},
		{"no password", locked.URL(), []string{"NOAUTH", "put the login into the URL"}},
		{"a wrong password", "redis://:wr0ng-secret@127.0.0.1:" + locked.Port, []string{"WRONGPASS", "check user and password"}},
		{"a database that is not there", plain.URL() + "/99", []string{"out of range", "leave it out"}},
		{"a login without scripts", login("noscripts", users), []string{"+evalsha"}},
		{"a login that may not write", login("nowrites", users), []string{"+hset"}},
		{"a login for other keys", login("otherkeys", users), []string{"~qstash:*"}},
		{"a replica", replica.URL(), []string{"READONLY", "primary"}},
		{"a node of a cluster", cluster.URL(), []string{"without cluster mode"}},
		{"a full one", full.URL(), []string{"OOM", "maxmemory"}},
		{"one without scripts", scriptless.URL(), []string{"unknown command", "Redis 7"}},
		{"TLS where the URL says there is none", "redis://" + tlsAddr, []string{"rediss://"}},
		{"no TLS where the URL says there is", "rediss://:wr0ng-secret@127.0.0.1:" + plain.Port, []string{"redis:// instead"}},
		{"no TLS, and a password", "rediss://:wr0ng-secret@127.0.0.1:" + locked.Port, []string{"redis:// instead"}},
		{"a certificate of another's", "rediss://" + tlsAddr, []string{"certificate"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			options, err := Parse(row.url)
			if err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			s, err := Open(t.Context(), options, time.Hour, 15*time.Second, discard)
			if err == nil {
				_ = s.Close()
			}
			if (err == nil) != (row.want == nil) {
				t.Fatalf("got %v, want %q", err, row.want)
			}
			for _, want := range append(row.want, "STORE_URL", options.Addr) {
				if err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("%v has no %q", err, want)
				}
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the password is in the error: %v", err)
			}
			if took := time.Since(begin); took > 10*time.Second {
				t.Errorf("it took %s to say so", took)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	options, err := Parse("redis://:wr0ng-secret@127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), options, time.Hour, 700*time.Millisecond, slog.New(slog.NewTextHandler(&log, nil)))
	for _, want := range []string{"STORE_URL", "127.0.0.1:1", "did not answer within 700ms"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v has no %q", err, want)
		}
	}
	if !strings.Contains(log.String(), "trying again") || strings.Contains(log.String()+fmt.Sprint(err), "secret") {
		t.Errorf("log: %s", log.String())
	}
}

func TestWaitedForAtStart(t *testing.T) {
	t.Parallel()
	options := func(r *qstashtest.Redis) *redis.Options {
		o, err := Parse(r.URL())
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	for _, row := range []struct {
		name string
		away func(t *testing.T) *qstashtest.Redis // returns one that will serve soon
	}{
		{"not started yet", func(t *testing.T) *qstashtest.Redis {
			r := qstashtest.NewRedis(t)
			r.Stop()
			return r
		}},
		{"loading its data", func(t *testing.T) *qstashtest.Redis {
			r := qstashtest.NewRedis(t, "--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024")
			client := redis.NewClient(options(r))
			defer client.Close()
			for n := range 100 { // two seconds' worth
				if err := client.Set(t.Context(), fmt.Sprint(n), strings.Repeat("x", 1024), 0).Err(); err != nil {
					t.Fatal(err)
				}
			}
			if err := client.Save(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			r.Stop()
			return r
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			r := row.away(t)
			log := qstashtest.NewLog()
			opened := make(chan error, 1)
			go func() {
				s, err := Open(t.Context(), options(r), time.Hour, 15*time.Second, slog.New(slog.NewJSONHandler(log, nil)))
				if err == nil {
					err = s.Close()
				}
				opened <- err
			}()
			log.Await(t, "trying again")
			r.Start(t)
			if err := <-opened; err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWarnsOfEviction(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name string
		args []string
		want bool
	}{
		{"noeviction", []string{"--maxmemory-policy", "noeviction"}, false},
		{"allkeys-lru", []string{"--maxmemory-policy", "allkeys-lru"}, true},
		{"volatile-ttl", []string{"--maxmemory-policy", "volatile-ttl"}, true},
		{"allkeys-lru", []string{"--maxmemory-policy", "allkeys-lru", "--user", "default", "on", "nopass", "~*", "+@all", "-config"}, true},
		{"a Redis that does not tell", []string{"--maxmemory-policy", "allkeys-lru", "--user", "default", "on", "nopass", "~*", "+@all", "-config", "-info"}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			options, err := Parse(qstashtest.NewRedis(t, row.args...).URL())
			if err != nil {
				t.Fatal(err)
			}
			s, err := Open(t.Context(), options, time.Hour, time.Second, slog.New(slog.NewTextHandler(&log, nil)))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if got := strings.Contains(log.String(), "noeviction"); got != row.want {
				t.Errorf("warned: %t, want %t: %s", got, row.want, log.String())
			}
		})
	}
}

// BenchmarkStore is a message, a claim and a completion, by as many callers at once, and how many of them Redis does
// in a second of its own processor's time.
func BenchmarkStore(b *testing.B) {
	s := open(b, qstashtest.NewRedis(b).URL(), time.Hour)
	answer := once.Answer{Status: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: []byte(`{"message":"ok"}`)}
	for _, callers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("%d callers", callers), func(b *testing.B) {
			before := redisSeconds(b, s.client)
			b.SetParallelism(max(callers/runtime.GOMAXPROCS(0), 1))
			if callers == 1 {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
			}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					c := oncetest.NewClaim()
					if d, err := s.Claim(c); err != nil || d.State != once.Claimed {
						b.Error(d, err)
					}
					if err := s.Complete(c.Key, c.Holder, answer); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(b.N)/(redisSeconds(b, s.client)-before), "messages/redis-s")
		})
	}
}

// redisSeconds is how much processor time Redis has used.
func redisSeconds(b *testing.B, client *redis.Client) float64 {
	b.Helper()
	info, err := client.Info(b.Context(), "cpu").Result()
	if err != nil {
		b.Fatal(err)
	}
	var system, user float64
	for _, line := range strings.Split(info, "\r\n") {
		_, _ = fmt.Sscanf(line, "used_cpu_sys:%f", &system)
		_, _ = fmt.Sscanf(line, "used_cpu_user:%f", &user)
	}
	return system + user
}
