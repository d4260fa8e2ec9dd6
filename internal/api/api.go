// Package api asks QStash's API for what the receiver needs to know. It changes nothing there.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"qstash-receiver/internal/signing"
)

// Region is one of QStash's: each has its own tokens, keys and messages.
type Region struct {
	Prefix string // of its settings: "EU_CENTRAL_1_"; "" for the ordinary ones
	Name   string // as in QStash's Upstash-Region header
	URL    string // of its API
}

// Regions returns all that there are. The ordinary settings come first; their API is the EU's unless they say otherwise.
func Regions() []Region {
	return []Region{
		{Prefix: "", Name: "EU-CENTRAL-1", URL: "https://qstash.upstash.io"},
		{Prefix: "EU_CENTRAL_1_", Name: "EU-CENTRAL-1", URL: "https://qstash-eu-central-1.upstash.io"},
		{Prefix: "US_EAST_1_", Name: "US-EAST-1", URL: "https://qstash-us-east-1.upstash.io"},
	}
}

// Client is the API of one region, with its token. Its errors say what the API answered, without the token.
type Client struct {
	Region string // the prefix of its settings
	// TakeLocal takes keys that Upstash publishes for its local server: anyone can sign with them.
	TakeLocal bool

	base  *url.URL
	token string
	http  *http.Client
}

// New returns the client that shows token to the API at base, which is https, or http on loopback.
func New(region string, base *url.URL, token string) *Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxResponseHeaderBytes = 64 << 10
	return &Client{
		Region: region,
		base:   base,
		token:  token,
		http: &http.Client{
			Transport: transport,
			Timeout:   10 * time.Second, // of a request, its answer's body included
			// The token was given for one host: it is shown to no other.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// At returns a client that shows the same token to another API.
func (c *Client) At(base *url.URL) *Client { return New(c.Region, base, c.token) }

// TokenName is the setting that the token comes from.
func (c *Client) TokenName() string { return c.Region + "QSTASH_TOKEN" }

// URL is where the API is.
func (c *Client) URL() string { return signing.Origin(c.base) }

// Pair is what the API says of the signing keys.
type Pair struct {
	Current, Next signing.Key
	Date          time.Time // of the API's clock, to the second; zero: it did not say
}

// Keys returns the keys in force.
func (c *Client) Keys(ctx context.Context) (Pair, error) {
	body, header, err := c.get(ctx, "/v2/keys", nil, 64<<10)
	if err != nil {
		return Pair{}, err
	}
	var says struct{ Current, Next string }
	if err := json.Unmarshal(body, &says); err != nil {
		return Pair{}, c.errorf("/v2/keys", "the answer is no JSON object with two keys") // err may hold a piece of them
	}
	for name, secret := range map[string]string{"current": says.Current, "next": says.Next} {
		if err := signing.Check(secret); err != nil && !(c.TakeLocal && errors.Is(err, signing.ErrPublished)) {
			return Pair{}, c.errorf("/v2/keys", "%s is no signing key: %w", name, err)
		}
	}
	date, _ := http.ParseTime(header.Get("Date"))
	return Pair{
		Current: signing.NewKey("current", c.Region, says.Current),
		Next:    signing.NewKey("next", c.Region, says.Next),
		Date:    date,
	}, nil
}

// StatusError is an answer that is not 200.
type StatusError struct {
	Status int
	text   string
}

func (e *StatusError) Error() string { return e.text }

// Refused says whether err is the API's refusal of the token.
func Refused(err error) bool {
	var status *StatusError
	return errors.As(err, &status) && (status.Status == http.StatusUnauthorized || status.Status == http.StatusForbidden)
}

// get returns the body of a complete answer with status 200, of at most limit bytes.
func (c *Client) get(ctx context.Context, path string, query url.Values, limit int64) ([]byte, http.Header, error) {
	u := url.URL{Scheme: c.base.Scheme, Host: c.base.Host, Path: path, RawQuery: query.Encode()}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, nil, c.errorf(path, "%w", err)
	}
	request.Header.Set("Authorization", "Bearer "+c.token)
	response, err := c.http.Do(request)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) { // which repeats the URL
			err = wrapped.Err
		}
		return nil, nil, c.errorf(path, "no answer: %s", c.clean(err.Error())) // which quotes a malformed one
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, limit+1))
	switch {
	case response.StatusCode != http.StatusOK:
		return nil, nil, &StatusError{response.StatusCode, c.errorf(path, "the API answers %s", c.refusal(response, body)).Error()}
	case err != nil:
		return nil, nil, c.errorf(path, "the answer was cut short: %s", c.clean(err.Error()))
	case int64(len(body)) > limit:
		return nil, nil, c.errorf(path, "the answer is over %d KiB", limit>>10)
	}
	return body, response.Header, nil
}

func (c *Client) errorf(path, format string, args ...any) error {
	return fmt.Errorf("GET %s: "+format, append([]any{c.URL() + path}, args...)...)
}

// refusal is what the API says with a status other than 200.
func (c *Client) refusal(response *http.Response, body []byte) string {
	said := fmt.Sprint(response.StatusCode, " ", http.StatusText(response.StatusCode))
	var reason struct{ Error string }
	if json.Unmarshal(body, &reason) == nil && reason.Error != "" {
		said += fmt.Sprintf(" (%s)", c.clean(reason.Error))
	}
	if to, err := response.Location(); err == nil {
		said += fmt.Sprintf(", a redirect to %s, which is not followed", c.clean(to.Scheme+"://"+to.Host))
	}
	return said
}
