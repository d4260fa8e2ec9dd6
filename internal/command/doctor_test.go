package command

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"qstash-receiver/internal/once"
	"qstash-receiver/internal/once/oncetest"
	"qstash-receiver/internal/once/sqlite"
	"qstash-receiver/internal/qstashtest"
)

// doctor runs doctor in an environment and returns what it prints.
func doctor(t *testing.T, e env, args ...string) (string, error) {
	t.Helper()
	var stdout bytes.Buffer
	err := Doctor(t.Context(), args, e.getenv, &stdout)
	for line := range strings.Lines(stdout.String()) {
		if !regexp.MustCompile(`^(ok     |warning|wrong  )  \S[ \S]{12}  \S.*\n$`).MatchString(line) {
			t.Errorf("a line that is not aligned: %q", line)
		}
		for _, secret := range []string{apiToken, currentKey, nextKey, "hunter2", "s3cret", "\x1b"} {
			if strings.Contains(line, secret) {
				t.Errorf("%q tells %q", line, secret)
			}
		}
	}
	if hasWrong := strings.Contains("\n"+stdout.String(), "\nwrong"); hasWrong != (err != nil) {
		t.Errorf("its error is %v, having said\n%s", err, &stdout)
	}
	return stdout.String(), err
}

// upstash answers as QStash's API does: by path, and with the keys and a clock of its own.
type upstash struct {
	answers map[string]string // "/v2/logs?state=FAILED": ...; others are answered with an empty list
	keys    [2]string
	refuses bool
	ahead   time.Duration // its clock
}

