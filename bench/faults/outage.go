package main

import (
	"context"
	"math"
	"path/filepath"
	"sync"
	"time"

	"qstash-receiver/internal/qstashtest"
)

// The outage: messages are published all through it, and QStash has three retries for each.
const (
	outageLasts    = 35 * time.Second
	outageMessages = 50
	outageRetries  = 3
)

func outageOfRedis(l *lab) result {
	server := qstashtest.NewRedis(l, "--appendonly", "yes", "--appendfsync", "always")
	return l.outage("redis://127.0.0.1:"+server.Port, server.Stop, func() { server.Start(l) })
}

func outageOfPostgres(l *lab) result {
	server := qstashtest.NewPostgres(l)
	return l.outage(server.URL("postgres")+"?sslmode=disable", server.Stop, func() { server.Start(l) })
}

// outage publishes messages while the store is away, and waits as long between attempts as QStash does.
func (l *lab) outage(store string, begin, end func()) result {
	log := filepath.Join(l.TempDir(), "effects")
	receivers := l.receivers(1, "STORE_URL="+store, "EFFECTS="+log)
	p := newPublisher(l, receivers, time.Minute)
	messages := newMessages(outageMessages)
	var all sync.WaitGroup
	begin()
	for _, m := range messages {
		all.Go(func() {
			m.published = time.Now()
			for m.attempts <= outageRetries {
				pause := p.deliver(context.Background(), m, rhythm)
				if pause == 0 || m.attempts > outageRetries {
					return
				}
				time.Sleep(pause)
			}
		})
		time.Sleep(outageLasts / outageMessages)
	}
	end()
	all.Wait()
	p.redeliver(context.Background(), messages)
	receivers[0].stop()
	s := story{limit: 3 * time.Minute, faults: times(1, end), effects: func() map[string]int { return l.logged(log) }}
	return s.count(l, messages)
}

// rhythm is QStash's: 12 s, 2 m 28 s, 30 m.
func rhythm(attempts int) time.Duration {
	return time.Duration(math.Exp(2.5*float64(attempts)) * float64(time.Second))
}
