// Package server is the HTTP side: it has a request verified, reads its body, has it delivered, and answers. It knows
// the verifier, the business logic and the store only as what it is handed.
package server

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"qstash-receiver/internal/deliver"
	"qstash-receiver/internal/once"
)

const (
	readTimeout  = 30 * time.Second // headers and body in all
	writeTimeout = 30 * time.Second // one answer
)

// Config is what a Server works with.
type Config struct {
	// Verify proves who sent r, but for its body. Its error is a *deliver.Refusal; the Proof then says how far it came.
	Verify  func(r *http.Request) (deliver.Proof, error)
	Run     deliver.Runner
	Store   once.Store // the Server closes it
	Timing  deliver.Timing
	Dedupe  deliver.Pointer
	MaxBody int64 // bytes
	Log     *slog.Logger
	OnFly   bool            // requests come from Fly's proxy alone, which says who sent them
	Fetched map[string]bool // regions whose keys come from QStash's API: nobody has to set new ones
	// Heard, if not nil, is told of each delivery as the log is.
	Heard func(messageID string, attempt int, row *deliver.Row, next deliver.Next)
}

// Server answers requests.
type Server struct {
	Config
	deliverer *deliver.Deliverer
	room      *room
	metrics   *metrics
	refusals  *lineLimit
	patterns  *patterns
}

// New returns a Server of c.
func New(c Config) *Server {
	s := &Server{Config: c, room: newRoom(c.MaxBody, c.Timing.Wait), metrics: newMetrics(), refusals: &lineLimit{log: c.Log}, patterns: newPatterns(c.Log, c.Fetched)}
	s.deliverer = deliver.New(deliver.Config{
		Run: c.Run, Timing: c.Timing, Store: c.Store, Dedupe: c.Dedupe, Log: c.Log, Observer: s.metrics,
	})
	s.metrics.watch(s)
	return s
}

// ServeHTTP takes every path as it was sent: a http.ServeMux would redirect some.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	health := r.URL.Path == "/healthz" && r.URL.RawPath == "" // in its own letters, not as %68ealthz
	if health && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		s.serveHealth(w, r)
		return
	}
	line := newLine(r, s.OnFly)
	proof, err := s.Verify(r)
	line.verified(proof, err)
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		s.refuse(w, r, &line, refuseMethod(r, proof))
		return
	}
	if err != nil {
		s.refuse(w, r, &line, err)
		return
	}
	body, release, err := s.room.read(w, r, proof.Token)
	if err != nil {
		s.refuse(w, r, &line, err)
		return
	}
	defer release()
	unverified := line.unverified
	unverified.Header = r.Header
	delivery, err := proof.Open(body, unverified)
	if err != nil {
		s.refuse(w, r, &line, err)
		return
	}
	s.metrics.verified(proof.Key)
	s.patterns.verified(&proof)
	if health {
		s.finish(w, &line, checked(delivery, proof))
		return
	}
	s.deliverer.Deliver(r.Context(), delivery, func(o deliver.Outcome) { s.finish(w, &line, o) })
}

// serveHealth says whether the process serves. It asks no store: that being away is no reason to stop a machine.
func (s *Server) serveHealth(w http.ResponseWriter, r *http.Request) {
	status, text := http.StatusOK, "ok"
	if since, wedged := s.room.wedged(s.Timing.Lease); wedged {
		status, text = http.StatusServiceUnavailable, "no room for messages since "+since.UTC().Format(time.RFC3339)
	}
	closeUnread(w, r)
	respond(w, deliver.Outcome{Answer: once.Answer{Status: status, Header: http.Header{"Content-Type": {"text/plain; charset=utf-8"}}, Body: []byte(text)}})
}

type functionURL struct{}

// FunctionURL is the origin of the AWS Lambda function URL that r came to; "": none.
func FunctionURL(r *http.Request) string {
	origin, _ := r.Context().Value(functionURL{}).(string)
	return origin
}

// refuseMethod says which method was used. One that our own key vouches for is the publisher's mistake.
func refuseMethod(r *http.Request, proof deliver.Proof) error {
	if proof.Key != "" {
		return deliver.Refuse(deliver.Method, "the message was delivered by %s (its Upstash-Method is %q), and this service takes POST alone: publish it anew, with -H \"Upstash-Method: POST\" or without that header",
			clip(r.Method, maxClipped), clip(r.Header.Get("Upstash-Method"), maxClipped))
	}
	return deliver.Refuse(deliver.Method, "a request by %s, which QStash did not sign: messages come by POST, so it is a browser's or a stranger's, and nothing has to be done", clip(r.Method, maxClipped))
}

// checked is the outcome of a signed POST /healthz: all was proven, nothing is run.
func checked(x *deliver.Delivery, proof deliver.Proof) deliver.Outcome {
	body, _ := json.Marshal(struct { // cannot fail
		Verified bool   `json:"verified"`
		Key      string `json:"key"`
		URL      string `json:"url"`
	}{true, proof.Key, x.URL()})
	return deliver.Outcome{Reason: deliver.Checked, Answer: once.Answer{
		Status: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: body,
	}}
}

// refuse finishes a request that is no message, at once: a body that is still to come is not waited for.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, line *line, err error) {
	closeUnread(w, r)
	s.finish(w, line, deliver.Refused(err))
}

// finish logs, counts and answers.
func (s *Server) finish(w http.ResponseWriter, line *line, o deliver.Outcome) {
	row := o.Reason.Row()
	s.metrics.deliveries.WithLabelValues(row.Outcome, row.Reason).Inc()
	if o.Next(&line.unverified) == deliver.Done {
		s.metrics.succeeded(line.unverified.ScheduleID)
	}
	s.log(line, &o)
	if !o.Detached {
		respond(w, o)
		return
	}
	w.Header().Set("Connection", "close")
	w.Header().Set("Content-Length", strconv.Itoa(len(o.Answer.Body)))
	respond(w, o)
	_ = http.NewResponseController(w).Flush()
}

// closeUnread has r answered without waiting for a body that is still to come.
func closeUnread(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 {
		w.Header().Set("Connection", "close")
	}
}

// respond writes the answer of o.
func respond(w http.ResponseWriter, o deliver.Outcome) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
	h := w.Header()
	for name, values := range o.Answer.Header {
		h[name] = values
	}
	if len(h["Content-Type"]) == 0 { // the service behind FORWARD_URL named none: Go shall not guess
		h["Content-Type"] = nil
	}
	for name, values := range o.Retry {
		h[name] = values
	}
	if o.Replayed {
		h.Set("Idempotent-Replayed", "true")
	}
	w.WriteHeader(o.Answer.Status)
	_, _ = w.Write(o.Answer.Body) // a caller that hung up is told nothing
}
