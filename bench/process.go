package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// process is a server under measurement.
type process struct {
	cmd  *exec.Cmd
	url  string
	cpus int // 0: all
}

// launch starts s and returns when it serves.
func (b *bench) launch(s subject) (*process, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	command := []string{s.exe}
	if s.peer != "" {
		own, err := os.Executable()
		if err != nil {
			return nil, err
		}
		command = []string{own, s.peer}
	}
	env := append(os.Environ(), "GOGC=400", "GOMEMLIMIT=150MiB", "PORT="+strconv.Itoa(port), "RECEIVER_URL="+origin,
		"QSTASH_CURRENT_SIGNING_KEY="+currentKey, "QSTASH_NEXT_SIGNING_KEY="+nextKey, "LOG_FORMAT=json")
	if s.cpus == 1 {
		command = append([]string{"taskset", "-c", "0"}, command...)
		env = append(env, "GOMAXPROCS=1")
	}
	p := &process{cmd: exec.Command(command[0], command[1:]...), url: fmt.Sprintf("http://127.0.0.1:%d", port), cpus: s.cpus}
	p.cmd.Env = append(env, s.env...)
	if s.pipe {
		pipe, err := p.cmd.StderrPipe()
		if err != nil {
			return nil, err
		}
		go func() { _, _ = io.Copy(io.Discard, pipe) }()
	} else {
		p.cmd.Stderr = os.Stderr
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	for end := time.Now().Add(20 * time.Second); ; {
		answer, err := http.Get(p.url + "/healthz")
		if err == nil {
			_ = answer.Body.Close()
			return p, nil
		}
		if time.Now().After(end) {
			p.stop()
			return nil, errors.New("it does not serve")
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// pin has this program, which sends, run on the second CPU alone, so that a server on the first has that for itself;
// or on all again.
func pin(one bool) error {
	cpus := fmt.Sprintf("0-%d", runtime.NumCPU()-1)
	if one {
		cpus = "1"
	}
	return exec.Command("taskset", "-acp", cpus, strconv.Itoa(os.Getpid())).Run()
}

// stop ends p.
func (p *process) stop() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// cpu is the time that p has spent on CPUs, in the kernel too.
func (p *process) cpu() time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(stat, []byte(") ")) // the name may have spaces
	fields := strings.Fields(string(rest))
	var ticks int64
	for _, field := range fields[11:13] {
		n, _ := strconv.ParseInt(field, 10, 64)
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// memory is a line of p's status, VmRSS or VmHWM, in bytes.
func (p *process) memory(name string) int64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	for line := range strings.Lines(string(status)) {
		if value, found := strings.CutPrefix(line, name+":"); found {
			n, _ := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			return n << 10
		}
	}
	return 0
}
