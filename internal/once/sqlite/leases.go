package sqlite

import "qstash-receiver/internal/once"

// leases knows which messages are being run. That need not be in the file: only this process has it, and when the
// process dies, its leases are void. A lease lasts until its holder ends it.
type leases struct {
	of       map[once.Key]lease
	released []once.Key // the oldest first; some of them are running again, or finished
	before   []change   // what a rollback restores, the last first
}

// lease is what is known of a message that is not finished.
type lease struct {
	holder  string // the last that claimed it; "": nobody has
	running bool
	until   int64 // running: when the lease ends, or is renewed; ms since 1970
	bound   int64 // when the last token that is bound to the message expires; ms since 1970
}

type change struct {
	key   once.Key
	lease lease
	known bool
}

// maxReleased is how many messages that nobody holds are known.
const maxReleased = 1 << 14

func (l *leases) set(key once.Key, to lease) {
	before, known := l.of[key]
	l.before = append(l.before, change{key, before, known})
	l.of[key] = to
	if !to.running && (!known || before.running) {
		l.released = append(l.released, key)
	}
}

func (l *leases) remove(key once.Key) {
	if before, known := l.of[key]; known {
		l.before = append(l.before, change{key, before, true})
		delete(l.of, key)
	}
}

// settle ends a transaction: what it changed is kept, or undone.
func (l *leases) settle(kept bool) {
	for i := len(l.before) - 1; i >= 0 && !kept; i-- {
		if c := l.before[i]; c.known {
			l.of[c.key] = c.lease
		} else {
			delete(l.of, c.key)
		}
	}
	clear(l.before)
	l.before = l.before[:0]
}

// sweep forgets messages that nobody holds and whose tokens have expired, and the oldest of too many.
func (l *leases) sweep(now int64) {
	for len(l.released) > 0 {
		key := l.released[0]
		free, known := l.of[key]
		known = known && !free.running
		if known && free.bound > now && len(l.released) <= maxReleased {
			return
		}
		if known {
			delete(l.of, key)
		}
		l.released = l.released[1:]
	}
}
