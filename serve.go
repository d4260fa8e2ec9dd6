//go:build !lambda

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"
)

// serve takes messages until ctx ends, then finishes those that it began.
func serve(ctx context.Context, c config, log *slog.Logger) error {
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", c.port))
	if err != nil {
		return fmt.Errorf("serve on port %d: %w; stop what uses the port, or set PORT to another", c.port, err)
	}
	defer listener.Close()
	var metricsListener net.Listener
	if c.metricsPort != 0 {
		if metricsListener, err = net.Listen("tcp", fmt.Sprintf(":%d", c.metricsPort)); err != nil {
			return fmt.Errorf("serve metrics on port %d: %w; set METRICS_PORT to another, or to 0", c.metricsPort, err)
		}
		defer metricsListener.Close()
	}
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
	if metricsListener != nil {
		go func() { ended <- newHTTPServer(s.metrics.handler(), log).Serve(metricsListener) }()
	}
	go func() { ended <- web.Serve(listener) }()
	c.announce(log, listener.Addr().String())

	select {
	case err := <-ended:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	if err := stop(web, s.inFlight, c.handlerTimeout+15*time.Second, log); err != nil {
		return err
	}
	if err := remembered.close(); err != nil {
		return fmt.Errorf("stop: close the store: %w", err)
	}
	log.Info("stopped")
	return nil
}
