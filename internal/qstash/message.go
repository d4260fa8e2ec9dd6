// Package qstash is what business logic (handler.go) works with: the message, what to return, and a log.
// Nothing in it reaches a signing key.
package qstash

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
)

// Message is what QStash delivered: proven to come from it, unchanged.
type Message struct {
	// URL is what the message was delivered to: path and query as they were sent and, with RECEIVER_URL set, the
	// scheme and host that it was published to. All of it is then what was signed, so business logic may route on it.
	URL *url.URL
	// Body is as the publisher posted it. It belongs to the business logic, which may change it.
	Body []byte
	// Unverified is what the headers say. QStash signs none of it.
	Unverified Unverified
}

// Unverified holds a delivery's headers. Whoever can resend a captured delivery can change them.
type Unverified struct {
	ID          string      // Upstash-Message-Id: the same in each attempt
	Attempt     int         // Upstash-Retried: 0 in the first attempt
	MaxRetries  int         // Upstash-Max-Retries: how often QStash retries at most; -1: unknown
	LastAttempt bool        // no retry follows this attempt; false where that is unknown
	ScheduleID  string      // Upstash-Schedule-Id: "" if no schedule sent it
	URLGroup    string      // Upstash-Topic-Name: "" if it was published to a URL
	Label       string      // Upstash-Label: "" if it was published without
	CallerIP    string      // Upstash-Caller-Ip: of the publisher
	Region      string      // Upstash-Region: "EU-CENTRAL-1", "US-EAST-1"
	Header      http.Header // all of them, what the publisher forwarded too
}

// NewUnverified reads the headers of a delivery; it keeps h.
func NewUnverified(h http.Header) Unverified {
	u := Unverified{
		ID:         h.Get("Upstash-Message-Id"),
		Attempt:    max(0, number(h.Get("Upstash-Retried"), 0)),
		MaxRetries: max(-1, number(h.Get("Upstash-Max-Retries"), -1)),
		ScheduleID: h.Get("Upstash-Schedule-Id"),
		URLGroup:   h.Get("Upstash-Topic-Name"),
		Label:      h.Get("Upstash-Label"),
		CallerIP:   h.Get("Upstash-Caller-Ip"),
		Region:     h.Get("Upstash-Region"),
		Header:     h,
	}
	u.LastAttempt = u.MaxRetries >= 0 && u.Attempt >= u.MaxRetries
	return u
}

func number(text string, otherwise int) int {
	if text == "" { // most of the time; Atoi's error would be allocated
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return otherwise
	}
	return n
}

// Decode returns m's body, which must be the JSON of a T. If it is not, the error is Permanent: no retry changes
// that.
func Decode[T any](m *Message) (T, error) {
	var v T
	if err := json.Unmarshal(m.Body, &v); err != nil {
		var none T
		return none, Permanent(fmt.Errorf("decode the body as %T: %w", none, err))
	}
	return v, nil
}
