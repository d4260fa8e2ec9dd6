package main

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	deliverpkg "qstash-receiver/internal/deliver"
	oncepkg "qstash-receiver/internal/once"
	"qstash-receiver/internal/qstashtest"
	signingpkg "qstash-receiver/internal/signing"
)

// verifyCase is a request of QStash's and the checker that it comes to. A test spoils one thing of it.
type verifyCase struct {
	target  string
	body    string
	header  string // the token's, as JSON
	claims  qstashtest.Claims
	payload string // in place of claims
	alg     func() hash.Hash
	key     string
	token   func(string) string
	request http.Header // a header without values: there is none
	checker *checker
}

// verifyNow is the time of all tests here.
func verifyNow() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

// verifyAt is the time d from now as a claim.
func verifyAt(d time.Duration) string {
	return strconv.FormatFloat(float64(verifyNow().Add(d).UnixMilli())/1000, 'f', -1, 64)
}

func verifyKeys(t testing.TB) *signingpkg.Set {
	t.Helper()
	return signingpkg.NewSet(
		signingpkg.NewKey("current", "", qstashtest.CurrentKey), signingpkg.NewKey("current", "EU_CENTRAL_1_", qstashtest.EUCurrentKey),
		signingpkg.NewKey("next", "", qstashtest.NextKey), signingpkg.NewKey("next", "EU_CENTRAL_1_", qstashtest.EUNextKey),
	)
}

func verifyValid(t testing.TB) *verifyCase {
	const body = `{"order":1}`
	return &verifyCase{
		target:  "/orders/1?x=1",
		body:    body,
		header:  qstashtest.Header,
		claims:  qstashtest.NewClaims(body, "https://app.fly.dev/orders/1?x=1", "jwt_4wHSHQwTLVMqfbVa1vvCPjPbcXAA", verifyNow()),
		alg:     sha256.New,
		key:     qstashtest.CurrentKey,
		token:   func(token string) string { return token },
		request: http.Header{},
		checker: &checker{keys: verifyKeys(t), origins: []string{"https://app.fly.dev"}, now: verifyNow},
	}
}

// signed returns the token, and the request that bears it.
func (c *verifyCase) signed() (string, *http.Request) {
	payload := c.payload
	if payload == "" {
		payload = c.claims.String()
	}
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode([]byte(c.header)) + "." + encode([]byte(payload))
	token := c.token(signed + "." + qstashtest.HMAC(c.alg, signed, c.key))
	r := httptest.NewRequest(http.MethodPost, c.target, strings.NewReader(c.body))
	r.Header.Set("Upstash-Signature", token)
	for name, values := range c.request {
		if r.Header[name] = values; len(values) == 0 {
			r.Header.Del(name)
		}
	}
	return token, r
}

