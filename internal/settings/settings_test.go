package settings

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"qstash-receiver/internal/deliver"
	"qstash-receiver/internal/signing"
)

const (
	currentKey = "sig_TestCurrent1234567890abcdef"
	nextKey    = "sig_TestNext1234567890abcdefghi"
	euCurrent  = "sig_EuCurrent1234567890abcdefgh"
	euNext     = "sig_EuNext1234567890abcdefghijk"
	usCurrent  = "sig_UsCurrent1234567890abcdefgh"
	usNext     = "sig_UsNext1234567890abcdefghijk"
	token      = "eyJVc2VySUQiOiJtZSIsIlBhc3N3b3JkIjoiaHVudGVyMiJ9"
)

// env is an environment that has a whole key pair unless it says otherwise.
type env map[string]string

func (e env) getenv(name string) string {
	pair := map[string]string{"QSTASH_CURRENT_SIGNING_KEY": currentKey, "QSTASH_NEXT_SIGNING_KEY": nextKey}
	if value, ok := e[name]; ok {
		return value
	}
	return pair[name]
}

func (e env) and(more env) env {
	both := maps.Clone(e)
	maps.Copy(both, more)
	return both
}

var noPair = env{"QSTASH_CURRENT_SIGNING_KEY": "", "QSTASH_NEXT_SIGNING_KEY": " "}

