package command

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"qstash-receiver/internal/once"
	"qstash-receiver/internal/once/sqlite"
	"qstash-receiver/internal/settings"
)

// store opens the store as serving does, and has it claim, complete and release messages of its own, which it forgets
// again.
func (r *report) store(ctx context.Context, s settings.Settings) {
	const what = "store"
	if s.Store.Open == nil { // a wrong STORE_URL, which has its line
		return
	}
	if s.Store.Path != "" {
		r.disk(s)
		if _, err := os.Stat(s.Store.Path); errors.Is(err, fs.ErrNotExist) {
			// The file is serving's to make. Another one in its directory tells as much.
			folder, err := os.MkdirTemp(filepath.Dir(s.Store.Path), ".doctor-")
			if err != nil {
				r.wrong(what, "%v; give this user a directory that it can write to", err)
				return
			}
			defer os.RemoveAll(folder)
			s.Store = settings.SQLite(filepath.Join(folder, filepath.Base(s.Store.Path)))
		}
	}
	store, err := s.Store.Open(ctx, max(s.StoreTTL, time.Minute), 5*time.Second, r.log(what))
	switch {
	case errors.Is(err, sqlite.ErrInUse):
		r.ok(what, "sqlite: %s is in use, by a running receiver as it seems; not tried", s.Store.Path)
		return
	case err != nil:
		r.wrong(what, "%v", err)
		return
	}
	began := time.Now()
	err = once.Try(store)
	took := time.Since(began)
	if closing := store.Close(); err == nil {
		err = closing
	}
	if err != nil {
		r.wrong(what, "%s: %v", s.Store.Kind, err)
		return
	}
	r.ok(what, "%s: claim, completion and release on keys of its own, taken away again, took %s", s.Store.Kind, took.Round(10*time.Microsecond))
}

// disk looks whether the SQLite file is on the disk that the root directory is on.
func (r *report) disk(s settings.Settings) {
	deviceOf := func(path string) (uint64, bool) {
		info, err := os.Stat(path)
		if err != nil {
			return 0, false
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return 0, false
		}
		return uint64(stat.Dev), true
	}
	root, ok := deviceOf("/")
	device, found := deviceOf(filepath.Dir(s.Store.Path))
	if !ok || !found || device != root {
		return
	}
	if s.Deployed != "" {
		r.warning("disk", "%s is on the root disk, which is gone after each deploy and stop: mount a volume and put it there", s.Store.Path)
		return
	}
	r.warning("disk", "%s is on the root disk: fine where that stays; where the program is deployed in a container, mount a volume and put it there", s.Store.Path)
}
