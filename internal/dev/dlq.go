package dev

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// letterJSON is a dead letter as the API gives it.
type letterJSON struct {
	messageJSON
	DLQID              string      `json:"dlqId"`
	ResponseStatus     int         `json:"responseStatus,omitempty"`
	ResponseHeader     http.Header `json:"responseHeader,omitempty"`
	ResponseBody       string      `json:"responseBody,omitempty"`
	ResponseBodyBase64 []byte      `json:"responseBodyBase64,omitempty"`
}

func (m *message) letterJSON() letterJSON {
	a := m.last()
	j := letterJSON{messageJSON: m.json(), DLQID: m.dlqID, ResponseStatus: a.Status, ResponseHeader: a.Header}
	j.ResponseBody, j.ResponseBodyBase64 = textOrBytes(a.Body)
	if a.Status == 0 {
		j.ResponseBody = a.Err
	}
	return j
}

// answerDLQ answers /v2/dlq, /v2/dlq/{id}, /v2/dlq/retry and /v2/dlq/retry/{id}.
func (q *QStash) answerDLQ(w http.ResponseWriter, r *http.Request, id string, values url.Values) (int, any, error) {
	retry := id == "retry" || strings.HasPrefix(id, "retry/")
	switch {
	case retry && r.Method != http.MethodPost:
		return 0, nil, methodNotAllowed(w, http.MethodPost)
	case !retry && r.Method != http.MethodGet && r.Method != http.MethodDelete:
		return 0, nil, methodNotAllowed(w, http.MethodGet+", "+http.MethodDelete)
	}
	f, err := parseFilter(values)
	if err != nil {
		return 0, nil, err
	}
	ids, err := q.idsOf(w, r, "dlqIds", values)
	if err != nil {
		return 0, nil, err
	}
	one := strings.TrimPrefix(strings.TrimPrefix(id, "retry"), "/")
	if one != "" {
		ids = []string{one}
	}

	q.mu.Lock()
	defer q.mu.Unlock()
	chosen, cursor := q.choose(f, ids)
	if one != "" && len(chosen) == 0 || retry && len(chosen) < len(ids) {
		return 0, nil, notFound("dead letter", strings.Join(ids, ", "))
	}
	answer := map[string]any{}
	if cursor != "" {
		answer["cursor"] = cursor
	}
	switch {
	case retry:
		responses, err := q.retryLetters(chosen, r.Header)
		if err != nil {
			return 0, nil, err
		}
		answer["responses"] = responses
		if one != "" {
			answer["messageId"] = responses[0].MessageID
		}
		return http.StatusCreated, answer, nil
	case r.Method == http.MethodDelete:
		for _, m := range chosen {
			q.removeLetter(m)
		}
		answer["deleted"] = len(chosen)
	case one != "":
		return http.StatusOK, chosen[0].letterJSON(), nil
	default:
		letters := []letterJSON{}
		for _, m := range chosen {
			letters = append(letters, m.letterJSON())
		}
		answer["messages"] = letters
	}
	return http.StatusOK, answer, nil
}

// choose returns the dead letters with the given ids or, if they are nil, a page of those that f lets through, with the
// cursor of the next one. The caller holds q.mu.
func (q *QStash) choose(f filter, ids []string) (chosen []*message, cursor string) {
	for _, m := range q.letters {
		switch {
		case ids != nil:
			if slices.Contains(ids, m.dlqID) {
				chosen = append(chosen, m)
			}
		case m.letter <= f.after || !f.matches(m) || !f.during(m.last().Ended):
		case len(chosen) == f.count:
			return chosen, strconv.FormatInt(chosen[len(chosen)-1].letter, 10)
		default:
			chosen = append(chosen, m)
		}
	}
	return chosen, ""
}

// retryLetters publishes the messages anew, each as a new one without its delay, with the settings that h changes.
// They leave the dead letter queue. The caller holds q.mu.
func (q *QStash) retryLetters(letters []*message, h http.Header) ([]published, error) {
	again := make([]*publication, len(letters))
	for i, m := range letters {
		p, err := m.changedBy(h)
		if err != nil {
			return nil, err
		}
		again[i] = p
	}
	answers := make([]published, len(letters))
	for i, p := range again {
		q.removeLetter(letters[i])
		answers[i] = published{MessageID: q.hold(p, letters[i].source).ID}
		q.changed(letters[i], nil)
	}
	return answers, nil
}

// Settings that a message published anew does not have again.
var ofTheFirst = [...]string{"Upstash-Delay", "Upstash-Not-Before", "Upstash-Deduplication-Id",
	"Upstash-Content-Based-Deduplication", "Upstash-Dev-Fault"}

// changedBy returns p to be published anew at once, with the settings in h instead of its own.
func (p *publication) changedBy(h http.Header) (*publication, error) {
	asked := maps.Clone(p.asked)
	for _, name := range ofTheFirst {
		delete(asked, name)
	}
	for name, values := range h {
		if strings.HasPrefix(name, "Upstash-") {
			asked[name] = values
		}
	}
	again, err := newPublication(p.destination, asked, p.body)
	if err != nil {
		return nil, err
	}
	if h.Get("Upstash-Retries") == "" {
		again.retries = p.retries // a callback's default is not 3
	}
	again.queue, again.callerIP = p.queue, p.callerIP
	return again, nil
}