func TestRightSettings(t *testing.T) {
	t.Parallel()
	pairs := func(secretsAndRegions ...string) func(*Settings) {
		return func(s *Settings) {
			s.Keys = nil
			for _, name := range []string{"current", "next"} {
				for i := 0; i < len(secretsAndRegions); i += 3 {
					secret := secretsAndRegions[i]
					if name == "next" {
						secret = secretsAndRegions[i+1]
					}
					s.Keys = append(s.Keys, signing.NewKey(name, secretsAndRegions[i+2], secret))
				}
			}
		}
	}
	urls := func(urls ...string) func(*Settings) { return func(s *Settings) { s.Origins = urls } }
	forward := func(text string) func(*Settings) {
		return func(s *Settings) { s.Forward, _ = url.Parse(text) }
	}
	store := func(kind string) func(*Settings) { return func(s *Settings) { s.Store.Kind = kind } }
	onFly := func(s *Settings) {
		s.OnFly, s.Deployed, s.Origins, s.MetricsPort = true, "FLY_APP_NAME", []string{"https://app.fly.dev"}, 9091
	}
	deployed := func(name string, urls ...string) func(*Settings) {
		return func(s *Settings) { s.Deployed, s.Origins = name, urls }
	}
	for _, row := range []struct {
		sentence string
		env      env
		change   func(*Settings) // to the defaults
	}{
		{"nothing but the keys", env{}, func(*Settings) {}},
		{"blank settings are unset", env{
			"PORT": " ", "QSTASH_DEV": "\t", "RECEIVER_URL": " ", "CLOCK_TOLERANCE": "\n", "BEARER_TOKEN": "  ", "MAX_BODY_BYTES": " ",
			"STORE_URL": " ", "STORE_TTL": " ", "FORWARD_URL": "\n", "METRICS_PORT": " ", "DEDUPE_KEY": " ", "QSTASH_TOKEN": " ", "QSTASH_URL": " ",
			"HANDLER_TIMEOUT": " ", "LOG_LEVEL": " ", "LOG_FORMAT": " ", "US_EAST_1_QSTASH_CURRENT_SIGNING_KEY": " ", "FLY_APP_NAME": " ",
		}, func(*Settings) {}},
		{"white space around them", env{
			"QSTASH_CURRENT_SIGNING_KEY": " " + currentKey + "\r\n", "QSTASH_NEXT_SIGNING_KEY": "\t" + nextKey + "\u00a0", "PORT": " 80 ",
			"BEARER_TOKEN": " s3cret\n", "RECEIVER_URL": " https://a.example , https://b.example ", "HANDLER_TIMEOUT": " 1m ",
		}, func(s *Settings) {
			s.Port, s.Bearer, s.Origins, s.HandlerTimeout = 80, "s3cret", []string{"https://a.example", "https://b.example"}, time.Minute
		}},
		{"every other one set", env{
			"PORT": "3000", "CLOCK_TOLERANCE": "1m30s", "BEARER_TOKEN": "s3cret", "MAX_BODY_BYTES": "1000", "HANDLER_TIMEOUT": "10m", "LOG_LEVEL": "warn",
			"STORE_TTL": "1h", "METRICS_PORT": "9000", "DEDUPE_KEY": "/order/id", "LOG_FORMAT": "Text",
		}, func(s *Settings) {
			s.Port, s.Tolerance, s.Bearer, s.MaxBody, s.HandlerTimeout, s.LogLevel = 3000, 90*time.Second, "s3cret", 1000, 10*time.Minute, slog.LevelWarn
			s.StoreTTL, s.MetricsPort, s.Dedupe, s.LogText = time.Hour, 9000, deliver.Pointer{"order", "id"}, true
		}},
		{"a level in upper case", env{"LOG_LEVEL": "DEBUG"}, func(s *Settings) { s.LogLevel = slog.LevelDebug }},
		{"no metrics on Fly", env{"FLY_APP_NAME": "app", "METRICS_PORT": "0"}, func(s *Settings) { onFly(s); s.MetricsPort = 0 }},
		{"any free port", env{"PORT": "0"}, func(s *Settings) { s.Port = 0 }},
		{"the largest body", env{"MAX_BODY_BYTES": "67108864"}, func(s *Settings) { s.MaxBody = 64 << 20 }},
		{"the empty name in a pointer", env{"DEDUPE_KEY": "/"}, func(s *Settings) { s.Dedupe = deliver.Pointer{""} }},

		{"a SQLite file", env{"STORE_URL": "receiver.db"}, store("sqlite")},
		{"a SQLite file with a colon in its name", env{"STORE_URL": "./a:b@c"}, store("sqlite")},
		{"a Redis", env{"STORE_URL": "redis://:hunter2@h:6379"}, store("redis")},
		{"a Redis with TLS", env{"STORE_URL": "rediss://:hunter2@h:6379"}, store("redis")},
		{"a Postgres", env{"STORE_URL": "postgres://me:hunter2@h/db"}, store("postgres")},
		{"a Postgres by its other name", env{"STORE_URL": "postgresql://me:hunter2@h/db"}, store("postgres")},

		{"a regional pair beside the ordinary one", env{"EU_CENTRAL_1_QSTASH_CURRENT_SIGNING_KEY": euCurrent, "EU_CENTRAL_1_QSTASH_NEXT_SIGNING_KEY": euNext},
			pairs(currentKey, nextKey, "", euCurrent, euNext, "EU_CENTRAL_1_")},
		{"regional pairs alone", noPair.and(env{
			"EU_CENTRAL_1_QSTASH_CURRENT_SIGNING_KEY": euCurrent, "EU_CENTRAL_1_QSTASH_NEXT_SIGNING_KEY": euNext,
			"US_EAST_1_QSTASH_CURRENT_SIGNING_KEY": usCurrent, "US_EAST_1_QSTASH_NEXT_SIGNING_KEY": usNext,
		}), pairs(euCurrent, euNext, "EU_CENTRAL_1_", usCurrent, usNext, "US_EAST_1_")},
		{"a token alone", noPair.and(env{"QSTASH_TOKEN": token}), func(s *Settings) { s.Keys = nil }},
		{"a regional token beside the ordinary pair", env{"US_EAST_1_QSTASH_TOKEN": token}, func(*Settings) {}},

		{"QSTASH_DEV true", env{"QSTASH_DEV": "true"}, func(s *Settings) {
			pairs(currentKey, nextKey, "", signing.DevCurrent, signing.DevNext, signing.DevRegion)(s)
			s.Dev = true
		}},
		{"QSTASH_DEV 1, no other keys", noPair.and(env{"QSTASH_DEV": "1"}), func(s *Settings) {
			pairs("sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r", "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs", signing.DevRegion)(s)
			s.Dev = true
		}},
		{"QSTASH_DEV beside a URL of one's own machine", env{"QSTASH_DEV": "1", "RECEIVER_URL": "http://localhost:8080"}, func(s *Settings) {
			pairs(currentKey, nextKey, "", signing.DevCurrent, signing.DevNext, signing.DevRegion)(s)
			s.Dev, s.Origins = true, []string{"http://localhost:8080"}
		}},
		{"QSTASH_DEV false, deployed", env{"QSTASH_DEV": "false", "DYNO": "web.1"}, deployed("DYNO")},
		{"QSTASH_DEV 0", env{"QSTASH_DEV": "0"}, func(*Settings) {}},

		{"Fly names the URL", env{"FLY_APP_NAME": "app"}, onFly},
		{"Render names the URL", env{"RENDER": "true", "RENDER_EXTERNAL_URL": "https://app.onrender.com"}, deployed("RENDER", "https://app.onrender.com")},
		{"Railway names the URL", env{"RAILWAY_ENVIRONMENT": "production", "RAILWAY_PUBLIC_DOMAIN": "app.up.railway.app"},
			deployed("RAILWAY_ENVIRONMENT", "https://app.up.railway.app")},
		{"Cloud Run names none", env{"K_SERVICE": "app"}, deployed("K_SERVICE")},
		{"Kubernetes names none", env{"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, deployed("KUBERNETES_SERVICE_HOST")},
		{"Lambda names none yet", env{"AWS_LAMBDA_FUNCTION_NAME": "f"}, deployed("AWS_LAMBDA_FUNCTION_NAME")},
		{"RECEIVER_URL on Fly is in place of Fly's", env{"FLY_APP_NAME": "app", "RECEIVER_URL": "https://example.com"},
			func(s *Settings) { onFly(s); s.Origins = []string{"https://example.com"} }},
		{"a trailing slash", env{"RECEIVER_URL": "https://app.fly.dev/"}, urls("https://app.fly.dev")},
		{"two URLs", env{"RECEIVER_URL": "https://app.fly.dev,http://app.internal:3000/"}, urls("https://app.fly.dev", "http://app.internal:3000")},
		{"upper case", env{"RECEIVER_URL": "HTTPS://App.Fly.Dev"}, urls("https://app.fly.dev")},
		{"a letter that is not an i", env{"RECEIVER_URL": "https://w\u0130nter.fly.dev"}, urls("https://w\u0130nter.fly.dev")},
		{"the default ports", env{"RECEIVER_URL": "https://a.example:443, http://b.example:80, https://[::1]:443"},
			urls("https://a.example", "http://b.example", "https://[::1]")},
		{"ports that are another scheme's default", env{"RECEIVER_URL": "https://a.example:80, http://b.example:443"},
			urls("https://a.example:80", "http://b.example:443")},
		{"an empty port", env{"RECEIVER_URL": "https://a.example:"}, urls("https://a.example")},

		{"a service", env{"FORWARD_URL": "http://app.internal:3000"}, forward("http://app.internal:3000")},
		{"a service with a path", env{"FORWARD_URL": "http://app.internal:3000/base/"}, forward("http://app.internal:3000/base")},
		{"a service with slashes at its end", env{"FORWARD_URL": "http://h//"}, forward("http://h")},
		{"a service with an escaped slash at its end", env{"FORWARD_URL": "http://h/a%2F/"}, forward("http://h/a%2F")},
		{"a service on one's own machine", env{"FORWARD_URL": "http://localhost:8081"}, forward("http://localhost:8081")},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			want := Settings{Port: 8080, MaxBody: 10 << 20, HandlerTimeout: 45 * time.Second, Store: Store{Kind: "memory"}, StoreTTL: 72 * time.Hour}
			pairs(currentKey, nextKey, "")(&want)
			row.change(&want)
			got, err := Load(row.env.getenv, false)
			if err != nil {
				t.Fatal(err)
			}
			if inWords(got) != inWords(want) {
				t.Errorf("got  %s\nwant %s", inWords(got), inWords(want))
			}
			if !slices.EqualFunc(got.Keys, want.Keys, func(a, b signing.Key) bool { return a.Equal(b) && a.String() == b.String() }) {
				t.Errorf("got keys %v, want %v", got.Keys, want.Keys)
			}
			if text := fmt.Sprintf("%+v", got.Keys); strings.Contains(text, currentKey) {
				t.Errorf("printing the keys tells them: %s", text)
			}
		})
	}
}

