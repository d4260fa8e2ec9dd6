package once

import "time"

// LivingLease returns what is left of a lease in a store of one process, where the holder is alive: a lease that has
// run out has been renewed as often as it takes. left may be anything, for clocks jump.
func LivingLease(left, lease time.Duration) time.Duration {
	if left <= 0 && lease > 0 {
		left = lease + left%lease
	}
	return min(left, lease)
}

// Milliseconds is d in the unit in which stores keep times, rounded up.
func Milliseconds(d time.Duration) int64 {
	ms := d.Milliseconds()
	if d%time.Millisecond > 0 {
		ms++
	}
	return ms
}
