package deliver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"qstash-receiver/internal/once"
)

// Bounds of what the service behind FORWARD_URL can make this program hold.
const (
	maxHeldReplies = 40 << 20 // bytes, all replies together
	maxReplyHeader = 64 << 10 // bytes of one reply, its status line included
	maxKeptHeader  = 4 << 10  // bytes of the headers of one reply that go back to QStash
)

// Forwarder is business logic that lives elsewhere: it posts each message on to an HTTP service.
type Forwarder struct {
	to       *url.URL
	maxReply int64 // bytes; a longer reply's body is dropped
	bearer   bool  // BEARER_TOKEN is set: Authorization is for this program, not for the service
	kept     http.RoundTripper
	fresh    http.RoundTripper
	held     atomic.Int64 // bytes of replies
}

// NewForwarder returns a Forwarder to the service at to; maxReply is in bytes.
func NewForwarder(to *url.URL, maxReply int64, bearer bool) *Forwarder {
	transport := &http.Transport{
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		MaxIdleConnsPerHost:    256,
		IdleConnTimeout:        4 * time.Second, // Node gives a connection up after 5 s
		DisableCompression:     true,            // the reply goes back as it comes
		MaxResponseHeaderBytes: maxReplyHeader,
	}
	fresh := transport.Clone()
	fresh.DisableKeepAlives = true
	return &Forwarder{to: to, maxReply: maxReply, bearer: bearer, kept: transport, fresh: fresh}
}

// Run is a Runner.
func (f *Forwarder) Run(ctx context.Context, x *Delivery) (once.Answer, error) {
	reply, err := f.post(ctx, x)
	if err != nil {
		return once.Answer{}, err
	}
	defer reply.Body.Close()
	return f.answer(x, reply)
}

// post returns the service's reply to x. Where a kept connection was closed before a byte of an answer, as a server
// does that has had enough of it, the message is posted once more on a new one.
func (f *Forwarder) post(ctx context.Context, x *Delivery) (*http.Response, error) {
	var reused, answered, sent atomic.Bool // the transport's goroutines set them
	trace := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:              func(info httptrace.GotConnInfo) { reused.Store(info.Reused); sent.Store(true) },
		GotFirstResponseByte: func() { answered.Store(true) },
	})
	reply, err := f.kept.RoundTrip(f.request(trace, x)) // not a Client, which follows redirects
	if err != nil && reused.Load() && !answered.Load() && ctx.Err() == nil {
		sent.Store(false)
		reply, err = f.fresh.RoundTrip(f.request(trace, x))
	}
	switch {
	case err == nil && reply.StatusCode < 200: // a switched protocol: its body is a connection, which ctx does not end
		_ = reply.Body.Close()
		return nil, appFailed(AppFailed, http.StatusBadGateway, "FORWARD_URL answered %d, which is no answer to a POST", reply.StatusCode)
	case err == nil:
		return reply, nil
	case ctx.Err() != nil:
		return nil, appFailed(AppLate, http.StatusGatewayTimeout, "no answer from FORWARD_URL (%s) by HANDLER_TIMEOUT", f.to)
	case !sent.Load():
		return nil, appFailed(AppAway, http.StatusBadGateway, "no connection to FORWARD_URL (%s): %v", f.to, rootOf(err))
	}
	return nil, appFailed(AppCut, http.StatusBadGateway, "no answer from FORWARD_URL (%s) to a message that it was sent: %v", f.to, rootOf(err))
}

// rootOf is err without what the service may have sent: net/http quotes malformed answers.
func rootOf(err error) error {
	var network *net.OpError
	switch {
	case errors.As(err, &network):
		return network
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it closed the connection")
	case strings.Contains(err.Error(), "headers exceeded"):
		return fmt.Errorf("the headers of its answer are over %d bytes", maxReplyHeader)
	}
	return errors.New("its answer is no HTTP")
}

func (f *Forwarder) request(ctx context.Context, x *Delivery) *http.Request {
	m := x.Message
	request := (&http.Request{
		Method:        http.MethodPost,
		URL:           f.url(x.proof.Target),
		Header:        f.header(m.Unverified.Header),
		ContentLength: int64(len(m.Body)),
		Body:          io.NopCloser(bytes.NewReader(m.Body)),
		GetBody:       func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(m.Body)), nil },
	}).WithContext(ctx)
	if len(m.Body) == 0 {
		request.Body = http.NoBody
	}
	return request
}

