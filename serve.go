package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"
)

// serve takes messages until ctx ends, then finishes those that it began.
func serve(ctx context.Context, c config, log *slog.Logger) (err error) {
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", c.port))
	if err != nil {
		return fmt.Errorf("serve on port %d: %w; stop what uses the port, or set PORT to another", c.port, err)
	}
	defer listener.Close()
	remembered, err := openStore(ctx, c.store, c.storeTTL, 15*time.Second, log)
	if ctx.Err() != nil {
		return nil // stopped before it began
	}
	if err != nil {
		return err
	}
	s := newServer(c, remembered, log)
	web := newHTTPServer(s, log)
	ended := make(chan error, 2)
	if c.metricsPort != 0 {
		metricsListener, err := net.Listen("tcp", fmt.Sprintf(":%d", c.metricsPort))
		if err != nil {
			return fmt.Errorf("serve metrics on port %d: %w; set METRICS_PORT to another, or to 0", c.metricsPort, err)
		}
		metricsServer := newHTTPServer(s.metrics.handler(), log)
		defer metricsServer.Close()
		go func() { ended <- metricsServer.Serve(metricsListener) }()
	}
	go func() { ended <- web.Serve(listener) }()
	c.announce(log, listener.Addr())

	select {
	case err := <-ended:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	limit := c.handlerTimeout + 15*time.Second
	log.Info("stopping: no new messages, finishing what runs", "at_most", limit.String())
	stopped := make(chan error, 1)
	go func() { stopped <- web.Shutdown(context.Background()) }()
	select {
	case <-s.inFlight.drain():
	case <-time.After(limit):
		return fmt.Errorf("stop: still running after %s: %s", limit, strings.Join(s.inFlight.left(), ", "))
	}
	select { // the last answers leave; a stranger that keeps a connection open is not waited for
	case <-stopped:
	case <-time.After(5 * time.Second):
		_ = web.Close()
	}
	if err := remembered.close(); err != nil {
		return fmt.Errorf("stop: close the store: %w", err)
	}
	log.Info("stopped")
	return nil
}

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
		refusals: &lineLimit{rest: func(leftOut int) {
			log.Warn("refused deliveries left out of the log", "left_out", leftOut)
		}},
	}
}

// announce logs what the program runs with, and what its owner should know of that.
func (c config) announce(log *slog.Logger, addr net.Addr) {
	log.Info("receiving", "address", addr.String(), "urls", c.origins, "store", c.store.kind, "keys", len(c.keys))
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
