package command

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"qstash-receiver/internal/settings"
	"qstash-receiver/internal/signing"
)

// way asks the receiver at target as QStash would: through DNS, TLS and every proxy there is, with a signed message
// that is verified there and not run.
func (r *report) way(ctx context.Context, s settings.Settings, target *url.URL) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if r.dns(ctx, target.Hostname()) && r.tls(ctx, target) && r.healthz(ctx, target) {
		r.signed(ctx, s, target)
	}
}

func (r *report) dns(ctx context.Context, host string) bool {
	addresses, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		r.wrong("dns", "%s has no address: %v; see that the name is right and that its record is there", host, err)
		return false
	}
	r.ok("dns", "%s is %s", host, strings.Join(addresses, ", "))
	return true
}

func (r *report) tls(ctx context.Context, target *url.URL) bool {
	const what = "tls"
	if target.Scheme == "http" {
		if address, err := netip.ParseAddr(target.Hostname()); target.Hostname() == "localhost" || err == nil && address.IsLoopback() {
			return true
		}
		r.warning(what, "%s is plain http: everyone on the way can read the messages; publish to the https URL if there is one", signing.Origin(target))
		return true
	}
	port := target.Port()
	if port == "" {
		port = "443"
	}
	conn, err := (&tls.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(target.Hostname(), port))
	if err != nil {
		var invalid *tls.CertificateVerificationError
		if errors.As(err, &invalid) {
			r.wrong(what, "the certificate is refused: %v; QStash refuses it too: mend it where TLS ends", invalid.Err)
		} else {
			r.wrong(what, "no connection: %v; see that the program runs, and that port %s is open", err, port)
		}
		return false
	}
	defer conn.Close()
	certificate := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	r.ok(what, "the certificate is good until %s", certificate.NotAfter.UTC().Format(time.DateOnly))
	return true
}

func (r *report) healthz(ctx context.Context, target *url.URL) bool {
	const what = "GET /healthz"
	answer, err := ask(ctx, http.MethodGet, target, nil, nil)
	switch {
	case err != nil:
		r.wrong(what, "no answer: %v; see that the program runs there and that it is reached", err)
	case answer.redirect != "":
		r.wrong(what, "%d, a redirect to %s: QStash follows none; publish to that URL, and set RECEIVER_URL to it", answer.status, answer.redirect)
	case answer.status == http.StatusServiceUnavailable:
		r.wrong(what, "503: the program there is full or stuck, or does not run; see its log")
	case answer.status != http.StatusOK:
		r.wrong(what, "%d: another program answers there; see that the URL is this one's", answer.status)
	default:
		r.ok(what, "200: a program serves there")
		return true
	}
	return false
}

// signed posts a message to /healthz, where a receiver proves it and does no more.
func (r *report) signed(ctx context.Context, s settings.Settings, target *url.URL) {
	const what = "POST /healthz"
	key, err := firstKey(ctx, s)
	if err != nil {
		r.wrong(what, "not tried: %v; set the keys that are set there", err)
		return
	}
	body := []byte(`{"from":"doctor"}`)
	subject := signing.Origin(target) + "/healthz"
	token, err := key.Sign(body, subject, time.Now())
	if err != nil {
		r.wrong(what, "not tried: %v", err)
		return
	}
	header := headers(token, body)
	if s.Bearer != "" {
		header.Set("Authorization", "Bearer "+s.Bearer)
	}
	answer, err := ask(ctx, http.MethodPost, target, header, body)
	var says struct {
		Verified bool
		Key      string
	}
	switch {
	case err != nil:
		r.wrong(what, "no answer: %v; something on the way lets GET through and POST not", err)
	case answer.redirect != "":
		r.wrong(what, "%d, a redirect to %s: QStash follows none; publish to that URL, and set RECEIVER_URL to it", answer.status, answer.redirect)
	case answer.status == http.StatusUnauthorized:
		r.wrong(what, "401: the signature is refused; the keys there are others than here, or its RECEIVER_URL is not %s, "+
			"or its BEARER_TOKEN is another (the bearer), or %s; its log says which", signing.Origin(target), clockOf(answer.date))
	case answer.status == http.StatusOK && json.Unmarshal(answer.body, &says) == nil && says.Verified:
		r.ok(what, "verified with the %s key, for %s", says.Key, subject)
	case answer.status == http.StatusOK:
		r.wrong(what, `200, but not "verified":true: another program answers there, or an older one that ran it as a message`)
	case answer.status == http.StatusMethodNotAllowed || answer.status == http.StatusNotFound:
		r.wrong(what, "%d: another program answers there, or a proxy takes no POST; see that the URL is this program's", answer.status)
	default:
		r.wrong(what, "%d: it was not verified; the log there says why", answer.status)
	}
}

// clockOf says how far the clock that gave date is from this machine's.
func clockOf(date time.Time) string {
	off := time.Since(date).Round(time.Second)
	switch {
	case date.IsZero() || off.Abs() <= 5*time.Second:
		return "its clock is off"
	case off < 0:
		return fmt.Sprintf("its clock is off: it is %s ahead of this machine's", -off)
	}
	return fmt.Sprintf("its clock is off: it is %s behind this machine's", off)
}

// reply is what came back.
type reply struct {
	status   int
	redirect string // the origin that it sends to
	date     time.Time
	body     []byte
}

// ask sends a request to /healthz on target's host.
func ask(ctx context.Context, method string, target *url.URL, header http.Header, body []byte) (reply, error) {
	u := url.URL{Scheme: target.Scheme, Host: target.Host, Path: "/healthz"}
	request, err := http.NewRequestWithContext(ctx, method, u.String(), strings.NewReader(string(body)))
	if err != nil {
		return reply{}, err
	}
	for name, values := range header {
		request.Header[name] = values
	}
	client := &http.Client{
		Timeout:       15 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(request)
	if err != nil {
		return reply{}, errors.Unwrap(err) // of a *url.Error, which repeats the URL
	}
	defer response.Body.Close()
	answer := reply{status: response.StatusCode}
	answer.date, _ = http.ParseTime(response.Header.Get("Date"))
	if to, err := response.Location(); err == nil && response.StatusCode >= 300 && response.StatusCode <= 399 {
		answer.redirect = fmt.Sprintf("%q", signing.Origin(to))
	}
	answer.body, err = io.ReadAll(io.LimitReader(response.Body, 64<<10))
	return answer, err
}