// inWords is all of s but for its keys and tokens.
func inWords(s Settings) string {
	return fmt.Sprintf("port %d dev %v origins %q tolerance %s bearer %q body %d timeout %s store %s ttl %s dedupe %q forward %v metrics %d level %s text %v deployed %s fly %v",
		s.Port, s.Dev, s.Origins, s.Tolerance, s.Bearer, s.MaxBody, s.HandlerTimeout, s.Store.Kind, s.StoreTTL, s.Dedupe, s.Forward,
		s.MetricsPort, s.LogLevel, s.LogText, s.Deployed, s.OnFly)
}

func TestWrongSettings(t *testing.T) {
	t.Parallel()
	const (
		fix       = "copy both keys from the Upstash console (QStash, Signing Keys) and set them in one command: flyctl secrets set QSTASH_CURRENT_SIGNING_KEY=sig_... QSTASH_NEXT_SIGNING_KEY=sig_..."
		published = "it is a key that Upstash publishes for its local server: anyone can sign with it; "
		onYourOwn = " (on your own machine, QSTASH_DEV=true takes those of user 1)"
		noKeys    = "QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY: not set; " + fix + "; or set QSTASH_TOKEN, with which they are fetched (on your own machine, QSTASH_DEV=true uses the keys of QStash's local server)"
		form      = "; a key is sig_ and at least 20 letters and digits, as the Upstash console shows it (QStash, Signing Keys)"
		likeThis  = "write it like https://host or http://host:port"
		current   = "QSTASH_CURRENT_SIGNING_KEY"
		next      = "QSTASH_NEXT_SIGNING_KEY"
	)
	in := func(region, text string) string { return strings.ReplaceAll(text, " QSTASH_", " "+region+"QSTASH_") }
	user2 := [2]string{"sig_7GVPjvuwsfqF65iC8fSrs1dfYruM", "sig_5NoELc3EFnZn4DVS5bDs2Nk4b7Ua"}
	folder := t.TempDir()
	for _, row := range []struct {
		sentence string
		env      env
		wrong    []string // the error's lines
	}{
		{"no keys", noPair, []string{noKeys}},
		{"no current key", env{current: ""}, []string{current + ": not set, but " + next + " is; " + fix}},
		{"no next key", env{next: ""}, []string{next + ": not set, but " + current + " is; " + fix}},
		{"half a pair beside a token", env{next: "", "QSTASH_TOKEN": token}, []string{next + ": not set, but " + current + " is; " + fix}},
		{"half a regional pair beside a whole one", env{"EU_CENTRAL_1_" + current: euCurrent},
			[]string{"EU_CENTRAL_1_" + next + ": not set, but EU_CENTRAL_1_" + current + " is; " + in("EU_CENTRAL_1_", fix)}},
		{"two halves of different pairs", env{next: "", "US_EAST_1_" + next: euNext}, []string{
			next + ": not set, but " + current + " is; " + fix,
			"US_EAST_1_" + current + ": not set, but US_EAST_1_" + next + " is; " + in("US_EAST_1_", fix),
		}},
		{"half a pair with QSTASH_DEV", env{next: "", "QSTASH_DEV": "true"}, []string{next + ": not set, but " + current + " is; " + fix}},

		{"a key in quotes", env{current: `"` + currentKey + `"`}, []string{current + ": it has quotes round it; give it without" + form}},
		{"a key behind its name", env{next: next + "=" + nextKey}, []string{next + ": it has NAME= before it; give what follows alone" + form}},
		{"a token as a key", env{current: token}, []string{current + ": it looks like a token, which begins with eyJ; the signing keys stand apart from it" + form}},
		{"the guide's placeholders", env{current: "sig_...", next: "sig_..."}, []string{
			current + ": it looks like a placeholder; put the key in its place" + form, next + ": it looks like a placeholder; put the key in its place" + form,
		}},
		{"letters", env{current: "a", next: "b"}, []string{current + ": it does not begin with sig_" + form, next + ": it does not begin with sig_" + form}},
		{"keys that are too short", env{next: "sig_1234567890123456789"},
			[]string{next + ": it is too short: 19 characters behind sig_, a key has at least 20; copy all of it" + form}},
		{"a wrong regional key", env{"US_EAST_1_" + current: "a", "US_EAST_1_" + next: usNext}, []string{"US_EAST_1_" + current + ": it does not begin with sig_" + form}},
		{"the published keys", env{current: signing.DevCurrent, next: signing.DevNext},
			[]string{current + ": " + published + fix + onYourOwn, next + ": " + published + fix + onYourOwn}},
		{"the published keys, swapped, on Fly", env{current: signing.DevNext, next: signing.DevCurrent, "FLY_APP_NAME": "app"},
			[]string{current + ": " + published + fix + onYourOwn, next + ": " + published + fix + onYourOwn}},
		{"the published keys beside QSTASH_DEV", env{current: signing.DevCurrent, next: signing.DevNext, "QSTASH_DEV": "1"},
			[]string{current + ": " + published + fix + onYourOwn, next + ": " + published + fix + onYourOwn}},
		{"the published keys of another user", env{current: user2[0], next: user2[1] + "\n"},
			[]string{current + ": " + published + fix + onYourOwn, next + ": " + published + fix + onYourOwn}},
		{"published regional keys", env{"US_EAST_1_" + current: signing.DevCurrent, "US_EAST_1_" + next: usNext},
			[]string{"US_EAST_1_" + current + ": " + published + in("US_EAST_1_", fix) + onYourOwn}},

		{"a token in quotes", env{"QSTASH_TOKEN": "'" + token + "'"}, []string{"QSTASH_TOKEN: it has quotes round it; give it without"}},
		{"a token behind Bearer", env{"QSTASH_TOKEN": "Bearer " + token}, []string{"QSTASH_TOKEN: it starts with Bearer; give what follows alone"}},
		{"a token behind its name", env{"EU_CENTRAL_1_QSTASH_TOKEN": "QSTASH_TOKEN=" + token}, []string{"EU_CENTRAL_1_QSTASH_TOKEN: it has NAME= before it; give what follows alone"}},
		{"a key as the token", noPair.and(env{"QSTASH_TOKEN": currentKey}),
			[]string{"QSTASH_TOKEN: it is a signing key, which begins with sig_; copy the token from the Upstash console (QStash)"}},
		{"a placeholder as the token", env{"QSTASH_TOKEN": "<token>"}, []string{"QSTASH_TOKEN: it looks like a placeholder; copy the token from the Upstash console (QStash)"}},
		{"a token of two lines", env{"QSTASH_TOKEN": token + "\nhunter2"},
			[]string{"QSTASH_TOKEN: it has white space or another character in it that a token has not; copy the token from the Upstash console (QStash)"}},
		{"an API without TLS", env{"QSTASH_URL": "http://qstash.upstash.io"},
			[]string{"QSTASH_URL: http://qstash.upstash.io would show the token to everyone on the way; give the https URL (http is for loopback alone)"}},
		{"a regional API with a path", env{"US_EAST_1_QSTASH_URL": "https://qstash-us-east-1.upstash.io/v2"},
			[]string{`US_EAST_1_QSTASH_URL: "https://qstash-us-east-1.upstash.io/v2" has a path; give the origin alone: https://qstash-us-east-1.upstash.io`}},
		{"an API with a login", env{"QSTASH_URL": "https://me:hunter2@qstash.upstash.io"}, []string{"QSTASH_URL: https://qstash.upstash.io has a login before it; give it without"}},

		{"QSTASH_DEV of another word", env{"QSTASH_DEV": "yes"}, []string{`QSTASH_DEV: "yes" is none of true, 1, false, 0`}},
		{"QSTASH_DEV beside an https URL", env{"QSTASH_DEV": "true", "RECEIVER_URL": "http://localhost:8080, https://app.example"},
			[]string{"QSTASH_DEV: refused beside the RECEIVER_URL https://app.example, which is public: anyone can sign with the keys of the local server; unset it, or unset RECEIVER_URL"}},

		{"a path", env{"RECEIVER_URL": "https://app.fly.dev/hook"}, []string{`RECEIVER_URL: "https://app.fly.dev/hook" has a path; give the origin alone: https://app.fly.dev`}},
		{"two slashes", env{"RECEIVER_URL": "https://app.fly.dev//"}, []string{`RECEIVER_URL: "https://app.fly.dev//" has a path; give the origin alone: https://app.fly.dev`}},
		{"a query", env{"RECEIVER_URL": "https://app.fly.dev?x=1"}, []string{`RECEIVER_URL: https://app.fly.dev has a query or a fragment behind it; give it without`}},
		{"an empty query", env{"RECEIVER_URL": "https://app.fly.dev/?"}, []string{`RECEIVER_URL: https://app.fly.dev has a query or a fragment behind it; give it without`}},
		{"an empty fragment", env{"RECEIVER_URL": "https://app.fly.dev#"}, []string{`RECEIVER_URL: https://app.fly.dev has a query or a fragment behind it; give it without`}},
		{"a login", env{"RECEIVER_URL": "https://me:hunter2@app.fly.dev"}, []string{`RECEIVER_URL: https://app.fly.dev has a login before it; give it without`}},
		{"a user name that is a secret", env{"RECEIVER_URL": "https://hunter2@app.fly.dev"}, []string{`RECEIVER_URL: https://app.fly.dev has a login before it; give it without`}},
		{"no scheme", env{"RECEIVER_URL": "app.fly.dev"}, []string{`RECEIVER_URL: not an http or https URL; ` + likeThis}},
		{"another scheme", env{"RECEIVER_URL": "ftp://app.fly.dev"}, []string{`RECEIVER_URL: not an http or https URL; ` + likeThis}},
		{"no host", env{"RECEIVER_URL": "https://:8080"}, []string{`RECEIVER_URL: not an http or https URL; ` + likeThis}},
		{"a login without a scheme", env{"RECEIVER_URL": "me:hunter2@app.fly.dev"}, []string{"RECEIVER_URL: not an http or https URL; " + likeThis}},
		{"junk with a password", env{"RECEIVER_URL": "https://me:hunter2@app.fly.dev:x"}, []string{"RECEIVER_URL: not a URL; " + likeThis}},
		{"a port too high for a URL", env{"RECEIVER_URL": "https://app.fly.dev:65536"}, []string{`RECEIVER_URL: https://app.fly.dev:65536 has no port of a network; give one up to 65535`}},
		{"another separator", env{"RECEIVER_URL": "https://a.example;https://b.example"}, []string{
			"RECEIVER_URL: it has something other than commas between the origins; write it like https://a.example,https://b.example",
		}},
		{"no separator but space", env{"RECEIVER_URL": "https://a.example https://b.example"}, []string{
			"RECEIVER_URL: it has something other than commas between the origins; write it like https://a.example,https://b.example",
		}},
		{"an empty item, and a wrong one after it", env{"RECEIVER_URL": "https://app.fly.dev,,https://b.example/b"}, []string{
			`RECEIVER_URL: not an http or https URL; ` + likeThis,
			`RECEIVER_URL: "https://b.example/b" has a path; give the origin alone: https://b.example`,
		}},

		{"a port of text", env{"PORT": "http"}, []string{`PORT: "http" is not a whole number from 0 to 65535`}},
		{"a port too high", env{"PORT": "65536"}, []string{`PORT: "65536" is not a whole number from 0 to 65535`}},
		{"a port below 0", env{"PORT": "-1"}, []string{`PORT: "-1" is not a whole number from 0 to 65535`}},
		{"no bytes at all", env{"MAX_BODY_BYTES": "0"}, []string{`MAX_BODY_BYTES: "0" is not a whole number from 1 to 67108864`}},
		{"more bytes than all bodies may have", env{"MAX_BODY_BYTES": "67108865"}, []string{`MAX_BODY_BYTES: "67108865" is not a whole number from 1 to 67108864`}},
		{"bytes with a unit", env{"MAX_BODY_BYTES": "10MB"}, []string{`MAX_BODY_BYTES: "10MB" is not a whole number from 1 to 67108864`}},
		{"a time without a unit", env{"HANDLER_TIMEOUT": "45"}, []string{`HANDLER_TIMEOUT: "45" is not a duration from 1ms to 8760h0m0s; write it like 45s, 1m30s or 72h`}},
		{"no time at all", env{"HANDLER_TIMEOUT": "0s"}, []string{`HANDLER_TIMEOUT: "0s" is not a duration from 1ms to 8760h0m0s; write it like 45s, 1m30s or 72h`}},
		{"a tolerance below nothing", env{"CLOCK_TOLERANCE": "-1s"}, []string{`CLOCK_TOLERANCE: "-1s" is not a duration from 0s to 8760h0m0s; write it like 45s, 1m30s or 72h`}},
		{"remembering for no time", env{"STORE_TTL": "0s"}, []string{`STORE_TTL: "0s" is not a duration from 1ms to 8760h0m0s; write it like 45s, 1m30s or 72h`}},
		{"another level", env{"LOG_LEVEL": "trace"}, []string{`LOG_LEVEL: "trace" is none of debug, info, warn, error`}},
		{"another format", env{"LOG_FORMAT": "xml"}, []string{`LOG_FORMAT: "xml" is none of text, json`}},
		{"a bearer token behind Bearer", env{"BEARER_TOKEN": "bearer s3cret"}, []string{`BEARER_TOKEN: it starts with Bearer; give what follows alone`}},
		{"a bearer token that was forgotten", env{"BEARER_TOKEN": "Bearer "}, []string{`BEARER_TOKEN: it starts with Bearer; give what follows alone`}},
		{"a bearer token of two lines", env{"BEARER_TOKEN": "s3cret\nx"}, []string{`BEARER_TOKEN: it has a control character in it, which no header carries; copy it again`}},
		{"a name that is no pointer", env{"DEDUPE_KEY": "order.id"}, []string{`DEDUPE_KEY: a JSON pointer begins with a slash; write it like /order/id`}},
		{"a pointer with a wrong escape", env{"DEDUPE_KEY": "/a~2"}, []string{`DEDUPE_KEY: "/a~2" has a ~ that is neither ~0 (which stands for ~) nor ~1 (which stands for /)`}},

		{"a service without a scheme", env{"FORWARD_URL": "localhost:3000"}, []string{`FORWARD_URL: not an http or https URL; ` + likeThis}},
		{"nothing but slashes", env{"FORWARD_URL": "http://"}, []string{`FORWARD_URL: not an http or https URL; ` + likeThis}},
		{"a service with a query", env{"FORWARD_URL": "http://app.internal/?hunter2"}, []string{`FORWARD_URL: http://app.internal has a query or a fragment behind it; give it without`}},
		{"a service with a login", env{"FORWARD_URL": "http://me:hunter2@app.internal"}, []string{`FORWARD_URL: http://app.internal has a login before it; give it without`}},
		{"this program itself", env{"FORWARD_URL": "http://127.0.0.1:8080"}, []string{`FORWARD_URL: http://127.0.0.1:8080 is this program itself, whose PORT is 8080; give the app a port of its own`}},
		{"the metrics on the public port", env{"METRICS_PORT": "8080"}, []string{`METRICS_PORT: it is 8080 like PORT; the metrics need a port of their own`}},
		{"a metrics port too high", env{"METRICS_PORT": "65536"}, []string{`METRICS_PORT: "65536" is not a whole number from 0 to 65535`}},

		{"memory without its colon", env{"STORE_URL": "memory"}, []string{"STORE_URL: write memory: as it is here, or ./memory for a file of that name"}},
		{"SQLite's word for memory", env{"STORE_URL": ":memory:"}, []string{"STORE_URL: write memory: as it is here, or ./memory for a file of that name"}},
		{"a host and a port", env{"STORE_URL": "localhost:6379"}, []string{
			"STORE_URL: it is no URL of a store; give memory:, a file path like /data/receiver.db, or a URL like rediss://default:password@host:6379 or postgres://user:password@host/database",
		}},
		{"a file as a URL", env{"STORE_URL": "file:///data/receiver.db"}, []string{"STORE_URL: a SQLite file is given by its path alone, like /data/receiver.db"}},
		{"another database", env{"STORE_URL": "mysql://me:hunter2@h/db"}, []string{
			"STORE_URL: it is no URL of a store; give memory:, a file path like /data/receiver.db, or a URL like rediss://default:password@host:6379 or postgres://user:password@host/database",
		}},
		{"a login without a scheme, in the store", env{"STORE_URL": "hunter2@h:6379"}, []string{
			"STORE_URL: it is no URL of a store; give memory:, a file path like /data/receiver.db, or a URL like rediss://default:password@host:6379 or postgres://user:password@host/database",
		}},
		{"the REST address of a Redis", env{"STORE_URL": "https://fine-ant-1.upstash.io"},
			[]string{"STORE_URL: it is the REST address of an Upstash Redis; give its TCP address, like rediss://default:password@host:6379"}},

		{"several at once", env{current: "", "PORT": "x", "BEARER_TOKEN": "s3cret", "RECEIVER_URL": "/", "HANDLER_TIMEOUT": "x", "LOG_LEVEL": "x"}, []string{
			`PORT: "x" is not a whole number from 0 to 65535`,
			`RECEIVER_URL: not an http or https URL; ` + likeThis,
			current + ": not set, but " + next + " is; " + fix,
			`HANDLER_TIMEOUT: "x" is not a duration from 1ms to 8760h0m0s; write it like 45s, 1m30s or 72h`,
			`LOG_LEVEL: "x" is none of debug, info, warn, error`,
		}},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			_, err := Load(row.env.getenv, false)
			if err == nil {
				t.Fatal("it is taken")
			}
			want := "these settings are wrong:\n" + strings.Join(row.wrong, "\n")
			if err.Error() != want {
				t.Errorf("got  %s\nwant %s", err, want)
			}
			tellsNothing(t, err.Error())
		})
	}
	// What a store says of its own URL is that store's.
	for sentence, e := range map[string]env{
		"a Redis URL that is none":      {"STORE_URL": "redis://:hunter2@h:x"},
		"a Postgres URL that is none":   {"STORE_URL": "postgres://me:hunter2@h:x/db"},
		"a directory":                   {"STORE_URL": folder},
		"a directory that is not there": {"STORE_URL": filepath.Join(folder, "none", "receiver.db")},
	} {
		_, err := Load(e.getenv, false)
		var wrong *WrongError
		if !errors.As(err, &wrong) || len(wrong.Each) != 1 || !strings.HasPrefix(wrong.Each[0].Error(), "STORE_URL: ") {
			t.Errorf("%s: %v", sentence, err)
			continue
		}
		tellsNothing(t, err.Error())
	}
}

