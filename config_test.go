package main

import (
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// settings are an environment that has a whole key pair unless it says otherwise.
type settings map[string]string

func (s settings) getenv(name string) string {
	pair := map[string]string{"QSTASH_CURRENT_SIGNING_KEY": currentKey, "QSTASH_NEXT_SIGNING_KEY": nextKey}
	if value, ok := s[name]; ok {
		return value
	}
	return pair[name]
}

func TestRightSettings(t *testing.T) {
	t.Parallel()
	keys := func(namesAndSecrets ...string) func(*config) {
		return func(c *config) {
			c.keys = nil
			for i := 0; i < len(namesAndSecrets); i += 2 {
				c.keys = append(c.keys, signingKey{name: namesAndSecrets[i], secret: []byte(namesAndSecrets[i+1])})
			}
		}
	}
	urls := func(urls ...string) func(*config) { return func(c *config) { c.origins = urls } }
	noPair := settings{"QSTASH_CURRENT_SIGNING_KEY": "", "QSTASH_NEXT_SIGNING_KEY": " "}
	and := func(a, b settings) settings { c := maps.Clone(a); maps.Copy(c, b); return c }
	for _, row := range []struct {
		sentence string
		env      settings
		change   func(*config) // to the defaults
	}{
		{"nothing but the keys", settings{}, func(*config) {}},
		{"blank settings are unset", settings{
			"PORT": " ", "QSTASH_DEV": "\t", "RECEIVER_URL": " ", "CLOCK_TOLERANCE": "\n", "BEARER_TOKEN": "  ", "MAX_BODY_BYTES": " ",
			"STORE_URL": " ", "STORE_TTL": " ", "FORWARD_URL": "\n", "METRICS_PORT": " ",
			"HANDLER_TIMEOUT": " ", "LOG_LEVEL": " ", "US_EAST_1_QSTASH_CURRENT_SIGNING_KEY": " ",
		}, func(*config) {}},
		{"white space around them", settings{
			"QSTASH_CURRENT_SIGNING_KEY": " " + currentKey + "\r\n", "QSTASH_NEXT_SIGNING_KEY": "\t" + nextKey + "\n", "PORT": " 80 ",
			"BEARER_TOKEN": " s3cret\n", "RECEIVER_URL": " https://a.example , https://b.example ", "HANDLER_TIMEOUT": " 1m ",
		}, func(c *config) {
			c.port, c.bearer, c.origins, c.handlerTimeout = 80, "s3cret", []string{"https://a.example", "https://b.example"}, time.Minute
		}},
		{"every other one set", settings{
			"PORT": "3000", "CLOCK_TOLERANCE": "1m30s", "BEARER_TOKEN": "s3cret", "MAX_BODY_BYTES": "1000", "HANDLER_TIMEOUT": "10m", "LOG_LEVEL": "warn",
		}, func(c *config) {
			c.port, c.tolerance, c.bearer, c.maxBody, c.handlerTimeout, c.logLevel = 3000, 90*time.Second, "s3cret", 1000, 10*time.Minute, slog.LevelWarn
		}},
		{"a level in upper case", settings{"LOG_LEVEL": "DEBUG"}, func(c *config) { c.logLevel = slog.LevelDebug }},
		{"a store, a service and metrics", settings{
			"STORE_URL": "receiver.db", "STORE_TTL": "1h", "FORWARD_URL": "http://app.internal:3000/base/", "METRICS_PORT": "9000",
		}, func(c *config) {
			c.store, c.storeTTL, c.metricsPort = storeURL{kind: "sqlite", path: "receiver.db"}, time.Hour, 9000
			c.forward = &url.URL{Scheme: "http", Host: "app.internal:3000", Path: "/base/"}
		}},
		{"no metrics on Fly", settings{"FLY_APP_NAME": "app", "METRICS_PORT": "0"}, func(c *config) {
			c.flyApp, c.origins, c.metricsPort = "app", []string{"https://app.fly.dev"}, 0
		}},
		{"any free port", settings{"PORT": "0"}, func(c *config) { c.port = 0 }},
		{"the largest body", settings{"MAX_BODY_BYTES": "67108864"}, func(c *config) { c.maxBody = 64 << 20 }},

		{"a regional pair beside the ordinary one", settings{"EU_CENTRAL_1_QSTASH_CURRENT_SIGNING_KEY": euCurrent, "EU_CENTRAL_1_QSTASH_NEXT_SIGNING_KEY": euNext},
			keys("current", currentKey, "current", euCurrent, "next", nextKey, "next", euNext)},
		{"regional pairs alone", and(noPair, settings{
			"EU_CENTRAL_1_QSTASH_CURRENT_SIGNING_KEY": euCurrent, "EU_CENTRAL_1_QSTASH_NEXT_SIGNING_KEY": euNext,
			"US_EAST_1_QSTASH_CURRENT_SIGNING_KEY": "sig_us1", "US_EAST_1_QSTASH_NEXT_SIGNING_KEY": "sig_us2",
		}), keys("current", euCurrent, "current", "sig_us1", "next", euNext, "next", "sig_us2")},
		{"one regional pair alone, on Fly", and(noPair, settings{
			"US_EAST_1_QSTASH_CURRENT_SIGNING_KEY": "sig_us1", "US_EAST_1_QSTASH_NEXT_SIGNING_KEY": "sig_us2", "FLY_APP_NAME": "app",
		}), func(c *config) {
			keys("current", "sig_us1", "next", "sig_us2")(c)
			c.flyApp, c.origins = "app", []string{"https://app.fly.dev"}
		}},

		{"QSTASH_DEV true", settings{"QSTASH_DEV": "true"}, func(c *config) {
			keys("current", currentKey, "current", devCurrentKey, "next", nextKey, "next", devNextKey)(c)
			c.dev = true
		}},
		{"QSTASH_DEV 1, no other keys", and(noPair, settings{"QSTASH_DEV": "1"}), func(c *config) {
			keys("current", "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r", "next", "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs")(c)
			c.dev = true
		}},
		{"QSTASH_DEV false", settings{"QSTASH_DEV": "false"}, func(*config) {}},
		{"QSTASH_DEV 0", settings{"QSTASH_DEV": "0"}, func(*config) {}},
		{"the published keys as ordinary ones, not on Fly", settings{"QSTASH_CURRENT_SIGNING_KEY": devCurrentKey, "QSTASH_NEXT_SIGNING_KEY": devNextKey},
			keys("current", devCurrentKey, "next", devNextKey)},

		{"Fly names the URL", settings{"FLY_APP_NAME": "app"}, func(c *config) { c.flyApp, c.origins = "app", []string{"https://app.fly.dev"} }},
		{"RECEIVER_URL on Fly is in place of Fly's", settings{"FLY_APP_NAME": "app", "RECEIVER_URL": "https://example.com"},
			func(c *config) { c.flyApp, c.origins = "app", []string{"https://example.com"} }},
		{"a trailing slash", settings{"RECEIVER_URL": "https://app.fly.dev/"}, urls("https://app.fly.dev")},
		{"two URLs", settings{"RECEIVER_URL": "https://app.fly.dev,http://app.internal:3000/"}, urls("https://app.fly.dev", "http://app.internal:3000")},
		{"upper case", settings{"RECEIVER_URL": "HTTPS://App.Fly.Dev"}, urls("https://app.fly.dev")},
		{"the default ports", settings{"RECEIVER_URL": "https://a.example:443, http://b.example:80, https://[::1]:443"},
			urls("https://a.example", "http://b.example", "https://[::1]")},
		{"ports that are another scheme's default", settings{"RECEIVER_URL": "https://a.example:80, http://b.example:443"},
			urls("https://a.example:80", "http://b.example:443")},
		{"an empty port", settings{"RECEIVER_URL": "https://a.example:"}, urls("https://a.example")},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			want := config{port: 8080, maxBody: 10 << 20, handlerTimeout: 45 * time.Second, store: storeURL{kind: "memory"}, storeTTL: 72 * time.Hour}
			if row.env["FLY_APP_NAME"] != "" {
				want.metricsPort = 9091
			}
			keys("current", currentKey, "next", nextKey)(&want)
			row.change(&want)
			got, err := loadConfig(row.env.getenv)
			if err != nil {
				t.Fatal(err)
			}
			if inWords(got) != inWords(want) {
				t.Errorf("got  %s\nwant %s", inWords(got), inWords(want))
			}
		})
	}
}

