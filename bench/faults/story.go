package main

import (
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// fault breaks something and returns when that works again.
type fault func()

// times returns n of f.
func times(n int, f fault) []fault {
	list := make([]fault, n)
	for i := range list {
		list[i] = f
	}
	return list
}

// story is messages that are published while one fault comes after the other.
type story struct {
	receivers []*receiver
	messages  int
	faults    []fault               // they come in any order
	patience  time.Duration         // of the publisher, for an answer
	limit     time.Duration         // no message may take longer, times of faults aside
	effects   func() map[string]int // of each message; it is called when the receivers have ended
	outages   []outage              // the times of faults
}

type outage struct{ from, to time.Time }

// result is what became of the messages of a story.
type result struct {
	messages, faults int
	delivered        int           // were answered with a success
	missing          int           // delivered or recorded, and have no effect
	twice            int           // have more than one effect
	again            int           // delivered once more after their success, were run again; not among twice
	held             int           // took longer than the limit
	longest          time.Duration // that a message took, times of faults aside
}

const heading = "part                                         messages  faults  delivered  missing  twice  run again  held  longest    took"

func (r result) row(name string) string {
	return fmt.Sprintf("%-44s %8d %7d %10d %8d %6d %10d %5d %7.1fs",
		name, r.messages, r.faults, r.delivered, r.missing, r.twice, r.again, r.held, r.longest.Seconds())
}

func (r result) clean() bool {
	return r.delivered == r.messages && r.wrong() == 0
}

func (r result) wrong() int { return r.missing + r.twice + r.again + r.held }

// play publishes a share of the messages around each fault and retries what fails, for a minute after the last fault at
// most. Then each message is delivered once more, and the receivers are stopped.
func (s *story) play(l *lab) result {
	if s.messages < len(s.faults) {
		l.Fatalf("%d messages are too few for %d faults", s.messages, len(s.faults))
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	p := newPublisher(l, s.receivers, s.patience)
	messages := newMessages(s.messages)
	mathrand.Shuffle(len(s.faults), func(i, j int) { s.faults[i], s.faults[j] = s.faults[j], s.faults[i] })
	var retries sync.WaitGroup
	for i, fault := range s.faults {
		share := messages[i*len(messages)/len(s.faults) : (i+1)*len(messages)/len(s.faults)]
		var published sync.WaitGroup
		published.Go(func() { p.publish(ctx, share, &retries) })
		<-share[mathrand.IntN(len(share))].begun
		time.Sleep(mathrand.N(5 * time.Millisecond))
		from := time.Now()
		fault()
		s.outages = append(s.outages, outage{from, time.Now()})
		published.Wait()
	}
	giveUp := time.AfterFunc(time.Minute, cancel)
	retries.Wait()
	giveUp.Stop()
	p.redeliver(context.Background(), messages)
	for _, r := range s.receivers {
		r.stop()
	}
	return s.count(l, messages)
}

func newMessages(n int) []*message {
	messages := make([]*message, n)
	for i := range messages {
		messages[i] = &message{id: "msg_" + rand.Text(), begun: make(chan struct{})}
	}
	return messages
}

// count says what became of messages, which have been delivered again. Those that something is wrong with are listed in
// the lab's directory.
func (s *story) count(l *lab, messages []*message) result {
	r := result{messages: len(messages), faults: len(s.faults)}
	effects := s.effects()
	var wrong []byte
	for _, m := range messages {
		before := r.wrong()
		delivered := !m.acked.IsZero()
		if delivered {
			r.delivered++
			took := s.uptime(m.published, m.acked)
			r.longest = max(r.longest, took)
			if took > s.limit {
				r.held++
			}
		}
		switch n := effects[m.id]; {
		case n == 0 && (delivered || !m.again):
			r.missing++
		case m.again && delivered:
			r.again++
		case n > 1:
			r.twice++
		}
		if r.wrong() > before || !delivered {
			wrong = fmt.Appendln(wrong, m.id, "published", m.published, "acked", m.acked, "effects", effects[m.id], "again", m.again)
		}
	}
	l.check(os.WriteFile(filepath.Join(l.dir, "wrong"), wrong, 0o644))
	return r
}

// uptime is how much of the time from one to the other was outside of faults.
func (s *story) uptime(from, to time.Time) time.Duration {
	up := to.Sub(from)
	for _, o := range s.outages {
		if o.from.Before(from) {
			o.from = from
		}
		if o.to.After(to) {
			o.to = to
		}
		up -= max(0, o.to.Sub(o.from))
	}
	return up
}
