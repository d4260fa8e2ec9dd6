package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v4"
	"github.com/tidwall/gjson"

	// Renamed, because a file's imports share a namespace with the names in handler.go.
	deliverpkg "qstash-receiver/internal/deliver"
	oncepkg "qstash-receiver/internal/once"
	serverpkg "qstash-receiver/internal/server"
	signingpkg "qstash-receiver/internal/signing"
)

// This file says who may send. The order is the argument: a stranger has a header looked at and one HMAC computed for
// each key; what the token says counts once a key has signed it; and the body is read last.

// checker proves requests.
type checker struct {
	keys      *signingpkg.Set
	origins   []string // as signingpkg.Origin returns them; none: any subject
	tolerance time.Duration
	bearer    string // "": not asked for
	now       func() time.Time
	// wanted is told that a token looks like QStash's but none of the keys signed it: they may have been rolled.
	wanted func()
}

// verify returns nil if tokenString is a QStash token that signingKey signed for body and that is valid now,
// whatever its subject; else an error that says what is wrong. An empty key is an error.
func verify(body []byte, tokenString, signingKey string) error {
	if signingKey == "" {
		return errors.New("verify a token: the signing key is empty, anyone can sign with it")
	}
	payload, _, err := checkSignature(tokenString, []signingpkg.Key{signingpkg.NewKey("current", "", signingKey)})
	if err != nil {
		return err
	}
	claims, err := checkClaims(payload, time.Now(), 0)
	if err != nil {
		return err
	}
	return checkBody(body, claims.bodyHash)
}

// verify returns what r proves but for its body, which Proof.Check stands for. Its error is a *deliverpkg.Refusal.
func (c *checker) verify(r *http.Request) (deliverpkg.Proof, error) {
	token, err := verifyHeader(r)
	if err != nil {
		return deliverpkg.Proof{}, err
	}
	payload, key, err := checkSignature(token, c.keys.Keys())
	if err != nil {
		looksOurs := c.looksOurs(token, c.originsOf(r))
		if looksOurs && c.wanted != nil {
			c.wanted()
		}
		return deliverpkg.Proof{LooksOurs: looksOurs}, err
	}
	proof := deliverpkg.Proof{Key: key.Name, Region: key.Region}
	claims, err := checkClaims(payload, c.now(), c.tolerance)
	if err != nil {
		return proof, err
	}
	if proof.URL, proof.Target, err = checkSubject(claims.subject, c.originsOf(r), r); err != nil {
		return proof, err
	}
	if err := checkBearer(c.bearer, r.Header["Authorization"]); err != nil {
		return proof, err
	}
	if claims.id == "" {
		claims.id = token
	}
	proof.Subject, proof.BodyHash, proof.Token, proof.Expires = claims.subject, claims.bodyHash, oncepkg.KeyOf(claims.id), claims.expires
	proof.Check = func(body []byte) error { return checkBody(body, claims.bodyHash) }
	return proof, nil
}

// originsOf is what a subject may begin with. On AWS Lambda that is the function URL where RECEIVER_URL is not set.
func (c *checker) originsOf(r *http.Request) []string {
	if own := serverpkg.FunctionURL(r); own != "" && len(c.origins) == 0 {
		return []string{own}
	}
	return c.origins
}

func verifyHeader(r *http.Request) (string, error) {
	h := r.Header["Upstash-Signature"]
	switch {
	case len(h) == 0 || len(h) == 1 && h[0] == "":
		return "", deliverpkg.Refuse(deliverpkg.Missing, "there is no Upstash-Signature header, so the request is most likely not from QStash, and nothing has to be done; "+
			"if all messages come so, a proxy in front of this service drops the header")
	case len(h) > 1:
		return "", deliverpkg.Refuse(deliverpkg.Malformed, "there are %d Upstash-Signature headers, QStash sends one", len(h))
	}
	return h[0], nil
}

