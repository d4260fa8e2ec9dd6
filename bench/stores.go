package main

import "fmt"

// stores measures the same deliveries with each store, from few callers to many.
func (b *bench) stores() error {
	for _, connections := range []int{1, 16, 64} {
		fmt.Printf("  %d connections\n", connections)
		var subjects []subject
		for _, store := range b.storeURLs() {
			subjects = append(subjects, b.all(", "+store.name, 0, false, "LOG_LEVEL=error", "STORE_URL="+store.url)...)
		}
		if _, err := b.compare(subjects, deliveries{size: 1 << 10}, connections); err != nil {
			return err
		}
	}
	return nil
}

// storeURL is where a store is.
type storeURL struct{ name, url string }

// storeURLs are the stores of this machine.
func (b *bench) storeURLs() []storeURL {
	return []storeURL{
		{"memory", "memory:"},
		{"SQLite", b.dir + "/receiver.db"},
		{"Redis", "redis://127.0.0.1:6379/15"},
		{"Postgres", "postgres://postgres@127.0.0.1:5432/test?sslmode=disable"},
	}
}
