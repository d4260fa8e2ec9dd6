package dev

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// apiError is an answer of the API that is no success.
type apiError struct {
	status int
	text   string
}

func (e *apiError) Error() string { return e.text }

func badRequest(format string, args ...any) error {
	return &apiError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

func unsupported(format string, args ...any) error {
	return &apiError{http.StatusNotImplemented, fmt.Sprintf(format, args...)}
}

func notFound(what, id string) error {
	return &apiError{http.StatusNotFound, fmt.Sprintf("%s %s not found", what, id)}
}

func conflict(format string, args ...any) error {
	return &apiError{http.StatusConflict, fmt.Sprintf(format, args...)}
}

// about says where in a request err lies.
func about(where string, err error) error {
	return &apiError{statusOf(err), where + ": " + err.Error()}
}

func statusOf(err error) int {
	if e, ok := errors.AsType[*apiError](err); ok {
		return e.status
	}
	return http.StatusInternalServerError
}

var errTooLarge = &apiError{http.StatusRequestEntityTooLarge, "the message is over 10 MiB"}

func writeError(w http.ResponseWriter, err error) {
	writeJSON(w, statusOf(err), map[string]string{"error": err.Error()})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"error":"encode the answer"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // to a caller who may have hung up
}

// What QStash has and this stand-in has not, by the beginning of its path.
var unsupportedPaths = map[string]string{
	"schedules":         "schedules",
	"topics":            "URL groups",
	"queues":            "settings of queues: enqueueing makes a queue, and its messages are delivered one after another",
	"workflows":         "workflows",
	"flowControl":       "flow control",
	"globalParallelism": "flow control",
	"bulkActions":       "bulk actions",
	"waiter":            "waiters",
	"notify":            "waiters",
}

func (q *QStash) serveAPI(w http.ResponseWriter, r *http.Request) {
	status, answer, err := q.answerAPI(w, r)
	if err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, status, answer)
}

func (q *QStash) answerAPI(w http.ResponseWriter, r *http.Request) (status int, answer any, err error) {
	target := strings.TrimPrefix(r.RequestURI, "/v2/")
	if destination, ok := strings.CutPrefix(target, "publish/"); ok {
		return q.answerPublish(w, r, "", destination)
	}
	if rest, ok := strings.CutPrefix(target, "enqueue/"); ok {
		queue, destination, _ := strings.Cut(rest, "/")
		if err := checkQueue(queue); err != nil {
			return 0, nil, err
		}
		return q.answerPublish(w, r, queue, destination)
	}
	path, query, _ := strings.Cut(target, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return 0, nil, badRequest("query: %s", err)
	}
	kind, id, _ := strings.Cut(path, "/")
	call := r.Method + " " + kind
	switch {
	case path == "batch":
		if r.Method != http.MethodPost {
			return 0, nil, methodNotAllowed(w, http.MethodPost)
		}
		return q.answerBatch(w, r)
	case path == "keys", path == "keys/rotate":
		return q.answerKeys(w, r, path == "keys/rotate")
	case path == "logs", path == "events":
		if r.Method != http.MethodGet {
			return 0, nil, methodNotAllowed(w, http.MethodGet)
		}
		return q.answerLogs(path, values)
	case call == "GET messages" && id != "":
		return q.answerMessage(id)
	case call == "DELETE messages":
		return q.answerCancel(w, r, id, values)
	case kind == "messages" && id != "":
		return 0, nil, methodNotAllowed(w, http.MethodGet+", "+http.MethodDelete)
	case kind == "messages":
		return 0, nil, methodNotAllowed(w, http.MethodDelete)
	case kind == "dlq":
		return q.answerDLQ(w, r, id, values)
	}
	if what, ok := unsupportedPaths[kind]; ok {
		return 0, nil, unsupported("this stand-in for QStash has no %s", what)
	}
	return 0, nil, &apiError{http.StatusNotFound, "there is no /v2/" + path}
}