// checkSignature returns the payload of a compact JWS that one of keys signed with HS256, and that key. Nothing in it
// is read before the HMAC holds. The keys are tried on the HMAC alone, so that a message of the next key costs what
// one of the current key does.
func checkSignature(token string, keys []signingpkg.Key) ([]byte, *signingpkg.Key, error) {
	const maxBytes = 8 << 10 // production's tokens have under 700
	if len(token) > maxBytes {
		return nil, nil, deliverpkg.Refuse(deliverpkg.Malformed, "the token has %d bytes, at most %d are looked at", len(token), maxBytes)
	}
	header, rest, _ := strings.Cut(token, ".")
	payload, signature, ok := strings.Cut(rest, ".")
	if !ok || strings.ContainsAny(signature, ".\r\n") { // base64 would pass over line breaks
		return nil, nil, deliverpkg.Refuse(deliverpkg.Malformed, "the token is not three parts joined by dots")
	}
	if _, err := verifyDecode(signature); err != nil {
		return nil, nil, deliverpkg.Refuse(deliverpkg.Malformed, "the token's signature is not base64url: %v", err)
	}
	for i := range keys {
		key := &keys[i]
		if key.HS256().Verify(token[:len(header)+1+len(payload)], signature, nil) != nil {
			continue
		}
		if err := checkHeader(header); err != nil {
			return nil, key, err
		}
		decoded, err := verifyDecode(payload)
		if err != nil {
			return nil, key, deliverpkg.Refuse(deliverpkg.Malformed, "the token's claims are not base64url: %v", err)
		}
		return decoded, key, nil
	}
	return nil, nil, deliverpkg.Refuse(deliverpkg.Signature, "none of the %d signing keys that are set here signed the token", len(keys))
}

// verifyEncoding refuses the spellings of one text that differ in bits which base64 does not use.
var verifyEncoding = base64.RawURLEncoding.Strict()

func verifyDecode(part string) ([]byte, error) { return verifyEncoding.DecodeString(part) }

// checkHeader reads the JOSE header of a token whose HMAC holds.
func checkHeader(encoded string) error {
	const production = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9" // {"alg":"HS256","typ":"JWT"}, on every token that QStash sends
	if encoded == production {
		return nil
	}
	raw, err := verifyDecode(encoded)
	if err != nil {
		return deliverpkg.Refuse(deliverpkg.Malformed, "the token's header is not base64url: %v", err)
	}
	// A map, because encoding/json would fill a struct's field from "ALG" too.
	var header map[string]any
	if err := json.Unmarshal(raw, &header); err != nil {
		return deliverpkg.Refuse(deliverpkg.Malformed, "the token's header is not a JSON object: %v", err)
	}
	if alg := header["alg"]; alg != jwt.SigningMethodHS256.Alg() {
		return deliverpkg.Refuse(deliverpkg.Malformed, "the token's alg is %.100q, QStash's is \"HS256\"", fmt.Sprint(alg))
	}
	if _, ok := header["crit"]; ok {
		return deliverpkg.Refuse(deliverpkg.Malformed, "the token's header has crit, whose extensions are not known here")
	}
	return nil
}

// verifyClaims are what a proven token says, as far as it matters here.
type verifyClaims struct {
	subject  string // the destination URL as published; "" if absent
	bodyHash string // base64url of the body's SHA-256, unpadded
	id       string // jti: of one attempt, not of the message; "" if absent
	expires  time.Time
}

// verifyRawClaims are the claims of a token that matter here, as they stand in it.
type verifyRawClaims struct {
	issuer, expires, notBefore, subject, bodyHash, id gjson.Result
}

// verifyParse reads the claims in payload. It returns false if that is no JSON object.
func verifyParse(payload []byte) (c verifyRawClaims, ok bool) {
	// gjson, because it knows names by their case and takes a tenth of the time of encoding/json with a map.
	all := gjson.ParseBytes(payload)
	if !gjson.ValidBytes(payload) || !all.IsObject() {
		return c, false
	}
	all.ForEach(func(name, value gjson.Result) bool {
		switch name.Str {
		case "iss":
			c.issuer = value
		case "exp":
			c.expires = value
		case "nbf":
			c.notBefore = value
		case "sub":
			c.subject = value
		case "body":
			c.bodyHash = value
		case "jti":
			c.id = value
		}
		return true
	})
	return c, true
}