func TestVerify(t *testing.T) {
	t.Parallel()
	type change = func(c *verifyCase)
	all := func(changes ...change) change {
		return func(c *verifyCase) {
			for _, change := range changes {
				change(c)
			}
		}
	}
	claim := func(name, value string) change { return func(c *verifyCase) { c.claims[name] = value } }
	without := func(name string) change { return func(c *verifyCase) { delete(c.claims, name) } }
	payload := func(text string) change { return func(c *verifyCase) { c.payload = text } }
	jose := func(text string) change { return func(c *verifyCase) { c.header = text } }
	key := func(secret string) change { return func(c *verifyCase) { c.key = secret } }
	body := func(text string) change { return func(c *verifyCase) { c.body = text } }
	signedBody := func(text string) change {
		return all(body(text), claim("body", strconv.Quote(qstashtest.BodyHash(text))))
	}
	header := func(name string, values ...string) change { return func(c *verifyCase) { c.request[name] = values } }
	origins := func(list ...string) change { return func(c *verifyCase) { c.checker.origins = list } }
	tolerance := func(d time.Duration) change { return func(c *verifyCase) { c.checker.tolerance = d } }
	bearer := func(values ...string) change {
		return all(func(c *verifyCase) { c.checker.bearer = "s3cret" }, header("Authorization", values...))
	}
	sentTo := func(target, subject string) change {
		return all(func(c *verifyCase) { c.target = target }, claim("sub", strconv.QuoteToGraphic(subject)))
	}
	alg := func(name string, h func() hash.Hash) change {
		return all(jose(`{"alg":"`+name+`","typ":"JWT"}`), func(c *verifyCase) { c.alg = h })
	}
	token := func(f func(string) string) change { return func(c *verifyCase) { c.token = f } }
	part := func(i int, f func(string) string) change { // after it was signed
		return token(func(s string) string {
			parts := strings.Split(s, ".")
			parts[i] = f(parts[i])
			return strings.Join(parts, ".")
		})
	}
	// resigned changes the first two parts before they are signed: they may be the base64url of nothing then.
	resigned := func(f func(header, payload string) string) change {
		return token(func(s string) string {
			parts := strings.Split(s, ".")
			signed := f(parts[0], parts[1])
			return signed + "." + qstashtest.HMAC(sha256.New, signed, qstashtest.CurrentKey)
		})
	}
	emptyBody := all(body(""), claim("body", `"47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU="`))
	unpadded := func(s string) string { return strings.TrimRight(s, "=") }
	unusedBits := func(s string) string { // of the four that 43 characters have more than 32 bytes
		const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		return s[:len(s)-1] + string(alphabet[strings.IndexByte(alphabet, s[len(s)-1])+1])
	}
	nested := strings.Repeat("[", 2900) + strings.Repeat("]", 2900)
	hashOfBody := qstashtest.BodyHash(`{"order":1}`)

	for _, row := range []struct {
		sentence string
		change   change
		reason   string // "": it is taken
		words    string // in the error
	}{
		{"a token in production's shape", all(), "", ""},
		{"a token in the documentation's shape", claim("nbf", "0"), "", ""},
		{"a token in the SDKs' test shape", all(claim("nbf", verifyAt(0)), claim("body", `"`+unpadded(hashOfBody)+`"`)), "", ""},

		// the header
		{"no signature", header("Upstash-Signature"), "missing", "not from QStash"},
		{"an empty signature", header("Upstash-Signature", ""), "missing", ""},
		{"two signatures", header("Upstash-Signature", "a.b.c", "a.b.c"), "malformed", "2 Upstash-Signature headers"},
		{"two empty signatures", header("Upstash-Signature", "", ""), "malformed", "2 Upstash-Signature headers"},
		{"a signed token of over 8 KiB", claim("pad", `"`+strings.Repeat("x", 8<<10)+`"`), "malformed", "at most 8192"},
		{"one part", token(func(string) string { return "x" }), "malformed", "three parts"},
		{"two parts", token(func(s string) string { return s[:strings.LastIndex(s, ".")] }), "malformed", "three parts"},
		{"four parts", token(func(s string) string { return s + ".x" }), "malformed", "three parts"},
		{"five parts", token(func(s string) string { return "x." + s + ".x" }), "malformed", "three parts"},
		{"dots alone", token(func(string) string { return ".." }), "signature", ""},

		// the signature
		{"the next key", key(qstashtest.NextKey), "", ""},
		{"the current key of the other region", key(qstashtest.EUCurrentKey), "", ""},
		{"the next key of the other region", key(qstashtest.EUNextKey), "", ""},
		{"an Upstash-Region of another region", all(key(qstashtest.EUNextKey), header("Upstash-Region", "US-EAST-1")), "", ""},
		{"an Upstash-Region of no region", header("Upstash-Region", "nowhere"), "", ""},
		{"a key that is not ours", key("sig_other"), "signature", "4 signing keys"},
		{"the key without its sig_", key(strings.TrimPrefix(qstashtest.CurrentKey, "sig_")), "signature", "none of the 4 signing keys"},
		{"the empty key", key(""), "signature", ""},
		{"the region's key that is not set", all(key(qstashtest.EUNextKey), func(c *verifyCase) {
			c.checker.keys = signingpkg.NewSet(signingpkg.NewKey("current", "", qstashtest.CurrentKey))
		}, header("Upstash-Region", "EU-CENTRAL-1")), "signature", ""},
		{"the empty key, which is among ours", all(key(""), func(c *verifyCase) {
			c.checker.keys = signingpkg.NewSet(signingpkg.NewKey("current", "", qstashtest.CurrentKey), signingpkg.NewKey("next", "", ""))
		}), "signature", ""},
		{"another token's claims", part(1, func(s string) string { return s[:8] + "A" + s[9:] }), "signature", ""},
		{"another token's header", part(0, func(s string) string { return s[:8] + "A" + s[9:] }), "signature", ""},
		{"a signature that is not base64", part(2, func(s string) string { return "!" + s[1:] }), "malformed", "signature is not base64url"},
		{"a signature in the standard alphabet", part(2, func(string) string { return strings.Repeat("+", 43) }), "malformed", "signature is not base64url"},
		{"a signature that is padded", part(2, func(s string) string { return s + "=" }), "malformed", "signature is not base64url"},
		{"a signature whose unused bits are set", part(2, unusedBits), "malformed", "signature is not base64url"},
		{"a signature cut short", part(2, func(s string) string { return s[:40] }), "signature", ""},
		{"no signature after the dot", part(2, func(string) string { return "" }), "signature", ""},

		// the token's header, which is read if a key has signed it
		{"a header with its names in another order", jose(`{"typ":"JWT","alg":"HS256"}`), "", ""},
		{"a header with a kid, white space, no typ", jose("{ \"alg\": \"HS256\",\r\n \"kid\": \"1\" }"), "", ""},
		{"an ALG beside the alg", jose(`{"alg":"HS256","ALG":"none"}`), "", ""},
		{"a nested header that a stranger signed", all(key("sig_other"), jose(`{"alg":`+nested[1:len(nested)-1]+`}`)), "signature", ""},
		{"alg none that a stranger signed", all(key("sig_other"), jose(`{"alg":"none"}`)), "signature", ""},
		{"alg none, unsigned", all(jose(`{"alg":"none","typ":"JWT"}`), part(2, func(string) string { return "" })), "signature", ""},
		{"a header that is not base64, and that no key signed", part(0, func(string) string { return "!" }), "signature", ""},
		{"a header that is not base64", resigned(func(_, p string) string { return "!." + p }), "malformed", "header is not base64url"},
		{"a header that is padded", all(jose(`{"alg":"HS256" }`), resigned(func(h, p string) string { return h + "==." + p })), "malformed", "header is not base64url"},
		{"an empty header", jose(""), "malformed", "not a JSON object"},
		{"a header that is not JSON", jose("alg"), "malformed", "not a JSON object"},
		{"a header that is null", jose("null"), "malformed", "alg"},
		{"a header that is a list", jose(`["HS256"]`), "malformed", "not a JSON object"},
		{"alg none", jose(`{"alg":"none","typ":"JWT"}`), "malformed", `"none"`},
		{"alg HS512, signed with HS256", jose(`{"alg":"HS512","typ":"JWT"}`), "malformed", `"HS512"`},
		{"alg HS384, signed so", alg("HS384", sha512.New384), "signature", ""},
		{"alg HS512, signed so", alg("HS512", sha512.New), "signature", ""},
		{"alg RS256", jose(`{"alg":"RS256","typ":"JWT"}`), "malformed", `"RS256"`},
		{"alg in lower case", jose(`{"alg":"hs256","typ":"JWT"}`), "malformed", `"hs256"`},
		{"alg in a list", jose(`{"alg":["HS256"],"typ":"JWT"}`), "malformed", "alg"},
		{"no alg", jose(`{"typ":"JWT"}`), "malformed", "alg"},
		{"ALG in place of alg", jose(`{"ALG":"HS256","typ":"JWT"}`), "malformed", "alg"},
		{"crit", jose(`{"alg":"HS256","crit":["b64"],"b64":true}`), "malformed", "crit"},
		{"an empty crit", jose(`{"alg":"HS256","crit":null}`), "malformed", "crit"},

		// the claims
		{"signed claims that are padded", all(payload("{}  "), resigned(func(h, p string) string { return h + "." + p + "=" })), "malformed", "claims are not base64url"},
		{"signed claims that are not base64", resigned(func(h, _ string) string { return h + ".!" }), "malformed", "claims are not base64url"},
		{"no claims", resigned(func(h, _ string) string { return h + "." }), "malformed", "not a JSON object"},
		{"claims that are not JSON", payload("iss"), "malformed", "not a JSON object"},
		{"claims that are a list", payload(`[{"iss":"Upstash"}]`), "malformed", "not a JSON object"},
		{"claims that are null", payload("null"), "malformed", "not a JSON object"},
		{"claims that are text", payload(`"Upstash"`), "malformed", "not a JSON object"},
		{"claims with more after them", payload(`{} {}`), "malformed", "not a JSON object"},
		{"unknown claims", all(claim("scope", `{"a":[1]}`), claim("", "null")), "", ""},
		{"claims in another case after the right ones", payload(`{"iss":"Upstash","exp":` + verifyAt(time.Hour) +
			`,"nbf":0,"sub":"https://app.fly.dev/orders/1?x=1","body":"` + hashOfBody + `","ISS":"x","EXP":0,"NBF":1e99,"SUB":"x","BODY":"x"}`), "", ""},
		{"no iss", without("iss"), "issuer", `"Upstash"`},
		{"another iss", claim("iss", `"Upstart"`), "issuer", "Upstart"},
		{"an iss in lower case", claim("iss", `"upstash"`), "issuer", ""},
		{"an iss in a list", claim("iss", `["Upstash"]`), "issuer", ""},
		{"an iss that is a number", claim("iss", "1"), "issuer", ""},
		{"ISS in place of iss", all(without("iss"), claim("ISS", `"Upstash"`)), "issuer", ""},
		{"a fractional exp", claim("exp", verifyAt(time.Millisecond)), "", ""},
		{"an exp in exponent form", claim("exp", "1e10"), "", ""},
		{"an exp beyond any time", claim("exp", "1e300"), "", ""},
		{"an exp that no float64 holds", claim("exp", "1e400"), "malformed", "exp"},
		{"an exp under all that a float64 holds", claim("exp", "-1e400"), "malformed", "exp"},
		{"an exp with more digits than a float64 has exponent", claim("exp", "1"+strings.Repeat("0", 400)), "malformed", "exp"},
		{"no exp", without("exp"), "malformed", "exp"},
		{"EXP in place of exp", all(without("exp"), claim("EXP", verifyAt(time.Hour))), "malformed", "exp"},
		{"an exp that is null", claim("exp", "null"), "malformed", "exp"},
		{"an exp that is text", claim("exp", `"`+verifyAt(time.Hour)+`"`), "malformed", "exp"},
		{"an exp that is true", claim("exp", "true"), "malformed", "exp"},
		{"an exp in a list", claim("exp", "["+verifyAt(time.Hour)+"]"), "malformed", "exp"},
		{"an exp of exactly now", claim("exp", verifyAt(0)), "expired", "CLOCK_TOLERANCE"},
		{"an exp just past", claim("exp", verifyAt(-time.Millisecond)), "expired", ""},
		{"an exp an hour past", claim("exp", verifyAt(-time.Hour)), "expired", "3600 s ago"},
		{"an exp long before 1970", claim("exp", "-1e300"), "expired", ""},
		{"an exp in the past, within tolerance", all(claim("exp", verifyAt(-time.Minute)), tolerance(time.Minute+time.Millisecond)), "", ""},
		{"an exp of exactly the tolerance ago", all(claim("exp", verifyAt(-time.Minute)), tolerance(time.Minute)), "expired", ""},
		{"an nbf of exactly now", claim("nbf", verifyAt(0)), "", ""},
		{"a fractional nbf", claim("nbf", verifyAt(-time.Millisecond)), "", ""},
		{"an nbf in the future, within tolerance", all(claim("nbf", verifyAt(time.Minute)), tolerance(time.Minute)), "", ""},
		{"no nbf", without("nbf"), "malformed", "nbf"},
		{"an nbf that is null", claim("nbf", "null"), "malformed", "nbf"},
		{"an nbf that is text", claim("nbf", `"0"`), "malformed", "nbf"},
		{"an nbf that is false", claim("nbf", "false"), "malformed", "nbf"},
		{"an nbf under all that a float64 holds", claim("nbf", "-1e400"), "malformed", "nbf"},
		{"an nbf that no float64 holds", claim("nbf", "1e400"), "malformed", "nbf"},
		{"an nbf just ahead", claim("nbf", verifyAt(time.Millisecond)), "not yet valid", "CLOCK_TOLERANCE"},
		{"an nbf beyond any time", claim("nbf", "1e300"), "not yet valid", ""},
		{"an nbf beyond the tolerance", all(claim("nbf", verifyAt(2*time.Minute)), tolerance(time.Minute)), "not yet valid", "60 s"},
		{"an iat in the future", claim("iat", verifyAt(time.Hour)), "", ""},
		{"an iat that is text", claim("iat", `"yesterday"`), "", ""},
		{"no iat", without("iat"), "", ""},
		{"no body hash", without("body"), "malformed", "body hash"},
		{"a body hash that is a number", claim("body", "1"), "malformed", "body hash"},
		{"a body hash that is null", claim("body", "null"), "malformed", "body hash"},
		{"no jti", without("jti"), "", ""},

		// the subject
		{"a scheme and host in upper case", sentTo("/a", "HTTPS://App.Fly.DEV/a"), "", ""},
		{"the default port in the subject", sentTo("/a", "https://app.fly.dev:443/a"), "", ""},
		{"the root, its subject without a slash", sentTo("/", "https://app.fly.dev"), "", ""},
		{"the root, its subject with a slash", sentTo("/", "https://app.fly.dev/"), "", ""},
		{"a query on a root without a slash", sentTo("/?x=1", "https://app.fly.dev?x=1"), "", ""},
		{"a query on a root with a slash", sentTo("/?x=1", "https://app.fly.dev/?x=1"), "", ""},
		{"an empty query on a root without a slash", sentTo("/?", "https://app.fly.dev?"), "", ""},
		{"a path that cleaning would change", sentTo("//a//./b/../c/", "https://app.fly.dev//a//./b/../c/"), "", ""},
		{"an escaped slash", sentTo("/a%2Fb", "https://app.fly.dev/a%2Fb"), "", ""},
		{"an escape that needs none", sentTo("/%61", "https://app.fly.dev/%61"), "", ""},
		{"a query with bytes that need an escape", sentTo(`/a?q="<\>ü|`, `https://app.fly.dev/a?q="<\>ü|`), "", ""},
		{"a target in absolute form", sentTo("http://elsewhere.example/a?x=1", "https://app.fly.dev/a?x=1"), "", ""},
		{"a target in absolute form, of the root", sentTo("http://elsewhere.example", "https://app.fly.dev/"), "", ""},
		{"a target in absolute form, of the root with a query", sentTo("http://elsewhere.example?x=1", "https://app.fly.dev/?x=1"), "", ""},
		{"the second of two origins", all(origins("https://app.fly.dev", "https://example.com"), sentTo("/a", "https://example.com/a")), "", ""},
		{"a port that is not the default", all(origins("http://app.internal:3000"), sentTo("/a", "http://app.internal:3000/a")), "", ""},
		{"without origins, any subject", all(origins(), sentTo("/a", "https://elsewhere.example/b")), "", ""},
		{"without origins, a subject of no URL", all(origins(), sentTo("/a", "%zz")), "", ""},
		{"without origins, no subject", all(origins(), without("sub")), "", ""},
		{"no sub", without("sub"), "subject", ""},
		{"a sub that is a list", claim("sub", `["https://app.fly.dev/orders/1?x=1"]`), "subject", ""},
		{"a sub that is a path", sentTo("/a", "/a"), "subject", ""},
		{"a sub that is no URL", sentTo("/a", "https://app.fly.dev/%zz"), "subject", "not a URL"},
		{"another host", sentTo("/a", "https://evil.example/a"), "subject", "add https://evil.example to RECEIVER_URL"},
		{"an absolute target of the subject's host", sentTo("https://evil.example/a", "https://evil.example/a"), "subject", ""},
		{"http for https", sentTo("/a", "http://app.fly.dev/a"), "subject", ""},
		{"another port", sentTo("/a", "https://app.fly.dev:8443/a"), "subject", "https://app.fly.dev:8443"},
		{"the default port of another scheme", sentTo("/a", "https://app.fly.dev:80/a"), "subject", ""},
		{"a host that ends in ours", sentTo("/a", "https://not.app.fly.dev/a"), "subject", ""},
		{"our host with a dot behind it", sentTo("/a", "https://app.fly.dev./a"), "subject", ""},
		{"our host as the login of another", sentTo("/a", "https://app.fly.dev@evil.example/a"), "subject", "login"},
		{"our host behind a login", sentTo("/a", "https://user:pass@app.fly.dev/a"), "subject", "login"},
		{"our host behind an empty login", sentTo("/a", "https://@app.fly.dev/a"), "subject", "login"},
		{"a capital I with a dot for an i", all(origins("https://winter-cherry.fly.dev"), sentTo("/", "https://wİnter-cherry.fly.dev/")), "subject", ""},
		{"a kelvin sign for a k", all(origins("https://kiwi.fly.dev"), sentTo("/", "https://\u212aiwi.fly.dev/")), "subject", ""},
		{"a long s for an s", all(origins("https://sea.fly.dev"), sentTo("/", "https://ſea.fly.dev/")), "subject", ""},
		{"a dotless i for an i", all(origins("https://winter.fly.dev"), sentTo("/", "https://wınter.fly.dev/")), "subject", ""},
		{"a letter of full width", sentTo("/a", "https://ａpp.fly.dev/a"), "subject", ""},
		{"a long s in the scheme", sentTo("/a", "httpſ://app.fly.dev/a"), "subject", ""},
		{"another path", sentTo("/a", "https://app.fly.dev/b"), "subject", "a proxy in front changes them"},
		{"a path in another case", sentTo("/a", "https://app.fly.dev/A"), "subject", ""},
		{"an escape in another case", sentTo("/a%2fb", "https://app.fly.dev/a%2Fb"), "subject", ""},
		{"a slash for an escaped one", sentTo("/a/b", "https://app.fly.dev/a%2Fb"), "subject", ""},
		{"an escaped letter for a letter", sentTo("/%61", "https://app.fly.dev/a"), "subject", ""},
		{"a slash for two", sentTo("/a/b", "https://app.fly.dev//a/b"), "subject", ""},
		{"a path for one that cleans to it", sentTo("/b", "https://app.fly.dev/a/../b"), "subject", ""},
		{"a trailing slash", sentTo("/a/", "https://app.fly.dev/a"), "subject", ""},
		{"no trailing slash", sentTo("/a", "https://app.fly.dev/a/"), "subject", ""},
		{"a query in another order", sentTo("/?a=1&b=2", "https://app.fly.dev/?b=2&a=1"), "subject", ""},
		{"a query that was not signed", sentTo("/a?x=1", "https://app.fly.dev/a"), "subject", ""},
		{"no query", sentTo("/a", "https://app.fly.dev/a?x=1"), "subject", ""},
		{"a query with nothing in it", sentTo("/a?", "https://app.fly.dev/a"), "subject", ""},
		{"a space as a plus", sentTo("/a?q=+", "https://app.fly.dev/a?q=%20"), "subject", ""},
		{"the target *", sentTo("*", "https://app.fly.dev/"), "subject", "not a path"},
		{"the target * without origins", all(origins(), sentTo("*", "https://app.fly.dev/")), "subject", "not a path"},
		{"a scheme before a path", sentTo("http:/orders?u=https://y/admin", "https://app.fly.dev/orders?u=https://y/admin"), "subject", "not a path"},
		{"a scheme before a path, read at its query", sentTo("http:/orders?u=https://y/admin", "https://app.fly.dev/admin"), "subject", "not a path"},
		{"a scheme before a path, without origins", all(origins(), sentTo("http:/orders", "https://app.fly.dev/orders")), "subject", "not a path"},
		{"a scheme before a name", sentTo("http:orders", "https://app.fly.dev/orders"), "subject", "not a path"},
		{"backslashes for escaped ones", sentTo(`/t/1\..\..\admin`, "https://app.fly.dev/t/1%5C..%5C..%5Cadmin"), "subject", "bytes that no URL has"},
		{"backslashes on both sides", sentTo(`/t\1`, `https://app.fly.dev/t\1`), "subject", "bytes that no URL has"},
		{"a number sign in the path", sentTo("/a#b", "https://app.fly.dev/a%23b"), "subject", "bytes that no URL has"},
		{"a number sign that ends the subject's path", sentTo("/a#b", "https://app.fly.dev/a"), "subject", "bytes that no URL has"},
		{"a number sign in the query", sentTo("/a?x#b", "https://app.fly.dev/a?x#b"), "subject", ""},
		{"a quote in the path", sentTo(`/a"b`, "https://app.fly.dev/a%22b"), "subject", "bytes that no URL has"},
		{"a less-than sign in the path", sentTo("/a<b", "https://app.fly.dev/a%3Cb"), "subject", "bytes that no URL has"},
		{"a caret in the path", sentTo("/a^b", "https://app.fly.dev/a%5Eb"), "subject", "bytes that no URL has"},
		{"a bar in the path", sentTo("/a|b", "https://app.fly.dev/a%7Cb"), "subject", "bytes that no URL has"},
		{"a letter beyond ASCII in the path", sentTo("/ü", "https://app.fly.dev/%C3%BC"), "subject", "bytes that no URL has"},
		{"a byte over 127 in the path", sentTo("/\xfc", "https://app.fly.dev/%FC"), "subject", "bytes that no URL has"},
		{"odd bytes in an absolute target", sentTo(`http://elsewhere.example/a\b`, "https://app.fly.dev/a%5Cb"), "subject", "bytes that no URL has"},
		{"an escape in the query for a byte", sentTo(`/a?q="`, "https://app.fly.dev/a?q=%22"), "subject", ""},

		// the bearer
		{"the bearer", bearer("Bearer s3cret"), "", ""},
		{"the bearer in another case, with spaces", bearer("bearer  s3cret "), "", ""},
		{"an Authorization that is not asked for", header("Authorization", "Basic x", "Basic y"), "", ""},
		{"no bearer", bearer(), "bearer", "Upstash-Forward-Authorization"},
		{"another bearer", bearer("Bearer s3cre7"), "bearer", ""},
		{"the start of the bearer", bearer("Bearer s3cre"), "bearer", ""},
		{"an empty bearer", bearer("Bearer "), "bearer", ""},
		{"the bearer without a scheme", bearer("s3cret"), "bearer", ""},
		{"the bearer under another scheme", bearer("Basic s3cret"), "bearer", ""},
		{"the bearer twice", bearer("Bearer s3cret", "Bearer s3cret"), "bearer", "2 Authorization headers"},
		{"a wrong bearer and another subject", all(bearer("Bearer x"), sentTo("/a", "https://app.fly.dev/b")), "subject", ""},

		// the body
		{"an empty body", emptyBody, "", ""},
		{"a body that is not text", signedBody("\x00\xff\r\n"), "", ""},
		{"another body", body(`{"order":2}`), "body hash", unpadded(hashOfBody)},
		{"a body with a newline after it", body(`{"order":1}` + "\n"), "body hash", ""},
		{"no body", body(""), "body hash", ""},
		{"a body hash in the standard alphabet", all(body("hello"), claim("body", `"LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="`)), "body hash", "LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ"},
		{"a body hash padded twice", claim("body", `"`+hashOfBody+`="`), "body hash", ""},
		{"a body hash in hexadecimal", claim("body", fmt.Sprintf(`"%x"`, sha256.Sum256([]byte(`{"order":1}`)))), "body hash", ""},
		{"an empty body hash", claim("body", `""`), "body hash", ""},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			c := verifyValid(t)
			row.change(c)
			_, r := c.signed()
			proof, err := c.checker.verify(r)
			if err == nil {
				err = proof.Check([]byte(c.body))
			}
			if row.reason == "" {
				if err != nil {
					t.Fatal("refused:", err)
				}
				if proof.Key == "" || !proof.Expires.After(verifyNow()) || proof.Token == (oncepkg.Key{}) {
					t.Errorf("the proof is %+v", proof)
				}
				return
			}
			var refusal *deliverpkg.Refusal
			switch {
			case err == nil:
				t.Fatalf("taken: %+v", proof)
			case !errors.As(err, &refusal):
				t.Fatalf("the error is %T: %v", err, err)
			case refusal.Reason.Row().Reason != row.reason || refusal.Reason.Row().Status != http.StatusUnauthorized:
				t.Errorf("refused with %v, not with %q", err, row.reason)
			case !strings.Contains(refusal.Detail, row.words):
				t.Errorf("the detail %q does not say %q", refusal.Detail, row.words)
			}
			if known := proof.Key != ""; known != (row.reason != "signature" && row.reason != "missing") && row.reason != "malformed" {
				t.Errorf("the key that signed it is %q", proof.Key)
			}
			for _, secret := range []string{qstashtest.CurrentKey, qstashtest.NextKey, qstashtest.EUCurrentKey, qstashtest.EUNextKey, "s3cret"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%q tells a secret", err)
				}
			}
		})
	}
}

