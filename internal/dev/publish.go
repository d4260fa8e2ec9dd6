package dev

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// publication is what a publisher asks for.
type publication struct {
	destination string
	url         *url.URL // of the destination; its bytes are kept
	method      string
	header      http.Header // that is delivered
	body        []byte
	queue       string
	delay       time.Duration
	notBefore   time.Time // zero: the delay counts
	retries     int
	retryDelay  time.Duration // negative: QStash's backoff
	timeout     time.Duration
	label       string
	dedupe      string // "": it is no duplicate of anything
	fault       string
	callerIP    string

	callback, failure *publication // nil: none; their bodies are made when they are due
	asked             http.Header  // the headers it was published with, as far as they matter
}

const (
	maxBody        = 10 << 20
	defaultRetries = 3
	maxRetries     = 100
	defaultTimeout = 15 * time.Minute
	maxTimeout     = 2 * time.Hour
)

// What Upstash-Dev-Fault can ask for. It befalls the first attempt.
const (
	faultAnswerLost = "answer-lost"
	faultTwice      = "twice"
	faultLateToken  = "late-token"
)

// fault is a choice of the page's form.
type fault struct{ name, text string }

var faults = []fault{
	{faultAnswerLost, "the receiver's answer never arrives"},
	{faultTwice, "it is delivered two times at once"},
	{faultLateToken, "its token has expired when it arrives"},
}

// Headers that ask for what this stand-in does not do.
var unsupportedHeaders = map[string]string{
	"Upstash-Cron":               "schedules",
	"Upstash-Schedule-Id":        "schedules",
	"Upstash-Flow-Control-Key":   "flow control",
	"Upstash-Flow-Control-Value": "flow control",
	"Upstash-Redact-Fields":      "redaction",
}

// newPublication reads what POST /v2/publish/destination asks for. An error is an *apiError.
func newPublication(destination string, h http.Header, body []byte) (*publication, error) {
	target, err := parseDestination(destination)
	if err != nil {
		return nil, err
	}
	p := &publication{destination: destination, url: target, body: body, asked: http.Header{}}
	if err := p.readSettings(h, defaultRetries); err != nil {
		return nil, err
	}
	if p.callback, err = newCallback(h, "Upstash-Callback", p.retries); err != nil {
		return nil, err
	}
	if p.failure, err = newCallback(h, "Upstash-Failure-Callback", p.retries); err != nil {
		return nil, err
	}
	for name, values := range h {
		setting := strings.HasPrefix(name, "Upstash-") && !strings.HasPrefix(name, "Upstash-Telemetry-")
		if setting || name == "Content-Type" || forwardsAll(h) && mayForward(name) {
			p.asked[name] = values
		}
	}
	return p, nil
}

// newCallback reads the callback that h names and its settings: Upstash-Callback-Retries is to it what Upstash-Retries
// is to the message.
func newCallback(h http.Header, name string, retries int) (*publication, error) {
	destination := h.Get(name)
	if destination == "" {
		return nil, nil
	}
	target, err := parseDestination(destination)
	if err != nil {
		return nil, about(name, err)
	}
	settings := http.Header{"Content-Type": {"application/json"}}
	for header, values := range h {
		if rest, ok := strings.CutPrefix(header, name+"-"); ok {
			settings["Upstash-"+rest] = values
		}
	}
	p := &publication{destination: destination, url: target, asked: settings}
	if err := p.readSettings(settings, retries); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *publication) readSettings(h http.Header, retries int) error {
	for name := range h {
		what := unsupportedHeaders[name]
		if strings.HasPrefix(name, "Upstash-Workflow-") {
			what = "workflows"
		}
		if what != "" {
			return unsupported("%s: this stand-in for QStash has no %s", name, what)
		}
	}
	p.method = http.MethodPost
	if v := h.Get("Upstash-Method"); v != "" {
		p.method = strings.ToUpper(v)
		if !slices.Contains([]string{"GET", "POST", "PUT", "PATCH", "DELETE"}, p.method) {
			return badRequest("Upstash-Method: %q is none of GET, POST, PUT, PATCH and DELETE", v)
		}
	}
	p.retries = retries
	if v := h.Get("Upstash-Retries"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 || n > maxRetries {
			return badRequest("Upstash-Retries: %q is no number from 0 to %d", v, maxRetries)
		}
		p.retries = n
	}
	p.retryDelay = -1
	if v := h.Get("Upstash-Retry-Delay"); v != "" {
		var err error
		if p.retryDelay, err = parseRetryDelay(v); err != nil {
			return err
		}
	}
	if v := h.Get("Upstash-Delay"); v != "" {
		var err error
		if p.delay, err = parseDuration(v, maxDelay); err != nil {
			return badRequest("Upstash-Delay: %s", err)
		}
	}
	if v := h.Get("Upstash-Not-Before"); v != "" {
		seconds, err := strconv.ParseInt(v, 10, 64)
		if err != nil || seconds < 0 || seconds > time.Now().Add(maxDelay).Unix() {
			return badRequest("Upstash-Not-Before: %q is no time in seconds since 1970, at most a year from now", v)
		}
		p.notBefore = time.Unix(seconds, 0)
	}
	p.timeout = defaultTimeout
	if v := h.Get("Upstash-Timeout"); v != "" {
		var err error
		if p.timeout, err = parseDuration(v, maxTimeout); err != nil {
			return badRequest("Upstash-Timeout: %s", err)
		}
		if p.timeout == 0 {
			return badRequest("Upstash-Timeout: %q leaves no time to answer", v)
		}
	}
	switch p.fault = h.Get("Upstash-Dev-Fault"); p.fault {
	case "", faultAnswerLost, faultTwice, faultLateToken:
	default:
		return badRequest("Upstash-Dev-Fault: %q is none of %s, %s and %s", p.fault, faultAnswerLost, faultTwice, faultLateToken)
	}
	p.label = h.Get("Upstash-Label")
	var err error
	if p.header, err = forwarded(h); err != nil {
		return err
	}
	return p.readDeduplication(h)
}

