package main

import (
	"log/slog"
	"sync"
	"time"
)

// newServer puts the parts together as c says.
func newServer(c config, remembered store, log *slog.Logger) *server {
	inFlight := newInFlight()
	bodies := &bodyReader{limit: c.maxBody, draining: inFlight.draining}
	metrics := newMetrics(func() float64 { return float64(inFlight.count()) }, func() float64 { return float64(bodies.held.Load()) })
	run := runHandlers(handle, handleFailure)
	if c.forward != nil {
		run = newForwarder(c.forward, c.maxBody, c.bearer != "").run
	}
	return &server{
		verifier: &verifier{keys: c.keys, origins: c.origins, tolerance: c.tolerance, bearer: c.bearer, bodies: bodies, now: time.Now},
		deliverer: &deliverer{
			run: run, timeout: c.handlerTimeout, grace: 5 * time.Second, wait: 10 * time.Second,
			store: remembered, storeTTL: c.storeTTL, log: log, metrics: metrics, inFlight: inFlight,
		},
		inFlight: inFlight,
		metrics:  metrics,
		log:      log,
		keys:     &sync.Map{},
		refusals: &lineLimit{rest: func(leftOut int) {
			log.Warn("refused deliveries left out of the log", "left_out", leftOut)
		}},
	}
}

// announce logs what the program runs with, and what its owner should know of that.
func (c config) announce(log *slog.Logger, address string) {
	forward := ""
	if c.forward != nil {
		forward = c.forward.String() // which has no login
	}
	log.Info("receiving", "address", address, "urls", c.origins, "store", c.store.kind, "keys", len(c.keys), "forward", forward)
	if c.dev {
		log.Warn("QSTASH_DEV IS ON: ANYONE CAN SIGN MESSAGES, because the keys of QStash's local server are published")
	}
	if len(c.origins) == 0 {
		log.Info("RECEIVER_URL is not set: messages signed for any URL are taken")
	}
	if c.flyApp != "" && c.store.kind == "memory" {
		log.Warn("STORE_URL is memory: handled messages are remembered by each machine for itself, until it stops, and may be run again after that; " +
			"either run flyctl redis create and flyctl secrets set STORE_URL=<the URL it prints>, or mount a volume on one machine and set STORE_URL to a file path on it")
	}
}