// Whoever is called by the request's Host is not asked for.
func TestVerifyIgnoresHost(t *testing.T) {
	t.Parallel()
	c := verifyValid(t)
	_, r := c.signed()
	r.Host = "elsewhere.example"
	if _, err := c.checker.verify(r); err != nil {
		t.Error("another Host:", err)
	}
	c.target, c.claims["sub"] = "/a", `"https://evil.example/a"`
	_, r = c.signed()
	r.Host = "evil.example"
	if _, err := c.checker.verify(r); err == nil || !strings.Contains(err.Error(), `"https://app.fly.dev/a"`) {
		t.Error("the request's own Host, which is not ours:", err)
	}
}

func TestVerifyProves(t *testing.T) {
	t.Parallel()
	c := verifyValid(t)
	c.key, c.target, c.claims["sub"] = qstashtest.EUNextKey, "http://elsewhere.example/a%2Fb//c?x=1&x=2", `"HTTPS://APP.fly.dev:443/a%2Fb//c?x=1&x=2"`
	c.checker.tolerance = time.Minute
	for _, row := range []struct {
		origins []string
		url     string
	}{
		{[]string{"https://example.com", "https://app.fly.dev"}, "https://APP.fly.dev:443/a%2Fb//c?x=1&x=2"},
		{nil, "/a%2Fb//c?x=1&x=2"}, // no host is proven then, neither the subject's nor the request's
	} {
		c.checker.origins = row.origins
		_, r := c.signed()
		p, err := c.checker.verify(r)
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprintln(p.Key, p.Region, p.URL, p.Target, p.Subject, p.BodyHash, p.Token, p.Expires.Sub(verifyNow()))
		want := fmt.Sprintln("next", "EU_CENTRAL_1_", row.url, "/a%2Fb//c?x=1&x=2", "HTTPS://APP.fly.dev:443/a%2Fb//c?x=1&x=2",
			strings.TrimRight(qstashtest.BodyHash(c.body), "="), oncepkg.KeyOf("jwt_4wHSHQwTLVMqfbVa1vvCPjPbcXAA"), 6*time.Minute)
		if got != want {
			t.Errorf("got  %swant %s", got, want)
		}
	}
}

