package sqlite

import (
	"context"
	"os"
	"time"
)

// watch says once, within seconds, that the file was deleted or replaced. The store goes on in the file that is open.
func (s *Store) watch(ctx context.Context, path string, opened os.FileInfo) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if now, err := os.Stat(path); err == nil && os.SameFile(now, opened) {
			continue
		}
		s.log.Error("the store's file was deleted or replaced while it is in use: what is remembered from now on ends with this process, and handled messages may be run again after it",
			"path", path, "fix", "restart the program, and leave the file to it")
		return
	}
}
