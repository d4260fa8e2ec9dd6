// Package signing has QStash's signing keys, and signs as QStash does.
package signing

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"time"

	"github.com/golang-jwt/jwt/v4"
)

// Key is one signing key. Its secret stays in this package: a Key can be used and printed, not read.
type Key struct {
	Name   string // "current" or "next": its place in its pair
	Region string // of its pair: "" or as in the settings, like "EU_CENTRAL_1_"
	hs256  *hs256
}

// NewKey returns the key with the given secret.
func NewKey(name, region, secret string) Key { return Key{name, region, newHS256(secret)} }

// HS256 is the signing method of tokens that k signs. What golang-jwt calls the key is not looked at.
func (k Key) HS256() jwt.SigningMethod { return k.hs256 }

// Equal says whether k and other have the same secret.
func (k Key) Equal(other Key) bool {
	return subtle.ConstantTimeCompare(k.hs256.secretBytes(), other.hs256.secretBytes()) == 1
}

// String is for logs and errors: everything but the secret.
func (k Key) String() string { return k.Region + k.Name }

// GoString is for %#v.
func (k Key) GoString() string { return "signing.Key(" + k.String() + ")" }

// Lifetime is how long a token of QStash's is valid.
const Lifetime = 5 * time.Minute

// Sign makes a token with the claims of production's (captured in 2026), in its order: subject is the destination
// URL as published. An empty key is an error.
func (k Key) Sign(body []byte, subject string, issued time.Time) (string, error) {
	hash := sha256.Sum256(body)
	return jwt.NewWithClaims(k.hs256, jwt.MapClaims{ // encoding/json sorts by name, as production does
		"aud":  "",
		"body": base64.URLEncoding.EncodeToString(hash[:]),
		"exp":  issued.Add(Lifetime).Unix(),
		"iat":  issued.Unix(),
		"iss":  "Upstash",
		"jti":  "jwt_" + NewID(),
		"nbf":  -62135596800, // the year 1, Go's zero time
		"sub":  subject,
	}).SignedString(nil)
}

// NewID returns 28 characters that nobody guesses, like those in QStash's ids.
func NewID() string { return (rand.Text() + rand.Text())[:28] }