// A jti is text, whatever it is. A token that has none is known by itself.
func TestVerifyTokenID(t *testing.T) {
	t.Parallel()
	seen := map[oncepkg.Key]string{}
	for _, row := range []struct{ jti, id string }{ // id "": the token's own
		{`"jwt_1"`, "jwt_1"}, {`"a\u0062"`, "ab"}, {`12`, "12"}, {`1.0`, "1.0"}, {`1e400`, "1e400"}, {`{"a":1}`, `{"a":1}`},
		{`["x"]`, `["x"]`}, {`true`, "true"}, {`""`, ""}, {`null`, ""}, {"", ""},
	} {
		c := verifyValid(t)
		if c.claims["jti"] = row.jti; row.jti == "" {
			delete(c.claims, "jti")
		}
		token, r := c.signed()
		if row.id == "" {
			row.id = token
		}
		p, err := c.checker.verify(r)
		if err != nil || p.Token != oncepkg.KeyOf(row.id) {
			t.Errorf("jti %s: the token is not known by %q (%v)", row.jti, row.id, err)
		}
		if other, ok := seen[p.Token]; ok {
			t.Errorf("jti %s: the id is that of %s too", row.jti, other)
		}
		seen[p.Token] = row.jti
	}
}

// A token that no key signed, and that QStash might have made for this service: the keys may have been rolled.
func TestVerifyLooksOurs(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		sentence string
		change   func(c *verifyCase)
		ours     bool
	}{
		{"another key", func(*verifyCase) {}, true},
		{"any path of ours", func(c *verifyCase) { c.claims["sub"] = `"https://app.fly.dev/elsewhere"` }, true},
		{"another host", func(c *verifyCase) { c.claims["sub"] = `"https://evil.example/orders/1?x=1"` }, false},
		{"any host, without origins", func(c *verifyCase) {
			c.checker.origins, c.claims["sub"] = nil, `"https://evil.example/orders/1?x=1"`
		}, true},
		{"another issuer", func(c *verifyCase) { c.claims["iss"] = `"Upstart"` }, false},
		{"an exp in the past", func(c *verifyCase) { c.claims["exp"] = verifyAt(0) }, false},
		{"an exp in an hour", func(c *verifyCase) { c.claims["exp"] = verifyAt(time.Hour) }, true},
		{"an exp in more than an hour", func(c *verifyCase) { c.claims["exp"] = verifyAt(time.Hour + time.Second) }, false},
		{"an exp that is text", func(c *verifyCase) { c.claims["exp"] = `"` + verifyAt(time.Minute) + `"` }, false},
		{"claims that are none", func(c *verifyCase) { c.payload = "x" }, false},
		{"a token far longer than QStash's", func(c *verifyCase) { c.claims["pad"] = `"` + strings.Repeat("x", 2<<10) + `"` }, false},
	} {
		c := verifyValid(t)
		c.key = "sig_other"
		row.change(c)
		asked := false
		c.checker.wanted = func() { asked = true }
		_, r := c.signed()
		p, err := c.checker.verify(r)
		if err == nil || p.Key != "" || p.LooksOurs != row.ours || asked != row.ours {
			t.Errorf("%s: it looks ours: %v, the keys are asked for: %v (%v)", row.sentence, p.LooksOurs, asked, err)
		}
	}
}

