package dev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"qstash-receiver/internal/signing"
)

// newClient returns the client that delivers. Each delivery has a connection of its own, so that none meets one that
// the receiver is just closing, and gets the answer as it is: not decoded, redirects not followed.
func newClient() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// schedule has m's next attempt made at the given time. The caller holds q.mu.
func (q *QStash) schedule(m *message, at time.Time) {
	m.stopTimer()
	m.state, m.due = Waiting, at
	if q.closed {
		return
	}
	turn := m.turn
	m.timer = time.AfterFunc(time.Until(at), func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if m.turn == turn {
			q.begin(m)
		}
	})
	q.changed(m, nil)
}

// begin makes m's next attempt. The caller holds q.mu.
func (q *QStash) begin(m *message) {
	if q.closed {
		return
	}
	m.stopTimer()
	m.state, m.due = Delivering, time.Time{}
	if m.retried == 0 && m.fault == faultTwice {
		q.deliver(m, "delivered twice at the same time")
	}
	q.deliver(m, "")
	q.changed(m, nil)
}

// deliverNow makes the next attempt of a waiting message at once.
func (q *QStash) deliverNow(m *message) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case m.state == Waiting && m.due.IsZero():
		return conflict("message %s waits for others of queue %s", m.ID, m.queue)
	case m.state != Waiting:
		return conflict("message %s is %s: no attempt is to come", m.ID, m.state)
	}
	q.begin(m)
	return nil
}

// deliverAgain delivers m once more, as QStash may at any time: it promises at least once.
func (q *QStash) deliverAgain(m *message) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(m.attempts) >= maxAttempts {
		return conflict("message %s was delivered %d times: no more are shown", m.ID, maxAttempts)
	}
	q.deliver(m, "sent again")
	q.changed(m, nil)
	return nil
}

// deliver starts a delivery of m. What comes of it decides about m unless it is an extra one. The caller holds q.mu.
func (q *QStash) deliver(m *message, extra string) {
	if q.closed {
		return
	}
	retried := m.retried
	if retried > 0 && m.state == Waiting { // it is already that of the next attempt
		retried--
	}
	q.work.Go(func() {
		select {
		case q.slots <- struct{}{}:
			defer func() { <-q.slots }()
		case <-q.ctx.Done():
			return
		}
		q.attempt(m, retried, extra)
	})
}

func (q *QStash) attempt(m *message, retried int, extra string) {
	now := time.Now()
	issued := now
	if m.fault == faultLateToken && retried == 0 && extra == "" {
		issued = now.Add(-time.Hour)
	}
	q.mu.Lock()
	key := q.keys.current()
	a := &Attempt{Retried: retried, Extra: extra, Started: now, number: len(m.attempts) + 1}
	m.attempts = append(m.attempts, a)
	if extra == "" {
		q.happened(m, event{State: "ACTIVE"})
	}
	q.changed(m, a)
	q.mu.Unlock()

	var result Attempt
	if token, err := key.Sign(m.body, m.destination, issued); err == nil {
		result = q.send(m, retried, token)
	} else {
		result.Err = err.Error()
	}
	if m.fault == faultAnswerLost && retried == 0 && extra == "" && result.Status != 0 {
		result = Attempt{Sent: result.Sent, Err: fmt.Sprintf("the answer, %d, was lost on the way", result.Status)}
	}

	q.mu.Lock()
	defer q.mu.Unlock()
	a.Ended, a.Sent = time.Now(), result.Sent
	a.Status, a.Header, a.Body, a.Err = result.Status, result.Header, result.Body, result.Err
	q.grow(m, 512+len(a.Body)+sizeOf(a.Sent)+sizeOf(a.Header))
	if extra != "" {
		a.Then = "its answer changes nothing: QStash delivers at least once"
	} else {
		q.settle(m, a)
	}
	q.changed(m, a)
}

