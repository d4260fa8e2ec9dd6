package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v4"
)

// maxTokenBytes is the longest Upstash-Signature looked at; production's are under 700 bytes.
const maxTokenBytes = 8 << 10

// signingKey is one key of a pair. QStash signs with the UTF-8 bytes of the whole "sig_..." text.
type signingKey struct {
	name   string // "current" or "next": its place in its pair
	secret []byte
}

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

// verify returns the message that r carries, or a *refusal. It reads the body only of a request whose token,
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

// claims are what a proven token says, as far as it matters here.
type claims struct {
	subject  string // the destination URL as published; "" if absent
	bodyHash string // base64url of the body's SHA-256, unpadded
	id       string // jti: of one attempt, not of the message; "" if absent
	expires  time.Time
	key      string // the name of the key that signed it
}

// checkToken is the first half of verifying: all that can be said without the body.
func checkToken(token string, keys []signingKey, now time.Time, tolerance time.Duration) (claims, error) {
	payload, key, err := checkSignature(token, keys)
	if err != nil {
		return claims{}, err
	}
	c, err := checkClaims(payload, now, tolerance)
	c.key = key
	return c, err
}

// productionHeader is the JOSE header of every token that QStash sends, {"alg":"HS256","typ":"JWT"}, encoded.
const productionHeader = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"

// strict refuses the spellings of one signature that differ in bits base64 does not use.
var strict = base64.RawURLEncoding.Strict()

// checkSignature returns the payload of a compact JWS that one of keys signed with HS256, and that key's name.
// The keys are tried on the HMAC alone, so that a message of the next key costs what one of the current key does.
func checkSignature(token string, keys []signingKey) ([]byte, string, error) {
	if len(token) > maxTokenBytes {
		return nil, "", unauthorized("malformed", "the token has %d bytes, at most %d are looked at", len(token), maxTokenBytes)
	}
	header, rest, _ := strings.Cut(token, ".")
	payload, signature, ok := strings.Cut(rest, ".")
	if !ok || strings.Contains(signature, ".") {
		return nil, "", unauthorized("malformed", "the token is not three parts joined by dots")
	}
	if header != productionHeader {
		if err := checkHeader(header); err != nil {
			return nil, "", err
		}
	}
	if _, err := strict.DecodeString(signature); err != nil {
		return nil, "", unauthorized("malformed", "the token's signature is not base64url: %v", err)
	}
	for _, key := range keys {
		if len(key.secret) == 0 { // would verify what anyone can sign
			return nil, "", errors.New("verify a token: the signing key is empty; set it")
		}
		if jwt.SigningMethodHS256.Verify(token[:len(header)+1+len(payload)], signature, key.secret) != nil {
			continue
		}
		decoded, err := strict.DecodeString(payload)
		if err != nil {
			return nil, "", unauthorized("malformed", "the token's claims are not base64url: %v", err)
		}
		return decoded, key.name, nil
	}
	return nil, "", unauthorized("signature", "none of the %d signing keys made it: is it from QStash, and are these the keys that the Upstash console shows? %s", len(keys), setKeys)
}

func checkHeader(encoded string) error {
	raw, err := strict.DecodeString(encoded)
	if err != nil {
		return unauthorized("malformed", "the token's header is not base64url: %v", err)
	}
	// A map, because encoding/json would fill a struct's field from "ALG" too.
	var header map[string]any
	if err := json.Unmarshal(raw, &header); err != nil {
		return unauthorized("malformed", "the token's header is not a JSON object: %v", err)
	}
	if header["alg"] != jwt.SigningMethodHS256.Alg() {
		return unauthorized("malformed", "the token's alg is %q, QStash signs with HS256", clip(fmt.Sprint(header["alg"])))
	}
	if _, ok := header["crit"]; ok {
		return unauthorized("malformed", "the token's header has crit, whose extensions are not known here")
	}
	return nil
}

// checkClaims reads the claims in payload and checks those that need nothing else. exp and nbf are in seconds
// since 1970, whole or not; production sends an nbf of -62135596800, the documentation shows 0.
func checkClaims(payload []byte, now time.Time, tolerance time.Duration) (claims, error) {
	var raw map[string]json.RawMessage // a map for the reason in checkHeader
	if err := json.Unmarshal(payload, &raw); err != nil || raw == nil {
		return claims{}, unauthorized("malformed", "the token's claims are not a JSON object")
	}
	if issuer, ok := text(raw["iss"]); !ok || issuer != "Upstash" {
		return claims{}, unauthorized("issuer", "the token's iss is %s, QStash's is \"Upstash\"", clip(string(raw["iss"])))
	}
	expires, ok := seconds(raw["exp"])
	if !ok {
		return claims{}, unauthorized("malformed", "the token has no exp, or one that is not a number")
	}
	notBefore, ok := seconds(raw["nbf"])
	if !ok {
		return claims{}, unauthorized("malformed", "the token has no nbf, or one that is not a number")
	}
	at := float64(now.UnixNano()) / 1e9
	if late := at - expires - tolerance.Seconds(); late >= 0 {
		return claims{}, unauthorized("expired", "the token expired %.0f s ago: it is an old one, or this machine's clock is ahead (CLOCK_TOLERANCE allows for that)", late)
	}
	if early := notBefore - tolerance.Seconds() - at; early > 0 {
		return claims{}, unauthorized("not yet valid", "the token is valid in %.0f s: this machine's clock is behind (CLOCK_TOLERANCE allows for that)", early)
	}
	hash, ok := text(raw["body"])
	if !ok {
		return claims{}, unauthorized("malformed", "the token has no body hash")
	}
	subject, _ := text(raw["sub"])
	id, ok := text(raw["jti"])
	if !ok && string(raw["jti"]) != "null" {
		id = string(raw["jti"])
	}
	// A token may say it lasts for ever; a year is more than anyone remembers it for.
	left := min(expires+tolerance.Seconds()-at, 365*24*3600)
	return claims{
		subject:  subject,
		bodyHash: strings.TrimSuffix(hash, "="),
		id:       id,
		expires:  now.Add(time.Duration(left * float64(time.Second))),
	}, nil
}

func text(raw json.RawMessage) (s string, ok bool) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", false
	}
	return s, json.Unmarshal(raw, &s) == nil
}

func seconds(raw json.RawMessage) (s float64, ok bool) {
	if len(raw) == 0 || raw[0] == 'n' { // null would leave s as it is
		return 0, false
	}
	return s, json.Unmarshal(raw, &s) == nil
}

// checkSubject wants the token's subject to be one of origins + the path and query of target as they were sent.
// It returns that URL; without origins, which take any subject, the path and query alone.
func checkSubject(subject string, origins []string, target *url.URL) (*url.URL, error) {
	// Not target itself: an absolute request target names a host that nobody has verified.
	u := &url.URL{Path: target.Path, RawPath: target.RawPath, RawQuery: target.RawQuery, ForceQuery: target.ForceQuery}
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

// clip bounds what a stranger can put on a log line.
func clip(s string) string {
	const most = 512
	if len(s) <= most {
		return s
	}
	return string(bytes.ToValidUTF8([]byte(s[:most]), nil)) + "..."
}
