package qstash

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Callback is what QStash posts to the callback or the failure callback of a message (its documentation:
// Features, Callbacks). Bodies are decoded; what QStash left out is zero.
type Callback struct {
	MessageID    string // sourceMessageId: of the message that failed
	DLQID        string // of its place in the dead letter queue
	URL          string // where it was to be delivered
	Method       string
	Status       int         // of the last answer
	Header       http.Header // of the last answer
	Body         []byte      // of the last answer
	Retried      int         // retries made
	MaxRetries   int
	URLGroup     string // topicName
	Endpoint     string // endpointName
	ScheduleID   string
	SourceHeader http.Header // of the message
	SourceBody   []byte      // of the message
	NotBefore    time.Time
	CreatedAt    time.Time
	CallerIP     string
}

// ParseCallback reads a failure callback. Times may be numbers or text (milliseconds since 1970), header values text
// or lists, bodies base64 of either alphabet; a success callback is an error.
func ParseCallback(body []byte) (*Callback, error) {
	var raw struct {
		SourceMessageID, DlqID, URL, Method, TopicName, EndpointName, ScheduleID, CallerIP string
		Status, Retried, MaxRetries, NotBefore, CreatedAt                                  looseInt
		Header, SourceHeader                                                               looseHeader
		Body, SourceBody                                                                   looseBytes
	}
	// A field of another type than usual stays zero.
	if err := json.Unmarshal(body, &raw); err != nil && !errors.As(err, new(*json.UnmarshalTypeError)) {
		return nil, fmt.Errorf("read a failure callback: %w", err)
	}
	if raw.SourceMessageID == "" {
		return nil, errors.New("read a failure callback: it has no sourceMessageId; /failure is for QStash's failure callbacks, publish messages to another path")
	}
	if raw.DlqID == "" && raw.Status >= 200 && raw.Status <= 299 {
		return nil, fmt.Errorf("read a failure callback: it has no dlqId and its status is %d, so it is a success callback; give it another path", raw.Status)
	}
	return &Callback{
		MessageID:    raw.SourceMessageID,
		DLQID:        raw.DlqID,
		URL:          raw.URL,
		Method:       raw.Method,
		Status:       int(raw.Status),
		Header:       http.Header(raw.Header),
		Body:         raw.Body,
		Retried:      int(raw.Retried),
		MaxRetries:   int(raw.MaxRetries),
		URLGroup:     raw.TopicName,
		Endpoint:     raw.EndpointName,
		ScheduleID:   raw.ScheduleID,
		SourceHeader: http.Header(raw.SourceHeader),
		SourceBody:   raw.SourceBody,
		NotBefore:    raw.NotBefore.time(),
		CreatedAt:    raw.CreatedAt.time(),
		CallerIP:     raw.CallerIP,
	}, nil
}

// looseInt is a JSON number, whole or not, or one in a text; anything else that is valid JSON is 0.
type looseInt int64

func (n *looseInt) UnmarshalJSON(raw []byte) error {
	f, err := strconv.ParseFloat(string(bytes.Trim(raw, `"`)), 64)
	if err == nil && f > -1<<62 && f < 1<<62 {
		*n = looseInt(f)
	}
	return nil
}

func (n looseInt) time() time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMilli(int64(n)).UTC()
}

// looseHeader is an object whose values are texts or lists of texts; what is neither is left out.
type looseHeader http.Header

func (h *looseHeader) UnmarshalJSON(raw []byte) error {
	var values map[string]json.RawMessage
	if json.Unmarshal(raw, &values) != nil {
		return nil
	}
	header := http.Header{}
	for name, value := range values {
		var one string
		var many []string
		if json.Unmarshal(value, &one) == nil {
			many = []string{one}
		} else if json.Unmarshal(value, &many) != nil {
			continue
		}
		for _, v := range many {
			header.Add(name, v)
		}
	}
	*h = looseHeader(header)
	return nil
}

// looseBytes is base64 of either alphabet, padded or not; a text that is neither stands for itself.
type looseBytes []byte

func (b *looseBytes) UnmarshalJSON(raw []byte) error {
	var s string
	if json.Unmarshal(raw, &s) != nil || s == "" {
		return nil
	}
	standard := strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(s, "="))
	decoded, err := base64.RawStdEncoding.DecodeString(standard)
	if err != nil {
		decoded = []byte(s)
	}
	*b = decoded
	return nil
}
