package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

const (
	currentKey = "sig_currentcurrentcurrentcurre"
	nextKey    = "sig_nextnextnextnextnextnextne"
	euCurrent  = "sig_eu-currenteu-currenteu-cur"
	euNext     = "sig_eu-nexteu-nexteu-nexteu-ne"
	emptyHash  = "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU="
)

var testNow = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// at is the time d from now as a JSON number.
func fromNow(d time.Duration) string {
	return strconv.FormatFloat(float64(testNow.Add(d).UnixMilli())/1000, 'f', -1, 64)
}

// hmacToken is the tests' own signer, which shares no line with the program's. header and payload are any text.
func hmacToken(h func() hash.Hash, header, payload, key string) string {
	signed := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	return signed + "." + hmacOf(h, signed, key)
}

func hmacOf(h func() hash.Hash, signed, key string) string {
	mac := hmac.New(h, []byte(key))
	mac.Write([]byte(signed))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func hashOf(body string) string {
	sum := sha256.Sum256([]byte(body))
	return base64.URLEncoding.EncodeToString(sum[:])
}

// delivery is a request of QStash's and the verifier it comes to. A test spoils one thing of it.
type delivery struct {
	target   string
	body     string
	header   string            // JSON
	claims   map[string]string // to JSON
	payload  string            // JSON, in place of claims
	alg      func() hash.Hash
	key      string
	token    func(token string) string
	request  func(r *http.Request)
	verifier *verifier
}

func validDelivery() *delivery {
	const body = `{"order":1}`
	return &delivery{
		target: "/orders/1?x=1",
		body:   body,
		header: `{"alg":"HS256","typ":"JWT"}`,
		claims: map[string]string{
			"aud":  `""`,
			"body": `"` + hashOf(body) + `"`,
			"exp":  fromNow(5 * time.Minute),
			"iat":  fromNow(0),
			"iss":  `"Upstash"`,
			"jti":  `"jwt_4wHSHQwTLVMqfbVa1vvCPjPbcXAA"`,
			"nbf":  "-62135596800",
			"sub":  `"https://app.fly.dev/orders/1?x=1"`,
		},
		alg:     sha256.New,
		key:     currentKey,
		token:   func(token string) string { return token },
		request: func(*http.Request) {},
		verifier: &verifier{
			keys: []signingKey{
				{name: "current", secret: []byte(currentKey)}, {name: "current", secret: []byte(euCurrent)}, {name: "next", secret: []byte(nextKey)}, {name: "next", secret: []byte(euNext)},
			},
			origins: []string{"https://app.fly.dev"},
			bodies:  &bodyReader{limit: 1 << 20, draining: context.Background()},
			now:     func() time.Time { return testNow },
		},
	}
}

// signed returns the token, and the request that bears it.
func (d *delivery) signed() (string, *http.Request) {
	payload := d.payload
	if payload == "" {
		var members []string
		for _, name := range slices.Sorted(maps.Keys(d.claims)) {
			members = append(members, strconv.Quote(name)+":"+d.claims[name])
		}
		payload = "{" + strings.Join(members, ",") + "}"
	}
	token := d.token(hmacToken(d.alg, d.header, payload, d.key))
	r := httptest.NewRequest(http.MethodPost, d.target, strings.NewReader(d.body))
	r.Header.Set("Upstash-Signature", token)
	d.request(r)
	return token, r
}

// watchedBody knows whether somebody has read of it.
type watchedBody struct {
	io.ReadCloser
	read bool
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.read = true
	return b.ReadCloser.Read(p)
}

type change = func(d *delivery)

func withClaim(name, value string) change { return func(d *delivery) { d.claims[name] = value } }
func withoutClaim(name string) change     { return func(d *delivery) { delete(d.claims, name) } }
func claimsText(json string) change       { return func(d *delivery) { d.payload = json } }
func jose(json string) change             { return func(d *delivery) { d.header = json } }
func signedBy(secret string) change       { return func(d *delivery) { d.key = secret } }
func withBody(s string) change            { return func(d *delivery) { d.body = s } }
func withOrigins(list ...string) change   { return func(d *delivery) { d.verifier.origins = list } }
func withTolerance(t time.Duration) change {
	return func(d *delivery) { d.verifier.tolerance = t }
}
func withToken(f func(token string) string) change { return func(d *delivery) { d.token = f } }
func withPart(i int, f func(string) string) change {
	return withToken(func(token string) string {
		parts := strings.Split(token, ".")
		parts[i] = f(parts[i])
		return strings.Join(parts, ".")
	})
}
func withRequest(f func(r *http.Request)) change { return func(d *delivery) { d.request = f } }
func withHeader(name string, values ...string) change {
	return withRequest(func(r *http.Request) { r.Header[name] = values })
}
func withBearer(values ...string) change {
	return all(func(d *delivery) { d.verifier.bearer = "s3cret" }, withHeader("Authorization", values...))
}
func sentTo(target, subject string) change {
	return all(func(d *delivery) { d.target = target }, withClaim("sub", strconv.Quote(subject)))
}
func hs(bits string, h func() hash.Hash) change {
	return all(jose(`{"alg":"HS`+bits+`","typ":"JWT"}`), func(d *delivery) { d.alg = h })
}
func otherBody(s string) change { return all(withBody(s), withClaim("body", strconv.Quote(hashOf(s)))) }
func chunked(d *delivery) {
	d.request = func(r *http.Request) { r.ContentLength, r.TransferEncoding = -1, []string{"chunked"} }
}
func withLimit(bytes int64) change { return func(d *delivery) { d.verifier.bodies.limit = bytes } }
func withHeld(bytes int64) change  { return func(d *delivery) { d.verifier.bodies.held.Store(bytes) } }
func all(changes ...change) change {
	return func(d *delivery) {
		for _, c := range changes {
			c(d)
		}
	}
}

func TestVerifyTakes(t *testing.T) {
	t.Parallel()
	for sentence, change := range map[string]change{
		"a token in production's shape":        func(*delivery) {},
		"a token in the documentation's shape": withClaim("nbf", "0"),
		"a token in the SDKs' test shape":      all(withClaim("nbf", fromNow(0)), withClaim("body", `"`+strings.TrimRight(hashOf(`{"order":1}`), "=")+`"`)),
		"a fractional exp":                     withClaim("exp", fromNow(time.Millisecond)),
		"a fractional nbf":                     withClaim("nbf", fromNow(-time.Millisecond)),
		"an exp in exponent form":              withClaim("exp", "1e10"),
		"an exp beyond any time":               withClaim("exp", "1e300"),
		"an nbf of exactly now":                withClaim("nbf", fromNow(0)),
		"an iat in the future":                 withClaim("iat", fromNow(time.Hour)),
		"an iat that is text":                  withClaim("iat", `"yesterday"`),
		"no iat":                               withoutClaim("iat"),
		"unknown claims":                       all(withClaim("scope", `{"a":[1]}`), withClaim("", "null")),
		"claims in another case after the right": claimsText(`{"iss":"Upstash","exp":` + fromNow(time.Hour) + `,"nbf":0,"sub":"https://app.fly.dev/orders/1?x=1","body":"` + hashOf(`{"order":1}`) + `",
			"ISS":"x","EXP":0,"NBF":1e99,"SUB":"x","BODY":"x"}`),
		"a header with its keys in another order":  jose(`{"typ":"JWT","alg":"HS256"}`),
		"a header with a kid, white space, no typ": jose("{ \"alg\": \"HS256\",\r\n \"kid\": \"1\" }"),
		"an ALG beside the alg":                    jose(`{"alg":"HS256","ALG":"none"}`),
		"an empty body":                            all(withBody(""), withClaim("body", `"`+emptyHash+`"`)),
		"an empty chunked body":                    all(withBody(""), withClaim("body", `"`+emptyHash+`"`), chunked),
		"a chunked body":                           chunked,
		"a body of exactly the limit":              withLimit(11),
		"a chunked body of exactly the limit":      all(withLimit(11), chunked),
		"a body in chunks of just the limit":       all(chunked, withLimit(11)),
		"a chunked body of all the 64 MiB":         all(chunked, otherBody(strings.Repeat("x", 64<<20)), withLimit(64<<20)),
		"a body into the last of the 64 MiB":       withHeld(64<<20 - 11),
		"a body that is not text":                  otherBody("\x00\xff\r\n"),
		"the next key":                             signedBy(nextKey),
		"the current key of the other region":      signedBy(euCurrent),
		"the next key of the other region":         signedBy(euNext),
		"an Upstash-Region of another region":      all(signedBy(euNext), withHeader("Upstash-Region", "US-EAST-1")),
		"an Upstash-Region of no region":           withHeader("Upstash-Region", "nowhere"),
		"an exp in the past, within tolerance":     all(withClaim("exp", fromNow(-time.Minute)), withTolerance(time.Minute+time.Millisecond)),
		"an nbf in the future, within tolerance":   all(withClaim("nbf", fromNow(time.Minute)), withTolerance(time.Minute)),
		"the bearer":                               withBearer("Bearer s3cret"),
		"the bearer in another case, with spaces":  withBearer("bearer  s3cret "),
		"an Authorization that is not asked for":   withHeader("Authorization", "Basic x", "Basic y"),
		"a scheme and host in upper case":          sentTo("/a", "HTTPS://App.Fly.DEV/a"),
		"the default port in the subject":          sentTo("/a", "https://app.fly.dev:443/a"),
		"the root, its subject without a slash":    sentTo("/", "https://app.fly.dev"),
		"the root, its subject with a slash":       sentTo("/", "https://app.fly.dev/"),
		"a query on a root without a slash":        sentTo("/?x=1", "https://app.fly.dev?x=1"),
		"a query on a root with a slash":           sentTo("/?x=1", "https://app.fly.dev/?x=1"),
		"a path that cleaning would change":        sentTo("//a//./b/../c/", "https://app.fly.dev//a//./b/../c/"),
		"an escaped slash":                         sentTo("/a%2Fb", "https://app.fly.dev/a%2Fb"),
		"a target in absolute form":                sentTo("http://elsewhere.example/a?x=1", "https://app.fly.dev/a?x=1"),
		"a Host that is another's":                 withRequest(func(r *http.Request) { r.Host = "elsewhere.example" }),
		"the second of two origins":                all(withOrigins("https://app.fly.dev", "https://example.com"), sentTo("/a", "https://example.com/a")),
		"a port that is not the default":           all(withOrigins("http://app.internal:3000"), sentTo("/a", "http://app.internal:3000/a")),
		"without origins, any subject":             all(withOrigins(), sentTo("/a", "https://elsewhere.example/b")),
		"without origins, a subject of no URL":     all(withOrigins(), sentTo("/a", "%zz")),
		"without origins, no subject":              all(withOrigins(), withoutClaim("sub")),
	} {
		t.Run(sentence, func(t *testing.T) {
			t.Parallel()
			d := validDelivery()
			change(d)
			_, r := d.signed()
			before := d.verifier.bodies.held.Load()
			m, err := d.verifier.verify(httptest.NewRecorder(), r)
			if err != nil {
				t.Fatal("refused:", err)
			}
			if string(m.Body) != d.body {
				t.Errorf("the body is %q, sent was %q", m.Body, d.body)
			}
			if got := d.verifier.bodies.held.Load() - before; got < int64(len(d.body)) {
				t.Errorf("%d bytes are held for a body of %d", got, len(d.body))
			}
			if !m.claims.expires.After(testNow) {
				t.Errorf("its token is remembered until %s only", m.claims.expires)
			}
			m.release()
			if got := d.verifier.bodies.held.Load(); got != before {
				t.Errorf("%d bytes are held after its release, %d before it came", got, before)
			}
		})
	}
}

func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	type refused struct {
		sentence string
		change   change
		status   int
		reason   string
		words    string // in the detail
	}
	const unread, read = false, true
	for bodyRead, rows := range map[bool][]refused{unread: {
		{"no signature", withRequest(func(r *http.Request) { r.Header.Del("Upstash-Signature") }), 401, "missing", "not from QStash"},
		{"an empty signature", withHeader("Upstash-Signature", ""), 401, "missing", ""},
		{"two signatures", withRequest(func(r *http.Request) { h := r.Header; h.Add("Upstash-Signature", h.Get("Upstash-Signature")) }), 401, "malformed", "2 Upstash-Signature headers"},
		{"a signed token of over 8 KiB", withClaim("pad", `"`+strings.Repeat("x", 8<<10)+`"`), 401, "malformed", "at most 8192"},
		{"one part", withToken(func(string) string { return "x" }), 401, "malformed", "three parts"},
		{"two parts", withToken(func(s string) string { return s[:strings.LastIndex(s, ".")] }), 401, "malformed", "three parts"},
		{"four parts", withToken(func(s string) string { return s + ".x" }), 401, "malformed", "three parts"},
		{"a header that is not base64", withPart(0, func(string) string { return "!" }), 401, "malformed", "header is not base64url"},
		{"a header that is padded", all(jose(`{"alg":"HS256" }`), withPart(0, func(s string) string { return s + "==" })), 401, "malformed", "header is not base64url"},
		{"a header that is not JSON", jose("alg"), 401, "malformed", "not a JSON object"},
		{"a header that is null", jose("null"), 401, "malformed", "alg"},
		{"a signature that is not base64", withPart(2, func(s string) string { return "!" + s[1:] }), 401, "malformed", "signature is not base64url"},
		{"a signature in the standard alphabet", all(claimsText("{}"), withPart(2, func(string) string { return strings.Repeat("+", 43) })), 401, "malformed", "signature is not base64url"},
		{"a signature that is padded", withPart(2, func(s string) string { return s + "=" }), 401, "malformed", "signature is not base64url"},
		{"a signature whose unused bits are set", withPart(2, unusedBits), 401, "malformed", "signature is not base64url"},
		{"a signature cut short", withPart(2, func(s string) string { return s[:40] }), 401, "signature", ""},
		{"no signature after the dot", withPart(2, func(string) string { return "" }), 401, "signature", ""},
		{"signed claims that are padded", resigned(func(h, p string) string { return h + "." + p + "=" }, "{}  "), 401, "malformed", "claims are not base64url"},
		{"signed claims that are not base64", resigned(func(h, _ string) string { return h + ".!" }, "{}"), 401, "malformed", "claims are not base64url"},
		{"alg none, unsigned", all(jose(`{"alg":"none","typ":"JWT"}`), withPart(2, func(string) string { return "" })), 401, "malformed", `"none"`},
		{"alg none, signed", jose(`{"alg":"none","typ":"JWT"}`), 401, "malformed", `"none"`},
		{"alg HS384, signed so", hs("384", sha512.New384), 401, "malformed", `"HS384"`},
		{"alg HS512, signed so", hs("512", sha512.New), 401, "malformed", `"HS512"`},
		{"alg HS512, signed with HS256", hs("512", sha256.New), 401, "malformed", `"HS512"`},
		{"alg in lower case", jose(`{"alg":"hs256","typ":"JWT"}`), 401, "malformed", `"hs256"`},
		{"alg in a list", jose(`{"alg":["HS256"],"typ":"JWT"}`), 401, "malformed", "alg"},
		{"no alg", jose(`{"typ":"JWT"}`), 401, "malformed", "alg"},
		{"ALG in place of alg", jose(`{"ALG":"HS256","typ":"JWT"}`), 401, "malformed", "alg"},
		{"crit", jose(`{"alg":"HS256","crit":["b64"],"b64":true}`), 401, "malformed", "crit"},
		{"an empty crit", jose(`{"alg":"HS256","crit":null}`), 401, "malformed", "crit"},
		{"a key that is not ours", signedBy("sig_other"), 401, "signature", "4 signing keys"},
		{"the key without its sig_", signedBy(strings.TrimPrefix(currentKey, "sig_")), 401, "signature", "flyctl secrets set"},
		{"the empty key", signedBy(""), 401, "signature", ""},
		{"the region's key that is not set", all(signedBy(euNext), func(d *delivery) { d.verifier.keys = d.verifier.keys[:1] }, withHeader("Upstash-Region", "EU-CENTRAL-1")), 401, "signature", ""},
		{"another token's claims", withPart(1, func(s string) string { return s[:8] + "A" + s[9:] }), 401, "signature", ""},
		{"claims that are not JSON", claimsText("iss"), 401, "malformed", "not a JSON object"},
		{"claims that are a list", claimsText(`[{"iss":"Upstash"}]`), 401, "malformed", "not a JSON object"},
		{"claims that are null", claimsText("null"), 401, "malformed", "not a JSON object"},
		{"claims that are text", claimsText(`"Upstash"`), 401, "malformed", "not a JSON object"},
		{"claims with more after them", claimsText(`{} {}`), 401, "malformed", "not a JSON object"},
		{"no iss", withoutClaim("iss"), 401, "issuer", `"Upstash"`},
		{"another iss", withClaim("iss", `"Upstart"`), 401, "issuer", "Upstart"},
		{"an iss in lower case", withClaim("iss", `"upstash"`), 401, "issuer", ""},
		{"an iss in a list", withClaim("iss", `["Upstash"]`), 401, "issuer", ""},
		{"ISS in place of iss", all(withoutClaim("iss"), withClaim("ISS", `"Upstash"`)), 401, "issuer", ""},
		{"no exp", withoutClaim("exp"), 401, "malformed", "exp"},
		{"EXP in place of exp", all(withoutClaim("exp"), withClaim("EXP", fromNow(time.Hour))), 401, "malformed", "exp"},
		{"an exp that is null", withClaim("exp", "null"), 401, "malformed", "exp"},
		{"an exp that is text", withClaim("exp", `"`+fromNow(time.Hour)+`"`), 401, "malformed", "exp"},
		{"an exp of exactly now", withClaim("exp", fromNow(0)), 401, "expired", "CLOCK_TOLERANCE"},
		{"an exp just past", withClaim("exp", fromNow(-time.Millisecond)), 401, "expired", ""},
		{"an exp an hour past", withClaim("exp", fromNow(-time.Hour)), 401, "expired", "3600 s ago"},
		{"an exp of exactly the tolerance ago", all(withClaim("exp", fromNow(-time.Minute)), withTolerance(time.Minute)), 401, "expired", ""},
		{"no nbf", withoutClaim("nbf"), 401, "malformed", "nbf"},
		{"an nbf that is null", withClaim("nbf", "null"), 401, "malformed", "nbf"},
		{"an nbf that is text", withClaim("nbf", `"0"`), 401, "malformed", "nbf"},
		{"an nbf just ahead", withClaim("nbf", fromNow(time.Millisecond)), 401, "not yet valid", "CLOCK_TOLERANCE"},
		{"an nbf beyond the tolerance", all(withClaim("nbf", fromNow(2*time.Minute)), withTolerance(time.Minute)), 401, "not yet valid", "60 s"},
		{"no body hash", withoutClaim("body"), 401, "malformed", "body hash"},
		{"a body hash that is a number", withClaim("body", "1"), 401, "malformed", "body hash"},
		{"a body hash that is null", withClaim("body", "null"), 401, "malformed", "body hash"},
		{"no sub", withoutClaim("sub"), 401, "subject", ""},
		{"a sub that is a list", withClaim("sub", `["https://app.fly.dev/orders/1?x=1"]`), 401, "subject", ""},
		{"a sub that is a path", sentTo("/a", "/a"), 401, "subject", ""},
		{"a sub that is no URL", sentTo("/a", "https://app.fly.dev/%zz"), 401, "subject", "not a URL"},
		{"another host", sentTo("/a", "https://evil.example/a"), 401, "subject", "add https://evil.example to RECEIVER_URL"},
		{"the request's own Host, not ours", all(sentTo("/a", "https://evil.example/a"), withRequest(func(r *http.Request) { r.Host = "evil.example" })), 401, "subject", `"https://app.fly.dev/a"`},
		{"an absolute target of the subject's host", sentTo("https://evil.example/a", "https://evil.example/a"), 401, "subject", ""},
		{"http for https", sentTo("/a", "http://app.fly.dev/a"), 401, "subject", ""},
		{"another port", sentTo("/a", "https://app.fly.dev:8443/a"), 401, "subject", "https://app.fly.dev:8443"},
		{"the default port of another scheme", sentTo("/a", "https://app.fly.dev:80/a"), 401, "subject", ""},
		{"a host that ends in ours", sentTo("/a", "https://not.app.fly.dev/a"), 401, "subject", ""},
		{"our host as the login of another", sentTo("/a", "https://app.fly.dev@evil.example/a"), 401, "subject", ""},
		{"another path", sentTo("/a", "https://app.fly.dev/b"), 401, "subject", "a proxy in front changes them"},
		{"a path in another case", sentTo("/a", "https://app.fly.dev/A"), 401, "subject", ""},
		{"an escape in another case", sentTo("/a%2fb", "https://app.fly.dev/a%2Fb"), 401, "subject", ""},
		{"a slash for an escaped one", sentTo("/a/b", "https://app.fly.dev/a%2Fb"), 401, "subject", ""},
		{"an escaped letter for a letter", sentTo("/%61", "https://app.fly.dev/a"), 401, "subject", ""},
		{"a slash for two", sentTo("/a/b", "https://app.fly.dev//a/b"), 401, "subject", ""},
		{"a path for one that cleans to it", sentTo("/b", "https://app.fly.dev/a/../b"), 401, "subject", ""},
		{"a trailing slash", sentTo("/a/", "https://app.fly.dev/a"), 401, "subject", ""},
		{"no trailing slash", sentTo("/a", "https://app.fly.dev/a/"), 401, "subject", ""},
		{"a query in another order", sentTo("/?a=1&b=2", "https://app.fly.dev/?b=2&a=1"), 401, "subject", ""},
		{"a query that was not signed", sentTo("/a?x=1", "https://app.fly.dev/a"), 401, "subject", ""},
		{"no query", sentTo("/a", "https://app.fly.dev/a?x=1"), 401, "subject", ""},
		{"a query with nothing in it", sentTo("/a?", "https://app.fly.dev/a"), 401, "subject", ""},
		{"the target *", sentTo("*", "https://app.fly.dev/"), 401, "subject", "not a path"},
		{"the target * without origins", all(withOrigins(), sentTo("*", "https://app.fly.dev/")), 401, "subject", "not a path"},
		{"no bearer", withBearer(), 401, "bearer", "Upstash-Forward-Authorization"},
		{"another bearer", withBearer("Bearer s3cre7"), 401, "bearer", ""},
		{"the start of the bearer", withBearer("Bearer s3cre"), 401, "bearer", ""},
		{"an empty bearer", withBearer("Bearer "), 401, "bearer", ""},
		{"the bearer without a scheme", withBearer("s3cret"), 401, "bearer", ""},
		{"the bearer under another scheme", withBearer("Basic s3cret"), 401, "bearer", ""},
		{"the bearer twice", withBearer("Bearer s3cret", "Bearer s3cret"), 401, "bearer", "2 Authorization headers"},
		{"a wrong bearer and a body too large", all(withLimit(10), withBearer("Bearer x")), 401, "bearer", ""},
		{"a declared body over the limit", withLimit(10), 413, "too large", "MAX_BODY_BYTES allows 10"},
		{"a body when 64 MiB are held", withHeld(64<<20 - 10), 503, "busy", "67108864"},
		{"a chunked body when 64 MiB are held", all(chunked, withHeld(64<<20-1)), 503, "busy", ""},
	}, read: {
		{"a chunked body that grows over 64 MiB", all(chunked, otherBody(strings.Repeat("x", 8<<10)), withHeld(64<<20-4<<10)), 503, "busy", ""},
		{"a chunked body over the limit", all(chunked, withLimit(10)), 413, "too large", "MAX_BODY_BYTES allows 10"},
		{"a body shorter than declared", withRequest(func(r *http.Request) { r.ContentLength++ }), 408, "cut short", ""},
		{"a chunked body that breaks off", all(chunked, func(d *delivery) {
			d.request = func(r *http.Request) {
				r.ContentLength, r.Body = -1, io.NopCloser(iotest.ErrReader(io.ErrUnexpectedEOF))
			}
		}), 408, "cut short", ""},
		{"a body that stalls", withRequest(func(r *http.Request) { r.Body = io.NopCloser(iotest.ErrReader(os.ErrDeadlineExceeded)) }), 408, "stalled", "30s"},
		{"a body still on its way when the program stops", all(func(d *delivery) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			d.verifier.bodies.draining = ctx
		}, withRequest(func(r *http.Request) { r.ContentLength++ })), 503, "stopping", ""},
		{"another body", withBody(`{"order":2}`), 401, "body hash", hashOf(`{"order":1}`)[:43]},
		{"a body with a newline after it", withBody(`{"order":1}` + "\n"), 401, "body hash", ""},
		{"a body hash in the standard alphabet", all(withBody("hello"), withClaim("body", `"LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="`)), 401, "body hash", "LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ"},
		{"a body hash padded twice", withClaim("body", `"`+hashOf(`{"order":1}`)+`="`), 401, "body hash", ""},
		{"a body hash in hexadecimal", withClaim("body", fmt.Sprintf(`"%x"`, sha256.Sum256([]byte(`{"order":1}`)))), 401, "body hash", ""},
		{"an empty body hash", withClaim("body", `""`), 401, "body hash", ""},
	}} {
		for _, row := range rows {
			t.Run(row.sentence, func(t *testing.T) {
				t.Parallel()
				d := validDelivery()
				row.change(d)
				_, r := d.signed()
				watched := &watchedBody{ReadCloser: r.Body}
				r.Body = watched
				before := d.verifier.bodies.held.Load()
				m, err := d.verifier.verify(httptest.NewRecorder(), r)
				if err == nil {
					t.Fatalf("it is the message %q", m.Body)
				}
				var ref *refusal
				switch {
				case m != nil:
					t.Error("there is a message too")
				case !errors.As(err, &ref):
					t.Fatalf("the error is %T: %v", err, err)
				case ref.status != row.status || ref.reason != row.reason:
					t.Errorf("refused with %d %q (%s), not with %d %q", ref.status, ref.reason, ref.detail, row.status, row.reason)
				case !strings.Contains(ref.detail, row.words):
					t.Errorf("the detail %q does not say %q", ref.detail, row.words)
				}
				if want := map[string]int{"busy": 5, "stopping": 1}[row.reason]; ref.retryAfter != want {
					t.Errorf("it may be retried after %d s, not %d", ref.retryAfter, want)
				}
				if watched.read != bodyRead {
					t.Errorf("the body was read: %v, not %v", watched.read, bodyRead)
				}
				if got := d.verifier.bodies.held.Load(); got != before {
					t.Errorf("%d bytes are held afterwards, %d before it", got, before)
				}
				for _, secret := range []string{currentKey, nextKey, euCurrent, euNext, "s3cret"} {
					if strings.Contains(err.Error(), secret) {
						t.Errorf("%q tells a secret", err)
					}
				}
			})
		}
	}
}

