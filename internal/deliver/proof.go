package deliver

import (
	"net/url"
	"strings"
	"time"

	"qstash-receiver/internal/once"
	"qstash-receiver/internal/qstash"
)

// Proof is what a request's token proves before its body is read.
type Proof struct {
	Key    string // that signed it: "current" or "next"; "": none did
	Region string // of that key's pair
	// LooksOurs says of a token that no key signed that its claims are as QStash would make them for this service.
	LooksOurs bool

	URL      *url.URL  // what the message was delivered to; scheme and host only where they were proven
	Target   string    // its path and query, to the byte
	Subject  string    // the destination URL as published
	BodyHash string    // base64url of the body's SHA-256, unpadded
	Token    once.Key  // of the token's jti, or of the token where it has none
	Expires  time.Time // until then, CLOCK_TOLERANCE included, the token is taken

	// Check returns nil if body is what BodyHash names, else a *Refusal.
	Check func(body []byte) error
}

// Delivery is one attempt of QStash's to have a message run. Open is the only way to one.
type Delivery struct {
	Message *qstash.Message
	proof   Proof
	path    string // as the log shows it, which the business logic cannot change
	id      string
	ended   []func() // to call when the delivery is over
}

// Open returns the delivery of body and of what its headers say, if p proves the body. It keeps both.
func (p Proof) Open(body []byte, unverified qstash.Unverified) (*Delivery, error) {
	if err := p.Check(body); err != nil {
		return nil, err
	}
	m := &qstash.Message{URL: p.URL, Body: body, Unverified: unverified}
	return &Delivery{Message: m, proof: p, path: p.URL.Path, id: unverified.ID}, nil
}

// URL is the URL that is proven, without its path and query where scheme and host are not.
func (x *Delivery) URL() string { return x.proof.URL.String() }

// claim returns the claim of x: its message's key, its token's, and a holder of its own.
func (x *Delivery) claim(timing Timing, dedupe Pointer) (c once.Claim, byValue bool) {
	c = once.Claim{
		Holder:   once.NewHolder(),
		Lease:    timing.Lease,
		Token:    x.proof.Token,
		TokenTTL: max(time.Until(x.proof.Expires), time.Millisecond),
	}
	if value, found := dedupe.value(x.Message.Body); found {
		path, _, _ := strings.Cut(x.proof.Target, "?")
		c.Key = once.KeyOf("DEDUPE_KEY", path, value)
		return c, true
	}
	id := x.id
	if id == "" {
		id = string(x.proof.Token[:])
	}
	// The id is not signed, the other two are: nobody can spend another message's id.
	c.Key = once.KeyOf(id, x.proof.Subject, x.proof.BodyHash)
	return c, false
}
