package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// refusal says why a request is no message: status and reason are for the answer, the log and the metrics,
// detail (what to change) for the log alone where the sender is not proven.
type refusal struct {
	status     int
	reason     string
	detail     string
	retryAfter int // seconds, 0: no such header
}

func (r *refusal) Error() string { return r.reason + ": " + r.detail }

func unauthorized(reason, format string, args ...any) *refusal {
	return &refusal{status: http.StatusUnauthorized, reason: reason, detail: fmt.Sprintf(format, args...)}
}

// verifier turns requests into messages. It is the only way to a Message.
type verifier struct {
	keys      []signingKey
	origins   []string // as origin returns them; none: any subject
	tolerance time.Duration
	bearer    string // "": not asked for
	bodies    *bodyReader
	now       func() time.Time
}

// verify returns the message that r carries; its error is a *refusal. It reads the body only of a request whose token,
// claims and bearer are right. The caller owns the message and must release it.
func (v *verifier) verify(w http.ResponseWriter, r *http.Request) (*Message, error) {
	token, err := tokenOf(r)
	if err != nil {
		return nil, err
	}
	c, err := checkToken(token, v.keys, v.now(), v.tolerance)
	if err != nil {
		return nil, err
	}
	u, err := checkSubject(c.subject, v.origins, r.URL)
	if err != nil {
		return nil, err
	}
	if err := checkBearer(v.bearer, r.Header["Authorization"]); err != nil {
		return nil, err
	}
	body, release, err := v.bodies.read(w, r)
	if err != nil {
		return nil, err
	}
	if err := checkBody(body, c.bodyHash); err != nil {
		release()
		return nil, err
	}
	return newMessage(r, u, body, c, release), nil
}

// verify returns nil if tokenString is a QStash token that signingKey signed for body and that is valid now,
// whatever its subject; else an error that says what is wrong. An empty key is an error.
func verify(body []byte, tokenString, signingKey string) error {
	c, err := checkToken(tokenString, keysOf(signingKey), time.Now(), 0)
	if err != nil {
		return err
	}
	return checkBody(body, c.bodyHash)
}

func keysOf(secret string) []signingKey { return []signingKey{{name: "given", secret: []byte(secret)}} }

func tokenOf(r *http.Request) (string, error) {
	h := r.Header["Upstash-Signature"]
	switch {
	case len(h) == 0 || len(h) == 1 && h[0] == "":
		return "", unauthorized("missing", "there is no Upstash-Signature header: the request is not from QStash, or a proxy in front of this service drops the header")
	case len(h) > 1:
		return "", unauthorized("malformed", "there are %d Upstash-Signature headers, QStash sends one", len(h))
	}
	return h[0], nil
}

// checkSubject wants the token's subject to be one of origins + the path and query of target as they were sent.
// It returns that URL; without origins, which take any subject, the path and query alone.
func checkSubject(subject string, origins []string, target *url.URL) (*url.URL, error) {
	// Not target itself: an absolute request target names a host that nobody has verified.
	u := &url.URL{Path: target.Path, RawPath: target.RawPath, RawQuery: target.RawQuery, ForceQuery: target.ForceQuery}
	if u.Path == "" { // an absolute target that ends with its host
		u.Path = "/"
	}
	pathAndQuery := target.RequestURI()
	if !strings.HasPrefix(pathAndQuery, "/") {
		return nil, unauthorized("subject", "the request is for %q, which is not a path", clip(pathAndQuery))
	}
	if len(origins) == 0 {
		return u, nil
	}
	signed, err := url.Parse(subject)
	if err != nil { // its text repeats the URL, login and all
		return nil, unauthorized("subject", "the token's subject is not a URL, this request is for %q", clip(origins[0]+pathAndQuery))
	}
	if signed.RequestURI() != pathAndQuery || !slices.Contains(origins, origin(signed)) {
		return nil, unauthorized("subject", "the token is for %q, this request is for %q: if the first is a URL of this service, add %s to RECEIVER_URL; if the paths differ, a proxy in front changes them",
			clip(signed.Redacted()), clip(origins[0]+pathAndQuery), clip(origin(signed)))
	}
	u.Scheme, u.Host = signed.Scheme, signed.Host
	return u, nil
}

// checkBearer wants header, the Authorization headers as they came, to be one that bears want.
func checkBearer(want string, header []string) error {
	if want == "" {
		return nil
	}
	if len(header) != 1 {
		return unauthorized("bearer", "there are %d Authorization headers, BEARER_TOKEN asks for one: publish with Upstash-Forward-Authorization: Bearer ...", len(header))
	}
	scheme, got, _ := strings.Cut(header[0], " ")
	// Hashed first, so that the time does not tell the length.
	a, b := sha256.Sum256([]byte(strings.TrimSpace(got))), sha256.Sum256([]byte(want))
	if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(a[:], b[:]) != 1 {
		return unauthorized("bearer", "the Authorization header is not Bearer and BEARER_TOKEN")
	}
	return nil
}

// checkBody is the second half of verifying. hash is unpadded.
func checkBody(body []byte, hash string) error {
	sum := sha256.Sum256(body)
	got := base64.RawURLEncoding.AppendEncode(nil, sum[:])
	if subtle.ConstantTimeCompare(got, []byte(hash)) != 1 {
		return unauthorized("body hash", "the body's SHA-256 is %s, the token was made for %s: the body was changed on its way, or the token is another message's", got, clip(hash))
	}
	return nil
}