// unusedBits sets one of the two bits at the end of 43 characters that stand for no bit of the 32 bytes.
func unusedBits(s string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, s[len(s)-1])
	return s[:len(s)-1] + string(alphabet[last+1])
}

// resigned changes the first two parts before they are signed, which are then no longer the base64url of anything.
func resigned(f func(header, payload string) string, claims string) change {
	return all(claimsText(claims), withToken(func(token string) string {
		parts := strings.Split(token, ".")
		signed := f(parts[0], parts[1])
		return signed + "." + hmacOf(sha256.New, signed, currentKey)
	}))
}

func TestMessageIsWhatWasSent(t *testing.T) {
	t.Parallel()
	d := validDelivery()
	all(signedBy(euNext), sentTo("http://elsewhere.example/a%2Fb//c?x=1&x=2", "HTTPS://APP.fly.dev:443/a%2Fb//c?x=1&x=2"))(d)
	d.request = func(r *http.Request) {
		for name, value := range map[string]string{
			"Upstash-Message-Id": "msg_1", "Upstash-Retried": "2", "Upstash-Schedule-Id": "scd_1", "Upstash-Topic-Name": "orders",
			"Upstash-Caller-Ip": "192.0.2.1", "Upstash-Region": "EU-CENTRAL-1", "X-Forwarded": "by the publisher",
		} {
			r.Header.Set(name, value)
		}
	}
	for _, row := range []struct {
		origins []string
		url     string
	}{
		{[]string{"https://example.com", "https://app.fly.dev"}, "https://APP.fly.dev:443/a%2Fb//c?x=1&x=2"},
		{nil, "/a%2Fb//c?x=1&x=2"}, // no host is proven then, neither the subject's nor the request's
	} {
		d.verifier.origins = row.origins
		_, r := d.signed()
		m, err := d.verifier.verify(httptest.NewRecorder(), r)
		if err != nil {
			t.Fatal(err)
		}
		u := m.Unverified
		got := fmt.Sprintln(m.URL, u.ID, u.Attempt, u.ScheduleID, u.URLGroup, u.CallerIP, u.Region, u.Header.Get("X-Forwarded"), m.claims.key.name, m.claims.id, m.claims.expires.Sub(testNow))
		want := fmt.Sprintln(row.url, "msg_1", 2, "scd_1", "orders", "192.0.2.1", "EU-CENTRAL-1", "by the publisher", "next", "jwt_4wHSHQwTLVMqfbVa1vvCPjPbcXAA", "5m0s")
		if got != want {
			t.Errorf("got  %swant %s", got, want)
		}
	}
}

