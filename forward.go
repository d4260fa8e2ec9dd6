package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// forwarder is business logic that lives elsewhere: it posts each message on to an HTTP service.
type forwarder struct {
	to        *url.URL
	transport *http.Transport
	maxReply  int64 // bytes; a longer reply's body is dropped
	bearer    bool  // BEARER_TOKEN is set: Authorization is for this program, not for the service
}

// upstreamError is an answer of the service, or the lack of one, that is no success.
type upstreamError struct {
	answer answer
	text   string
}

func (e *upstreamError) Error() string { return e.text }

// badGateway is the lack of an answer.
func badGateway(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	return &upstreamError{errorAnswer(http.StatusBadGateway, text), text}
}

func newForwarder(to *url.URL, maxReply int64, bearer bool) *forwarder {
	return &forwarder{to: to, maxReply: maxReply, bearer: bearer, transport: &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 256,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true, // the reply goes back as it comes
	}}
}

// run is a runner.
func (f *forwarder) run(ctx context.Context, m *Message) (answer, error) {
	request := (&http.Request{
		Method:        http.MethodPost,
		URL:           f.url(m.target),
		Header:        f.header(m.Unverified.Header),
		ContentLength: int64(len(m.Body)),
		Body:          io.NopCloser(bytes.NewReader(m.Body)),
		GetBody:       func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(m.Body)), nil },
	}).WithContext(ctx)
	if len(m.Body) == 0 {
		request.Body = http.NoBody
	}
	reply, err := f.transport.RoundTrip(request) // not a Client, which follows redirects
	if err != nil {
		if ctx.Err() != nil {
			return answer{}, fmt.Errorf("no answer from FORWARD_URL by HANDLER_TIMEOUT: %w", err)
		}
		return answer{}, badGateway("no answer from FORWARD_URL: %v", err)
	}
	defer reply.Body.Close()
	return f.answer(reply)
}

// url is target, a path and query as they were sent, under f.to.
func (f *forwarder) url(target string) *url.URL {
	base := strings.TrimSuffix(f.to.EscapedPath(), "/")
	u := &url.URL{Scheme: f.to.Scheme, Host: f.to.Host}
	if base == "" && strings.HasPrefix(target, "//") { // an opaque part must not look like a host
		if p, err := url.ParseRequestURI(target); err == nil && p.RequestURI() == target {
			p.Scheme, p.Host = f.to.Scheme, f.to.Host
			return p
		}
		base = f.to.Scheme + "://" + f.to.Host // the absolute form: it alone keeps such bytes as they are
	}
	u.Opaque = base + target
	return u
}

// header is h without what belongs to one connection (RFC 9110, section 7.6.1) and what is for this program alone.
func (f *forwarder) header(h http.Header) http.Header {
	h = h.Clone()
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range []string{"Connection", "Proxy-Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
		"Proxy-Authenticate", "Proxy-Authorization", "Expect", "Accept-Encoding"} {
		h.Del(name)
	}
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		if v, ok := h[name]; ok { // by this spelling Go's transport would take leave to send twice
			delete(h, name)
			h[strings.ToLower(name)] = v
		}
	}
	if f.bearer {
		h.Del("Authorization")
	}
	if h.Get("User-Agent") == "" {
		h["User-Agent"] = []string{""} // or Go would put in its own
	}
	return h
}

// answer is reply as it goes back to QStash. A 2xx is a success even if its body is lost: the work is done.
func (f *forwarder) answer(reply *http.Response) (answer, error) {
	a := answer{
		status:      reply.StatusCode,
		contentType: reply.Header.Get("Content-Type"),
		permanent:   reply.StatusCode == 489 && strings.EqualFold(reply.Header.Get("Upstash-NonRetryable-Error"), "true"),
		upstash:     upstashHeaders(reply.Header),
	}
	if a.status < 200 { // a switched protocol: its body is a connection, which ctx does not end
		return answer{}, badGateway("FORWARD_URL answered %d, which is no answer to a POST", a.status)
	}
	success := a.status <= 299
	body, err := io.ReadAll(io.LimitReader(reply.Body, f.maxReply+1))
	switch {
	case err == nil && int64(len(body)) <= f.maxReply:
		a.body = body
	case success:
		a.contentType, a.body = "application/json", okBody
	default:
		lost := errorAnswer(a.status, "the body of FORWARD_URL's answer was cut short or over MAX_BODY_BYTES")
		a.contentType, a.body = lost.contentType, lost.body
	}
	if success {
		return a, nil
	}
	a.retryAfter = reply.Header.Get("Retry-After")
	return answer{}, &upstreamError{a, fmt.Sprintf("FORWARD_URL answered %d", a.status)}
}

// upstashHeaders is what of h QStash may read, as lines. Without the Upstash-Workflow-Sdk-Version of a workflow
// endpoint QStash fails the run.
func upstashHeaders(h http.Header) string {
	const most = 4 << 10
	h = maps.Clone(h)
	maps.DeleteFunc(h, func(name string, _ []string) bool {
		return !strings.HasPrefix(name, "Upstash-") || name == "Upstash-Nonretryable-Error"
	})
	var b strings.Builder
	if _ = h.Write(&b); b.Len() > most {
		return ""
	}
	return b.String()
}
