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
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"qstash-receiver/internal/once"
)

// Bounds of what the service behind FORWARD_URL can make this program hold.
const (
	maxHeldReplies = 40 << 20 // bytes, all replies together
	maxReplyHeader = 64 << 10 // bytes of one reply, its status line included
	maxHeaders     = 64       // replies whose headers are read at one time: in memory they take twenty times as much
	maxKeptHeader  = 16 << 10 // bytes of the headers of one reply that go back to QStash
)

// Forwarder is business logic that lives elsewhere: it posts each message on to an HTTP service.
type Forwarder struct {
	to       *url.URL
	maxReply int64 // bytes; a longer reply's body is dropped
	bearer   bool  // BEARER_TOKEN is set: Authorization is for this program, not for the service
	kept     http.RoundTripper
	fresh    http.RoundTripper
	held     atomic.Int64  // bytes of replies
	headers  chan struct{} // has one for each reply whose headers are read
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
	return &Forwarder{to: to, maxReply: maxReply, bearer: bearer, kept: transport, fresh: fresh, headers: make(chan struct{}, maxHeaders)}
}

// Run is a Runner.
func (f *Forwarder) Run(ctx context.Context, x *Delivery) (once.Answer, error) {
	turn := &turn{all: f.headers}
	defer turn.end()
	reply, err := f.post(ctx, x, turn)
	if err != nil {
		return once.Answer{}, err
	}
	defer reply.Body.Close()
	o := outcomeOfReply(reply, f.shown(x.proof.Target))
	reply.Header = nil // its body may be long in coming
	turn.end()
	f.read(x, reply.Body, &o.Answer)
	if o.Answer.Status <= 299 {
		return o.Answer, nil
	}
	return once.Answer{}, &appError{o}
}

// turn is one reply's among those whose headers are read.
type turn struct {
	all   chan struct{}
	state atomic.Int32 // 0, then perhaps turnTaken, then turnOver
}

const (
	turnTaken = iota + 1
	turnOver
)

// take waits for a place until ctx ends.
func (t *turn) take(ctx context.Context) {
	select {
	case t.all <- struct{}{}:
		if !t.state.CompareAndSwap(0, turnTaken) { // nobody wants it any more
			<-t.all
		}
	case <-ctx.Done():
	}
}

// end gives the place back, if there is one.
func (t *turn) end() {
	if t.state.Swap(turnOver) == turnTaken {
		<-t.all
	}
}

// post returns the service's reply to x. Where a kept connection was closed before a byte of an answer, as a server
// does that has had enough of it, the message is posted once more on a new one.
func (f *Forwarder) post(ctx context.Context, x *Delivery, turn *turn) (*http.Response, error) {
	var reused, answered, sent atomic.Bool // the transport's goroutines set them
	trace := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:              func(info httptrace.GotConnInfo) { reused.Store(info.Reused); sent.Store(true) },
		GotFirstResponseByte: func() { answered.Store(true); turn.take(ctx) }, // it is read once this returns
	})
	reply, err := f.kept.RoundTrip(f.request(trace, x)) // not a Client, which follows redirects
	if err != nil && reused.Load() && !answered.Load() && ctx.Err() == nil {
		reply, err = f.fresh.RoundTrip(f.request(trace, x))
	}
	switch {
	case err == nil && reply.StatusCode < 200: // a switched protocol: its body is a connection, which ctx does not end
		_ = reply.Body.Close()
		return nil, appFailed(AppFailed, http.StatusBadGateway, "FORWARD_URL answered %d, which is no answer to a POST", reply.StatusCode)
	case err == nil:
		return reply, nil
	case ctx.Err() != nil:
		return nil, appFailed(AppLate, http.StatusGatewayTimeout, "no answer from FORWARD_URL (%s) within HANDLER_TIMEOUT", f.to.Redacted())
	case !sent.Load():
		return nil, appFailed(AppAway, http.StatusBadGateway, "no connection to FORWARD_URL (%s): %v", f.to.Redacted(), err)
	}
	return nil, appFailed(AppCut, http.StatusBadGateway, "no answer from FORWARD_URL (%s) to a message that it was sent: %v", f.to.Redacted(), rootOf(err))
}