// tellsNothing wants text to hold none of the secrets that the tests use.
func tellsNothing(t *testing.T, text string) {
	t.Helper()
	for _, secret := range []string{currentKey, nextKey, euCurrent, euNext, usNext, signing.DevCurrent, signing.DevNext, token, "s3cret", "hunter2"} {
		if strings.Contains(text, secret) {
			t.Errorf("%q tells a secret", text)
		}
	}
}

func TestDevelopmentKeysAreRefusedWhereDeployed(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"FLY_APP_NAME", "K_SERVICE", "RENDER", "RAILWAY_ENVIRONMENT", "DYNO", "KUBERNETES_SERVICE_HOST", "AWS_LAMBDA_FUNCTION_NAME"} {
		for _, e := range []env{{"QSTASH_DEV": "true", name: "x"}, noPair.and(env{"QSTASH_DEV": "1", name: "x"})} {
			s, err := Load(e.getenv, false)
			want := "QSTASH_DEV: refused where the program is deployed (" + name + " is set): anyone can sign with the keys of the local server; unset it and copy both keys"
			if err == nil || !strings.Contains(err.Error(), "are wrong:\n"+want) || s.Dev {
				t.Errorf("%s: got %v, want %s", name, err, want)
			}
		}
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	eu := env{"EU_CENTRAL_1_QSTASH_CURRENT_SIGNING_KEY": euCurrent, "EU_CENTRAL_1_QSTASH_NEXT_SIGNING_KEY": euNext}
	for _, row := range []struct {
		sentence string
		env      env
		apis     string // where each token is shown
		fetched  string // whose keys are fetched
	}{
		{"none", env{}, "", ""},
		{"alone", noPair.and(env{"QSTASH_TOKEN": token}), "QSTASH_TOKEN https://qstash.upstash.io", "QSTASH_TOKEN"},
		{"beside its pair", env{"QSTASH_TOKEN": token}, "QSTASH_TOKEN https://qstash.upstash.io", ""},
		{"beside another region's pair", noPair.and(eu).and(env{"US_EAST_1_QSTASH_TOKEN": token}),
			"US_EAST_1_QSTASH_TOKEN https://qstash-us-east-1.upstash.io", "US_EAST_1_QSTASH_TOKEN"},
		{"in all regions", noPair.and(eu).and(env{"QSTASH_TOKEN": token, "EU_CENTRAL_1_QSTASH_TOKEN": token, "US_EAST_1_QSTASH_TOKEN": token}),
			"QSTASH_TOKEN https://qstash.upstash.io, EU_CENTRAL_1_QSTASH_TOKEN https://qstash-eu-central-1.upstash.io, US_EAST_1_QSTASH_TOKEN https://qstash-us-east-1.upstash.io",
			"QSTASH_TOKEN, US_EAST_1_QSTASH_TOKEN"},
		{"for another URL", noPair.and(env{"QSTASH_TOKEN": token, "QSTASH_URL": "https://qstash-us-east-1.upstash.io/"}),
			"QSTASH_TOKEN https://qstash-us-east-1.upstash.io", "QSTASH_TOKEN"},
		{"for one's own machine", noPair.and(env{"QSTASH_TOKEN": token, "QSTASH_URL": "http://127.0.0.1:8081", "US_EAST_1_QSTASH_URL": "http://[::1]:1"}),
			"QSTASH_TOKEN http://127.0.0.1:8081", "QSTASH_TOKEN"},
	} {
		s, err := LoadSigning(row.env.getenv)
		if err != nil {
			t.Errorf("%s: %v", row.sentence, err)
			continue
		}
		var apis, fetched []string
		for _, client := range s.APIs {
			apis = append(apis, client.TokenName()+" "+client.URL())
		}
		for _, client := range s.Fetched() {
			fetched = append(fetched, client.TokenName())
		}
		if got := strings.Join(apis, ", "); got != row.apis {
			t.Errorf("%s: shown to %s, not %s", row.sentence, got, row.apis)
		}
		if got := strings.Join(fetched, ", "); got != row.fetched {
			t.Errorf("%s: fetched with %q, not %q", row.sentence, got, row.fetched)
		}
	}
}