// An answer from outside (RFC 7515, appendix A.1): a mistake that signer and verifier share would pass all else.
func TestVerifyRFC7515(t *testing.T) {
	t.Parallel()
	const token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9" +
		".eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ" +
		".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
	secret, err := base64.RawURLEncoding.DecodeString("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
	if err != nil {
		t.Fatal(err)
	}
	got, key, err := checkSignature(token, []signingpkg.Key{signingpkg.NewKey("other", "", "x"), signingpkg.NewKey("rfc", "", string(secret))})
	const payload = "{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}"
	if err != nil || string(got) != payload || key.Name != "rfc" {
		t.Errorf("the RFC's token: %q, key %v, %v", got, key, err)
	}
	secret[0] ^= 1
	if _, _, err := checkSignature(token, []signingpkg.Key{signingpkg.NewKey("rfc", "", string(secret))}); err == nil {
		t.Error("a key that differs in one bit verifies the RFC's token")
	}
}

func TestVerifyOneKey(t *testing.T) {
	t.Parallel()
	const body = "hello"
	signed := func(key string, issued time.Time) string {
		return qstashtest.Token(qstashtest.Header, qstashtest.NewClaims(body, "https://anything.example", "jwt_1", issued).String(), key)
	}
	now := time.Now()
	for _, row := range []struct {
		sentence, body, token, key string
		want                       string // "": taken
	}{
		{"the right key and body", body, signed(qstashtest.CurrentKey, now), qstashtest.CurrentKey, ""},
		{"the empty key", body, signed(qstashtest.CurrentKey, now), "", "key is empty"},
		{"the empty key, with which the token was signed", body, signed("", now), "", "key is empty"},
		{"another key", body, signed(qstashtest.CurrentKey, now), qstashtest.NextKey, "signature"},
		{"another body", body + "!", signed(qstashtest.CurrentKey, now), qstashtest.CurrentKey, "body hash"},
		{"an expired token", body, signed(qstashtest.CurrentKey, now.Add(-time.Hour)), qstashtest.CurrentKey, "expired"},
		{"no token", body, "", qstashtest.CurrentKey, "malformed"},
	} {
		err := verify([]byte(row.body), row.token, row.key)
		if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s: %v, want %q", row.sentence, err, row.want)
		}
	}
}