// rootOf is err without what the service may have sent: net/http quotes malformed answers.
func rootOf(err error) error {
	var network *net.OpError
	switch {
	case errors.As(err, &network):
		return network
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the connection was closed")
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

// shown is where target, a path and query, is posted to, as the log shows it: a query may hold a secret.
func (f *Forwarder) shown(target string) string {
	path, _, _ := strings.Cut(target, "?")
	return clip(strings.TrimRight(f.to.Redacted(), "/") + path)
}

// outcomeOfReply is how the delivery ends, but for the body of its answer. The reply is that of the URL asked.
func outcomeOfReply(reply *http.Response, asked string) Outcome {
	o := Outcome{
		Reason: AppFailed,
		Answer: once.Answer{Status: reply.StatusCode, Header: keptHeader(reply.Header)},
		Retry:  retryHeader(reply.Header),
		Detail: fmt.Sprintf("FORWARD_URL answered %d", reply.StatusCode),
	}
	switch location := reply.Header.Get("Location"); {
	case o.Answer.Status == 489 && strings.EqualFold(reply.Header.Get(permanentName), "true"):
		o.Reason, o.Retry = AppPermanent, nil
	case o.Answer.Status <= 399 && location != "":
		o.Detail += fmt.Sprintf(", a redirect from %q to %q, which is not followed: if scheme or host differ, set FORWARD_URL to the second's; "+
			"if the path does, publish to that path", asked, clip(location))
	}
	return o
}

// read reads the body of a reply into a. Where it is cut short, or there is no room for it, another one stands for it: a
// 2xx is a success even so, for the work is done.
func (f *Forwarder) read(x *Delivery, from io.Reader, a *once.Answer) {
	body, whole := f.readAll(x, from)
	if whole {
		a.Body = body
		return
	}
	delete(a.Header, "Content-Encoding")
	a.Header["Content-Type"] = jsonHeader["Content-Type"]
	a.Body = okBody
	if a.Status > 299 {
		a.Body = errorBody("the body of FORWARD_URL's answer was cut short or too large")
	}
}

// readAll returns the body of a reply, and whether that is all of it: it is not where it was cut short, is over
// maxReply, or does not fit into what all replies may hold. Its room is given back when x is over.
func (f *Forwarder) readAll(x *Delivery, from io.Reader) (body []byte, whole bool) {
	var reserved int64
	giveBack := func() { f.held.Add(-reserved) }
	defer func() {
		if whole {
			x.ended = append(x.ended, giveBack)
		} else {
			giveBack()
		}
	}()
	for {
		if len(body) == cap(body) {
			more := min(max(int64(cap(body)), 4<<10), f.maxReply+1-int64(cap(body)))
			if more <= 0 {
				return nil, false
			}
			reserved += more
			if f.held.Add(more) > maxHeldReplies {
				return nil, false
			}
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
		kept[name] = slices.Clone(values) // as it is, it keeps all others in memory
	}
	if size <= maxKeptHeader {
		return kept
	}
	few := http.Header{"Content-Type": {"application/octet-stream"}}
	if never := kept[permanentName]; len(never) == 1 && len(never[0]) < 16 {
		few[permanentName] = never
	}
	return few
}

// retryHeader is what of h tells QStash when to try again.
func retryHeader(h http.Header) http.Header {
	retry := http.Header{}
	for name, values := range h {
		if (name == "Retry-After" || strings.HasPrefix(name, "X-Ratelimit-Reset")) && len(values[0]) <= 64 {
			retry[name] = slices.Clone(values[:1])
		}
	}
	return retry
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
