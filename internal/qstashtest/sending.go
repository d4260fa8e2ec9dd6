package qstashtest

import (
	"bufio"
	"cmp"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// Sending is a delivery as QStash makes it. What is zero is made up, anew for each request.
type Sending struct {
	Path    string // with the query; "": the root
	Body    string
	ID      string // Upstash-Message-Id
	TokenID string // the token's jti
	Subject string // the destination URL as published; "": the URL that the request is for
	Key     string // that signs; "": CurrentKey
	Issued  time.Time
	Claims  Claims            // other claims than production's; "": the token has none of that name
	Header  map[string]string // other headers than a delivery's; "": there is none of that name
	// Proxied adds the headers that only some deliveries have, and those of Fly's proxy: there are 29 then.
	Proxied bool
}

// Token returns s's token for a request to url.
func (s Sending) Token(url string) string {
	issued := s.Issued
	if issued.IsZero() {
		issued = time.Now()
	}
	claims := NewClaims(s.Body, cmp.Or(s.Subject, url), cmp.Or(s.TokenID, "jwt_"+rand.Text()), issued)
	for name, value := range s.Claims {
		if claims[name] = value; value == "" {
			delete(claims, name)
		}
	}
	return Token(Header, claims.String(), cmp.Or(s.Key, CurrentKey))
}

// Request returns s as a request to base, which has no path. The token is signed now.
func (s Sending) Request(t testing.TB, base string) *http.Request {
	t.Helper()
	target := base + cmp.Or(s.Path, "/")
	r, err := http.NewRequest(http.MethodPost, target, strings.NewReader(s.Body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header = s.header(target)
	return r
}

func (s Sending) header(target string) http.Header {
	h := http.Header{}
	set := func(headers map[string]string) {
		for name, value := range headers {
			if h.Set(name, value); value == "" {
				h.Del(name)
			}
		}
	}
	set(map[string]string{
		"Accept-Encoding":    "gzip",
		"Content-Type":       "application/json",
		"User-Agent":         "Upstash-QStash",
		"Upstash-Caller-Ip":  "192.0.2.1",
		"Upstash-Message-Id": cmp.Or(s.ID, "msg_"+rand.Text()),
		"Upstash-Region":     "EU-CENTRAL-1",
		"Upstash-Retried":    "0",
		"Upstash-Signature":  s.Token(target),
	})
	if s.Proxied {
		set(map[string]string{
			"Fly-Client-Ip":              "192.0.2.2",
			"Fly-Forwarded-Port":         "443",
			"Fly-Forwarded-Proto":        "https",
			"Fly-Forwarded-Ssl":          "on",
			"Fly-Region":                 "fra",
			"Fly-Request-Id":             "01JZZZZZZZZZZZZZZZZZZZZZZZ-fra",
			"Traceparent":                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
			"Upstash-Flow-Control-Key":   "orders",
			"Upstash-Flow-Control-Value": "parallelism=10",
			"Upstash-Label":              "order",
			"Upstash-Max-Retries":        "3",
			"Upstash-Retry-Delay":        "1000 * (1 + retried)",
			"Upstash-Schedule-Id":        "scd_1",
			"Upstash-Topic-Name":         "orders",
			"Via":                        "1.1 fly.io",
			"X-Forwarded-For":            "192.0.2.2",
			"X-Forwarded-Port":           "443",
			"X-Forwarded-Proto":          "https",
			"X-Forwarded-Ssl":            "on",
			"X-Request-Start":            "t=1772366400000000",
			"X-Forwarded-By-Publisher":   "yes",
		})
	}
	set(s.Header)
	return h
}

// Head returns the request line and the headers of s as they go over the wire, with those in extra ("Name: value\r\n"),
// which say how long the body is. Target is sent as it is; "": s.Path.
func (s Sending) Head(base, target, extra string) string {
	path := cmp.Or(s.Path, "/")
	text := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\n%s", cmp.Or(target, path), hostOf(base), extra)
	for name, values := range s.header(base + path) {
		text += name + ": " + values[0] + "\r\n"
	}
	return text + "\r\n"
}

// Whole returns s as it goes over the wire, its body too.
func (s Sending) Whole(base, target string) string {
	return s.Head(base, target, fmt.Sprintf("Content-Length: %d\r\n", len(s.Body))) + s.Body
}

// Reply is what came back.
type Reply struct {
	Status int
	Header http.Header
	Body   string
}

// Do sends r, follows no redirect and returns the whole answer as it came.
func Do(t testing.TB, r *http.Request) Reply {
	t.Helper()
	got, err := TryDo(r)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TryDo is Do where there may be no answer.
func TryDo(r *http.Request) (Reply, error) {
	// http.DefaultTransport has no more of its own than its idle connections, which tests may share.
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return Reply{}, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return Reply{answer.StatusCode, answer.Header, string(body)}, err
}

// Get returns the answer to a GET of url.
func Get(t testing.TB, url string) Reply {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return Do(t, r)
}

// Conn is a connection to whoever is tested. What goes over it is what the test says, to the byte.
type Conn struct {
	net.Conn
	in *bufio.Reader
}

// Dial connects to the host of base. The connection is closed when t ends, and dead after 20 s.
func Dial(t testing.TB, base string) *Conn {
	t.Helper()
	c, err := net.Dial("tcp", hostOf(base))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return &Conn{c, bufio.NewReader(c)}
}

// Send writes text as it is.
func (c *Conn) Send(t testing.TB, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// Reply reads the next answer, which may be 100 Continue. Its header has "Connection: close" if it says so.
func (c *Conn) Reply(t testing.TB) Reply {
	t.Helper()
	answer, err := http.ReadResponse(c.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if answer.Close {
		answer.Header.Set("Connection", "close")
	}
	return Reply{answer.StatusCode, answer.Header, string(body)}
}

// CloseWrite tells the other side that no more comes.
func (c *Conn) CloseWrite() error { return c.Conn.(*net.TCPConn).CloseWrite() }

// Raw sends text on a connection of its own and returns the first answer, without waiting for more.
func Raw(t testing.TB, base, text string) Reply {
	t.Helper()
	c := Dial(t, base)
	c.Send(t, text)
	return c.Reply(t)
}

func hostOf(base string) string {
	u, err := url.Parse(base)
	if err != nil {
		return base
	}
	return u.Host
}
