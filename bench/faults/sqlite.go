package main

import (
	"bytes"
	"database/sql"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	_ "modernc.org/sqlite" // database/sql's driver "sqlite"
)

// sqliteLab is one receiver on a file.
type sqliteLab struct {
	*lab
	size
	dir       string // of the file
	env       []string
	receivers []*receiver
}

// sqlite plays with the faults given, on a disk of so many bytes, or on the one that there is. Nothing is a reason to
// wait for half a lease: a dead holder's ends with it.
func sqlite(c size, commit bool, disk string, faults func(*sqliteLab) []fault) func(*lab) result {
	return func(l *lab) result {
		q := &sqliteLab{lab: l, size: c, dir: l.TempDir()}
		if disk != "" {
			l.mount(q.dir, disk)
		}
		file, effects := filepath.Join(q.dir, "receiver.db"), filepath.Join(l.TempDir(), "effects")
		count := func() map[string]int { return l.logged(effects) }
		if commit {
			effects = "commit"
			count = func() map[string]int { return l.effects("sqlite", file) }
		}
		q.env = []string{"HANDLER_TIMEOUT=20s", "STORE_URL=" + file, "EFFECTS=" + effects,
			"EFFECTS_INSERT=INSERT INTO effects VALUES (?, ?)"}
		q.receivers = l.receivers(1, q.env...)
		if commit { // the table of effects is made as an owner would make it
			q.receivers[0].stop()
			l.execute(file, "CREATE TABLE effects (message text, attempt integer)")
			q.receivers[0].start()
		}
		s := story{messages: c.messages, faults: faults(q), effects: count, patience: 2 * time.Second, limit: 15 * time.Second}
		s.receivers = q.receivers // which faults may have added to
		return s.play(l)
	}
}

func (q *sqliteLab) kills() []fault { return times(q.size.kills, q.receivers[0].restart) }

// handovers kill the receiver while a second one waits for the file.
func (q *sqliteLab) handovers() []fault {
	first, second := q.receivers[0], q.newReceiver(q.env...)
	q.receivers = append(q.receivers, second)
	return times(20, func() {
		second.launch()
		first.restartAs(second)
		first, second = second, first
	})
}

func (q *sqliteLab) diskFull() []fault {
	return times(10, func() { q.fill(filepath.Join(q.dir, "filler"), time.Second) })
}

func (q *sqliteLab) syncsFail() []fault {
	return times(10, func() { q.receivers[0].failing("fsync,fdatasync", time.Second) })
}

func (q *sqliteLab) writesFail() []fault {
	return times(10, func() { q.receivers[0].failing("pwrite64", time.Second) })
}

// execute runs a statement in a SQLite file that nobody else has open.
func (l *lab) execute(file, statement string) {
	db, err := sql.Open("sqlite", file)
	l.check(err)
	defer db.Close()
	_, err = db.Exec(statement)
	l.check(err)
}

// mount makes dir a disk of its own of so many bytes.
func (l *lab) mount(dir, size string) {
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size="+size); err != nil {
		l.Skipf("mount a small disk: %v", err)
	}
	l.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
}

// fill takes all room on the disk of path for d.
func (l *lab) fill(path string, d time.Duration) {
	f, err := os.Create(path)
	l.check(err)
	defer os.Remove(path)
	defer f.Close()
	_, _ = io.Copy(f, zeros{}) // until it is full
	time.Sleep(d)
}

// zeros has no end.
type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// failing has the system calls of r with these names fail with EIO for d, counted from the first that did; there may be
// none. It takes strace.
func (r *receiver) failing(calls string, d time.Duration) {
	r.mustRun()
	path := filepath.Join(r.lab.TempDir(), "strace")
	cmd := exec.Command("strace", "-f", "-qq", "-o", path, "-p", strconv.Itoa(r.cmd.Process.Pid),
		"-e", "trace="+calls, "-e", "inject="+calls+":error=EIO")
	if err := cmd.Start(); err != nil {
		r.lab.Skipf("start strace: %v", err)
	}
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if text, _ := os.ReadFile(path); bytes.Contains(text, []byte("INJECTED")) {
			time.Sleep(d)
			break
		}
	}
	_ = cmd.Process.Signal(syscall.SIGINT) // it lets go of r
	if err := cmd.Wait(); cmd.ProcessState.Exited() {
		r.lab.Fatalf("strace ended by itself: %v", err)
	}
}
