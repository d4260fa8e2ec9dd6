// Package qstashtest is what tests share: a signer that has no line of the program's, deliveries as QStash sends them, a
// log to wait on, the whole program in this process or as one of its own, and Redis and Postgres servers.
package qstashtest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"hash"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Keys that are nobody's, in the shape of QStash's.
const (
	CurrentKey   = "sig_currentcurrentcurrentcurre"
	NextKey      = "sig_nextnextnextnextnextnextne"
	EUCurrentKey = "sig_euCurrenteuCurrenteuCurren"
	EUNextKey    = "sig_euNexteuNexteuNexteuNexteu"
)

// Header is the JOSE header of each token that QStash signs.
const Header = `{"alg":"HS256","typ":"JWT"}`

// Claims are the claims of a token, each as JSON.
type Claims map[string]string

// NewClaims returns the claims of production's tokens, for body at the URL subject.
func NewClaims(body, subject, tokenID string, issued time.Time) Claims {
	return Claims{
		"aud":  `""`,
		"body": strconv.Quote(BodyHash(body)),
		"exp":  strconv.FormatInt(issued.Add(5*time.Minute).Unix(), 10),
		"iat":  strconv.FormatInt(issued.Unix(), 10),
		"iss":  `"Upstash"`,
		"jti":  quote(tokenID),
		"nbf":  "-62135596800",
		"sub":  quote(subject),
	}
}

// String returns c as a JSON object, sorted by name as production's are.
func (c Claims) String() string {
	var members []string
	for _, name := range slices.Sorted(maps.Keys(c)) {
		members = append(members, quote(name)+":"+c[name])
	}
	return "{" + strings.Join(members, ",") + "}"
}

// quote returns s as JSON text. strconv.Quote escapes some characters in ways that JSON does not know.
func quote(s string) string {
	return `"` + strings.NewReplacer(`"`, `\"`, `\`, `\\`, "\n", `\n`, "\r", `\r`, "\t", `\t`).Replace(s) + `"`
}

// Token returns the compact JWS of header and payload, which may be any text, signed with HS256.
func Token(header, payload, key string) string {
	signed := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
	return signed + "." + HMAC(sha256.New, signed, key)
}

// HMAC returns the base64url of signed's HMAC with the hash h.
func HMAC(h func() hash.Hash, signed, key string) string {
	mac := hmac.New(h, []byte(key))
	mac.Write([]byte(signed))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// BodyHash returns the claim that a token has for body.
func BodyHash(body string) string {
	sum := sha256.Sum256([]byte(body))
	return base64.URLEncoding.EncodeToString(sum[:])
}