func TestTokenIDIsTextWhateverItIs(t *testing.T) {
	t.Parallel()
	for jti, want := range map[string]string{
		`"jwt_1"`: "jwt_1", `""`: "", `null`: "", `12`: "12", `{"a":1}`: `{"a":1}`, `["x"]`: `["x"]`, `true`: "true",
	} {
		d := validDelivery()
		d.claims["jti"] = jti
		tok, _ := d.signed()
		c, err := checkToken(tok, d.verifier.keys, testNow, 0)
		if err != nil || c.id != want {
			t.Errorf("jti %s: the id is %q (%v), not %q", jti, c.id, err, want)
		}
	}
	d := validDelivery()
	delete(d.claims, "jti")
	tok, _ := d.signed()
	if c, err := checkToken(tok, d.verifier.keys, testNow, 0); err != nil || c.id != "" {
		t.Errorf("no jti: the id is %q (%v)", c.id, err)
	}
}

// An answer from outside (RFC 7515, appendix A.1): a mistake that signer and verifier share would pass all else.
func TestRFC7515(t *testing.T) {
	t.Parallel()
	const (
		rfcHeader  = "{\"typ\":\"JWT\",\r\n \"alg\":\"HS256\"}"
		rfcPayload = "{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}"
		rfcKey     = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"
		rfcToken   = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9" +
			".eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ" +
			".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
	)
	secret, err := base64.RawURLEncoding.DecodeString(rfcKey)
	if err != nil {
		t.Fatal(err)
	}
	if got := hmacToken(sha256.New, rfcHeader, rfcPayload, string(secret)); got != rfcToken {
		t.Errorf("the tests sign %s, the RFC %s", got, rfcToken)
	}
	got, key, err := checkSignature(rfcToken, []signingKey{{name: "other", secret: []byte("x")}, {name: "rfc", secret: secret}})
	if err != nil || string(got) != rfcPayload || key.name != "rfc" {
		t.Errorf("the RFC's token: %q, key %v, %v", got, key, err)
	}
	secret[0] ^= 1
	if _, _, err := checkSignature(rfcToken, []signingKey{{name: "rfc", secret: secret}}); err == nil {
		t.Error("a key that differs in one bit verifies the RFC's token")
	}
}

