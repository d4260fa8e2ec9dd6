// Package once says what a store of handled messages promises, so that each message is run once, and has the store
// in memory. Each engine beside it (sqlite, redis, postgres) is a Store; package oncetest is the contract as a test.
package once

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"net/http"
	"net/textproto"
	"strings"
	"time"
)

// Store remembers which messages are being run and which are finished. Each method is one decision, made for all
// processes that share the store. It ends within Timeout, whatever became of the request, and may be called by many
// goroutines at once. The same holder may repeat each with the same effect: a caller that heard no answer asks again.
//
// A call that returns an error (ErrLeaseLost apart) may have been carried out, or may still be.
type Store interface {
	// Claim makes c.Holder the holder of c.Key for c.Lease if nobody else holds it and it is not finished; else it
	// says how things stand. Whatever it answers, in the same decision it binds c.Token to c.Key for c.TokenTTL,
	// unless that token is bound to another key: then it claims nothing and answers Replayed.
	Claim(c Claim) (Decision, error)
	// Complete makes a the answer of the message, for good. Besides the holder, anyone may complete a message that
	// nobody else has finished or holds now: it was forgotten, or released, or the lease on it has lapsed. Otherwise
	// it returns ErrLeaseLost.
	Complete(key Key, holder string, a Answer) error
	// Release lets the next claim have the message. It returns ErrLeaseLost unless holder is the last that claimed
	// it; on a finished message it has no effect.
	Release(key Key, holder string) error
	// Close ends the store. No other call is under way or follows.
	Close() error
}

// Committer is a Store in a database that business logic can share: effects and record are one transaction.
type Committer interface {
	Store
	// Commit runs effects in a transaction that ends with ctx, completes the message with the answer that effects
	// returned, and commits. It completes as Complete does; ErrLeaseLost, an error of effects and a panic in it roll
	// everything back. ErrEffects says that what effects did to the transaction cannot be committed, by the message's
	// record at least. Any other error of the commit leaves it open whether it was carried out: the next Claim tells.
	// Repeated by the holder that has finished the message, it has no effect and succeeds.
	// Lease is that of the claim: for no longer may a frozen process keep rows locked.
	Commit(ctx context.Context, key Key, holder string, lease time.Duration, effects func(*sql.Tx) (Answer, error)) error
}

// Timeout ends each call of a store.
const Timeout = 5 * time.Second

// ErrLeaseLost says that the message is held, or was finished, by another holder.
var ErrLeaseLost = errors.New("the lease on the message was lost to another delivery")

// ErrEffects says that effects left a transaction that does not commit: the store is well.
var ErrEffects = errors.New("the effects do not commit")

// Key names a message or a token: a SHA-256.
type Key [sha256.Size]byte

// KeyOf hashes parts so that no two lists of parts run into each other.
func KeyOf(parts ...string) Key {
	b := make([]byte, 0, 256)
	for _, p := range parts {
		b = binary.AppendUvarint(b, uint64(len(p)))
		b = append(b, p...)
	}
	return sha256.Sum256(b)
}

// Claim is one delivery's wish to run a message.
type Claim struct {
	Key    Key
	Holder string        // the fencing token: of this claim alone, as NewHolder makes it
	Lease  time.Duration // how long nobody else gets the message
	Look   bool          // bind the token and say how things stand, but claim nothing

	Token    Key           // the SHA-256 of the token's id
	TokenTTL time.Duration // how long the token stays valid; a finished message is remembered at least as long
}

// NewHolder returns a fencing token that no other claim has.
func NewHolder() string { return rand.Text() }

// Decision is how things stand with a message.
type Decision struct {
	State  State
	Left   time.Duration // Running: of the holder's lease
	Answer Answer        // Finished
}

// State is what a store says of a message.
type State string

// The states of a message.
const (
	Claimed  State = "claimed"  // it is the caller's to run
	Free     State = "free"     // a Look found that nobody holds it
	Running  State = "running"  // another holder runs it
	Finished State = "finished" // it has its answer
	Replayed State = "replayed" // the token was used for another message
)

// Answer is what a finished message is answered, now and at each further delivery.
type Answer struct {
	Status int
	// Header has Content-Type, Content-Encoding and Upstash-* alone, under canonical names. It is shared: nobody
	// changes it.
	Header http.Header
	Body   []byte
}

// MaxKeptBody is the largest body, in bytes, that a store keeps.
const MaxKeptBody = 16 << 10

// Kept is a as a store keeps it: a body over MaxKeptBody is replaced by a short one.
func (a Answer) Kept() Answer {
	if len(a.Body) <= MaxKeptBody {
		return a
	}
	return a.Short()
}

// Short is a with a short body that says as much as QStash needs to know.
func (a Answer) Short() Answer {
	header := http.Header{}
	for name, values := range a.Header {
		if name != "Content-Encoding" {
			header[name] = values
		}
	}
	header["Content-Type"] = []string{"application/json"}
	short := `{"message":"ok"}`
	if a.Status > 299 {
		short = `{"error":"the first answer was too long to keep"}`
	}
	return Answer{Status: a.Status, Header: header, Body: []byte(short)}
}

// EncodeHeader writes h as lines, for a store that keeps text.
func EncodeHeader(h http.Header) string {
	if values := h["Content-Type"]; len(h) == 1 && len(values) == 1 && !strings.ContainsAny(values[0], "\r\n") { // as nearly all are
		return "Content-Type: " + strings.TrimSpace(values[0]) + "\r\n"
	}
	var b strings.Builder
	_ = h.Write(&b) // to a Builder, which takes everything
	return b.String()
}

// DecodeHeader reads what EncodeHeader wrote.
func DecodeHeader(lines string) (http.Header, error) {
	if lines == "" {
		return nil, nil
	}
	lines += "\r\n" // the end of a header
	h, err := textproto.NewReader(bufio.NewReaderSize(strings.NewReader(lines), len(lines))).ReadMIMEHeader()
	return http.Header(h), err
}