func (u upstash) start(t *testing.T) (url string) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(u.ahead).UTC().Format(http.TimeFormat))
		if r.Method != http.MethodGet {
			t.Errorf("doctor asks for a change: %s %s", r.Method, r.RequestURI)
		}
		query := r.URL.Query()
		query.Del("count")
		path := r.URL.Path
		if len(query) > 0 {
			path += "?" + query.Encode()
		}
		answer, ok := u.answers[path]
		switch {
		case u.refuses || r.Header.Get("Authorization") != "Bearer "+apiToken:
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprintf(w, `{"error":"no such token \u001b[31m%s"}`, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
		case ok:
			io.WriteString(w, answer)
		case r.URL.Path == "/v2/keys":
			fmt.Fprintf(w, `{"current":%q,"next":%q}`, u.keys[0], u.keys[1])
		default:
			io.WriteString(w, `[]`)
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

var inForce = upstash{keys: [2]string{currentKey, nextKey}}

// wants wants a line of out to match each of the patterns.
func wants(t *testing.T, out string, patterns ...string) {
	t.Helper()
	for _, pattern := range patterns {
		if !regexp.MustCompile("(?m)^" + pattern).MatchString(out) {
			t.Errorf("no line matches %q:\n%s", pattern, out)
		}
	}
}

func TestDoctorOfAHealthyWorld(t *testing.T) {
	t.Parallel()
	api := upstash{keys: inForce.keys, answers: map[string]string{
		"/v2/schedules": `[{"scheduleId":"scd_1","destination":"https://app.example/daily","method":"POST"},{"scheduleId":"scd_2","destination":"https://other.example/"}]`,
		"/v2/topics":    `[{"name":"all","endpoints":[{"url":"https://app.example/all"}]}]`,
	}}.start(t)
	out, _ := doctor(t, env{"RECEIVER_URL": "https://app.example", "QSTASH_TOKEN": apiToken, "QSTASH_URL": api})
	wants(t, out,
		`ok +settings +keys from QSTASH_CURRENT_SIGNING_KEY; for https://app.example; store memory$`,
		`ok +store +memory: claim, completion and release on keys of its own, taken away again, took \S+$`,
		`ok +token +QSTASH_TOKEN is taken by `+regexp.QuoteMeta(api)+`$`,
		`ok +keys +QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY are those in force$`,
		`ok +clock +it is within 5 s of QStash's$`,
		`ok +dead letters +none, and no failed deliveries, of https://app.example$`,
		`ok +schedules +those and the URL groups with nothing odd go to: https://app.example, https://other.example$`,
	)
	if strings.Contains(out, "warning") || strings.Contains(out, "wrong") {
		t.Errorf("it worries:\n%s", out)
	}
}

func TestDoctorOfWrongSettings(t *testing.T) {
	t.Parallel()
	out, _ := doctor(t, env{"QSTASH_NEXT_SIGNING_KEY": "", "STORE_URL": "mysql://me:hunter2@h/db", "PORT": "http", "QSTASH_DEV": "yes"})
	wants(t, out,
		`wrong +settings +PORT: "http" is not a whole number`,
		`wrong +settings +QSTASH_NEXT_SIGNING_KEY: not set, but QSTASH_CURRENT_SIGNING_KEY is; copy both keys`,
		`wrong +settings +QSTASH_DEV: "yes" is none of`,
		`wrong +settings +STORE_URL: it is no URL of a store`,
	)
	out, _ = doctor(t, env{"QSTASH_DEV": "true", "QSTASH_NEXT_SIGNING_KEY": currentKey})
	wants(t, out,
		`warning +settings +QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY are the same key`,
		`warning +settings +QSTASH_DEV is on: anyone can sign`,
	)
	out, _ = doctor(t, env{"FLY_APP_NAME": "app"})
	wants(t, out, `warning +settings +STORE_URL is memory: .*flyctl redis create`)
}

func TestDoctorOfKeys(t *testing.T) {
	t.Parallel()
	const other, another = "sig_Other1234567890abcdefghijkl", "sig_Another1234567890abcdefghij"
	unset := env{"QSTASH_CURRENT_SIGNING_KEY": "", "QSTASH_NEXT_SIGNING_KEY": ""}
	for _, row := range []struct {
		sentence string
		inForce  [2]string
		env      env
		says     string
	}{
		{"the same", [2]string{currentKey, nextKey}, nil, `ok +keys +QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY are those in force$`},
		{"rolled once", [2]string{nextKey, other}, nil, `warning +keys +the keys were rolled once since .* copy both from the Upstash console`},
		{"another next key", [2]string{currentKey, other}, nil, `warning +keys +one of .* is not in force: .* copy both`},
		{"another current key", [2]string{other, nextKey}, nil, `warning +keys +one of .* is not in force: .* copy both`},
		{"the wrong way round", [2]string{nextKey, currentKey}, nil, `warning +keys +.* are in each other's place: .* swap them`},
		{"rolled twice, or another account", [2]string{other, another}, nil, `wrong +keys +.* are not in force: the keys were rolled twice, or these are another account's .* copy both`},
		{"fetched", [2]string{currentKey, nextKey}, unset, `ok +keys +they are fetched with QSTASH_TOKEN$`},
	} {
		e := env{"QSTASH_TOKEN": apiToken, "QSTASH_URL": upstash{keys: row.inForce}.start(t)}
		for name, value := range row.env {
			e[name] = value
		}
		t.Log(row.sentence)
		out, _ := doctor(t, e)
		wants(t, out, row.says)
	}
}

func TestDoctorOfTokens(t *testing.T) {
	t.Parallel()
	out, _ := doctor(t, env{"US_EAST_1_QSTASH_TOKEN": apiToken, "US_EAST_1_QSTASH_URL": upstash{refuses: true}.start(t)})
	wants(t, out, `wrong +token +US_EAST_1_QSTASH_TOKEN is refused by http://127.0.0.1:\d+ \(US-EAST-1\): .*401 Unauthorized \(no such token \\u001b\[31m\[redacted\]\); copy the token of this region`)
	out, _ = doctor(t, env{"QSTASH_TOKEN": apiToken, "QSTASH_URL": "http://127.0.0.1:1"})
	wants(t, out, `wrong +token +QSTASH_TOKEN could not be tried: .*connection refused; see that this machine reaches the API`)
	out, _ = doctor(t, env{"EU_CENTRAL_1_QSTASH_TOKEN": apiToken, "EU_CENTRAL_1_QSTASH_URL": inForce.start(t)})
	wants(t, out, `ok +token +EU_CENTRAL_1_QSTASH_TOKEN is taken by http://127.0.0.1:\d+ \(EU-CENTRAL-1\)$`, `ok +keys +they are fetched with EU_CENTRAL_1_QSTASH_TOKEN$`)
}

func TestDoctorOfTheClock(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		ahead time.Duration // QStash's clock
		says  string
	}{
		{3 * time.Second, `ok +clock`},
		{-3 * time.Second, `ok +clock`},
		{10 * time.Second, `warning +clock +this machine's clock is (9|10|11)s behind QStash's; set it`},
		{-30 * time.Second, `warning +clock +this machine's clock is (29|30|31)s ahead of QStash's; set it`},
		{90 * time.Second, `wrong +clock +this machine's clock is 1m(29|30|31)s behind QStash's: tokens are refused .* set it`},
		{-2 * time.Hour, `wrong +clock +this machine's clock is (2h0m[01]s|1h59m59s) ahead of QStash's`},
	} {
		out, _ := doctor(t, env{"QSTASH_TOKEN": apiToken, "QSTASH_URL": upstash{keys: inForce.keys, ahead: row.ahead}.start(t)})
		wants(t, out, row.says)
	}
}

func TestDoctorOfDeadLetters(t *testing.T) {
	t.Parallel()
	answers := map[string]string{
		"/v2/dlq": `{"cursor":"2","messages":[
			{"url":"https://app.example/orders","responseStatus":401,"responseBody":"{\"error\":\"unauthorized\"}"},
			{"url":"https://other.example/orders","responseStatus":500,"responseBody":"other"}]}`,
		"/v2/dlq?cursor=2": `{"messages":[
			{"url":"https://app.example/","responseStatus":401,"responseBody":"{\"error\":\"unauthorized\"}"},
			{"url":"https://app.example/","responseStatus":489,"responseBodyBase64":"eyJlcnJvciI6Im5vIHN1Y2ggb3JkZXIifQ=="}]}`,
		"/v2/logs?state=ERROR": `{"logs":[
			{"state":"ERROR","url":"https://app.example/","responseStatus":401,"responseBody":"eyJlcnJvciI6InVuYXV0aG9yaXplZCJ9"},
			{"state":"ERROR","url":"https://app.example/","error":"` + apiToken + ` \u001b[31m"}]}`,
	}
	api := upstash{keys: inForce.keys, answers: answers}.start(t)
	out, _ := doctor(t, env{"RECEIVER_URL": "https://app.example", "QSTASH_TOKEN": apiToken, "QSTASH_URL": api})
	wants(t, out,
		`warning +dead letters +2 dead, 1 failed deliveries of https://app.example: 401 "unauthorized"; the keys, RECEIVER_URL, BEARER_TOKEN or the clock`,
		`warning +dead letters +1 dead, 0 failed deliveries of https://app.example: 489 "no such order"; handler.go gave them up`,
		`warning +dead letters +0 dead, 1 failed deliveries of https://app.example: no answer "\[redacted\] \\u001b\[31m"; see that the URL`,
	)
	if strings.Contains(out, `"other"`) {
		t.Errorf("it reports what is not ours:\n%s", out)
	}
	out, _ = doctor(t, env{"QSTASH_TOKEN": apiToken, "QSTASH_URL": api})
	wants(t, out, `warning +dead letters +1 dead, 0 failed deliveries of all URLs .*: 500 "other"`)
}

func TestDoctorOfSchedules(t *testing.T) {
	t.Parallel()
	api := upstash{keys: inForce.keys, answers: map[string]string{
		"/v2/schedules": `[
			{"scheduleId":"scd_get","destination":"https://app.example/a","method":"GET"},
			{"scheduleId":"scd_paused","destination":"https://app.example/b","method":"POST","isPaused":true},
			{"scheduleId":"scd_good","destination":"https://APP.example:443/c"},
			{"scheduleId":"scd_group","destination":"group"},
			{"scheduleId":"scd_other","destination":"http://other.example/c","method":"GET"}]`,
		"/v2/topics": `[{"name":"plain","endpoints":[{"url":"http://app.example/d"}]},{"name":"port","endpoints":[{"url":"https://app.example:8443/e"}]}]`,
	}}.start(t)
	out, _ := doctor(t, env{"RECEIVER_URL": "https://app.example", "QSTASH_TOKEN": apiToken, "QSTASH_URL": api})
	wants(t, out,
		`warning +schedules +the schedule scd_get to https://app.example is GET, and only POST is taken`,
		`warning +schedules +the schedule scd_paused to https://app.example is paused`,
		`warning +schedules +the URL group plain to http://app.example is plain http`,
		`warning +schedules +the URL group port to https://app.example:8443 is on another port`,
		`ok +schedules +.* go to: http://other.example, https://app.example$`,
	)
	if got := strings.Count(out, "warning"); got != 4 {
		t.Errorf("%d warnings, not 4:\n%s", got, out)
	}
}

func TestDoctorOfAnAPIThatAnswersHalf(t *testing.T) {
	t.Parallel()
	api := upstash{keys: inForce.keys, answers: map[string]string{"/v2/dlq": "<html>", "/v2/schedules": "<html>"}}.start(t)
	out, _ := doctor(t, env{"QSTASH_TOKEN": apiToken, "QSTASH_URL": api})
	wants(t, out, `warning +dead letters +not all could be read: `, `warning +schedules +not all could be read: `)
}

func TestDoctorOfFlyToml(t *testing.T) {
	for _, row := range []struct {
		sentence string
		toml     string
		env      env
		says     string
	}{
		{"as shipped", "kill_timeout = '60s'\n[env]\nGOGC = '400'", nil, `ok +fly.toml +kill_timeout is 1m0s`},
		{"as flyctl rewrites it", "kill_timeout = '1m0s'\n[[env]]\nHANDLER_TIMEOUT = '45s'", nil, `ok +fly.toml`},
		{"a number", "kill_timeout = 60", nil, `ok +fly.toml`},
		{"a number that is too small", "kill_timeout = 59", nil, `wrong +fly.toml +kill_timeout is 59s, but .* HANDLER_TIMEOUT \(45s\) \+ 15s; set kill_timeout = '60s'`},
		{"none", "app = 'a'", nil, `wrong +fly.toml +kill_timeout is 5s, but `},
		{"none, for a quick handler", "app = 'a'", env{"HANDLER_TIMEOUT": "1s"}, `wrong +fly.toml +kill_timeout is 5s, .* set kill_timeout = '16s'`},
		{"a longer handler in [env]", "kill_timeout = '60s'\n[env]\nHANDLER_TIMEOUT = '2m'", env{"HANDLER_TIMEOUT": "1s"}, `wrong +fly.toml +.* HANDLER_TIMEOUT \(2m0s\) .* '135s'`},
		{"a longer handler in [[env]]", "kill_timeout = '60s'\n[[env]]\nHANDLER_TIMEOUT = '2m'", nil, `wrong +fly.toml +.* HANDLER_TIMEOUT \(2m0s\)`},
		{"a longer handler in the environment", "kill_timeout = '60s'", env{"HANDLER_TIMEOUT": "46s"}, `wrong +fly.toml +.* HANDLER_TIMEOUT \(46s\)`},
		{"more than Fly gives", "kill_timeout = '301s'", nil, `wrong +fly.toml +kill_timeout is 5m1s, Fly allows 5m0s`},
		{"a handler that Fly has no time for", "kill_timeout = '300s'", env{"HANDLER_TIMEOUT": "286s"}, `wrong +fly.toml +HANDLER_TIMEOUT is 4m46s, .* set it to at most 4m45s`},
		{"the longest handler", "kill_timeout = '300s'", env{"HANDLER_TIMEOUT": "285s"}, `ok +fly.toml`},
		{"no duration", "kill_timeout = 'long'", nil, `wrong +fly.toml +kill_timeout: "long" is not a duration`},
		{"no TOML", "kill_timeout = ", nil, `wrong +fly.toml +read it: `},
	} {
		t.Chdir(t.TempDir())
		if err := os.WriteFile("fly.toml", []byte(row.toml), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Log(row.sentence)
		out, _ := doctor(t, row.env)
		wants(t, out, row.says)
	}
}

func TestDoctorOfStores(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	path := filepath.Join(folder, "receiver.db")
	out, _ := doctor(t, env{"STORE_URL": path})
	wants(t, out, `ok +store +sqlite: claim, completion and release`)
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("it leaves %v, %v", left, err)
	}
	out, _ = doctor(t, env{"STORE_URL": "redis://:hunter2@127.0.0.1:1"})
	wants(t, out, `wrong +store +.*127.0.0.1:1`)
	foreign := filepath.Join(folder, "notes.txt")
	if err := os.WriteFile(foreign, bytes.Repeat([]byte("not a database "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ = doctor(t, env{"STORE_URL": foreign})
	wants(t, out, `wrong +store +STORE_URL: open the SQLite file ".*notes.txt"`)
}

func TestDoctorOfAStoreInUse(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "receiver.db")
	running, err := sqlite.Open(t.Context(), path, time.Hour, time.Second, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	out, _ := doctor(t, env{"STORE_URL": path})
	wants(t, out, `ok +store +sqlite: .*receiver.db is in use`)
	claim := oncetest.NewClaim()
	oncetest.Want(t, running, claim, once.Claimed) // it serves on
	if err := errors.Join(running.Complete(claim.Key, claim.Holder, once.Answer{Status: 200}), running.Close()); err != nil {
		t.Fatal(err)
	}
	out, _ = doctor(t, env{"STORE_URL": path})
	wants(t, out, `ok +store +sqlite: claim, completion and release`)
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var messages, tokens int
	if err := db.QueryRow(`SELECT (SELECT count(*) FROM qstash_messages), (SELECT count(*) FROM qstash_tokens)`).Scan(&messages, &tokens); err != nil || messages != 1 || tokens != 1 {
		t.Errorf("%d messages and %d tokens, %v: one of each was there", messages, tokens, err)
	}
}

func TestDoctorLeavesNothingInRedis(t *testing.T) {
	t.Parallel()
	server := qstashtest.NewRedis(t)
	out, _ := doctor(t, env{"STORE_URL": server.URL()})
	wants(t, out, `ok +store +redis: claim, completion and release`)
	options, err := redis.ParseURL(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	defer client.Close()
	if left, err := client.DBSize(t.Context()).Result(); err != nil || left > 0 {
		t.Errorf("it leaves %d keys, %v", left, err)
	}
}

func TestDoctorOfTheDisk(t *testing.T) {
	t.Parallel()
	wide := func(e env) string { out, _ := doctor(t, e); return out }
	if out := wide(env{"STORE_URL": "/dev/shm/receiver.db", "FLY_APP_NAME": "app"}); strings.Contains(out, "root disk") {
		t.Errorf("/dev/shm is a disk of its own:\n%s", out)
	}
	wants(t, wide(env{"STORE_URL": "/var/receiver.db", "FLY_APP_NAME": "app"}), `warning +disk +/var/receiver.db is on the root disk, which is gone after each deploy`)
	wants(t, wide(env{"STORE_URL": "/var/receiver.db"}), `warning +disk +/var/receiver.db is on the root disk: fine where that stays`)
}

// receiver answers at /healthz as this program does.
func receiver(get, post http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/healthz":
			http.NotFound(w, r)
		case r.Method == http.MethodGet:
			get(w, r)
		default:
			post(w, r)
		}
	})
}

func TestDoctorOfTheWayThere(t *testing.T) {
	t.Parallel()
	answers := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	redirects := func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://elsewhere.example/healthz", http.StatusPermanentRedirect)
	}
	verified := answers(200, `{"verified":true,"key":"current","url":""}`)
	for _, row := range []struct {
		sentence  string
		get, post http.HandlerFunc
		says      string
	}{
		{"well", answers(200, "ok"), verified, `ok +POST /healthz +verified with the current key, for http://127.0.0.1:\d+/healthz$`},
		{"another program", answers(404, ""), verified, `wrong +GET /healthz +404: another program answers there`},
		{"a program that is stuck", answers(503, ""), verified, `wrong +GET /healthz +503: the program there is full or stuck`},
		{"a redirect", redirects, verified, `wrong +GET /healthz +308, a redirect to "https://elsewhere.example"`},
		{"a redirect of posts", answers(200, "ok"), redirects, `wrong +POST /healthz +308, a redirect to "https://elsewhere.example"`},
		{"refused", answers(200, "ok"), answers(401, `{"error":"unauthorized"}`), `wrong +POST /healthz +401: .*keys.*RECEIVER_URL.*BEARER_TOKEN.*bearer.*clock`},
		{"refused by a clock that is behind", answers(200, "ok"), func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
			w.WriteHeader(401)
		}, `wrong +POST /healthz +401: .*its clock is off: it is 1h0m\S+ behind this machine's`},
		{"answered by something else", answers(200, "ok"), answers(200, "ok"), `wrong +POST /healthz +200, but not "verified":true`},
		{"not verified", answers(200, "ok"), answers(200, `{"verified":false}`), `wrong +POST /healthz +200, but not "verified":true`},
		{"verified, but not with 200", answers(200, "ok"), answers(202, `{"verified":true}`), `wrong +POST /healthz +202: it was not verified`},
		{"no posts", answers(200, "ok"), answers(405, ""), `wrong +POST /healthz +405: another program answers there`},
		{"out of order", answers(200, "ok"), answers(502, ""), `wrong +POST /healthz +502: it was not verified`},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(receiver(row.get, row.post))
			defer server.Close()
			out, _ := doctor(t, nil, "-to", server.URL)
			wants(t, out, `ok +dns +127.0.0.1 is 127.0.0.1$`, row.says)
		})
	}
}