// url is target, a path and query as they were sent, under f.to.
func (f *Forwarder) url(target string) *url.URL {
	base := strings.TrimRight(f.to.EscapedPath(), "/")
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
func (f *Forwarder) header(h http.Header) http.Header {
	h = h.Clone()
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
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
func (f *Forwarder) answer(x *Delivery, reply *http.Response) (once.Answer, error) {
	a := once.Answer{Status: reply.StatusCode, Header: keptHeader(reply.Header)}
	body, whole := f.read(x, reply.Body)
	success := a.Status <= 299
	switch {
	case whole:
		a.Body = body
	case success:
		a.Header = without(a.Header, "Content-Encoding")
		a.Header["Content-Type"], a.Body = jsonHeader["Content-Type"], okBody
	default:
		a.Header = without(a.Header, "Content-Encoding")
		a.Header["Content-Type"] = jsonHeader["Content-Type"]
		a.Body = errorBody("the body of FORWARD_URL's answer was cut short or too large")
	}
	if success {
		return a, nil
	}
	o := Outcome{Reason: AppFailed, Answer: a, Retry: retryHeader(reply.Header), Detail: fmt.Sprintf("FORWARD_URL answered %d", a.Status)}
	switch location := reply.Header.Get("Location"); {
	case a.Status == 489 && strings.EqualFold(reply.Header.Get(permanentName), "true"):
		o.Reason = AppPermanent
		o.Retry = nil
	case a.Status <= 399 && location != "":
		o.Detail += fmt.Sprintf(", a redirect to %q, which is not followed: set FORWARD_URL so that the app answers itself", clip(location))
	}
	return once.Answer{}, &appError{o}
}

// read returns the body of a reply, and whether that is all of it: it is not where it was cut short, is over maxReply,
// or does not fit into what all replies may hold. Its room is given back when x is over.
func (f *Forwarder) read(x *Delivery, from io.Reader) (body []byte, whole bool) {
	var reserved int64
	x.ended = append(x.ended, func() { f.held.Add(-reserved) })
	for {
		if len(body) == cap(body) {
			more := min(max(int64(cap(body)), 4<<10), f.maxReply+1-int64(cap(body)))
			if more <= 0 || f.held.Add(more) > maxHeldReplies {
				if more > 0 {
					f.held.Add(-more)
				}
				return nil, false
			}
			reserved += more
			grown := make([]byte, len(body), int64(cap(body))+more)
			copy(grown, body)
			body = grown
		}
		n, err := from.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		if err != nil {
			return body, err == io.EOF && int64(len(body)) <= f.maxReply
		}
	}
}

// keptHeader is what of h goes back to QStash, now and with each repeat: what the body is, and Upstash-*. Without the
// Upstash-Workflow-Sdk-Version of a workflow endpoint QStash fails the run.
func keptHeader(h http.Header) http.Header {
	kept := http.Header{"Content-Type": nil} // none: Go shall not guess one
	size := 0
	for name, values := range h {
		if name != "Content-Type" && name != "Content-Encoding" && !strings.HasPrefix(name, "Upstash-") {
			continue
		}
		for _, v := range values {
			size += len(name) + len(v)
		}
		kept[name] = values
	}
	if size <= maxKeptHeader {
		return kept
	}
	for name := range kept {
		if name != permanentName {
			delete(kept, name)
		}
	}
	kept["Content-Type"] = []string{"application/octet-stream"}
	return kept
}

// retryHeader is what of h tells QStash when to try again.
func retryHeader(h http.Header) http.Header {
	retry := http.Header{}
	for name, values := range h {
		if (name == "Retry-After" || strings.HasPrefix(name, "X-Ratelimit-Reset")) && len(values[0]) <= 64 {
			retry[name] = values[:1]
		}
	}
	return retry
}

func without(h http.Header, name string) http.Header {
	h = h.Clone()
	delete(h, name)
	return h
}

func appFailed(reason Reason, status int, format string, args ...any) error {
	o := failed(reason, fmt.Sprintf(format, args...))
	o.Answer.Status = status
	return &appError{o}
}

// clip bounds what others put on a log line.
func clip(s string) string {
	const most = 512
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
