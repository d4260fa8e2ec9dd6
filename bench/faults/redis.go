package main

import (
	"bufio"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"qstash-receiver/internal/qstashtest"
)

// redisLab is two receivers on one Redis, which writes what it is told to the disk before it answers.
type redisLab struct {
	*lab
	size
	server    *qstashtest.Redis
	link      *link
	receivers []*receiver
}

// redis plays with the faults given. A message whose holder was killed waits for the end of its lease; a claim whose
// answer was lost is no reason to wait for half of one.
func redis(c size, faults func(*redisLab) []fault) func(*lab) result {
	return func(l *lab) result {
		timeout, limit := "20s", 15*time.Second
		if c.kills > 0 {
			timeout, limit = "1s", lease+9*time.Second
		}
		r := &redisLab{lab: l, size: c, server: qstashtest.NewRedis(l, "--appendonly", "yes", "--appendfsync", "always")}
		r.link = l.newLink("127.0.0.1:" + r.server.Port)
		effects := filepath.Join(l.TempDir(), "effects")
		r.receivers = l.receivers(2, "HANDLER_TIMEOUT="+timeout, "STORE_URL=redis://"+r.link.address, "EFFECTS="+effects)
		s := story{
			receivers: r.receivers, messages: c.messages, faults: faults(r),
			effects:  func() map[string]int { return l.logged(effects) },
			patience: 30 * time.Second, limit: limit,
		}
		return s.play(l)
	}
}

func (r *redisLab) kills() []fault {
	return times(r.size.kills, func() { r.receivers[rand.IntN(2)].restart() })
}

func (r *redisLab) restarts() []fault {
	return times(20, func() { r.server.Stop(); r.server.Start(r) })
}

func (r *redisLab) outOfMemory() []fault {
	return times(10, func() {
		r.command("config", "set", "maxmemory", "1")
		time.Sleep(time.Second / 2)
		r.command("config", "set", "maxmemory", "0")
	})
}

func (r *redisLab) readOnly() []fault {
	return times(10, func() {
		r.command("replicaof", "127.0.0.1", "1") // where nobody is
		time.Sleep(time.Second / 2)
		r.command("replicaof", "no", "one")
	})
}

func (r *redisLab) repliesLost() []fault {
	return times(5, func() {
		r.link.deaf.Store(true)
		time.Sleep(2 * time.Second)
		r.link.deaf.Store(false)
	})
}

func (r *redisLab) freezes() []fault {
	freeze := func(d time.Duration) fault {
		return func() { r.server.Pause(); time.Sleep(d); r.server.Resume() }
	}
	return append(times(4, freeze(2*time.Second)), freeze(7*time.Second))
}

func (r *redisLab) command(words ...string) {
	out, err := exec.Command("redis-cli", append([]string{"-p", r.server.Port}, words...)...).CombinedOutput()
	if err != nil || strings.HasPrefix(string(out), "ERR") {
		r.Fatalf("redis-cli %q: %v: %s", words, err, out)
	}
}

// logged counts the lines of each message in the log of effects.
func (l *lab) logged(path string) map[string]int {
	f, err := os.Open(path)
	l.check(err)
	defer f.Close()
	counts := map[string]int{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		id, _, _ := strings.Cut(lines.Text(), " ")
		counts[id]++
	}
	l.check(lines.Err())
	return counts
}

// link passes bytes between its clients and a server. While it is deaf, what the server answers is lost; a connection
// that has lost something never delivers again.
type link struct {
	address string
	deaf    atomic.Bool
}

func (l *lab) newLink(server string) *link {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	l.check(err)
	l.Cleanup(func() { _ = listener.Close() })
	k := &link{address: listener.Addr().String()}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go k.connect(client, server)
		}
	}()
	return k
}

func (k *link) connect(client net.Conn, server string) {
	defer client.Close()
	upstream, err := net.Dial("tcp", server)
	if err != nil {
		return
	}
	defer upstream.Close()
	go func() {
		_, _ = io.Copy(upstream, client)
		_ = upstream.Close()
	}()
	lost := false
	answer := make([]byte, 64<<10)
	for {
		n, err := upstream.Read(answer)
		if err != nil {
			return
		}
		if lost = lost || k.deaf.Load(); lost {
			continue
		}
		if _, err := client.Write(answer[:n]); err != nil {
			return
		}
	}
}