// send delivers m and returns the answer.
func (q *QStash) send(m *message, retried int, token string) Attempt {
	ctx, cancel := context.WithTimeout(q.ctx, m.timeout)
	defer cancel()
	header := m.header.Clone()
	for name, value := range map[string]string{
		"User-Agent":          "Upstash-QStash",
		"Upstash-Signature":   token,
		"Upstash-Message-Id":  m.ID,
		"Upstash-Retried":     strconv.Itoa(retried),
		"Upstash-Max-Retries": strconv.Itoa(m.retries),
		"Upstash-Caller-Ip":   m.callerIP,
		"Upstash-Region":      "EU-CENTRAL-1",
		"Upstash-Label":       m.label,
	} {
		if header.Del(name); value != "" {
			header.Set(name, value)
		}
	}
	request := (&http.Request{
		Method:        m.method,
		URL:           m.url,
		Header:        header,
		Body:          io.NopCloser(bytes.NewReader(m.body)),
		ContentLength: int64(len(m.body)),
	}).WithContext(ctx)
	if len(m.body) == 0 {
		request.Body = http.NoBody
	}
	a := Attempt{Sent: header}
	response, err := q.client.Do(request)
	if err == nil {
		defer response.Body.Close()
		a.Status, a.Header = response.StatusCode, response.Header
		a.Body, err = io.ReadAll(io.LimitReader(response.Body, maxBody+1))
		if len(a.Body) > maxBody {
			a.Body, a.Err = a.Body[:maxBody], "the answer's body is over 10 MiB; the rest was not read"
		}
	}
	if err != nil {
		a.Status, a.Header, a.Body, a.Err = 0, nil, nil, why(err, m.timeout)
	}
	return a
}

func why(err error, timeout time.Duration) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("no answer within %s", timeout)
	}
	if outer, ok := errors.AsType[*url.Error](err); ok { // it repeats the destination
		err = outer.Err
	}
	return err.Error()
}

// settle decides what follows on a. The caller holds q.mu.
func (q *QStash) settle(m *message, a *Attempt) {
	switch {
	case a.Status >= 200 && a.Status <= 299:
		a.Then = "done"
		q.end(m, Delivered)
		q.happened(m, event{State: "DELIVERED"})
		q.callBack(m, a, m.callback)
		return
	case q.closed:
		a.Then = "the stand-in was closed"
		return
	}
	q.happened(m, event{State: "ERROR", attempt: a.number, Error: a.failure()})
	q.callBack(m, a, m.callback)
	switch {
	case m.cancelled || m.forgotten:
		a.Then = "nothing: the message was cancelled"
		q.end(m, Cancelled)
		q.happened(m, event{State: "CANCELED"})
	case a.Status == 489 && a.Header.Get("Upstash-NonRetryable-Error") == "true":
		a.Then = "dead letter queue: the answer says that no retry helps"
		q.bury(m, a)
	case m.retried >= m.retries:
		a.Then = fmt.Sprintf("dead letter queue: %s", plural(m.retries, "retry was", "retries were")+" made")
		q.bury(m, a)
	default:
		m.retried++
		wait, reason := m.waitFor(m.retried, a.Header, a.Ended)
		a.Then = fmt.Sprintf("retries in %s (%s)", short(wait), reason)
		if q.config.Speed != 1 {
			a.Then += fmt.Sprintf(", here in %s", short(q.scaled(wait)))
		}
		at := a.Ended.Add(q.scaled(wait))
		q.schedule(m, at)
		q.happened(m, event{State: "RETRY", NextDeliveryTime: at})
	}
}

func (a *Attempt) failure() string {
	if a.Status == 0 {
		return a.Err
	}
	return fmt.Sprintf("%d %s", a.Status, http.StatusText(a.Status))
}

// bury puts m into the dead letter queue. The caller holds q.mu.
func (q *QStash) bury(m *message, a *Attempt) {
	q.number++
	m.letter, m.dlqID = q.number, fmt.Sprintf("%d-%d", a.Ended.UnixMilli(), q.number)
	q.letters = append(q.letters, m)
	q.end(m, Failed)
	q.happened(m, event{State: "FAILED", attempt: a.number, Error: a.failure()})
	q.callBack(m, a, m.failure)
}

// removeLetter takes m out of the dead letter queue and says whether it was there. The caller holds q.mu.
func (q *QStash) removeLetter(m *message) bool {
	for i, letter := range q.letters {
		if letter == m {
			q.letters = append(q.letters[:i:i], q.letters[i+1:]...)
			return true
		}
	}
	return false
}

// cancelMessage ends m, at the latest after the attempt that is under way. It says whether m was still to be delivered.
// The caller holds q.mu.
func (q *QStash) cancelMessage(m *message) bool {
	if m.final() || m.cancelled {
		return false
	}
	m.cancelled = true
	q.happened(m, event{State: "CANCEL_REQUESTED"})
	if m.state == Waiting {
		q.end(m, Cancelled)
		q.happened(m, event{State: "CANCELED"})
	}
	return true
}

// keyPair is QStash's signing keys, as its API gives them.
type keyPair struct {
	Current string `json:"current"`
	Next    string `json:"next"`
}

func (k keyPair) current() signing.Key { return signing.NewKey("current", "", k.Current) }

func (k keyPair) rolled() keyPair { return keyPair{Current: k.Next, Next: "sig_" + signing.NewID()} }