func TestDoctorSignsForTheURLGiven(t *testing.T) {
	t.Parallel()
	var server *httptest.Server
	server = httptest.NewServer(receiver(func(http.ResponseWriter, *http.Request) {}, func(w http.ResponseWriter, r *http.Request) {
		_, payload := claims(t, r.Header.Get("Upstash-Signature"), currentKey)
		body, _ := io.ReadAll(r.Body)
		var says struct{ Body, Sub string }
		if err := json.Unmarshal([]byte(payload), &says); err != nil || says.Sub != server.URL+"/healthz" || says.Body != hashOf(string(body)) {
			t.Errorf("it sends %s with %s", payload, body)
		}
		if r.Header.Get("Authorization") != "Bearer s3cret" {
			t.Errorf("it sends %q", r.Header)
		}
		io.WriteString(w, `{"verified":true,"key":"current"}`)
	}))
	defer server.Close()
	out, err := doctor(t, env{"BEARER_TOKEN": "s3cret", "RECEIVER_URL": "https://elsewhere.example"}, "-to", server.URL+"/orders?x")
	if err != nil {
		t.Error(out)
	}
	// Without a pair, the key is fetched.
	out, err = doctor(t, env{"BEARER_TOKEN": "s3cret", "QSTASH_CURRENT_SIGNING_KEY": "", "QSTASH_NEXT_SIGNING_KEY": "",
		"QSTASH_TOKEN": apiToken, "QSTASH_URL": inForce.start(t)}, "-to", server.URL)
	if err != nil {
		t.Error(out)
	}
}

