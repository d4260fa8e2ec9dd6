//go:build lambda

package server

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

	"qstash-receiver/internal/deliver"
	"qstash-receiver/internal/logs"
	"qstash-receiver/internal/once"
)

// StoreWait is how long a store that does not answer is tried for at start: Lambda wants a start to end within 10 s.
const StoreWait = 8 * time.Second

// Listeners stand for the function URL, which needs no listener.
type Listeners struct{}

// Listen opens nothing: PORT and METRICS_PORT mean nothing on Lambda.
func Listen(string, string) (*Listeners, error) { return &Listeners{}, nil }

// Address says where messages come from.
func (l *Listeners) Address() string { return "AWS Lambda" }

// Close does nothing.
func (l *Listeners) Close() {}

// Serve takes messages from an AWS Lambda function URL (payload format 2.0, invoke mode BUFFERED) until ctx ends, and
// closes the store.
func (s *Server) Serve(ctx context.Context, _ *Listeners) error {
	// Lambda freezes what still runs once an invocation is answered, and thaws it at any later time, its lease long
	// lapsed. So the return of a function that ignores its context is waited for, and Lambda ends both at its own
	// timeout, 15 minutes at most.
	s.deliverer.Timing.Grace = 15 * time.Minute
	go lambda.Start(s.invoke) // does not return: it ends the program if Lambda's runtime API fails
	<-ctx.Done()              // SIGTERM, which Lambda sends only to functions with extensions
	s.room.drain()
	return s.deliverer.Stop(s.Timing.Stop)
}

// invoke answers one invocation. It returns no error: Lambda would answer 502 to QStash without a word on why.
func (s *Server) invoke(ctx context.Context, e events.LambdaFunctionURLRequest) (events.LambdaFunctionURLResponse, error) {
	defer logs.Flush(s.Log) // Lambda freezes the program once this returns
	w := &lambdaReply{header: http.Header{}, status: http.StatusOK}
	r, err := lambdaRequest(ctx, e)
	if err != nil {
		s.refusals.line(slog.LevelWarn, func(leftOut int) {
			s.Log.Warn("refused an event", "error", clip(err.Error(), maxClipped), "status", http.StatusBadRequest, "left_out", leftOut)
		})
		respond(w, deliver.Outcome{Answer: once.Answer{
			Status: http.StatusBadRequest, Header: http.Header{"Content-Type": {"application/json"}}, Body: []byte(`{"error":"bad request"}`),
		}})
		return w.event(), nil
	}
	s.ServeHTTP(w, r)
	return w.event(), nil
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
	// AWS says which domain it is; the Host header is whatever the caller says.
	ctx = context.WithValue(ctx, functionURL{}, "https://"+e.RequestContext.DomainName)
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