func (p *publication) readDeduplication(h http.Header) error {
	if id := h.Get("Upstash-Deduplication-Id"); id != "" {
		p.dedupe = "id " + id
		return nil
	}
	switch v := strings.ToLower(h.Get("Upstash-Content-Based-Deduplication")); v {
	case "", "false":
	case "true":
		hash := sha256.New()
		fmt.Fprintf(hash, "%q %q ", p.destination, p.method)
		_ = p.header.Write(hash) // a hash takes everything; the names are written in order
		hash.Write(p.body)
		p.dedupe = "content " + hex.EncodeToString(hash.Sum(nil))
	default:
		return badRequest("Upstash-Content-Based-Deduplication: %q is neither true nor false", v)
	}
	return nil
}

var (
	expression = regexp.MustCompile(`^(retried|pow|exp|sqrt|abs|floor|ceil|round|min|max|[0-9.+*/%(), -])+$`)
	plainName  = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`) // of a queue or a URL group
	headerName = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")
)

func parseRetryDelay(v string) (time.Duration, error) {
	milliseconds, err := strconv.ParseFloat(v, 64)
	switch {
	case err == nil && milliseconds >= 0:
		return time.Duration(min(milliseconds, float64(day.Milliseconds()))) * time.Millisecond, nil
	case err != nil && expression.MatchString(v):
		return 0, unsupported("Upstash-Retry-Delay: this stand-in for QStash has no expressions like %q; give milliseconds", v)
	default:
		return 0, badRequest("Upstash-Retry-Delay: %q is no number of milliseconds", v)
	}
}

// parseDestination returns the URL whose requests have destination's bytes.
func parseDestination(destination string) (*url.URL, error) {
	scheme, rest, ok := strings.Cut(destination, "://")
	if lower := strings.ToLower(scheme); !ok || lower != "http" && lower != "https" {
		if plainName.MatchString(destination) || strings.HasPrefix(destination, "api/") {
			return nil, unsupported("destination %q: this stand-in for QStash has no URL groups and no APIs; give a URL", destination)
		}
		return nil, badRequest("destination %q: it must begin with http:// or https://", destination)
	}
	if i := strings.IndexFunc(destination, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '#' }); i >= 0 {
		return nil, badRequest("destination %q: it must not hold %q, only %%%02X", destination, destination[i], destination[i])
	}
	u, err := url.Parse(destination)
	if err != nil {
		return nil, badRequest("destination: %s", err)
	}
	if u.Hostname() == "" {
		return nil, badRequest("destination %q: it names no host", destination)
	}
	target := rest[strings.IndexAny(rest+"/", "/?"):]
	if !strings.HasPrefix(target, "/") {
		target = "/" + target
	}
	if u.RequestURI() != target {
		if strings.HasPrefix(target, "//") { // net/http would take it for a host
			return nil, badRequest("destination %q: it cannot be sent as it is; escape what a URL does not allow", destination)
		}
		u.Path, u.RawPath, u.RawQuery, u.ForceQuery, u.Opaque = "", "", "", false, target
	}
	return u, nil
}

// Headers that are of one connection.
var notForwarded = []string{"Host", "Content-Length", "Transfer-Encoding", "Connection", "Keep-Alive", "Proxy-Connection",
	"Proxy-Authorization", "Te", "Trailer", "Upgrade", "Expect"}

// forwardsAll says whether all of the publisher's headers are forwarded, not only those with the prefix.
func forwardsAll(h http.Header) bool {
	return strings.EqualFold(h.Get("Upstash-Header-Forward"), "true")
}

// mayForward is for headers without the prefix: Authorization is for QStash.
func mayForward(name string) bool {
	return name != "Authorization" && !strings.HasPrefix(name, "Upstash-") && !slices.Contains(notForwarded, name)
}

// forwarded returns what is delivered of a publisher's headers.
func forwarded(h http.Header) (http.Header, error) {
	out := http.Header{}
	for name, values := range h {
		if forwardsAll(h) && mayForward(name) {
			out[name] = values
		}
	}
	if values := h.Values("Content-Type"); len(values) > 0 {
		out["Content-Type"] = values
	}
	for name, values := range h {
		rest, ok := strings.CutPrefix(name, "Upstash-Forward-")
		if ok && !slices.Contains(notForwarded, rest) {
			out[http.CanonicalHeaderKey(rest)] = values
		}
	}
	for name, values := range out {
		if !headerName.MatchString(name) {
			return nil, badRequest("%q is no name for a header", name)
		}
		for _, v := range values {
			if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				return nil, badRequest("header %s: %q holds a control character", name, v)
			}
		}
	}
	return out, nil
}
