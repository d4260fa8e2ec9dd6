package dev

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A list of the API has at most this many entries, and a cursor if there are more.
const maxListed = 100

// maxLoggedBody is up to where a log entry repeats a body, in bytes.
const maxLoggedBody = 64 << 10

// messageJSON is a message as the API gives it.
type messageJSON struct {
	MessageID       string      `json:"messageId"`
	URL             string      `json:"url"`
	Method          string      `json:"method"`
	Header          http.Header `json:"header"`
	Body            string      `json:"body,omitempty"`
	BodyBase64      []byte      `json:"bodyBase64,omitempty"`
	MaxRetries      int         `json:"maxRetries"`
	NotBefore       int64       `json:"notBefore"`
	CreatedAt       int64       `json:"createdAt"`
	Callback        string      `json:"callback,omitempty"`
	FailureCallback string      `json:"failureCallback,omitempty"`
	QueueName       string      `json:"queueName,omitempty"`
	CallerIP        string      `json:"callerIP"`
	Label           string      `json:"label,omitempty"`
	Labels          []string    `json:"labels,omitempty"`
}

func (m *message) json() messageJSON {
	j := messageJSON{
		MessageID:  m.ID,
		URL:        m.destination,
		Method:     m.method,
		Header:     m.header,
		MaxRetries: m.retries,
		NotBefore:  m.notBefore.UnixMilli(),
		CreatedAt:  m.created.UnixMilli(),
		QueueName:  m.queue,
		CallerIP:   m.callerIP,
		Labels:     m.labels(),
	}
	j.Body, j.BodyBase64 = textOrBytes(m.body)
	if len(j.Labels) > 0 {
		j.Label = j.Labels[0]
	}
	if m.callback != nil {
		j.Callback = m.callback.destination
	}
	if m.failure != nil {
		j.FailureCallback = m.failure.destination
	}
	return j
}

func (p *publication) labels() []string {
	if p.label == "" {
		return nil
	}
	labels := strings.Split(p.label, ",")
	for i := range labels {
		labels[i] = strings.TrimSpace(labels[i])
	}
	return labels
}

func textOrBytes(b []byte) (string, []byte) {
	if utf8.Valid(b) {
		return string(b), nil
	}
	return "", b
}

func (q *QStash) answerMessage(id string) (int, any, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	m, ok := q.held.messages[id]
	if !ok {
		return 0, nil, notFound("message", id)
	}
	return http.StatusOK, m.json(), nil
}

// answerCancel cancels one message, those whose ids are given, or all that the filter lets through.
func (q *QStash) answerCancel(w http.ResponseWriter, r *http.Request, id string, values url.Values) (int, any, error) {
	ids, err := q.idsOf(w, r, "messageIds", values)
	if err != nil {
		return 0, nil, err
	}
	f, err := parseFilter(values)
	if err != nil {
		return 0, nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if id != "" {
		if _, ok := q.held.messages[id]; !ok {
			return 0, nil, notFound("message", id)
		}
		ids = []string{id}
	}
	var chosen []*message
	for _, m := range q.held.order {
		if ids == nil && f.matches(m) || slices.Contains(ids, m.ID) {
			chosen = append(chosen, m)
		}
	}
	cancelled := 0
	slices.Reverse(chosen) // the newest first, so that no queue begins another on the way
	for _, m := range chosen {
		if q.cancelMessage(m) {
			cancelled++
		}
	}
	return http.StatusAccepted, map[string]int{"cancelled": cancelled}, nil
}

// idsOf returns the ids that a request names in its query or its body; nil if it names none.
func (q *QStash) idsOf(w http.ResponseWriter, r *http.Request, name string, values url.Values) ([]string, error) {
	ids := listOf(values, name)
	body, err := q.read(w, r)
	if err != nil || len(strings.TrimSpace(string(body))) == 0 {
		return ids, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return nil, badRequest("body: not an object with %s: %s", name, err)
	}
	if raw, ok := fields[name]; ok {
		named := texts{} // an empty list names none of them, not all
		if err := json.Unmarshal(raw, &named); err != nil {
			return nil, badRequest("body: %s: %s", name, err)
		}
		return append(named, ids...), nil
	}
	return ids, nil
}

// listOf returns a parameter that may be repeated or have commas; nil if it is not there.
func listOf(values url.Values, name string) []string {
	var list []string
	for _, v := range values[name] {
		list = append(list, strings.Split(v, ",")...)
	}
	return list
}

// filter is what a list is asked for.
type filter struct {
	texts    map[string][]string // by parameter; one of each must match
	statuses []string
	states   []string
	from, to time.Time
	count    int
	after    int64 // the cursor: the number of the last entry of the page before; 0: the first page
}

var textFilters = [...]string{"messageId", "messageIds", "url", "queueName", "label", "callerIp", "callerIP", "dlqIds",
	"topicName", "scheduleId"}

func parseFilter(values url.Values) (filter, error) {
	f := filter{texts: map[string][]string{}, count: maxListed}
	for _, name := range textFilters {
		if list := listOf(values, name); list != nil {
			f.texts[name] = list
		}
	}
	if urls := values["url"]; urls != nil { // a URL may hold commas
		f.texts["url"] = append(urls, f.texts["url"]...)
	}
	f.statuses = listOf(values, "responseStatus")
	for _, state := range listOf(values, "state") {
		switch state = strings.ToUpper(state); state {
		case "CREATED", "ACTIVE", "RETRY", "ERROR", "DELIVERED", "FAILED", "CANCEL_REQUESTED", "CANCELED":
			f.states = append(f.states, state)
		case "CANCELLED":
			f.states = append(f.states, "CANCELED")
		case "IN_PROGRESS":
			f.states = append(f.states, "ACTIVE", "RETRY", "ERROR")
		default:
			return f, badRequest("state: %q is none of QStash's", state)
		}
	}
	if v := values.Get("count"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			return f, badRequest("count: %q is no number from 1 to %d", v, maxListed)
		}
		f.count = min(n, maxListed)
	}
	if v := values.Get("cursor"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 1 {
			return f, badRequest("cursor: %q is none that was given", v)
		}
		f.after = n
	}
	for name, t := range map[string]*time.Time{"fromDate": &f.from, "toDate": &f.to} {
		if v := values.Get(name); v != "" {
			milliseconds, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				return f, badRequest("%s: %q is no time in milliseconds since 1970", name, v)
			}
			*t = time.UnixMilli(milliseconds)
		}
	}
	return f, nil
}

