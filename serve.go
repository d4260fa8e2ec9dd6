//go:build !lambda

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
	c.announce(log, listener.Addr().String())

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
