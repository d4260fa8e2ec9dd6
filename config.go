package main

import (
	"fmt"
	"log/slog"
	"net/url"
	"time"
)

// config is what the environment says, read once at start. loadConfig is the only way to one.
type config struct {
	port           int
	keys           []signingKey  // the current keys of all pairs, then the next ones
	dev            bool          // the published development pair is among the keys
	origins        []string      // RECEIVER_URL, as origin returns them; none: any subject
	tolerance      time.Duration // for exp and nbf
	bearer         string        // "": not asked for
	maxBody        int64         // bytes
	handlerTimeout time.Duration
	store          storeURL
	storeTTL       time.Duration
	forward        *url.URL // nil: messages go to handle
	metricsPort    int      // 0: off
	logLevel       slog.Level
	flyApp         string // "": not on Fly
}

// The pair that Upstash publishes for user 1 of its local development server: anyone can sign with it.
const (
	devCurrentKey = "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r"
	devNextKey    = "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs"
	devRegion     = "DEVELOPMENT_"
)

// setKeys says how to set the pair of a region: "", "EU_CENTRAL_1_", "US_EAST_1_".
func setKeys(region string) string {
	return fmt.Sprintf("copy both keys from the Upstash console (QStash, Signing Keys) and set them in one command: "+
		"flyctl secrets set %sQSTASH_CURRENT_SIGNING_KEY=sig_... %[1]sQSTASH_NEXT_SIGNING_KEY=sig_...", region)
}

// loadConfig reads every setting from getenv. Its error names every wrong one, a line each, and never a secret.
func loadConfig(getenv func(string) string) (config, error) {
	e := &environment{getenv: getenv}
	c := loadSigning(e)
	c.maxBody = int64(e.integer("MAX_BODY_BYTES", "10485760", 1, maxHeldBytes))
	c.handlerTimeout = e.duration("HANDLER_TIMEOUT", "45s", time.Millisecond)
	var err error
	if c.store, err = parseStoreURL(e.get("STORE_URL", "memory:")); err != nil {
		e.wrong("STORE_URL", "%v", err)
	}
	c.storeTTL = e.duration("STORE_TTL", "72h", time.Millisecond)
	if v := e.get("FORWARD_URL", ""); v != "" {
		c.forward = e.httpURL("FORWARD_URL", v)
	}
	metricsPort := "0"
	if c.flyApp != "" {
		metricsPort = "9091"
	}
	c.metricsPort = e.integer("METRICS_PORT", metricsPort, 0, 65535)
	if c.metricsPort != 0 && c.metricsPort == c.port {
		e.wrong("METRICS_PORT", "it is %d like PORT; the metrics need a port of their own", c.port)
	}
	// slog knows each of the four names, so this cannot fail.
	_ = c.logLevel.UnmarshalText([]byte(e.oneOf("LOG_LEVEL", "info", "debug", "info", "warn", "error")))
	return c, e.err()
}

// loadSigning reads the settings that signing and verifying share: all that sign needs.
func loadSigning(e *environment) config {
	c := config{
		port:      e.integer("PORT", "8080", 0, 65535),
		flyApp:    e.get("FLY_APP_NAME", ""),
		tolerance: e.duration("CLOCK_TOLERANCE", "0s", 0),
		bearer:    e.token("BEARER_TOKEN"),
	}
	dev := e.oneOf("QSTASH_DEV", "false", "true", "1", "false", "0")
	c.dev = dev == "true" || dev == "1"
	c.keys = e.keys(c.dev, c.flyApp)
	defaultURL := ""
	if c.flyApp != "" {
		defaultURL = "https://" + c.flyApp + ".fly.dev"
	}
	c.origins = e.originList("RECEIVER_URL", defaultURL)
	return c
}
