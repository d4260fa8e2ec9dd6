package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	readTimeout  = 30 * time.Second // headers and body in all
	writeTimeout = 30 * time.Second // one answer
)

// server is the HTTP side: verify, deliver, respond.
type server struct {
	verifier  *verifier
	deliverer *deliverer
	inFlight  *inFlight
	metrics   *metrics
	log       *slog.Logger
	refusals  *lineLimit
	keys      *sync.Map // of each region, the name of the key that verified last
}

// newHTTPServer returns h behind limits that no business logic runs into: nothing here has to do with how long it
// takes, and a caller's connection is not what its context hangs on.
func newHTTPServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:                      h,
		ReadHeaderTimeout:            10 * time.Second,
		ReadTimeout:                  readTimeout,
		IdleTimeout:                  120 * time.Second,
		MaxHeaderBytes:               64 << 10,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// stop lets no new message begin and returns when those in flight have ended and are answered; if that takes
// longer than limit, an error names them.
func stop(web *http.Server, inFlight *inFlight, limit time.Duration, log *slog.Logger) error {
	log.Info("stopping: no new messages, finishing what runs", "at_most", limit.String())
	idle, closed := inFlight.drain(), make(chan error, 1)
	go func() { closed <- web.Shutdown(context.Background()) }()
	select {
	case <-idle:
	case <-time.After(limit):
		return fmt.Errorf("stop: still running after %s: %s", limit, strings.Join(inFlight.left(), ", "))
	}
	select { // the answers are written, the last bytes leave; a stranger that keeps a connection open is not waited for
	case <-closed:
	case <-time.After(time.Second):
		_ = web.Close()
	}
	return nil
}

// ServeHTTP takes every path as it was sent: a http.ServeMux would redirect some.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	line := newLine(r)
	if r.URL.Path == "/healthz" && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		closeUnread(w, r)
		respond(w, answer{status: http.StatusOK, contentType: "text/plain; charset=utf-8", body: []byte("ok")})
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		s.refuse(w, r, line, &refusal{status: http.StatusMethodNotAllowed, reason: "method", detail: "messages are posted"})
		return
	}
	m, err := s.verifier.verify(w, r)
	if err != nil {
		s.refuse(w, r, line, err)
		return
	}
	s.verifiedWith(m.claims.key)
	if !s.inFlight.begin(m) {
		m.release()
		s.refuse(w, r, line, stopping())
		return
	}
	defer s.inFlight.end(m)
	err = s.deliverer.deliver(m, func(o outcome) {
		if o.replay {
			w.Header().Set("Idempotent-Replayed", "true")
		}
		s.metrics.deliveries.WithLabelValues(o.name, "").Inc()
		if s.log.Enabled(r.Context(), o.level) {
			s.log.Log(r.Context(), o.level, "delivery", line.fields(o.name, o.reason, o.status)...)
		}
		if !o.alone {
			respond(w, o.answer)
			return
		}
		w.Header().Set("Connection", "close")
		w.Header().Set("Content-Length", strconv.Itoa(len(o.body)))
		respond(w, o.answer)
		_ = http.NewResponseController(w).Flush()
	})
	if err != nil {
		s.refuse(w, r, line, err)
	}
}

// verifiedWith counts key, and logs when another key of its pair verifies than before.
func (s *server) verifiedWith(key *signingKey) {
	s.metrics.verified.WithLabelValues(key.name).Inc()
	if last, _ := s.keys.Load(key.region); last == key.name {
		return
	}
	switch last, known := s.keys.Swap(key.region, key.name); {
	case last != key.name && key.name == "next":
		s.log.Warn("messages now verify with the next signing key: the keys were rolled. " + setKeys(strings.TrimPrefix(key.region, devRegion)))
	case last != key.name && known:
		s.log.Info("messages verify with the current signing key again")
	}
}

// refuse answers a request that is no message, at once: a body that is still to come is not waited for.
func (s *server) refuse(w http.ResponseWriter, r *http.Request, line line, err error) {
	var ref *refusal
	errors.As(err, &ref) // it is nothing else
	var a answer
	switch ref.status {
	case http.StatusUnauthorized:
		a = errorAnswer(ref.status, "unauthorized") // the same whatever was wrong
	case http.StatusMethodNotAllowed:
		a = errorAnswer(ref.status, "method not allowed")
	default: // the sender is proven
		a = errorAnswer(ref.status, ref.Error())
	}
	if ref.retryAfter > 0 {
		a.retryAfter = retryAfterSeconds(time.Duration(ref.retryAfter) * time.Second)
	}
	s.metrics.deliveries.WithLabelValues("refused", ref.reason).Inc()
	s.refusals.line(func(leftOut int) {
		s.log.Warn("delivery", append(line.fields("refused", ref.reason, ref.status), "detail", ref.detail, "left_out", leftOut)...)
	})
	closeUnread(w, r)
	respond(w, a)
}

// closeUnread has r answered without waiting for a body that is still to come.
func closeUnread(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 {
		w.Header().Set("Connection", "close")
	}
}

// respond writes a.
func respond(w http.ResponseWriter, a answer) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	h := w.Header()
	h.Set("Content-Type", a.contentType)
	if a.contentType == "" { // the service behind FORWARD_URL named none: Go shall not guess
		h["Content-Type"] = nil
	}
	if a.retryAfter != "" {
		h.Set("Retry-After", a.retryAfter)
	}
	for line := range strings.Lines(a.upstash) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\r\n"), ": ")
		h.Add(name, value)
	}
	if a.permanent {
		h.Set("Upstash-NonRetryable-Error", "true")
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // a caller that hung up is told nothing
}