func TestDev(t *testing.T) {
	t.Parallel()
	const standIn = "http://127.0.0.1:8081"
	e := env{
		"QSTASH_DEV": "no", "STORE_URL": "nosuch://x", "RECEIVER_URL": "https://app.example", "QSTASH_TOKEN": "<none>", "US_EAST_1_QSTASH_CURRENT_SIGNING_KEY": "x",
		"FORWARD_URL": "http://localhost:3000", "PORT": "3001",
	}
	s, err := LoadDev(e.getenv, true, standIn)
	if err != nil {
		t.Fatal(err)
	}
	if s.Store.Kind != "memory" || len(s.Origins)+len(s.Keys) > 0 || s.Address() != "127.0.0.1:3001" || s.Forward.String() != "http://localhost:3000" || !s.LogText {
		t.Errorf("got %s, keys %v", inWords(s), s.Keys)
	}
	if fetched := s.Fetched(); len(fetched) != 1 || fetched[0].URL() != standIn || !fetched[0].TakeLocal {
		t.Errorf("the keys come from %v", fetched)
	}
	if got := fmt.Sprint(s.KeySources()); got != "[dev]" {
		t.Errorf("the keys are said to come from %s", got)
	}
	if _, err := LoadDev(env{"KUBERNETES_SERVICE_HOST": "10.0.0.1"}.getenv, true, standIn); err == nil || !strings.Contains(err.Error(), "KUBERNETES_SERVICE_HOST") {
		t.Errorf("deployed: %v", err)
	}
	if _, err := LoadDev(env{"PORT": "x"}.getenv, true, standIn); err == nil {
		t.Error("a wrong setting is taken")
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		sentence string
		env      env
		warnings []string // a piece of each
	}{
		{"the defaults", env{}, nil},
		{"one key twice", env{"QSTASH_NEXT_SIGNING_KEY": currentKey}, []string{"QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY are the same key"}},
		{"memory on Fly", env{"FLY_APP_NAME": "app"}, []string{"flyctl redis create"}},
		{"memory on Render, which names the URL", env{"RENDER": "true", "RENDER_EXTERNAL_URL": "https://app.onrender.com"}, []string{"STORE_URL is memory"}},
		{"memory and no URL on Cloud Run", env{"K_SERVICE": "app"}, []string{"STORE_URL is memory", "RECEIVER_URL is not set"}},
		{"a Redis on Fly", env{"FLY_APP_NAME": "app", "STORE_URL": "redis://h"}, nil},
	} {
		s, err := Load(row.env.getenv, false)
		if err != nil {
			t.Errorf("%s: %v", row.sentence, err)
		}
		if !slices.EqualFunc(s.Warnings, row.warnings, strings.Contains) {
			t.Errorf("%s: got %q, want %q", row.sentence, s.Warnings, row.warnings)
		}
	}
}

