// Faults kills, freezes and starves real receivers while it plays QStash to them, and counts what became of the
// messages (docs/faults.md says what came out). It builds the receiver with a handler.go of its own, which has one
// effect a run, and starts its own servers beside it, on loopback alone:
//
//	go run ./bench/faults [-only WORD] [-messages N] [-kills N] [-keep]
//
// WORD chooses the parts whose names contain it; -keep leaves the logs of the receivers where they are, and in files
// named wrong the messages that one of the counts is about. Everything takes 20 minutes on two CPUs. It is for Linux, as
// root: Postgres, PgBouncer, Redis and strace must be installed, and a part whose servers are not there is left out. The
// program ends with 1 if a count that must be 0 is not.
package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

//go:embed testdata/handler.go
var handler []byte

func main() {
	log.SetFlags(0)
	only := flag.String("only", "", "run the parts whose names contain this")
	messages := flag.Int("messages", 6000, "how many, in each of the parts with kills")
	kills := flag.Int("kills", 150, "how many, in each of the parts with kills")
	keep := flag.Bool("keep", false, "leave the logs of the receivers where they are, and say where")
	flag.Parse()
	dir, err := os.MkdirTemp("", "faults-")
	if err != nil {
		log.Fatal(err)
	}
	tidy := func() {
		if *keep {
			fmt.Println("logs: " + dir)
			return
		}
		_ = os.RemoveAll(dir)
	}
	ok, err := run(dir, *only, size{*messages, *kills}, tidy)
	tidy()
	if err != nil {
		log.Fatal(err)
	}
	if !ok {
		os.Exit(1)
	}
}

// size is how much is done in a part.
type size struct{ messages, kills int }

// part is one row of the table.
type part struct {
	name string
	play func(*lab) result
	// repeats says that messages may have their effect twice: it is what the part is there to show.
	repeats bool
	// beside says that it mostly waits, and is played beside the others.
	beside bool
}

func parts(all size) []part {
	few := size{messages: 2000}
	some := size{all.messages / 3, all.kills / 3}
	return []part{
		{name: "outage of 35 s, Redis", play: outageOfRedis, beside: true},
		{name: "outage of 35 s, Postgres", play: outageOfPostgres, beside: true},
		{name: "SQLite, kills, Commit", play: sqlite(all, true, "", (*sqliteLab).kills)},
		{name: "SQLite, kills, without Commit", play: sqlite(all, false, "", (*sqliteLab).kills), repeats: true},
		{name: "SQLite, handed over, Commit", play: sqlite(few, true, "", (*sqliteLab).handovers)},
		{name: "SQLite, disk full, Commit", play: sqlite(few, true, "32m", (*sqliteLab).diskFull)},
		{name: "SQLite, disk full, without Commit", play: sqlite(few, false, "32m", (*sqliteLab).diskFull)},
		{name: "SQLite, EIO of fsync, Commit", play: sqlite(few, true, "", (*sqliteLab).syncsFail)},
		{name: "SQLite, EIO of fsync, without Commit", play: sqlite(few, false, "", (*sqliteLab).syncsFail)},
		{name: "SQLite, EIO of writes, Commit", play: sqlite(few, true, "", (*sqliteLab).writesFail)},
		{name: "SQLite, EIO of writes, without Commit", play: sqlite(few, false, "", (*sqliteLab).writesFail)},
		{name: "Postgres, kills, Commit", play: postgres(all, true, false)},
		{name: "Postgres, kills, without Commit", play: postgres(all, false, false), repeats: true},
		{name: "PgBouncer, kills, Commit", play: postgres(all, true, true)},
		{name: "PgBouncer, kills, without Commit", play: postgres(some, false, true), repeats: true},
		{name: "Redis, kills", play: redis(some, (*redisLab).kills), repeats: true},
		{name: "Redis, restarted", play: redis(few, (*redisLab).restarts)},
		{name: "Redis, out of memory", play: redis(few, (*redisLab).outOfMemory)},
		{name: "Redis, read-only", play: redis(few, (*redisLab).readOnly)},
		{name: "Redis, replies lost", play: redis(few, (*redisLab).repliesLost)},
		{name: "Redis, frozen", play: redis(few, (*redisLab).freezes)},
	}
}

// run runs the chosen parts and prints a row for each. It returns false if a count that must be 0 is not. If it is
// interrupted, it ends the program, after tidy.
func run(dir, only string, all size, tidy func()) (ok bool, err error) {
	binary, err := build(dir)
	if err != nil {
		return false, err
	}
	var labs []*lab
	var alone, beside []func() bool
	for i, p := range parts(all) {
		if !strings.Contains(p.name, only) {
			continue
		}
		l := &lab{dir: filepath.Join(dir, strconv.Itoa(i)), binary: binary}
		labs = append(labs, l)
		if !p.beside {
			alone = append(alone, func() bool { return p.run(l) })
			continue
		}
		done := make(chan bool, 1)
		go func() { done <- p.run(l) }()
		beside = append(beside, func() bool { return <-done })
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-interrupted
		for _, l := range labs {
			l.close()
		}
		tidy()
		os.Exit(1)
	}()
	fmt.Println(heading)
	ok = true
	for _, wait := range append(alone, beside...) {
		ok = wait() && ok
	}
	return ok, nil
}

// run plays p and prints its row. It returns false if a count that must be 0 is not.
func (p part) run(l *lab) bool {
	began := time.Now()
	r, err := l.run(p.play)
	if err != nil {
		fmt.Printf("%-44s %v\n", p.name, err)
		return errors.Is(err, errSkipped)
	}
	fmt.Printf("%s %6.0fs\n", r.row(p.name), time.Since(began).Seconds())
	if p.repeats {
		r.twice, r.again = 0, 0
	}
	return r.clean()
}

// build builds the receiver with the handler of this program in the place of its own.
func build(dir string) (binary string, err error) {
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: go env GOMOD: %w", err)
	}
	root := filepath.Dir(strings.TrimSpace(string(mod)))
	own := filepath.Join(dir, "handler.go")
	if err := os.WriteFile(own, handler, 0o644); err != nil {
		return "", err
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(root, "handler.go"): own}})
	if err != nil {
		return "", err
	}
	replace := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(replace, overlay, 0o644); err != nil {
		return "", err
	}
	binary = filepath.Join(dir, "receiver")
	cmd := exec.Command("go", "build", "-overlay", replace, "-o", binary, ".")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the receiver: %w\n%s", err, out)
	}
	return binary, nil
}
