package once

import (
	"math/rand/v2"
	"testing"
)

// TestTable does at random what a table can do, and compares it with a map.
func TestTable(t *testing.T) {
	t.Parallel()
	table, want := newTable[int](), map[Key]int{}
	var keys []Key
	random := rand.New(rand.NewPCG(1, 2))
	for n := range 50_000 {
		switch key := KeyOf(string(rune(n))); random.IntN(5) {
		case 0, 1:
			table.add(key, n)
			want[key] = n
			keys = append(keys, key)
		case 2:
			if len(keys) > 0 {
				if place, found := table.find(keys[random.IntN(len(keys))]); found {
					table.renew(place)
				}
			}
		case 3:
			if len(keys) > 0 {
				key := keys[random.IntN(len(keys))]
				if place, found := table.find(key); found {
					table.remove(place)
					delete(want, key)
				}
			}
		case 4:
			for table.len() > 0 && table.at(table.first).key == (Key{}) {
				table.drop()
			}
		}
	}
	if table.known != len(want) {
		t.Errorf("%d items, want %d", table.known, len(want))
	}
	for _, key := range keys {
		value, known := want[key]
		place, found := table.find(key)
		if found != known || found && table.at(place).value != value {
			t.Fatalf("found: %v, want: %v", found, known)
		}
	}
}