// Origins are compared as they are written, but for the case of A to Z.
func TestVerifyFoldsAToZAlone(t *testing.T) {
	t.Parallel()
	for r := rune(0); r <= '\U0010FFFF'; r++ {
		want := r
		if 'A' <= r && r <= 'Z' {
			want += 'a' - 'A'
		}
		host := "x" + string(r) + "x.example"
		if got := signingpkg.Origin(&url.URL{Scheme: "https", Host: host}); got != "https://x"+string(want)+"x.example" {
			t.Errorf("%U: the origin is %q", r, got)
		}
	}
}

func FuzzToken(f *testing.F) {
	c := verifyValid(f)
	token, _ := c.signed()
	parts := strings.Split(token, ".")
	f.Add(token, c.header, c.claims.String())
	f.Add(parts[0]+"."+parts[1]+".", `{"alg":"none"}`, `{"iss":"Upstash","exp":9e99,"nbf":-1.5,"body":"","jti":{}}`)
	f.Add("..", `{"ALG":"HS256"}`, `{"ISS":"Upstash","exp":"1","nbf":null,"sub":[]}`)
	keys := c.checker.keys.Keys()
	f.Fuzz(func(t *testing.T, anything, header, payload string) {
		for _, token := range []string{anything, qstashtest.Token(header, payload, qstashtest.CurrentKey)} {
			raw, _, err := checkSignature(token, keys)
			var claims verifyClaims
			if err == nil {
				claims, err = checkClaims(raw, verifyNow(), 0)
			}
			if err != nil {
				if refusal := new(deliverpkg.Refusal); !errors.As(err, &refusal) || refusal.Reason.Row().Status != http.StatusUnauthorized {
					t.Errorf("%q: %T %v", token, err, err)
				}
				continue
			}
			signed, signature := token[:strings.LastIndex(token, ".")], token[strings.LastIndex(token, ".")+1:]
			if !hmac.Equal([]byte(signature), []byte(qstashtest.HMAC(sha256.New, signed, qstashtest.CurrentKey))) {
				t.Errorf("%q is taken, and was not signed", token)
			}
			var says map[string]any
			if err := json.Unmarshal(raw, &says); err != nil || says["iss"] != "Upstash" || !claims.expires.After(verifyNow()) {
				t.Errorf("%q is taken, and says %v (%v), until %s", token, says, err, claims.expires)
			}
		}
	})
}