func methodNotAllowed(w http.ResponseWriter, allowed string) error {
	w.Header().Set("Allow", allowed)
	return &apiError{http.StatusMethodNotAllowed, "method not allowed: " + allowed}
}

// published is what a publisher hears.
type published struct {
	MessageID    string `json:"messageId"`
	Deduplicated bool   `json:"deduplicated,omitempty"`
}

func (q *QStash) answerPublish(w http.ResponseWriter, r *http.Request, queue, destination string) (int, any, error) {
	if r.Method != http.MethodPost {
		return 0, nil, methodNotAllowed(w, http.MethodPost)
	}
	body, err := q.read(w, r)
	if err != nil {
		return 0, nil, err
	}
	p, err := newPublication(destination, r.Header, body)
	if err != nil {
		return 0, nil, err
	}
	p.queue, p.callerIP = queue, callerOf(r)
	q.mu.Lock()
	defer q.mu.Unlock()
	answer := q.accept(p)
	if answer.Deduplicated {
		return http.StatusAccepted, answer, nil
	}
	return http.StatusOK, answer, nil
}

func checkQueue(name string) error {
	if !plainName.MatchString(name) {
		return badRequest("queue %q: a name has letters, digits, dots, hyphens and underscores", name)
	}
	return nil
}

// accept publishes p and says whether it was a duplicate. The caller holds q.mu.
func (q *QStash) accept(p *publication) published {
	if m := q.duplicateOf(p); m != nil {
		return published{MessageID: m.ID, Deduplicated: true}
	}
	return published{MessageID: q.hold(p, "").ID}
}

// read returns the body of a request.
func (q *QStash) read(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	select {
	case q.bodies <- struct{}{}:
		defer func() { <-q.bodies }()
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, errTooLarge
	}
	if err != nil {
		return nil, badRequest("read the body: %s", err)
	}
	return body, nil
}

func callerOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return "127.0.0.1"
	}
	return host
}

// texts is a text or a list of texts.
type texts []string

func (t *texts) UnmarshalJSON(raw []byte) error {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		*t = texts{one}
		return nil
	}
	return json.Unmarshal(raw, (*[]string)(t))
}

func (q *QStash) answerBatch(w http.ResponseWriter, r *http.Request) (int, any, error) {
	body, err := q.read(w, r)
	if err != nil {
		return 0, nil, err
	}
	var items []struct {
		Destination string           `json:"destination"`
		Headers     map[string]texts `json:"headers"`
		Body        string           `json:"body"`
		Queue       string           `json:"queue"`
	}
	if err := json.Unmarshal(body, &items); err != nil {
		return 0, nil, badRequest("batch: not a list of {destination, headers, body, queue}: %s", err)
	}
	if len(items) > maxMessages {
		return 0, nil, badRequest("batch: %d messages are more than the %d that are held", len(items), maxMessages)
	}
	all := make([]*publication, len(items))
	for i, item := range items { // one that is wrong refuses the batch
		header := http.Header{}
		for name, values := range item.Headers {
			for _, v := range values {
				header.Add(name, v)
			}
		}
		if all[i], err = newPublication(item.Destination, header, []byte(item.Body)); err != nil {
			return 0, nil, about(fmt.Sprintf("message %d", i), err)
		}
		if err := checkQueue(item.Queue); item.Queue != "" && err != nil {
			return 0, nil, about(fmt.Sprintf("message %d", i), err)
		}
		all[i].queue, all[i].callerIP = item.Queue, callerOf(r)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	answers := make([]published, len(all))
	for i, p := range all {
		answers[i] = q.accept(p)
	}
	return http.StatusOK, answers, nil
}

func (q *QStash) answerKeys(w http.ResponseWriter, r *http.Request, rotate bool) (int, any, error) {
	allowed := http.MethodGet
	if rotate {
		allowed = http.MethodPost
	}
	if r.Method != allowed {
		return 0, nil, methodNotAllowed(w, allowed)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if rotate {
		q.keys = q.keys.rolled()
	}
	return http.StatusOK, q.keys, nil
}
