package once

import "hash/maphash"

// table is a queue of items that are found by their keys, too. An item keeps its place while others come and go, and
// neither queue nor index holds a pointer. A map takes several times the room, more still after many deletions.
type table[T any] struct {
	pieces      [][]item[T] // so that nothing is copied to grow, and little room is spare
	first, next int         // the places of the oldest item, and of the next to come

	seed  maphash.Seed
	index []int // 1 + the place of an item, at its key's hash or as soon after as was empty; 0: empty
	known int   // items in the index
}

// item is gone when its key is zero.
type item[T any] struct {
	key   Key
	value T
}

const tablePiece = 512

func newTable[T any]() *table[T] {
	return &table[T]{seed: maphash.MakeSeed(), index: make([]int, 1024)}
}

// len is how many places there are, those of items that are gone included.
func (t *table[T]) len() int { return t.next - t.first }

// at returns the item at place. The pointer is good until the table is changed.
func (t *table[T]) at(place int) *item[T] {
	return &t.pieces[place/tablePiece-t.first/tablePiece][place%tablePiece]
}

// newer returns the item after the one at place, or nil if it is gone or there is none.
func (t *table[T]) newer(place int) *item[T] {
	if place+1 == t.next || t.at(place+1).key == (Key{}) {
		return nil
	}
	return t.at(place + 1)
}

// find returns the place of key.
func (t *table[T]) find(key Key) (place int, found bool) {
	slot := t.slot(key)
	return t.index[slot] - 1, t.index[slot] != 0
}

// add makes an item of a key that is not there, and returns its place, which is the newest.
func (t *table[T]) add(key Key, value T) (place int) {
	if t.known++; t.known > len(t.index)/4*3 {
		t.grow()
	}
	place = t.push(item[T]{key, value})
	t.index[t.slot(key)] = place + 1
	return place
}

// renew moves the item at place to the newest place, which it returns.
func (t *table[T]) renew(place int) (newest int) {
	old := t.at(place)
	moved := *old
	newest = t.push(moved)
	t.index[t.slot(moved.key)] = newest + 1
	*old = item[T]{}
	return newest
}

// remove forgets the item at place, which stays until it is the oldest and dropped.
func (t *table[T]) remove(place int) {
	gap := t.slot(t.at(place).key)
	*t.at(place) = item[T]{}
	t.known--
	// What follows without an empty slot between may be looked for from before the gap: it moves up.
	last := len(t.index) - 1
	for slot := (gap + 1) & last; t.index[slot] != 0; slot = (slot + 1) & last {
		home := t.home(t.at(t.index[slot] - 1).key)
		if (slot-home)&last >= (slot-gap)&last {
			t.index[gap], gap = t.index[slot], slot
		}
	}
	t.index[gap] = 0
}

// drop ends the oldest place, whose item is gone.
func (t *table[T]) drop() {
	t.first++
	if t.first%tablePiece == 0 {
		t.pieces[0] = nil
		t.pieces = t.pieces[1:]
	}
}

func (t *table[T]) push(i item[T]) (place int) {
	place = t.next
	if place%tablePiece == 0 {
		t.pieces = append(t.pieces, make([]item[T], tablePiece))
	}
	t.next++
	*t.at(place) = i
	return place
}

// home is the slot at which key belongs. A publisher cannot aim at it: the seed is random.
func (t *table[T]) home(key Key) int {
	return int(maphash.Bytes(t.seed, key[:]) & uint64(len(t.index)-1)) // a power of two
}

// slot is where key is in the index or, if it is not there, would be.
func (t *table[T]) slot(key Key) int {
	slot := t.home(key)
	for t.index[slot] != 0 && t.at(t.index[slot]-1).key != key {
		slot = (slot + 1) & (len(t.index) - 1)
	}
	return slot
}

func (t *table[T]) grow() {
	t.index = make([]int, 2*len(t.index))
	for place := t.first; place < t.next; place++ {
		if key := t.at(place).key; key != (Key{}) {
			t.index[t.slot(key)] = place + 1
		}
	}
}