func TestVerifyOneKey(t *testing.T) {
	t.Parallel()
	const message = "hello"
	signed := func(key string, expires time.Time) string {
		return hmacToken(sha256.New, `{"alg":"HS256","typ":"JWT"}`,
			fmt.Sprintf(`{"iss":"Upstash","sub":"https://anything.example","exp":%d,"nbf":0,"body":%q}`, expires.Unix(), hashOf(message)), key)
	}
	later, earlier := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	for _, row := range []struct {
		sentence, body, token, key string
		want                       string // "": taken
	}{
		{"the right key and body", message, signed(currentKey, later), currentKey, ""},
		{"the empty key", message, signed(currentKey, later), "", "key is empty"},
		{"the empty key, with which the token was signed", message, signed("", later), "", "key is empty"},
		{"another key", message, signed(currentKey, later), nextKey, "signature"},
		{"another body", message + "!", signed(currentKey, later), currentKey, "body hash"},
		{"an expired token", message, signed(currentKey, earlier), currentKey, "expired"},
		{"no token", message, "", currentKey, "malformed"},
	} {
		err := verify([]byte(row.body), row.token, row.key)
		if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s: %v, want %q", row.sentence, err, row.want)
		}
	}
}

func TestEmptyKeyAmongOthersVerifiesNothing(t *testing.T) {
	t.Parallel()
	d := validDelivery()
	d.verifier.keys = []signingKey{{name: "current", secret: []byte(currentKey)}, {name: "next"}}
	d.key = ""
	_, r := d.signed()
	if m, err := d.verifier.verify(httptest.NewRecorder(), r); err == nil {
		t.Errorf("anyone can sign %q", m.Body)
	}
}

