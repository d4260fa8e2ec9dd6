package main

import (
	"fmt"
	"net"
	"os"
	"strings"
)

// stores measures the same deliveries with each store, from one caller to many.
func (b *bench) stores() error {
	for _, connections := range []int{1, 16, 64} {
		fmt.Printf("  %d connections\n", connections)
		var subjects []subject
		for _, store := range b.storeURLs() {
			for _, s := range b.all(", "+store.name, 0, false, "LOG_LEVEL=error", "STORE_URL="+store.url) {
				if strings.HasPrefix(s.name, "receiver") || !store.since {
					subjects = append(subjects, s)
				}
			}
		}
		if _, err := b.compare(subjects, deliveries{size: 1 << 10}, connections); err != nil {
			return err
		}
		for _, suffix := range []string{"", "-wal", "-shm"} {
			_ = os.Remove(b.dir + "/receiver.db" + suffix)
		}
	}
	return nil
}

// storeURL is where a store is.
type storeURL struct {
	name, url string
	since     bool // the earlier version had none
}

// storeURLs are the stores of this machine.
func (b *bench) storeURLs() []storeURL {
	all := []storeURL{{"memory", "memory:", false}, {"SQLite", b.dir + "/receiver.db", true}}
	for address, store := range map[string]storeURL{
		"127.0.0.1:6379": {"Redis", "redis://127.0.0.1:6379/15", false},
		"127.0.0.1:5432": {"Postgres", "postgres://postgres@127.0.0.1:5432/test?sslmode=disable", true},
	} {
		if c, err := net.Dial("tcp", address); err == nil {
			_ = c.Close()
			all = append(all, store)
		}
	}
	return all
}
