// Package keys fetches the signing keys from QStash's API and keeps up with their rolls.
package keys

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"qstash-receiver/internal/api"
	"qstash-receiver/internal/signing"
)

const (
	startWait = 15 * time.Second // for the first keys
	startPace = time.Second      // between the tries for them
	every     = 10 * time.Minute // give or take a tenth: many machines started at once do not ask at once
	spacing   = 30 * time.Second // between two fetches, from beginning to beginning, however many are wanted
	afterlife = 10 * time.Minute // of a key that the API no longer gives: what was signed with it may still be on its way
)

// Config is what a Fetcher works with.
type Config struct {
	Set   *signing.Set  // is kept filled
	Fixed []signing.Key // are always in it
	APIs  []*api.Client // of the regions whose keys are fetched; none: nothing is
	Log   *slog.Logger

	Now   func() time.Time                     // nil: time.Now
	After func(time.Duration) <-chan time.Time // nil: time.After
}

// Fetcher keeps the keys in a set those that are in force.
type Fetcher struct {
	Config
	wanted chan struct{}
	began  time.Time // the last fetch
	due    time.Time // the next one

	mu      sync.Mutex
	regions []*region
}

// region is what is known of one region's keys.
type region struct {
	api     *api.Client
	pair    []signing.Key // the current and the next one; nil: never had
	since   time.Time     // when pair was last fetched
	retired []retired
}

// retired is a key that the API no longer gives.
type retired struct {
	key   signing.Key
	until time.Time
}

// New returns a Fetcher. The set has the fixed keys from now on, all others once Start returns.
func New(c Config) *Fetcher {
	if c.Now == nil {
		c.Now, c.After = time.Now, time.After
	}
	f := &Fetcher{Config: c, wanted: make(chan struct{}, 1)}
	for _, client := range c.APIs {
		f.regions = append(f.regions, &region{api: client})
	}
	f.fill()
	return f
}

// Start returns nil once the keys of every region have been fetched. It tries for 15 s; then its error names the token
// and says what the API answered.
func (f *Fetcher) Start(ctx context.Context) error {
	if len(f.regions) == 0 {
		return nil
	}
	trying, giveUp := context.WithCancel(ctx)
	defer giveUp()
	waited := f.After(startWait)
	go func() {
		select {
		case <-waited:
			giveUp()
		case <-trying.Done():
		}
	}()
	var last error // of the API, rather than of ending the wait for it
	for {
		err := f.fetch(trying)
		if err == nil {
			return nil
		}
		if last == nil || trying.Err() == nil {
			last = err
		}
		select {
		case <-f.After(startPace):
		case <-trying.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("the signing keys could not be fetched within %s: %w", startWait, last)
		}
	}
}

// Run keeps up with the keys until ctx ends. Start comes first.
func (f *Fetcher) Run(ctx context.Context) {
	if len(f.regions) == 0 {
		return
	}
	f.due = f.nextFetch()
	for {
		wanted := f.wanted
		if soonest := f.began.Add(spacing); !f.due.After(soonest) {
			wanted = nil // it comes as soon as it may
		}
		select {
		case <-ctx.Done():
			return
		case <-wanted:
			f.due = f.began.Add(spacing)
		case <-f.After(f.wake().Sub(f.Now())):
		}
		f.retire()
		if f.Now().Before(f.due) {
			continue
		}
		select {
		case <-f.wanted: // is granted
		default:
		}
		_ = f.fetch(ctx) // which has logged it
		f.due = f.nextFetch()
	}
}

// Wanted says that a token was not signed with any key, but looks like QStash's: the keys may have been rolled. It
// returns at once.
func (f *Fetcher) Wanted() {
	select {
	case f.wanted <- struct{}{}:
	default:
	}
}

func (f *Fetcher) nextFetch() time.Time {
	return f.began.Add(every*9/10 + rand.N(every/5))
}

// wake is when there is something to do.
func (f *Fetcher) wake() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	wake := f.due
	for _, r := range f.regions {
		for _, old := range r.retired {
			if old.until.Before(wake) {
				wake = old.until
			}
		}
	}
	return wake
}

// retire takes keys out of the set that have been good for long enough.
func (f *Fetcher) retire() {
	now := f.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.regions {
		r.retired = slices.DeleteFunc(r.retired, func(old retired) bool { return !now.Before(old.until) })
	}
	f.fill()
}

// fetch asks every region, all at once, and returns what went wrong.
func (f *Fetcher) fetch(ctx context.Context) error {
	f.began = f.Now()
	errs := make([]error, len(f.regions))
	var asking sync.WaitGroup
	for i, r := range f.regions {
		asking.Go(func() { errs[i] = f.refresh(ctx, r) })
	}
	asking.Wait()
	return errors.Join(errs...)
}

// refresh asks one region. If that fails, the keys that there are stay.
func (f *Fetcher) refresh(ctx context.Context, r *region) error {
	pair, err := r.api.Keys(ctx)
	if err != nil {
		err = fmt.Errorf("%s: %w; %s", r.api.TokenName(), err, fix(err))
		switch {
		case ctx.Err() != nil: // the program stops, or has waited for long enough
		case r.pair == nil:
			f.Log.Warn("the signing keys could not be fetched, trying again", "error", err.Error())
		default:
			f.Log.Warn("the signing keys could not be fetched; those that there are stay in use", "in_use_since", r.since.UTC().Format(time.RFC3339), "error", err.Error())
		}
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.Now()
	if rolled := r.replace([]signing.Key{pair.Current, pair.Next}, now); rolled {
		f.Log.Info("the signing keys were rolled; the new ones are in use, the old ones for 10 more minutes", "token", r.api.TokenName())
	}
	r.since = now
	f.fill()
	return nil
}

// replace makes pair the keys of r, and says whether others were.
func (r *region) replace(pair []signing.Key, now time.Time) (rolled bool) {
	has := func(key signing.Key) bool { return slices.ContainsFunc(pair, key.Equal) }
	r.retired = slices.DeleteFunc(r.retired, func(old retired) bool { return has(old.key) })
	for _, key := range r.pair {
		if !has(key) {
			r.retired = append(r.retired, retired{key: key, until: now.Add(afterlife)})
			rolled = true
		}
	}
	r.pair = pair
	return rolled
}

// fill puts the keys into the set: those that are likely first.
func (f *Fetcher) fill() {
	keys := slices.Clone(f.Fixed)
	for place := range 2 {
		for _, r := range f.regions {
			if r.pair != nil {
				keys = append(keys, r.pair[place])
			}
		}
	}
	for _, r := range f.regions {
		for _, old := range r.retired {
			keys = append(keys, old.key)
		}
	}
	f.Set.Replace(keys)
}

// fix says what helps against err.
func fix(err error) string {
	if api.Refused(err) {
		return "copy the token of that region from the Upstash console (QStash), or set the key pair in its place"
	}
	return "see that this machine reaches the API, or set the key pair in the token's place"
}