func FuzzToken(f *testing.F) {
	d := validDelivery()
	tok, _ := d.signed()
	parts := strings.Split(tok, ".")
	claims, _ := base64.RawURLEncoding.DecodeString(parts[1])
	f.Add(tok, d.header, string(claims))
	f.Add(parts[0]+"."+parts[1]+".", `{"alg":"none"}`, `{"iss":"Upstash","exp":9e99,"nbf":-1.5,"body":"","jti":{}}`)
	f.Add("..", `{"ALG":"HS256"}`, `{"ISS":"Upstash","exp":"1","nbf":null,"sub":[]}`)
	f.Fuzz(func(t *testing.T, anything, header, payload string) {
		for _, token := range []string{anything, hmacToken(sha256.New, header, payload, currentKey)} {
			c, err := checkToken(token, d.verifier.keys, testNow, 0)
			if err != nil {
				if ref := new(refusal); !errors.As(err, &ref) || ref.status != http.StatusUnauthorized {
					t.Errorf("%q: %T %v", token, err, err)
				}
				continue
			}
			dot := strings.LastIndex(token, ".")
			got, err := base64.RawURLEncoding.DecodeString(token[dot+1:])
			mac := hmac.New(sha256.New, []byte(currentKey))
			mac.Write([]byte(token[:dot]))
			if err != nil || !hmac.Equal(got, mac.Sum(nil)) {
				t.Errorf("%q is taken, and was not signed", token)
			}
			var says map[string]any
			raw, _ := base64.RawURLEncoding.DecodeString(token[strings.Index(token, ".")+1 : dot])
			if err := json.Unmarshal(raw, &says); err != nil || says["iss"] != "Upstash" || !c.expires.After(testNow) {
				t.Errorf("%q is taken, and says %v (%v), until %s", token, says, err, c.expires)
			}
			_, _ = checkSubject(c.subject, d.verifier.origins, httptest.NewRequest(http.MethodPost, "/", nil).URL)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	for _, size := range []struct {
		name  string
		bytes int
	}{{"1KB", 1 << 10}, {"1MB", 1 << 20}} {
		for _, signer := range [][2]string{{"current", currentKey}, {"next", nextKey}, {"forged", "sig_other"}} {
			b.Run(size.name+"/"+signer[0], func(b *testing.B) {
				d := validDelivery()
				d.verifier.keys = bothKeys
				all(otherBody(strings.Repeat("x", size.bytes)), signedBy(signer[1]))(d)
				_, r := d.signed()
				sent := []byte(d.body)
				content := bytes.NewReader(sent)
				r.Body = io.NopCloser(content)
				w := httptest.NewRecorder()
				forged := signer[0] == "forged"
				if !forged { // no byte of it is read
					b.SetBytes(int64(size.bytes))
				}
				b.ReportAllocs()
				for b.Loop() {
					content.Reset(sent)
					m, err := d.verifier.verify(w, r)
					if (err != nil) != forged {
						b.Fatal(err)
					}
					if m != nil {
						m.release()
					}
				}
			})
		}
	}
}