// checkClaims reads the claims in payload and checks those that need nothing else. exp and nbf are in seconds
// since 1970, whole or not; production sends an nbf of -62135596800, the documentation shows 0.
func checkClaims(payload []byte, now time.Time, tolerance time.Duration) (verifyClaims, error) {
	raw, ok := verifyParse(payload)
	at, tolerated := float64(now.UnixNano())/1e9, tolerance.Seconds()
	late, early := at-raw.expires.Num-tolerated, raw.notBefore.Num-tolerated-at
	switch {
	case !ok:
		return verifyClaims{}, deliverpkg.Refuse(deliverpkg.Malformed, "the token's claims are not a JSON object")
	case raw.issuer.Type != gjson.String || raw.issuer.Str != "Upstash":
		return verifyClaims{}, deliverpkg.Refuse(deliverpkg.Issuer, "the token's iss is %.100q, QStash's is \"Upstash\": somebody else has one of the signing keys, roll them", raw.issuer.String())
	case !verifyIsTime(raw.expires):
		return verifyClaims{}, deliverpkg.Refuse(deliverpkg.Malformed, "the token has no exp, or one that is not a number of seconds")
	case !verifyIsTime(raw.notBefore):
		return verifyClaims{}, deliverpkg.Refuse(deliverpkg.Malformed, "the token has no nbf, or one that is not a number of seconds")
	case late >= 0:
		return verifyClaims{}, deliverpkg.Refuse(deliverpkg.Expired, "the token expired %.0f s ago, at %s; this machine's time is %s. "+
			"If other messages are taken, somebody sent an old delivery again, and nothing has to be done; if none is, this machine's clock is ahead: %s",
			late, verifyTime(raw.expires.Num), now.UTC().Format(time.RFC3339), verifyClock(late, tolerance))
	case early > 0:
		return verifyClaims{}, deliverpkg.Refuse(deliverpkg.NotYetValid, "the token is valid in %.0f s, from %s on; this machine's time is %s, so its clock is behind: %s",
			early, verifyTime(raw.notBefore.Num), now.UTC().Format(time.RFC3339), verifyClock(early, tolerance))
	case raw.bodyHash.Type != gjson.String:
		return verifyClaims{}, deliverpkg.Refuse(deliverpkg.Malformed, "the token has no body hash")
	}
	left := min(-late, 365*24*3600) // a token may say it lasts for ever
	c := verifyClaims{
		subject:  raw.subject.Str,
		bodyHash: strings.TrimSuffix(raw.bodyHash.Str, "="),
		expires:  now.Add(time.Duration(left * float64(time.Second))),
	}
	switch raw.id.Type {
	case gjson.Null:
	case gjson.String:
		c.id = raw.id.Str
	default:
		c.id = raw.id.Raw
	}
	return c, nil
}

// verifyClock is what helps where the clock is off by so many seconds more than are tolerated.
func verifyClock(off float64, tolerated time.Duration) string {
	const few = 10 * time.Second
	fix := "restart the machine (on Fly: flyctl machine restart), then check with: go run . doctor -to <this service's URL>"
	if off > few.Seconds() {
		return fix
	}
	return fmt.Sprintf("%s; or allow for it (on Fly: flyctl secrets set CLOCK_TOLERANCE=%s)", fix, tolerated+few)
}

// verifyIsTime says whether a claim is a number that a float64 holds: 1e400 is none.
func verifyIsTime(claim gjson.Result) bool {
	return claim.Type == gjson.Number && !math.IsInf(claim.Num, 0) && !math.IsNaN(claim.Num)
}

func verifyTime(seconds float64) string {
	if math.Abs(seconds) > 1e11 { // far from any year that is written with four digits
		return fmt.Sprintf("%g", seconds)
	}
	return time.Unix(int64(seconds), 0).UTC().Format(time.RFC3339)
}

// checkSubject wants the token's subject to be one of origins + the path and query of r as they were sent. It returns
// that URL, without scheme and host where there are no origins and so any subject is taken, and the path and query to
// the byte.
func checkSubject(subject string, origins []string, r *http.Request) (*url.URL, string, error) {
	target, ok := verifyTarget(r)
	if !ok {
		return nil, "", deliverpkg.Refuse(deliverpkg.Subject, "the request is for %.300q, which is not a path", r.RequestURI)
	}
	// Not r.URL itself: an absolute request target names a host that nobody has verified.
	u := &url.URL{Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery, ForceQuery: r.URL.ForceQuery}
	if u.Path == "" { // an absolute target that ends with its host
		u.Path = "/"
	}
	if len(origins) == 0 {
		return u, target, nil
	}
	if target == r.URL.RequestURI() && !strings.Contains(target, "#") {
		for _, origin := range origins { // as nearly all are: nothing to parse
			if len(subject) == len(origin)+len(target) && strings.HasPrefix(subject, origin) && strings.HasSuffix(subject, target) {
				u.Scheme, u.Host, _ = strings.Cut(origin, "://")
				return u, target, nil
			}
		}
	}
	signed, err := url.Parse(subject)
	if err != nil || signed.User != nil { // its text repeats the URL, login and all
		return nil, "", deliverpkg.Refuse(deliverpkg.Subject, "the token's subject is not a URL, or has a login in it; this request is for %.300q", origins[0]+target)
	}
	if target != r.URL.RequestURI() { // what is verified is what is run and forwarded, to the byte
		return nil, "", deliverpkg.Refuse(deliverpkg.Subject, "the request's path has bytes that no URL has; it is for %.300q", target)
	}
	if origin := signingpkg.Origin(signed); !slices.Contains(origins, origin) {
		all := strings.Join(origins, ",") + "," + origin
		return nil, "", deliverpkg.Refuse(deliverpkg.Subject, "the message was published to %.200q, and not to this service's %.200q: "+
			"if the first is a URL of this service too, add %.100s to RECEIVER_URL (on Fly: flyctl secrets set RECEIVER_URL=%.300s); if it is not, the message was published to another service, and nothing has to be done here",
			subject, origins[0]+target, origin, all)
	}
	if signed.RequestURI() != target {
		return nil, "", deliverpkg.Refuse(deliverpkg.Subject, "the message was published to %.200q, and this request is for %.200q: a proxy in front changes them (path or query, the host is right), or somebody sends the delivery to another path",
			subject, origins[0]+target)
	}
	u.Scheme, u.Host = signed.Scheme, signed.Host
	return u, target, nil
}

