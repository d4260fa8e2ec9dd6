package main

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"qstash-receiver/internal/qstashtest"
)

// origin is where messages are published to. The ports of the receivers are behind it.
const origin = "https://receiver.example"

// receiver is one machine: a process that is started again after it was killed.
type receiver struct {
	lab   *lab
	url   string
	env   []string
	log   *os.File
	cmd   *exec.Cmd     // nil: it is not to run
	ended chan struct{} // closed when cmd has ended
}

// receivers starts n of them with env, each the settings of a receiver, or of its handler.
func (l *lab) receivers(n int, env ...string) []*receiver {
	var list []*receiver
	for range n {
		r := l.newReceiver(env...)
		r.start()
		list = append(list, r)
	}
	return list
}

func (l *lab) newReceiver(env ...string) *receiver {
	port := qstashtest.FreePort(l)
	log, err := os.Create(filepath.Join(l.TempDir(), "log"))
	l.check(err)
	r := &receiver{lab: l, url: "http://127.0.0.1:" + port, log: log, env: append([]string{
		"PORT=" + port, "RECEIVER_URL=" + origin, "LOG_FORMAT=json",
		"QSTASH_CURRENT_SIGNING_KEY=" + qstashtest.CurrentKey, "QSTASH_NEXT_SIGNING_KEY=" + qstashtest.NextKey,
	}, env...)}
	l.Cleanup(r.kill)
	return r
}

// start returns when r serves. One that ends before, because its store is away, is started again, as Fly does.
func (r *receiver) start() {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if r.launch(); r.await() {
			return
		}
	}
	r.lab.Fatalf("a receiver does not start; %s says why", r.log.Name())
}

func (r *receiver) launch() {
	cmd, ended := exec.Command(r.lab.binary), make(chan struct{})
	cmd.Env, cmd.Stderr = r.env, r.log
	r.lab.check(cmd.Start())
	r.cmd, r.ended = cmd, ended
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
}

// await returns true when r serves, or false when it has ended.
func (r *receiver) await() bool {
	client := http.Client{Timeout: time.Second}
	for {
		answer, err := client.Get(r.url + "/healthz")
		if err == nil {
			_ = answer.Body.Close()
			return true
		}
		select {
		case <-r.ended:
			return false
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// kill ends r as the loss of its machine would.
func (r *receiver) kill() {
	if r.cmd == nil {
		return
	}
	_ = r.cmd.Process.Kill()
	<-r.ended
	r.cmd = nil
}

// restart is a fault.
func (r *receiver) restart() {
	r.mustRun()
	r.kill()
	r.start()
}

// restartAs is a fault: another, which runs but does not serve as long as r does, takes over.
func (r *receiver) restartAs(other *receiver) {
	r.mustRun()
	r.kill()
	if !other.await() {
		other.start()
	}
}

// freeze is a fault: r stands still for d, and goes on where it was.
func (r *receiver) freeze(d time.Duration) {
	r.mustRun()
	r.lab.check(r.cmd.Process.Signal(syscall.SIGSTOP))
	time.Sleep(d)
	r.lab.check(r.cmd.Process.Signal(syscall.SIGCONT))
}

// mustRun ends the part if r has ended by itself: none of the faults is a reason to.
func (r *receiver) mustRun() {
	select {
	case <-r.ended:
		r.lab.Fatalf("a receiver has ended by itself: %s; %s says why", r.cmd.ProcessState, r.log.Name())
	default:
	}
}

// stop ends r as a deployment does, which must lose nothing.
func (r *receiver) stop() {
	if r.cmd == nil {
		return
	}
	r.mustRun()
	r.lab.check(r.cmd.Process.Signal(syscall.SIGTERM))
	<-r.ended
	if !r.cmd.ProcessState.Success() {
		text, _ := os.ReadFile(r.log.Name())
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		r.lab.Fatalf("a receiver did not stop well: %s: %s", r.cmd.ProcessState, lines[len(lines)-1])
	}
	r.cmd = nil
}