func (f filter) matches(m *message) bool {
	for name, wanted := range f.texts {
		var have []string
		switch name {
		case "messageId", "messageIds":
			have = []string{m.ID}
		case "url":
			have = []string{m.destination}
		case "queueName":
			have = []string{m.queue}
		case "label":
			have = m.labels()
		case "callerIp", "callerIP":
			have = []string{m.callerIP}
		case "dlqIds":
			have = []string{m.dlqID}
		}
		if !slices.ContainsFunc(have, func(s string) bool { return slices.Contains(wanted, s) }) {
			return false
		}
	}
	return len(f.statuses) == 0 || slices.Contains(f.statuses, strconv.Itoa(m.last().Status))
}

func (f filter) during(t time.Time) bool {
	at := t.UnixMilli()
	return (f.from.IsZero() || at >= f.from.UnixMilli()) && (f.to.IsZero() || at <= f.to.UnixMilli())
}

// eventJSON is an event as the API gives it.
type eventJSON struct {
	Time             int64       `json:"time"`
	MessageID        string      `json:"messageId"`
	State            string      `json:"state"`
	URL              string      `json:"url"`
	Method           string      `json:"method"`
	Header           http.Header `json:"header,omitempty"`
	Body             []byte      `json:"body,omitempty"`
	Error            string      `json:"error,omitempty"`
	NextDeliveryTime int64       `json:"nextDeliveryTime,omitempty"`
	QueueName        string      `json:"queueName,omitempty"`
	MaxRetries       int         `json:"maxRetries"`
	ResponseStatus   int         `json:"responseStatus,omitempty"`
	ResponseHeaders  http.Header `json:"responseHeaders,omitempty"`
	ResponseBody     []byte      `json:"responseBody,omitempty"`
	Label            string      `json:"label,omitempty"`
	Labels           []string    `json:"labels,omitempty"`
}

func (e event) json(m *message) eventJSON {
	j := eventJSON{
		Time:       e.Time.UnixMilli(),
		MessageID:  m.ID,
		State:      e.State,
		URL:        m.destination,
		Method:     m.method,
		Header:     m.header,
		Error:      e.Error,
		QueueName:  m.queue,
		MaxRetries: m.retries,
		Labels:     m.labels(),
	}
	if len(m.body) <= maxLoggedBody {
		j.Body = m.body
	}
	if len(j.Labels) > 0 {
		j.Label = j.Labels[0]
	}
	if !e.NextDeliveryTime.IsZero() {
		j.NextDeliveryTime = e.NextDeliveryTime.UnixMilli()
	}
	if e.State == "ERROR" {
		a := m.attempts[e.attempt-1]
		j.ResponseStatus, j.ResponseHeaders = a.Status, a.Header
		if len(a.Body) <= maxLoggedBody {
			j.ResponseBody = a.Body
		}
	}
	return j
}

// answerLogs lists events, the newest first. /v2/logs and /v2/events are one but for the list's name.
func (q *QStash) answerLogs(name string, values url.Values) (int, any, error) {
	f, err := parseFilter(values)
	if err != nil {
		return 0, nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	list, last, cursor := []eventJSON{}, int64(0), ""
	for _, e := range slices.Backward(q.events) {
		m, ok := q.held.messages[e.id]
		wanted := f.after == 0 || e.number < f.after
		if !ok || !wanted || !f.matches(m) || !f.during(e.Time) ||
			f.states != nil && !slices.Contains(f.states, e.State) {
			continue
		}
		if len(list) == f.count {
			cursor = strconv.FormatInt(last, 10)
			break
		}
		list, last = append(list, e.json(m)), e.number
	}
	answer := map[string]any{name: list}
	if cursor != "" {
		answer["cursor"] = cursor
	}
	return http.StatusOK, answer, nil
}
