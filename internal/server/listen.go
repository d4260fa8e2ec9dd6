//go:build !lambda

package server

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"net"
	"net/http"
	"syscall"
	"time"

	"github.com/prometheus/common/expfmt"
	"golang.org/x/net/netutil"
)

// StoreWait is how long a store that does not answer is tried for at start.
const StoreWait = 15 * time.Second

// Listeners are where a Server takes requests.
type Listeners struct {
	public  net.Listener
	metrics net.Listener // nil: none
}

// Listen opens address, and metricsAddress unless it is "".
func Listen(address, metricsAddress string) (*Listeners, error) {
	public, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("serve on %s: %w; stop what uses the port, or set PORT to another", address, err)
	}
	l := &Listeners{public: netutil.LimitListener(public, maxConnections())}
	if metricsAddress == "" {
		return l, nil
	}
	if l.metrics, err = net.Listen("tcp", metricsAddress); err != nil {
		_ = public.Close()
		return nil, fmt.Errorf("serve metrics on %s: %w; set METRICS_PORT to another, or to 0", metricsAddress, err)
	}
	return l, nil
}

// maxConnections is how many callers are served at one time. The rest wait to be accepted: what they would take is
// needed to reach the store and the app behind FORWARD_URL.
func maxConnections() int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return connectionsOf(math.MaxInt)
	}
	return connectionsOf(files.Cur)
}

// connectionsOf is maxConnections where files may be open at one time.
func connectionsOf(files uint64) int {
	const least, most, spare = 16, 400, 64
	return int(min(max(files, least+spare)-spare, most))
}

// Close gives the ports back.
func (l *Listeners) Close() {
	_ = l.public.Close()
	if l.metrics != nil {
		_ = l.metrics.Close()
	}
}

// Address is where the public listener listens: the port that PORT=0 has found.
func (l *Listeners) Address() string { return l.public.Addr().String() }

// httpServer returns h behind limits that no business logic runs into.
// What net/http has to say goes to the standard library's log.
func httpServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:                      h,
		ReadHeaderTimeout:            10 * time.Second,
		ReadTimeout:                  readTimeout,
		IdleTimeout:                  120 * time.Second,
		MaxHeaderBytes:               12 << 10,
		DisableGeneralOptionsHandler: true,
	}
}

// Serve takes messages until ctx ends, then finishes those that it began and closes the store. It closes l.
func (s *Server) Serve(ctx context.Context, l *Listeners) error {
	defer l.Close()
	web := httpServer(s)
	ended := make(chan error, 2)
	if l.metrics != nil {
		metrics := httpServer(s.metrics.handler())
		metrics.WriteTimeout = writeTimeout
		go func() { ended <- metrics.Serve(l.metrics) }()
	}
	go func() { ended <- web.Serve(l.public) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	s.Log.Info("stopping, as a signal asks (a deploy, a restart or an idle machine): what runs is finished; what comes is refused, and QStash retries it",
		"at_most", s.Timing.Stop.String())
	closed := make(chan error, 1)
	go func() { closed <- web.Shutdown(context.Background()) }()
	s.room.drain()
	if err := s.deliverer.Stop(s.Timing.Stop); err != nil {
		return err
	}
	select { // the answers are written, the last bytes leave; a stranger that keeps a connection open is not waited for
	case <-closed:
	case <-time.After(time.Second):
		_ = web.Close()
	}
	s.Log.Info("stopped")
	return nil
}

// handler serves the metrics on every path. What promhttp does besides, other formats and compression, would make the
// program a third of a megabyte larger.
func (m *metrics) handler() http.Handler {
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		var text bytes.Buffer
		families, err := m.registry.Gather()
		for _, family := range families {
			if err == nil {
				_, err = expfmt.MetricFamilyToText(&text, family)
			}
		}
		if err != nil {
			http.Error(w, "gather the metrics: "+err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", string(format))
		_, _ = w.Write(text.Bytes()) // to a caller who may have hung up
	})
}
