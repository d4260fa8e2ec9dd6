package api

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strings"

	"qstash-receiver/internal/signing"
)

// Failure is a delivery that failed, or a message that is in the dead letter queue. Its texts are fit for a terminal.
type Failure struct {
	Origin string // of the destination
	Status int    // of the answer; 0: there was none
	Said   string // what the answer said, or why there was none
}

// Target is where a schedule or a URL group delivers to. Its texts are fit for a terminal.
type Target struct {
	Name   string // of the schedule or the group
	Origin string // of the destination, as signing.Origin returns it; "": it is no URL
	Method string // "": the default, POST
	Paused bool
}

// DeadLetters returns all that is in the dead letter queue.
func (c *Client) DeadLetters(ctx context.Context) ([]Failure, error) {
	// Each comes with its message's body.
	entries, err := list[failure](ctx, c, "/v2/dlq", url.Values{"count": {"20"}})
	return c.failures(entries, "", err)
}

// FailedDeliveries returns the failed attempts that the log of messages still has.
func (c *Client) FailedDeliveries(ctx context.Context) ([]Failure, error) {
	var all []Failure
	for _, state := range []string{"ERROR", "FAILED"} {
		entries, err := list[failure](ctx, c, "/v2/logs", url.Values{"state": {state}, "count": {"100"}})
		found, err := c.failures(entries, state, err)
		all = append(all, found...)
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

// failure is as the API has it. The body of an answer is text among dead letters, base64 in the log.
type failure struct {
	URL                string
	State              string
	ResponseStatus     int
	ResponseBody       string
	ResponseBodyBase64 string
	Error              string
}

func (c *Client) failures(entries []failure, state string, err error) ([]Failure, error) {
	var all []Failure
	for _, e := range entries {
		if state != "" && e.State != "" && e.State != state {
			continue // of an API that does not filter
		}
		body := e.ResponseBody
		if e.ResponseBodyBase64 != "" {
			body = e.ResponseBodyBase64
		}
		if decoded, err := base64.StdEncoding.DecodeString(body); err == nil && (state != "" || e.ResponseBodyBase64 != "") {
			body = string(decoded)
		}
		var ours struct{ Error string }
		switch {
		case json.Unmarshal([]byte(body), &ours) == nil && ours.Error != "":
			body = ours.Error
		case body == "":
			body = e.Error
		}
		all = append(all, Failure{Origin: c.origin(e.URL), Status: e.ResponseStatus, Said: c.clean(strings.TrimSpace(body))})
	}
	return all, err
}

// Schedules returns where each schedule delivers to.
func (c *Client) Schedules(ctx context.Context) ([]Target, error) {
	entries, err := list[struct {
		ScheduleID, Destination, Method string
		IsPaused                        bool
	}](ctx, c, "/v2/schedules", nil)
	var all []Target
	for _, e := range entries {
		all = append(all, Target{Name: c.clean(e.ScheduleID), Origin: c.origin(e.Destination), Method: c.clean(e.Method), Paused: e.IsPaused})
	}
	return all, err
}

// URLGroups returns where each endpoint of each URL group is.
func (c *Client) URLGroups(ctx context.Context) ([]Target, error) {
	entries, err := list[struct {
		Name      string
		Endpoints []struct{ URL string }
	}](ctx, c, "/v2/topics", nil)
	var all []Target
	for _, e := range entries {
		for _, endpoint := range e.Endpoints {
			all = append(all, Target{Name: c.clean(e.Name), Origin: c.origin(endpoint.URL)})
		}
	}
	return all, err
}

// origin is that of a destination, without what may be secret: its path, its query and a login.
func (c *Client) origin(destination string) string {
	u, err := url.Parse(destination)
	if err != nil || u.Host == "" {
		return ""
	}
	return c.clean(signing.Origin(u))
}

// list returns the items of all pages. Beside an error, it returns those of the pages before.
func list[T any](ctx context.Context, c *Client, path string, query url.Values) ([]T, error) {
	const (
		pageBytes = 64 << 20
		maxPages  = 1000
	)
	if query == nil {
		query = url.Values{}
	}
	var all []T
	for range maxPages {
		body, _, err := c.get(ctx, path, query, pageBytes)
		if err != nil {
			return all, err
		}
		items, cursor, err := page[T](body)
		if err != nil {
			return all, c.errorf(path, "the answer is not what QStash's documentation says: %w", err)
		}
		all = append(all, items...)
		if cursor == "" {
			return all, nil
		}
		if cursor == query.Get("cursor") {
			return all, c.errorf(path, "the API gives the same page again and again")
		}
		query.Set("cursor", cursor)
	}
	return all, c.errorf(path, "there are over %d pages; the first ones were read", maxPages)
}

// page reads a page: a list, or an object with one and with the cursor of the next page.
func page[T any](body []byte) (items []T, cursor string, err error) {
	if body = bytes.TrimSpace(body); bytes.HasPrefix(body, []byte("[")) {
		return items, "", lenient(json.Unmarshal(body, &items))
	}
	var says struct {
		Cursor                 string
		Messages, Logs, Events []T
	}
	err = lenient(json.Unmarshal(body, &says))
	return slices.Concat(says.Messages, says.Logs, says.Events), says.Cursor, err
}

// lenient passes over a field that has another type than usual: it is left zero.
func lenient(err error) error {
	if errors.As(err, new(*json.UnmarshalTypeError)) {
		return nil
	}
	return err
}