func TestDoctorOfTheNetwork(t *testing.T) {
	t.Parallel()
	secure := httptest.NewUnstartedServer(receiver(func(http.ResponseWriter, *http.Request) {}, func(http.ResponseWriter, *http.Request) {}))
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that fail
	secure.StartTLS()
	defer secure.Close()
	for _, row := range []struct{ sentence, to, says string }{
		{"a host without an address", "https://no-such-host.invalid", `wrong +dns +no-such-host.invalid has no address`},
		{"a certificate that is nobody's", secure.URL, `wrong +tls +the certificate is refused`},
		{"a port with nothing behind it", "https://127.0.0.1:1", `wrong +tls +no connection: .*connection refused`},
		{"the same without TLS", "http://127.0.0.1:1", `wrong +GET /healthz +no answer: .*connection refused`},
	} {
		t.Log(row.sentence)
		out, _ := doctor(t, nil, "-to", row.to)
		wants(t, out, row.says)
	}
	out, _ := doctor(t, env{"QSTASH_CURRENT_SIGNING_KEY": "", "QSTASH_NEXT_SIGNING_KEY": ""}, "-to", "https://127.0.0.1:1")
	wants(t, out, `wrong +settings`, `wrong +tls`)
}

func TestDoctorRefuses(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-x"}, {"https://app.example"}, {"-to", "app.example"}, {"-to", "https://me:hunter2@app.example"}, {"-to"}} {
		var out bytes.Buffer
		err := Doctor(t.Context(), args, env{}.getenv, &out)
		if !errors.As(err, new(UsageError)) || out.Len() > 0 || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v, having said %q", args, err, &out)
		}
	}
	var out bytes.Buffer
	if err := Doctor(t.Context(), []string{"-h"}, env{}.getenv, &out); err != nil || !strings.HasPrefix(out.String(), "receiver doctor checks") {
		t.Errorf("-h prints %q, %v", &out, err)
	}
}
