package signing

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"hash"
	"sync"

	"github.com/golang-jwt/jwt/v4"
)

// hs256 is golang-jwt's HS256 for one secret. It hashes the secret once, where the library does so for each token:
// that is half of what a short token costs.
type hs256 struct {
	secret []byte // the UTF-8 bytes of the whole "sig_..." text
	states sync.Pool
}

// hs256State is an HMAC of one secret, and room for what it reads and says.
type hs256State struct {
	mac    hash.Hash
	signed []byte
	sum    [sha256.Size]byte
}

func newHS256(secret string) *hs256 {
	m := &hs256{secret: []byte(secret)}
	m.states.New = func() any { return &hs256State{mac: hmac.New(sha256.New, m.secret)} }
	return m
}

// secretBytes is nil for the zero Key too.
func (m *hs256) secretBytes() []byte {
	if m == nil {
		return nil
	}
	return m.secret
}

// Alg implements jwt.SigningMethod.
func (m *hs256) Alg() string { return jwt.SigningMethodHS256.Alg() }

var errEmpty = errors.New("the signing key is empty: anyone could sign with it")

// sum calls use with the HMAC of signed, which is use's for as long as it runs. An empty secret is an error: it would
// verify what anyone can sign.
func (m *hs256) sum(signed string, use func(sum []byte) error) error {
	if len(m.secretBytes()) == 0 {
		return errEmpty
	}
	state := m.states.Get().(*hs256State)
	defer m.states.Put(state)
	state.signed = append(state.signed[:0], signed...)
	state.mac.Reset()
	state.mac.Write(state.signed) // which never fails
	return use(state.mac.Sum(state.sum[:0]))
}

// Verify implements jwt.SigningMethod.
func (m *hs256) Verify(signed, signature string, _ any) error {
	return m.sum(signed, func(sum []byte) error {
		var given [sha256.Size + 1]byte // one more, so that a longer one is seen to be that
		if base64.RawURLEncoding.DecodedLen(len(signature)) > len(given) {
			return jwt.ErrSignatureInvalid
		}
		n, err := base64.RawURLEncoding.Decode(given[:], []byte(signature))
		if err != nil || !hmac.Equal(given[:n], sum) {
			return jwt.ErrSignatureInvalid
		}
		return nil
	})
}

// Sign implements jwt.SigningMethod.
func (m *hs256) Sign(signed string, _ any) (signature string, err error) {
	err = m.sum(signed, func(sum []byte) error {
		signature = base64.RawURLEncoding.EncodeToString(sum)
		return nil
	})
	return signature, err
}