func TestLogFormatFollowsTheTerminal(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		set      string
		terminal bool
		text     bool
	}{
		{"", true, true}, {"", false, false}, {"json", true, false}, {"text", false, true},
	} {
		s, err := Load(env{"LOG_FORMAT": row.set}.getenv, row.terminal)
		if err != nil || s.LogText != row.text {
			t.Errorf("%q, on a terminal %v: text %v, %v", row.set, row.terminal, s.LogText, err)
		}
	}
}

func TestMetricsStayOnLoopbackOffFly(t *testing.T) {
	t.Parallel()
	for want, e := range map[string]env{
		"":               {},
		":9091":          {"FLY_APP_NAME": "app"},
		"127.0.0.1:9000": {"METRICS_PORT": "9000"},
	} {
		s, _ := Load(e.getenv, false)
		if got := s.MetricsAddress(); got != want {
			t.Errorf("%v: got %q, want %q", e, got, want)
		}
	}
}

func TestAnnounce(t *testing.T) {
	t.Parallel()
	e := env{
		"QSTASH_DEV": "1", "QSTASH_NEXT_SIGNING_KEY": currentKey, "US_EAST_1_QSTASH_TOKEN": token, "BEARER_TOKEN": "s3cret",
		"STORE_URL": "redis://:hunter2@h", "FORWARD_URL": "http://app.internal:3000/",
	}
	s, err := Load(e.getenv, false)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	s.Announce(slog.New(slog.NewJSONHandler(&log, nil)), "[::]:8080", s.Keys)
	for _, piece := range []string{
		`"msg":"receiving","address":"[::]:8080","urls":null,"store":"redis","keys":4,` +
			`"keys_from":["QSTASH_CURRENT_SIGNING_KEY","QSTASH_DEV","US_EAST_1_QSTASH_TOKEN"],"forward":"http://app.internal:3000"`,
		"are the same key", "ANYONE CAN SIGN", "RECEIVER_URL is not set",
	} {
		if !strings.Contains(log.String(), piece) {
			t.Errorf("%q is not in\n%s", piece, &log)
		}
	}
	tellsNothing(t, log.String())
}