// inWords is all of c, but for the regions of its keys, which TestRolledKeysAreLoggedOnce is about.
func inWords(c config) string {
	var keys []string
	for _, key := range c.keys {
		keys = append(keys, key.name+" "+string(key.secret))
	}
	return fmt.Sprintf("port %d keys %q dev %v origins %q tolerance %s bearer %q body %d timeout %s store %s %q ttl %s forward %v metrics %d level %s fly %q",
		c.port, keys, c.dev, c.origins, c.tolerance, c.bearer, c.maxBody, c.handlerTimeout, c.store.kind, c.store.path, c.storeTTL, c.forward,
		c.metricsPort, c.logLevel, c.flyApp)
}

func TestWrongSettings(t *testing.T) {
	in := func(region, text string) string { return strings.ReplaceAll(text, " QSTASH_", " "+region+"QSTASH_") }
	t.Parallel()
	const (
		fix       = "copy both keys from the Upstash console (QStash, Signing Keys) and set them in one command: flyctl secrets set QSTASH_CURRENT_SIGNING_KEY=sig_... QSTASH_NEXT_SIGNING_KEY=sig_..."
		published = ": this is the published development key, with which anyone can sign; " + fix
		noPair    = "QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY: not set; " + fix + " (on your own machine, QSTASH_DEV=true uses the keys of QStash's local server)"
		likeThis  = "write it like https://host or http://host:port"
		current   = "QSTASH_CURRENT_SIGNING_KEY"
		next      = "QSTASH_NEXT_SIGNING_KEY"
	)
	for _, row := range []struct {
		sentence string
		env      settings
		wrong    []string // the error's lines
	}{
		{"no keys", settings{current: "", next: ""}, []string{noPair}},
		{"blank keys", settings{current: " ", next: "\n"}, []string{noPair}},
		{"no current key", settings{current: ""}, []string{current + ": not set, but " + next + " is; " + fix}},
		{"no next key", settings{next: ""}, []string{next + ": not set, but " + current + " is; " + fix}},
		{"half a regional pair beside a whole one", settings{"EU_CENTRAL_1_" + current: euCurrent},
			[]string{"EU_CENTRAL_1_" + next + ": not set, but EU_CENTRAL_1_" + current + " is; " + in("EU_CENTRAL_1_", fix)}},
		{"two halves of different pairs", settings{next: "", "US_EAST_1_" + next: euNext}, []string{
			next + ": not set, but " + current + " is; " + fix,
			"US_EAST_1_" + current + ": not set, but US_EAST_1_" + next + " is; " + in("US_EAST_1_", fix),
		}},
		{"half a pair with QSTASH_DEV", settings{next: "", "QSTASH_DEV": "true"}, []string{next + ": not set, but " + current + " is; " + fix}},

		{"QSTASH_DEV on Fly", settings{"QSTASH_DEV": "true", "FLY_APP_NAME": "app"},
			[]string{`QSTASH_DEV: refused on Fly (FLY_APP_NAME is "app"): anyone can sign with the development keys; unset it and ` + fix}},
		{"QSTASH_DEV alone on Fly", settings{current: "", next: "", "QSTASH_DEV": "1", "FLY_APP_NAME": "app"},
			[]string{`QSTASH_DEV: refused on Fly (FLY_APP_NAME is "app"): anyone can sign with the development keys; unset it and ` + fix}},
		{"QSTASH_DEV of another word", settings{"QSTASH_DEV": "yes"}, []string{`QSTASH_DEV: "yes" is none of true, 1, false, 0`}},
		{"the published keys on Fly", settings{current: devCurrentKey, next: devNextKey, "FLY_APP_NAME": "app"}, []string{current + published, next + published}},
		{"the published keys on Fly, swapped", settings{current: devNextKey, next: devCurrentKey, "FLY_APP_NAME": "app"}, []string{current + published, next + published}},
		{"a published next key on Fly", settings{next: devNextKey + "\n", "FLY_APP_NAME": "app"}, []string{next + published}},
		{"published regional keys on Fly", settings{"US_EAST_1_" + current: devCurrentKey, "US_EAST_1_" + next: euNext, "FLY_APP_NAME": "app"},
			[]string{"US_EAST_1_" + current + in("US_EAST_1_", published)}},

		{"a path", settings{"RECEIVER_URL": "https://app.fly.dev/hook"}, []string{`RECEIVER_URL: "https://app.fly.dev/hook" has a path; give the origin alone: https://app.fly.dev`}},
		{"a query", settings{"RECEIVER_URL": "https://app.fly.dev?x=1"}, []string{`RECEIVER_URL: https://app.fly.dev has a query or a fragment behind it; give it without`}},
		{"an empty query", settings{"RECEIVER_URL": "https://app.fly.dev/?"}, []string{`RECEIVER_URL: https://app.fly.dev has a query or a fragment behind it; give it without`}},
		{"a fragment", settings{"RECEIVER_URL": "https://app.fly.dev#x"}, []string{`RECEIVER_URL: https://app.fly.dev has a query or a fragment behind it; give it without`}},
		{"a login", settings{"RECEIVER_URL": "https://me:hunter2@app.fly.dev"}, []string{`RECEIVER_URL: https://app.fly.dev has a login before it; give it without`}},
		{"no scheme", settings{"RECEIVER_URL": "app.fly.dev"}, []string{`RECEIVER_URL: not an http or https URL; ` + likeThis}},
		{"another scheme", settings{"RECEIVER_URL": "ftp://app.fly.dev"}, []string{`RECEIVER_URL: not an http or https URL; ` + likeThis}},
		{"no host", settings{"RECEIVER_URL": "https://:8080"}, []string{`RECEIVER_URL: not an http or https URL; ` + likeThis}},
		{"a login without a scheme", settings{"RECEIVER_URL": "me:hunter2@app.fly.dev"}, []string{"RECEIVER_URL: not an http or https URL; " + likeThis}},
		{"junk with a password", settings{"RECEIVER_URL": "https://me:hunter2@app.fly.dev:x"}, []string{"RECEIVER_URL: not a URL; " + likeThis}},
		{"an empty item, and a wrong one after it", settings{"RECEIVER_URL": "https://app.fly.dev,,https://b.example/b"}, []string{
			`RECEIVER_URL: not an http or https URL; ` + likeThis,
			`RECEIVER_URL: "https://b.example/b" has a path; give the origin alone: https://b.example`,
		}},

		{"a port of text", settings{"PORT": "http"}, []string{`PORT: "http" is not a whole number from 0 to 65535`}},
		{"a port too high", settings{"PORT": "65536"}, []string{`PORT: "65536" is not a whole number from 0 to 65535`}},
		{"a port below 0", settings{"PORT": "-1"}, []string{`PORT: "-1" is not a whole number from 0 to 65535`}},
		{"no bytes at all", settings{"MAX_BODY_BYTES": "0"}, []string{`MAX_BODY_BYTES: "0" is not a whole number from 1 to 67108864`}},
		{"more bytes than all bodies may have", settings{"MAX_BODY_BYTES": "67108865"}, []string{`MAX_BODY_BYTES: "67108865" is not a whole number from 1 to 67108864`}},
		{"bytes with a unit", settings{"MAX_BODY_BYTES": "10MB"}, []string{`MAX_BODY_BYTES: "10MB" is not a whole number from 1 to 67108864`}},
		{"a timeout without a unit", settings{"HANDLER_TIMEOUT": "45"}, []string{`HANDLER_TIMEOUT: "45" is not a duration from 1ms to 8760h0m0s; write it like 45s, 1m30s or 72h`}},
		{"a timeout of nothing", settings{"HANDLER_TIMEOUT": "0s"}, []string{`HANDLER_TIMEOUT: "0s" is not a duration from 1ms to 8760h0m0s; write it like 45s, 1m30s or 72h`}},
		{"a timeout of centuries", settings{"HANDLER_TIMEOUT": "2562047h"}, []string{`HANDLER_TIMEOUT: "2562047h" is not a duration from 1ms to 8760h0m0s; write it like 45s, 1m30s or 72h`}},
		{"a tolerance below 0", settings{"CLOCK_TOLERANCE": "-1s"}, []string{`CLOCK_TOLERANCE: "-1s" is not a duration from 0s to 8760h0m0s; write it like 45s, 1m30s or 72h`}},
		{"a level of no name", settings{"LOG_LEVEL": "loud"}, []string{`LOG_LEVEL: "loud" is none of debug, info, warn, error`}},

		{"a bearer token with its scheme", settings{"BEARER_TOKEN": "bearer s3cret"}, []string{`BEARER_TOKEN: it starts with Bearer; give what follows alone`}},
		{"a store of another kind", settings{"STORE_URL": "postgres://me:hunter2@h/db"}, []string{
			`STORE_URL: it starts with "postgres"; give memory:, a file path like /data/receiver.db, or a URL like rediss://default:password@host:6379`,
		}},
		{"a store's directory that is not there", settings{"STORE_URL": "/none/receiver.db"}, []string{
			`STORE_URL: the directory of "/none/receiver.db": stat /none: no such file or directory; make it, or mount the volume there`,
		}},
		{"a Redis URL with a wrong port", settings{"STORE_URL": "redis://:hunter2@h:x"}, []string{
			`STORE_URL: not a Redis URL; write it like rediss://default:password@host:6379, with / ? # % in the password as %2F %3F %23 %25`,
		}},
		{"remembering for no time", settings{"STORE_TTL": "0s"}, []string{`STORE_TTL: "0s" is not a duration from 1ms to 8760h0m0s; write it like 45s, 1m30s or 72h`}},
		{"a port too high for a URL", settings{"RECEIVER_URL": "https://app.fly.dev:65536"}, []string{`RECEIVER_URL: https://app.fly.dev:65536 has no port of a network; give one up to 65535`}},
		{"a user name that is a secret", settings{"RECEIVER_URL": "https://hunter2@app.fly.dev"}, []string{`RECEIVER_URL: https://app.fly.dev has a login before it; give it without`}},
		{"a service with a query", settings{"FORWARD_URL": "http://app.internal/?hunter2"}, []string{`FORWARD_URL: http://app.internal has a query or a fragment behind it; give it without`}},
		{"a service with a login", settings{"FORWARD_URL": "http://me:hunter2@app.internal"}, []string{`FORWARD_URL: http://app.internal has a login before it; give it without`}},
		{"the metrics on the public port", settings{"METRICS_PORT": "8080"}, []string{`METRICS_PORT: it is 8080 like PORT; the metrics need a port of their own`}},
		{"a metrics port too high", settings{"METRICS_PORT": "65536"}, []string{`METRICS_PORT: "65536" is not a whole number from 0 to 65535`}},

		{"several at once", settings{current: "", "PORT": "x", "BEARER_TOKEN": "s3cret", "RECEIVER_URL": "/", "HANDLER_TIMEOUT": "x", "LOG_LEVEL": "x"}, []string{
			`PORT: "x" is not a whole number from 0 to 65535`,
			current + ": not set, but " + next + " is; " + fix,
			`RECEIVER_URL: not an http or https URL; ` + likeThis,
			`HANDLER_TIMEOUT: "x" is not a duration from 1ms to 8760h0m0s; write it like 45s, 1m30s or 72h`,
			`LOG_LEVEL: "x" is none of debug, info, warn, error`,
		}},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			_, err := loadConfig(row.env.getenv)
			if err == nil {
				t.Fatal("it is taken")
			}
			want := fmt.Sprintf("the environment has %d wrong setting(s):\n%s", len(row.wrong), strings.Join(row.wrong, "\n"))
			if err.Error() != want {
				t.Errorf("got  %s\nwant %s", err, want)
			}
			for _, secret := range []string{currentKey, nextKey, euCurrent, euNext, devCurrentKey, devNextKey, "s3cret", "hunter2"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%q tells a secret", err)
				}
			}
		})
	}
}

