package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v4"
	"github.com/tidwall/gjson"
)

// maxTokenBytes is the longest Upstash-Signature looked at; production's are under 700 bytes.
const maxTokenBytes = 8 << 10

// signingKey is one key of a pair. QStash signs with the UTF-8 bytes of the whole "sig_..." text.
type signingKey struct {
	name   string // "current" or "next": its place in its pair
	secret []byte
	region string // of its pair: "", or as in the settings
}

// claims are what a proven token says, as far as it matters here.
type claims struct {
	subject  string // the destination URL as published; "" if absent
	bodyHash string // base64url of the body's SHA-256, unpadded
	id       string // jti: of one attempt, not of the message; "" if absent
	expires  time.Time
	key      *signingKey // that signed it; a pointer, so that printing a Message does not print the secret
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

// checkSignature returns the payload of a compact JWS that one of keys signed with HS256, and that key.
// The keys are tried on the HMAC alone, so that a message of the next key costs what one of the current key does.
func checkSignature(token string, keys []signingKey) ([]byte, *signingKey, error) {
	if len(token) > maxTokenBytes {
		return nil, nil, unauthorized("malformed", "the token has %d bytes, at most %d are looked at", len(token), maxTokenBytes)
	}
	header, rest, _ := strings.Cut(token, ".")
	payload, signature, ok := strings.Cut(rest, ".")
	if !ok || strings.ContainsAny(signature, ".\r\n") { // base64 would pass over line breaks
		return nil, nil, unauthorized("malformed", "the token is not three parts joined by dots")
	}
	if header != productionHeader {
		if err := checkHeader(header); err != nil {
			return nil, nil, err
		}
	}
	if _, err := strict.DecodeString(signature); err != nil {
		return nil, nil, unauthorized("malformed", "the token's signature is not base64url: %v", err)
	}
	for i := range keys {
		key := &keys[i]
		if len(key.secret) == 0 { // would verify what anyone can sign
			return nil, nil, unauthorized("signature", "a signing key is empty; set it")
		}
		if jwt.SigningMethodHS256.Verify(token[:len(header)+1+len(payload)], signature, key.secret) != nil {
			continue
		}
		decoded, err := strict.DecodeString(payload)
		if err != nil {
			return nil, nil, unauthorized("malformed", "the token's claims are not base64url: %v", err)
		}
		return decoded, key, nil
	}
	return nil, nil, unauthorized("signature", "none of the %d signing keys made it: is it from QStash, and are these the keys that the Upstash console shows? %s", len(keys), setKeys(""))
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
	// gjson, because it knows names by their case and takes a tenth of the time of encoding/json with a map.
	all := gjson.ParseBytes(payload)
	if !gjson.ValidBytes(payload) || !all.IsObject() {
		return claims{}, unauthorized("malformed", "the token's claims are not a JSON object")
	}
	var issuer, expires, notBefore, subject, hash, id gjson.Result
	all.ForEach(func(name, value gjson.Result) bool {
		switch name.Str {
		case "iss":
			issuer = value
		case "exp":
			expires = value
		case "nbf":
			notBefore = value
		case "sub":
			subject = value
		case "body":
			hash = value
		case "jti":
			id = value
		}
		return true
	})
	at, tolerated := float64(now.UnixNano())/1e9, tolerance.Seconds()
	late, early := at-expires.Num-tolerated, notBefore.Num-tolerated-at
	switch {
	case issuer.Type != gjson.String || issuer.Str != "Upstash":
		return claims{}, unauthorized("issuer", "the token's iss is %q, QStash's is \"Upstash\"", clip(issuer.String()))
	case expires.Type != gjson.Number:
		return claims{}, unauthorized("malformed", "the token has no exp, or one that is not a number")
	case notBefore.Type != gjson.Number:
		return claims{}, unauthorized("malformed", "the token has no nbf, or one that is not a number")
	case late >= 0:
		return claims{}, unauthorized("expired", "the token expired %.0f s ago: it is an old one, or this machine's clock is ahead (CLOCK_TOLERANCE allows for that)", late)
	case early > 0:
		return claims{}, unauthorized("not yet valid", "the token is valid in %.0f s: this machine's clock is behind (CLOCK_TOLERANCE allows for that)", early)
	case hash.Type != gjson.String:
		return claims{}, unauthorized("malformed", "the token has no body hash")
	}
	left := min(-late, 365*24*3600) // a token may say it lasts for ever
	c := claims{
		subject:  subject.Str,
		bodyHash: strings.TrimSuffix(hash.Str, "="),
		expires:  now.Add(time.Duration(left * float64(time.Second))),
	}
	if id.Type != gjson.Null {
		c.id = id.String()
	}
	return c, nil
}