// What is taken is what is run and forwarded: another reader of the request's bytes finds the path and query that were
// signed.
func FuzzSubject(f *testing.F) {
	f.Add("/orders?x=1", "https://app.fly.dev/orders?x=1")
	f.Add("http:/orders?u=https://y/admin", "https://app.fly.dev/orders?u=https://y/admin")
	f.Add("http://elsewhere.example?x", "https://app.fly.dev?x")
	f.Add(`/t/1\..\admin#`, "https://app.fly.dev/t/1%5C..%5Cadmin")
	f.Add("//a/%2f/\xff", "HTTPS://APP.FLY.DEV:443//a/%2f/%FF")
	origins := []string{"https://app.fly.dev"}
	f.Fuzz(func(t *testing.T, target, subject string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("POST " + target + " HTTP/1.1\r\nHost: x\r\n\r\n")))
		if err != nil {
			return
		}
		u, got, err := checkSubject(subject, origins, r)
		if err != nil {
			return
		}
		if !strings.HasSuffix(r.RequestURI, strings.TrimPrefix(got, "/")) || !strings.HasPrefix(got, "/") {
			t.Errorf("the target %q counts as %q", r.RequestURI, got)
		}
		again, err := url.Parse(origins[0] + got)
		if err != nil || again.RequestURI() != got || again.Path != u.Path || again.RawQuery != u.RawQuery || again.Fragment != "" {
			t.Errorf("the target %q is taken as %q and forwarded as %q (%v)", r.RequestURI, u, again, err)
		}
		signed, err := url.Parse(subject)
		if err != nil || signed.RequestURI() != got || signed.User != nil || !slices.Contains(origins, signingpkg.Origin(signed)) {
			t.Errorf("%q is taken for %q", subject, got)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	for _, size := range []struct {
		name  string
		bytes int
	}{{"1KB", 1 << 10}, {"1MB", 1 << 20}} {
		for _, signer := range [][2]string{{"current", qstashtest.CurrentKey}, {"next", qstashtest.NextKey}, {"forged", "sig_other"}} {
			b.Run(size.name+"/"+signer[0], func(b *testing.B) {
				c := verifyValid(b)
				c.checker.keys = signingpkg.NewSet(signingpkg.NewKey("current", "", qstashtest.CurrentKey), signingpkg.NewKey("next", "", qstashtest.NextKey))
				c.key = signer[1]
				body := []byte(strings.Repeat("x", size.bytes))
				c.claims["body"] = strconv.Quote(qstashtest.BodyHash(string(body)))
				_, r := c.signed()
				forged := signer[0] == "forged"
				if !forged { // no byte of it is read
					b.SetBytes(int64(size.bytes))
				}
				b.ReportAllocs()
				for b.Loop() {
					proof, err := c.checker.verify(r)
					if err == nil {
						err = proof.Check(body)
					}
					if (err != nil) != forged {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