func TestEverySettingIsExplained(t *testing.T) {
	t.Parallel()
	var code []byte
	for _, file := range []string{"config.go", "environment.go"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		code = append(code, text...)
	}
	defaults := map[string]string{}
	for _, m := range regexp.MustCompile(`"([A-Z][A-Z0-9_]*[A-Z])"`).FindAllSubmatch(code, -1) {
		defaults[string(m[1])] = ""
	}
	for _, m := range regexp.MustCompile(`e\.(?:get|token|integer|duration|oneOf|originList)\("([A-Z_]+)", "([^"]+)"`).FindAllSubmatch(code, -1) {
		defaults[string(m[1])] = string(m[2])
	}
	if _, ok := defaults["QSTASH_NEXT_SIGNING_KEY"]; !ok || defaults["PORT"] != "8080" || defaults["HANDLER_TIMEOUT"] != "45s" {
		t.Fatalf("the code was not understood: %q", defaults)
	}
	t.Run("in -h", func(t *testing.T) {
		t.Parallel()
		// A setting's lines: its own, and those indented below it.
		entries := map[string]string{}
		for _, m := range regexp.MustCompile(`(?m)^\s+([A-Z][A-Z0-9_]+\b)(.*(?:\n\s{20,}\S.*)*)`).FindAllStringSubmatch(help(), -1) {
			entries[m[1]] = m[2]
		}
		for name, def := range defaults {
			entry, ok := entries[name]
			if !ok && !strings.Contains(help(), name) {
				t.Errorf("%s is not in it", name)
			} else if ok && def != "" && !strings.Contains(entry, "("+def) {
				t.Errorf("%s: its default, %s, is not in %q", name, def, entry)
			}
		}
	})
	t.Run("in README.md", func(t *testing.T) {
		t.Parallel()
		readme, err := os.ReadFile("README.md")
		if err != nil {
			t.Fatal(err)
		}
		for name, def := range defaults {
			mention := regexp.MustCompile(`(?m)^.*\b`+name+`\b.*$`).FindAllString(string(readme), -1)
			if len(mention) == 0 {
				t.Errorf("%s is not in it", name)
			} else if !strings.Contains(strings.Join(mention, "\n"), def) {
				t.Errorf("%s: its default, %s, is in no line with it", name, def)
			}
		}
	})
}

func TestStartsOnlyWithRightSettings(t *testing.T) {
	t.Parallel()
	err := run(t.Context(), nil, settings{"PORT": "x"}.getenv, nil, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "PORT") {
		t.Errorf("run says %v", err)
	}
}
