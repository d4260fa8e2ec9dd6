package main

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"time"

	"qstash-receiver/internal/qstashtest"
)

// message is one message on its way.
type message struct {
	id        string
	attempts  int
	begun     chan struct{} // closed as its first attempt begins
	published time.Time
	acked     time.Time // the first success was answered then; zero: none was
	again     bool      // delivered once more after its success, it was not answered with that
}

// publisher plays QStash.
type publisher struct {
	lab       *lab
	receivers []*receiver
	patience  time.Duration // for the answer to an attempt
	client    *http.Client
	slots     chan struct{} // attempts at a time
}

func newPublisher(l *lab, receivers []*receiver, patience time.Duration) *publisher {
	const slots = 200 // each receiver takes 400 connections
	return &publisher{
		lab: l, receivers: receivers, patience: patience, slots: make(chan struct{}, slots),
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: slots}},
	}
}

// attempt delivers m once, with a token of its own, to one of the receivers that take connections, as a proxy in front
// of them would.
func (p *publisher) attempt(ctx context.Context, m *message) (answer *http.Response, err error) {
	p.slots <- struct{}{}
	defer func() { <-p.slots }()
	ctx, cancel := context.WithTimeout(ctx, p.patience)
	defer cancel()
	sending := qstashtest.Sending{
		Path: "/effects", Body: `{"message":"` + m.id + `"}`, ID: m.id, Subject: origin + "/effects",
		Header: map[string]string{"Upstash-Retried": strconv.Itoa(m.attempts)},
	}
	m.attempts++
	for _, i := range rand.Perm(len(p.receivers)) {
		r := sending.Request(p.lab, p.receivers[i].url)
		if answer, err = p.client.Do(r.WithContext(ctx)); !errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return answer, err
}

// deliver attempts m and returns how long to wait for the next attempt; 0: it has succeeded.
func (p *publisher) deliver(ctx context.Context, m *message, backoff func(attempts int) time.Duration) time.Duration {
	answer, err := p.attempt(ctx, m)
	if err == nil && answer.StatusCode == http.StatusOK {
		m.acked = time.Now()
		return 0
	}
	if err == nil {
		if seconds, err := strconv.Atoi(answer.Header.Get("Retry-After")); err == nil {
			return time.Duration(seconds) * time.Second
		}
	}
	return backoff(m.attempts)
}

// retry delivers m until it succeeds, pause from now on first, or ctx ends.
func (p *publisher) retry(ctx context.Context, m *message, pause time.Duration, backoff func(attempts int) time.Duration) {
	for pause > 0 {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pause = p.deliver(ctx, m, backoff)
	}
}

// quick is QStash's backoff in small.
func quick(attempts int) time.Duration {
	return rand.N(min(50*time.Millisecond<<min(attempts, 5), time.Second)) + 10*time.Millisecond
}

// publish delivers messages, several at a time. What fails is retried beside that, in retries.
func (p *publisher) publish(ctx context.Context, messages []*message, retries *sync.WaitGroup) {
	each(messages, func(m *message) {
		m.published = time.Now()
		close(m.begun)
		if pause := p.deliver(ctx, m, quick); pause > 0 {
			retries.Go(func() { p.retry(ctx, m, pause, quick) })
		}
	})
}

// redeliver delivers each message once more with a new token, as QStash may at any time, and marks those that were
// answered otherwise than as one that had been handled.
func (p *publisher) redeliver(ctx context.Context, messages []*message) {
	each(messages, func(m *message) {
		m.again = true
		for range 50 {
			answer, err := p.attempt(ctx, m)
			if err == nil && answer.StatusCode == http.StatusOK {
				m.again = answer.Header.Get("Idempotent-Replayed") != "true"
				return
			}
			time.Sleep(quick(m.attempts))
		}
	})
}

// each calls f for each message, 16 at a time.
func each(messages []*message, f func(*message)) {
	next := make(chan *message)
	var workers sync.WaitGroup
	for range 16 {
		workers.Go(func() {
			for m := range next {
				f(m)
			}
		})
	}
	for _, m := range messages {
		next <- m
	}
	close(next)
	workers.Wait()
}