func TestHelpExplainsEverySetting(t *testing.T) {
	t.Parallel()
	help := Help()
	for _, s := range table() {
		if !regexp.MustCompile(`(?m)^  ` + regexp.QuoteMeta(s.name) + ` +\S`).MatchString(help) {
			t.Errorf("%s is not in it", s.name)
		}
	}
	for line := range strings.Lines(help) {
		if len(line) > 101 {
			t.Errorf("%q is too long for a terminal", line)
		}
	}
	for _, piece := range []string{"receiver sign", "receiver doctor", "receiver dev", "(8080)", "(https://$FLY_APP_NAME.fly.dev on Fly, ", "(9091 on Fly, else 0)", "(text on a terminal, else json)"} {
		if !strings.Contains(strings.Join(strings.Fields(help), " "), piece) {
			t.Errorf("%q is not in\n%s", piece, help)
		}
	}
}

// The README's table of settings has a row for each, with its default.
func TestReadmeExplainsEverySetting(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	defaults := map[string]string{} // by name, as the first two columns have them
	for _, row := range regexp.MustCompile(`(?m)^\|([^|]*)\|([^|]*)\|.*\|$`).FindAllStringSubmatch(string(readme), -1) {
		for _, name := range regexp.MustCompile(`[A-Z][A-Z0-9_]{3,}`).FindAllString(row[1], -1) {
			defaults[name] = strings.ReplaceAll(row[1]+row[2], "`", "")
		}
	}
	for _, s := range table() {
		name := strings.TrimSuffix(s.name, "...") // a prefix for several
		row, ok := defaults[name]
		if !ok {
			t.Errorf("%s has no row", name)
			continue
		}
		for _, piece := range strings.Split(s.defaults(), ", ") {
			if piece = strings.TrimPrefix(piece, "else "); piece != "unset" && !strings.Contains(row, piece) {
				t.Errorf("%s: its default, %s, is not in %q", name, piece, row)
			}
		}
	}
}
