//go:build lambda

package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-lambda-go/lambda"
)

// serve takes messages from an AWS Lambda function URL (payload format 2.0, invoke mode BUFFERED) until ctx ends.
// It listens on no port: PORT and METRICS_PORT mean nothing here.
func serve(ctx context.Context, c config, log *slog.Logger) error {
	remembered, err := openStore(ctx, c.store, c.storeTTL, 8*time.Second, log) // Lambda wants a start to end within 10 s
	if ctx.Err() != nil {
		return nil // stopped before it began
	}
	if err != nil {
		return err
	}
	s := newServer(c, remembered, log)
	// Lambda freezes what still runs once an invocation is answered, and thaws it at any later time, its lease long
	// lapsed. So the return of a function that ignores its context is waited for, and Lambda ends both at its own
	// timeout, 15 minutes at most.
	s.deliverer.grace = 15 * time.Minute
	if len(c.origins) == 0 {
		c.origins = []string{"the function URL"}
	}
	c.announce(log, "AWS Lambda")
	if c.store.kind != "redis" {
		log.Warn("STORE_URL is not a Redis: each of Lambda's instances remembers handled messages for itself, until it is dropped, and they may be run again; set STORE_URL=rediss://...")
	}
	go lambda.Start(s.invoke) // does not return: it ends the program if Lambda's runtime API fails
	<-ctx.Done()              // SIGTERM, which Lambda sends only to functions with extensions
	<-s.inFlight.drain()
	if err := remembered.close(); err != nil {
		return fmt.Errorf("stop: close the store: %w", err)
	}
	return nil
}

// invoke answers one invocation. It returns no error: Lambda would answer 502 to QStash without a word on why.
func (s *server) invoke(ctx context.Context, e events.LambdaFunctionURLRequest) (events.LambdaFunctionURLResponse, error) {
	w := &lambdaReply{header: http.Header{}, status: http.StatusOK}
	if r, err := lambdaRequest(ctx, e); err != nil {
		respond(w, errorAnswer(http.StatusBadRequest, "bad request"))
		s.refusals.line(func(leftOut int) {
			s.log.Warn("refused an event", "error", clip(err.Error()), "status", http.StatusBadRequest, "left_out", leftOut)
		})
	} else {
		s.within(ctx, e.RequestContext.DomainName).ServeHTTP(w, r)
	}
	return w.event(), nil
}

// within returns s for one invocation, which ctx's deadline ends and which came to domain.
func (s *server) within(ctx context.Context, domain string) *server {
	one, v, d := *s, *s.verifier, *s.deliverer
	one.verifier, one.deliverer = &v, &d
	if len(v.origins) == 0 { // AWS says which domain it is; the Host header is whatever the caller says
		v.origins = []string{origin(&url.URL{Scheme: "https", Host: domain})}
	}
	end, _ := ctx.Deadline() // Lambda always sets one
	left := time.Until(end)
	margin := min(2*time.Second, left/5) // one before the function, for the claim, and one after it, to record and answer
	d.timeout = min(d.timeout, left-2*margin)
	d.wait = min(d.wait, left-d.timeout-margin)
	return &one
}

// lambdaRequest is the HTTP request in e, path and query to the byte as they were sent.
func lambdaRequest(ctx context.Context, e events.LambdaFunctionURLRequest) (*http.Request, error) {
	if e.RequestContext.DomainName == "" {
		return nil, errors.New("read an event: it names no domain, so it is not from a function URL (payload format 2.0)")
	}
	target := e.RawPath
	if e.RawQueryString != "" {
		target += "?" + e.RawQueryString
	}
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return nil, fmt.Errorf("read an event's path and query: %w", err)
	}
	body := []byte(e.Body)
	if e.IsBase64Encoded {
		if body, err = base64.StdEncoding.DecodeString(e.Body); err != nil {
			return nil, fmt.Errorf("read an event's body: %w", err)
		}
	}
	h := make(http.Header, len(e.Headers))
	for name, value := range e.Headers { // lower-case names; values of the same name are joined by commas
		h.Set(name, value)
	}
	if h.Get("Cookie") == "" && len(e.Cookies) > 0 {
		h.Set("Cookie", strings.Join(e.Cookies, "; "))
	}
	host := h.Get("Host")
	h.Del("Host")
	return (&http.Request{
		Method: e.RequestContext.HTTP.Method, URL: u, RequestURI: target, Host: host, Header: h,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, RemoteAddr: e.RequestContext.HTTP.SourceIP,
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
	}).WithContext(ctx), nil
}

// lambdaReply is a http.ResponseWriter that keeps what is written.
type lambdaReply struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *lambdaReply) Header() http.Header         { return w.header }
func (w *lambdaReply) WriteHeader(status int)      { w.status = status }
func (w *lambdaReply) Write(p []byte) (int, error) { return w.body.Write(p) }

// event is w as a function URL wants it: text as it is, other bytes in base64.
func (w *lambdaReply) event() events.LambdaFunctionURLResponse {
	e := events.LambdaFunctionURLResponse{StatusCode: w.status, Headers: map[string]string{}, Body: w.body.String()}
	for name, values := range w.header {
		if len(values) > 0 && name != "Connection" { // the connection is AWS's to close
			e.Headers[name] = strings.Join(values, ", ")
		}
	}
	if !utf8.ValidString(e.Body) {
		e.Body, e.IsBase64Encoded = base64.StdEncoding.EncodeToString(w.body.Bytes()), true
	}
	return e
}
