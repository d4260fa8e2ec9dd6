package once

import (
	"fmt"
	"net/http"
	"time"
)

// Try finds out whether s can do what a store must: a claim, a completion and a release, on messages of its own. An s
// that has a method Forget(message, token Key) error, which removes both, is left as it was.
func Try(s Store) error {
	finished, released := newTrial(), newTrial()
	if f, can := s.(interface {
		Forget(message, token Key) error
	}); can {
		defer f.Forget(finished.Key, finished.Token)
		defer f.Forget(released.Key, released.Token)
	}
	for _, c := range []Claim{finished, released} {
		d, err := s.Claim(c)
		if err != nil {
			return fmt.Errorf("claim a message: %w", err)
		}
		if d.State != Claimed {
			return fmt.Errorf("claim a message: a new one is said to be %s", d.State)
		}
	}
	a := Answer{Status: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: []byte("{}")}
	if err := s.Complete(finished.Key, finished.Holder, a); err != nil {
		return fmt.Errorf("complete a message: %w", err)
	}
	if err := s.Release(released.Key, released.Holder); err != nil {
		return fmt.Errorf("release a message: %w", err)
	}
	return nil
}

func newTrial() Claim {
	holder := NewHolder()
	return Claim{
		Key: KeyOf("trial", holder), Holder: holder, Lease: time.Second,
		Token: KeyOf("trial token", holder), TokenTTL: time.Second,
	}
}
