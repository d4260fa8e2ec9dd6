// Package settings reads what the program runs with from its environment, once at start.
package settings

import (
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"qstash-receiver/internal/api"
	"qstash-receiver/internal/deliver"
	"qstash-receiver/internal/signing"
)

// Settings is what the environment says. Load, LoadDev and LoadSigning are the only ways to one.
type Settings struct {
	Host           string          // of the public listener; "": all of this machine's
	Port           int             // of the public listener; 0: any free one
	Keys           []signing.Key   // those that are set: the current ones of all pairs, then the next ones
	APIs           []*api.Client   // of each region that has a token
	Dev            bool            // the published development pair is among Keys
	Origins        []string        // RECEIVER_URL, as signing.Origin returns them; none: any subject
	Tolerance      time.Duration   // for exp and nbf
	Bearer         string          // a secret; "": not asked for
	MaxBody        int64           // bytes
	HandlerTimeout time.Duration   // after which the business logic's context ends
	Store          Store           // where handled messages are remembered
	StoreTTL       time.Duration   // how long
	Dedupe         deliver.Pointer // nil: messages are known by their ids
	Forward        *url.URL        // without slashes at its end; nil: messages go to handle
	MetricsPort    int             // 0: off
	LogLevel       slog.Level      // the least that is written
	LogText        bool            // lines for people, else JSON
	Deployed       string          // the variable that says that the program is deployed; "": it is not
	OnFly          bool            // deployed on Fly.io
	Warnings       []string        // what is allowed, but hardly meant
}

// maxBody is the most that MAX_BODY_BYTES may be: all bodies together have no more.
const maxBody = 64 << 20

// Load reads every setting from getenv. Terminal says that the log goes to one. The error is a *WrongError, which never
// holds a secret; beside it, what is right is there.
func Load(getenv func(string) string, terminal bool) (Settings, error) {
	e := &environment{getenv: getenv, terminal: terminal}
	s := e.signing()
	s.MaxBody = int64(e.integer("MAX_BODY_BYTES", 1, maxBody))
	s.HandlerTimeout = e.duration("HANDLER_TIMEOUT", time.Millisecond)
	s.StoreTTL = e.duration("STORE_TTL", time.Millisecond)
	var err error
	if s.Store, err = parseStore(e.get("STORE_URL")); err != nil {
		e.wrong("STORE_URL", "%v", err)
		s.Store = Store{}
	}
	if v := e.get("DEDUPE_KEY"); v != "" {
		if s.Dedupe, err = deliver.ParsePointer(v); err != nil {
			e.wrong("DEDUPE_KEY", "%v", err)
		}
	}
	s.Forward = e.forward(s.Port)
	s.MetricsPort = e.integer("METRICS_PORT", 0, 65535)
	if s.MetricsPort != 0 && s.MetricsPort == s.Port {
		e.wrong("METRICS_PORT", "it is %d like PORT; the metrics need a port of their own", s.Port)
	}
	// Slog knows each of the four names, so this cannot fail for a right one.
	_ = s.LogLevel.UnmarshalText([]byte(e.oneOf("LOG_LEVEL", "debug", "info", "warn", "error")))
	s.LogText = e.oneOf("LOG_FORMAT", "text", "json") == "text"
	s.Warnings = append(e.warnings, s.hosting()...)
	return s, e.err()
}

// hosting warns of what is right on one's own machine alone.
func (s Settings) hosting() (warnings []string) {
	if s.Deployed != "" && s.Store.Kind == "memory" {
		fix := "set STORE_URL to a redis:// or postgres:// URL, or to a file path on a disk that stays"
		if s.OnFly {
			fix = "either run flyctl redis create and flyctl secrets set STORE_URL=<the URL it prints>, or mount a volume on one machine and set STORE_URL to a file path on it"
		}
		warnings = append(warnings, "STORE_URL is memory: handled messages are remembered by each machine for itself, until it stops, and may be run again after that; "+fix)
	}
	if s.Deployed != "" && s.Deployed != "AWS_LAMBDA_FUNCTION_NAME" && len(s.Origins) == 0 {
		warnings = append(warnings, "RECEIVER_URL is not set: messages signed for any URL are taken; set it to the origin that messages are published to, like https://app.example.com")
	}
	return warnings
}

// LoadSigning reads the settings that signing needs: those that it shares with verifying, and the port.
func LoadSigning(getenv func(string) string) (Settings, error) {
	e := &environment{getenv: getenv}
	s := e.signing()
	s.Warnings = e.warnings
	return s, e.err()
}

func (e *environment) signing() Settings {
	s := Settings{
		Port:      e.integer("PORT", 0, 65535),
		Origins:   e.origins("RECEIVER_URL"),
		Tolerance: e.duration("CLOCK_TOLERANCE", 0),
		Bearer:    e.bearer("BEARER_TOKEN"),
		OnFly:     e.variable("FLY_APP_NAME") != "",
	}
	for _, name := range []string{
		"FLY_APP_NAME", "K_SERVICE", "RENDER", "RAILWAY_ENVIRONMENT", "DYNO", "KUBERNETES_SERVICE_HOST", "AWS_LAMBDA_FUNCTION_NAME",
	} {
		if s.Deployed == "" && e.variable(name) != "" {
			s.Deployed = name
		}
	}
	e.keys(&s)
	return s
}

// forward reads the URL of the service that gets the messages.
func (e *environment) forward(port int) *url.URL {
	v := strings.TrimRight(e.get("FORWARD_URL"), "/") // what is added behind begins with one
	if v == "" {
		return nil
	}
	u := e.httpURL("FORWARD_URL", v)
	if u == nil {
		return nil
	}
	if isLoopback(u.Hostname()) && port != 0 && u.Port() == fmt.Sprint(port) {
		e.wrong("FORWARD_URL", "%s is this program itself, whose PORT is %d; give the app a port of its own", signing.Origin(u), port)
	}
	return u
}

// Fetched returns the APIs that the keys come from: those of the regions that have a token and no pair.
func (s Settings) Fetched() []*api.Client {
	var fetched []*api.Client
	for _, client := range s.APIs {
		if len(s.Pair(client.Region)) == 0 {
			fetched = append(fetched, client)
		}
	}
	return fetched
}

// Pair returns the keys of a region that are set: the current one and the next one, or none.
func (s Settings) Pair(region string) []signing.Key {
	var pair []signing.Key
	for _, key := range s.Keys {
		if key.Region == region {
			pair = append(pair, key)
		}
	}
	return pair
}

// MetricsAddress is where metrics are served; "": nowhere.
func (s Settings) MetricsAddress() string {
	switch {
	case s.MetricsPort == 0:
		return ""
	case s.OnFly: // whose private network collects them
		return fmt.Sprintf(":%d", s.MetricsPort)
	}
	return fmt.Sprintf("127.0.0.1:%d", s.MetricsPort)
}