// verifyTarget is the path and query of r to the byte; an absolute request target names a host before them.
func verifyTarget(r *http.Request) (target string, ok bool) {
	target = r.RequestURI
	if strings.HasPrefix(target, "/") {
		return target, true
	}
	if r.URL.Host == "" { // * or http:/path
		return "", false
	}
	_, rest, absolute := strings.Cut(target, "://")
	target = strings.TrimLeftFunc(rest, func(r rune) bool { return r != '/' && r != '?' })
	if !strings.HasPrefix(target, "/") {
		target = "/" + target
	}
	return target, absolute
}

// looksOurs says whether the claims of a token that no key signed are as QStash would make them for this service.
// Anyone can write them, so nothing but a look at the keys follows from it, and longer tokens are not read.
func (c *checker) looksOurs(token string, origins []string) bool {
	const maxBytes = 2 << 10
	parts := strings.Split(token, ".")
	if len(parts) != 3 || len(token) > maxBytes {
		return false
	}
	payload, err := verifyDecode(parts[1])
	if err != nil {
		return false
	}
	raw, ok := verifyParse(payload)
	left := raw.expires.Num - float64(c.now().UnixNano())/1e9
	if !ok || raw.issuer.Str != "Upstash" || !verifyIsTime(raw.expires) || left <= 0 || left > time.Hour.Seconds() {
		return false
	}
	if len(origins) == 0 {
		return true
	}
	signed, err := url.Parse(raw.subject.Str)
	return err == nil && slices.Contains(origins, signingpkg.Origin(signed))
}

// checkBearer wants header, the Authorization headers as they came, to be one that bears want.
func checkBearer(want string, header []string) error {
	if want == "" {
		return nil
	}
	const fix = "publish this message anew, and all others, with -H \"Upstash-Forward-Authorization: Bearer $BEARER_TOKEN\""
	if len(header) != 1 {
		return deliverpkg.Refuse(deliverpkg.Bearer, "the message has %d Authorization headers, and must have one because BEARER_TOKEN is set here: %s", len(header), fix)
	}
	scheme, got, _ := strings.Cut(header[0], " ")
	// Hashed first, so that the time does not tell the length.
	a, b := sha256.Sum256([]byte(strings.TrimSpace(got))), sha256.Sum256([]byte(want))
	if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(a[:], b[:]) != 1 {
		return deliverpkg.Refuse(deliverpkg.Bearer, "the message's Authorization header is not the BEARER_TOKEN that is set here: %s", fix)
	}
	return nil
}

// checkBody is the second half of verifying. hash is unpadded.
func checkBody(body []byte, hash string) error {
	sum := sha256.Sum256(body)
	got := base64.RawURLEncoding.AppendEncode(nil, sum[:])
	if subtle.ConstantTimeCompare(got, []byte(hash)) != 1 {
		return deliverpkg.Refuse(deliverpkg.BodyHash, "the body is not the one that was signed (its SHA-256 is %q, signed was %.60q). "+
			"If many messages come so, a proxy in front of this service rewrites or decompresses them: have it pass them on as they are; "+
			"if this is the only one, somebody sent another body under its token, and nothing has to be done", got, hash)
	}
	return nil
}
