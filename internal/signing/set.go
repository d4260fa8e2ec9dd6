package signing

import "sync/atomic"

// The pair that Upstash publishes for user 1 of its local development server: anyone can sign with it.
const (
	DevCurrent = "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r"
	DevNext    = "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs"
	DevRegion  = "DEVELOPMENT_" // what stands for a region in the names of that pair's keys
)

// Set is the keys that are tried, in order. They may be replaced while others read them.
type Set struct{ keys atomic.Pointer[[]Key] }

// NewSet returns the set of keys.
func NewSet(keys ...Key) *Set {
	s := &Set{}
	s.Replace(keys)
	return s
}

// Keys returns the keys of now. Nobody changes the slice.
func (s *Set) Keys() []Key { return *s.keys.Load() }

// Replace makes keys the set's.
func (s *Set) Replace(keys []Key) { s.keys.Store(&keys) }
