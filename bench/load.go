package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"qstash-receiver/internal/signing"
)

const (
	currentKey = "sig_benchbenchbenchbenchcurrent1"
	nextKey    = "sig_benchbenchbenchbenchbenchnext1"
	origin     = "https://receiver.example"
)

// deliveries says what is sent: each request a message and a token of its own, with the headers that a delivery had
// in production.
type deliveries struct {
	size    int  // bytes of the body
	forged  bool // signed with another key: only a 401 counts
	mayFail bool // other answers are counted, not an error
}

// result is what one server did.
type result struct {
	requests, failed int
	rate             float64 // a second
	cpu              float64 // microseconds of the server's for each request
	peak             int64   // bytes of memory
	p50, p99         time.Duration
}

// heads makes the heads of n requests.
func (d deliveries) heads(n int, host string) ([][]byte, []byte, error) {
	body := bytes.Repeat([]byte("x"), d.size)
	secret := currentKey
	if d.forged {
		secret = "sig_somebodyelse0123456789abcdef"
	}
	key := signing.NewKey("current", "", secret)
	heads := make([][]byte, n)
	errs := make(chan error, 2)
	for worker := range 2 {
		go func() {
			for i := worker; i < n; i += 2 {
				token, err := key.Sign(body, origin+"/orders", time.Now())
				if err != nil {
					errs <- err
					return
				}
				id := rand.Text()
				heads[i] = fmt.Appendf(nil, "POST /orders HTTP/1.1\r\nHost: %s\r\nUser-Agent: Upstash-QStash\r\nContent-Length: %d\r\nAccept-Encoding: gzip\r\nContent-Type: application/json\r\n"+
					"Fly-Client-Ip: 203.0.113.9\r\nFly-Forwarded-Port: 443\r\nFly-Forwarded-Proto: https\r\nFly-Forwarded-Ssl: on\r\nFly-Region: fra\r\nFly-Request-Id: %s-fra\r\n"+
					"Upstash-Caller-Ip: 198.51.100.7\r\nUpstash-Message-Id: msg_%s\r\nUpstash-Region: EU-CENTRAL-1\r\nUpstash-Retried: 0\r\nUpstash-Signature: %s\r\n"+
					"Via: 1.1 fly.io\r\nX-Forwarded-For: 203.0.113.9, 66.241.125.1\r\nX-Forwarded-Port: 443\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Ssl: on\r\nX-Request-Start: t=1764074529000000\r\n\r\n",
					host, d.size, id, id, token)
			}
			errs <- nil
		}()
	}
	return heads, body, errors.Join(<-errs, <-errs)
}

// measure sends d to p over so many connections for about t, each connection a request after the other, or rate a
// second in all if that is not 0.
func (p *process) measure(d deliveries, connections int, t time.Duration, rate float64) (result, error) {
	host := strings.TrimPrefix(p.url, "http://")
	guess := 40_000.0 // a second, of small ones
	if d.size > 64<<10 {
		guess = 6e9 / float64(d.size)
	}
	if rate > 0 {
		guess = rate
	}
	heads, body, err := d.heads(int(guess*t.Seconds())+connections, host)
	if err != nil {
		return result{}, err
	}
	if p.cpus == 1 {
		if err := pin(true); err != nil {
			return result{}, err
		}
		defer pin(false)
	}
	var next, failed atomic.Int64
	var group sync.WaitGroup
	took := make([][]time.Duration, connections)
	errs := make([]error, connections)
	before, began := p.cpu(), time.Now()
	end := began.Add(t)
	for c := range connections {
		group.Go(func() {
			var connection net.Conn
			var reader *bufio.Reader
			for {
				i := int(next.Add(1)) - 1
				due := time.Now()
				if rate > 0 {
					due = began.Add(time.Duration(float64(i) / rate * float64(time.Second)))
					time.Sleep(time.Until(due))
				}
				if i >= len(heads) || time.Now().After(end) {
					break
				}
				if connection == nil {
					if connection, errs[c] = net.Dial("tcp", host); errs[c] != nil {
						return
					}
					reader = bufio.NewReader(connection)
				}
				status, keep, err := exchange(connection, reader, heads[i], body)
				took[c] = append(took[c], time.Since(due))
				right := status == http.StatusOK && !d.forged || status == http.StatusUnauthorized && d.forged
				if !right {
					failed.Add(1)
					if !d.mayFail {
						errs[c] = fmt.Errorf("answer %d, %w", status, err)
						return
					}
				}
				if !keep {
					_ = connection.Close()
					connection = nil
				}
			}
			if connection != nil {
				_ = connection.Close()
			}
		})
	}
	group.Wait()
	elapsed, used := time.Since(began), p.cpu()-before
	all := slices.Concat(took...)
	if len(all) == 0 {
		return result{}, errors.Join(append(errs, errors.New("nothing was sent"))...)
	}
	slices.Sort(all)
	return result{
		requests: len(all), failed: int(failed.Load()), rate: float64(len(all)) / elapsed.Seconds(),
		cpu: float64(used.Microseconds()) / float64(len(all)), peak: p.memory("VmHWM"),
		p50: all[len(all)/2], p99: all[len(all)*99/100],
	}, errors.Join(errs...)
}

// exchange sends one request and reads its answer. A server that answers before it has read the body and closes is
// right to do so.
func exchange(c net.Conn, r *bufio.Reader, head, body []byte) (status int, keep bool, err error) {
	_ = c.SetDeadline(time.Now().Add(60 * time.Second))
	buffers := net.Buffers{head, body}
	_, writeErr := buffers.WriteTo(c)
	answer, err := http.ReadResponse(r, nil)
	if err != nil {
		return 0, false, errors.Join(writeErr, err)
	}
	_, err = io.Copy(io.Discard, answer.Body)
	_ = answer.Body.Close()
	return answer.StatusCode, err == nil && writeErr == nil && !answer.Close, err
}

// first sends one delivery.
func (p *process) first() error {
	host := strings.TrimPrefix(p.url, "http://")
	heads, body, err := deliveries{size: 1 << 10}.heads(2, host)
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", host)
	if err != nil {
		return err
	}
	defer c.Close()
	status, _, err := exchange(c, bufio.NewReader(c), heads[0], body)
	if status != http.StatusOK {
		return fmt.Errorf("the first answer is %d: %w", status, err)
	}
	return nil
}
