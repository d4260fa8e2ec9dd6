// Bench measures the receiver beside other servers, in turns, in one run, and prints a table (docs/speed.md says what
// it means): bench/run. It runs the servers as processes of its own, so that their CPU time and memory can be read.
//
//	bench [-rounds N] [-seconds N] [-only WORD] RECEIVER [EARLIER]
//
// RECEIVER is the receiver's binary. EARLIER, another build of it, is measured beside it. Linux only.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) == 2 && peers[os.Args[1]] != nil {
		log.Fatal(serve(peers[os.Args[1]]))
	}
	rounds := flag.Int("rounds", 2, "how often each is measured; the median counts")
	seconds := flag.Int("seconds", 2, "how long each measurement takes")
	only := flag.String("only", "", "run the sections whose titles contain this")
	flag.Parse()
	if flag.NArg() < 1 || flag.NArg() > 2 {
		log.Fatal("usage: bench [-rounds N] [-seconds N] [-only WORD] RECEIVER [EARLIER]")
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	b := &bench{
		rounds: *rounds, time: time.Duration(*seconds) * time.Second, dir: dir,
		receivers: map[string]string{"receiver": flag.Arg(0)},
	}
	if flag.NArg() == 2 {
		b.receivers["earlier"] = flag.Arg(1)
	}
	fmt.Printf("%s, %d CPUs, GOGC=400 GOMEMLIMIT=150MiB for each, medians of %d rounds of %s\n", runtime.Version(), runtime.NumCPU(), b.rounds, b.time)
	for _, section := range []struct {
		title string
		run   func() error
	}{
		{"1 KB on one CPU", func() error { return b.small(1) }},
		{"1 KB on two CPUs", func() error { return b.small(2) }},
		{"1 MB", b.large},
		{"forged 1 MB", b.forged},
		{"forwarded", b.forwarded},
		{"10 MB on 16 connections", b.crowd},
		{"latency at half the rate", b.latency},
		{"stores", b.stores},
		{"start and rest", b.start},
	} {
		if !strings.Contains(section.title, *only) {
			continue
		}
		fmt.Printf("\n%s\n", section.title)
		if err := section.run(); err != nil {
			log.Fatalf("%s: %v", section.title, err)
		}
	}
}

// bench is one run.
type bench struct {
	rounds    int
	time      time.Duration
	dir       string
	receivers map[string]string // name: binary
}

// subject is a server to measure.
type subject struct {
	name string
	peer string   // one of peers, or
	exe  string   // a receiver's binary
	env  []string // beside what all have
	cpus int      // 0: all
	pipe bool     // standard error goes into a pipe, as it does on Fly
}

// compare measures subjects in turns and prints a row for each: requests a second, CPU for each, and both against the
// first subject's.
func (b *bench) compare(subjects []subject, d deliveries, connections int) (map[string]result, error) {
	rows := map[string][]result{}
	for range b.rounds {
		for _, s := range subjects {
			p, err := b.launch(s)
			if err != nil {
				return nil, fmt.Errorf("start %s: %w", s.name, err)
			}
			r, err := p.measure(d, connections, b.time, 0)
			p.stop()
			if err != nil {
				return nil, fmt.Errorf("measure %s: %w", s.name, err)
			}
			rows[s.name] = append(rows[s.name], r)
		}
	}
	medians := map[string]result{}
	first := median(rows[subjects[0].name])
	for _, s := range subjects {
		m := median(rows[s.name])
		medians[s.name] = m
		fmt.Printf("  %-34s %8.0f/s  %7.1f us CPU  rate %.2f  CPU %.2f  peak %3d MB\n", s.name, m.rate, m.cpu, m.rate/first.rate, m.cpu/first.cpu, m.peak>>20)
	}
	return medians, nil
}

// median returns the result whose CPU time is in the middle.
func median(results []result) result {
	slices.SortFunc(results, func(a, b result) int { return int(a.cpu*1000) - int(b.cpu*1000) })
	return results[len(results)/2]
}

// all returns the receivers as subjects with env.
func (b *bench) all(suffix string, cpus int, pipe bool, env ...string) []subject {
	var list []subject
	for _, name := range []string{"receiver", "earlier"} {
		if exe := b.receivers[name]; exe != "" {
			list = append(list, subject{name: name + suffix, exe: exe, env: env, cpus: cpus, pipe: pipe})
		}
	}
	return list
}

func (b *bench) small(cpus int) error {
	subjects := []subject{
		{name: "bare: pooled buffer, SHA-256", peer: "bare", cpus: cpus},
		{name: "reads and discards", peer: "discard", cpus: cpus},
		{name: "the guide's ninety lines", peer: "guide", cpus: cpus},
	}
	subjects = append(subjects, b.all(", LOG_LEVEL=error", cpus, false, "LOG_LEVEL=error")...)
	subjects = append(subjects, b.all(", info into a pipe", cpus, true, "LOG_LEVEL=info")...)
	_, err := b.compare(subjects, deliveries{size: 1 << 10}, 16)
	return err
}

func (b *bench) large() error {
	subjects := append([]subject{
		{name: "bare: pooled buffer, SHA-256", peer: "bare", cpus: 1},
		{name: "the guide's ninety lines", peer: "guide", cpus: 1},
	}, b.all(", to handle", 1, false, "LOG_LEVEL=error")...)
	_, err := b.compare(subjects, deliveries{size: 1 << 20}, 16)
	return err
}

func (b *bench) forged() error {
	subjects := append([]subject{{name: "the guide's ninety lines", peer: "guide", cpus: 1}}, b.all("", 1, false, "LOG_LEVEL=error")...)
	_, err := b.compare(subjects, deliveries{size: 1 << 20, forged: true}, 16)
	return err
}

// forwarded compares what is left when posting on is taken off: a server that reads into a pooled buffer, hashes and
// posts on, less one that does the same and does not post on, is what posting on costs.
func (b *bench) forwarded() error {
	sink, err := b.launch(subject{name: "the app", peer: "discard"})
	if err != nil {
		return err
	}
	defer sink.stop()
	for _, size := range []int{1 << 20, 10 << 20} {
		fmt.Printf("  %d MB\n", size>>20)
		subjects := append([]subject{
			{name: "bare: pooled buffer, SHA-256", peer: "bare", cpus: 1},
			{name: "bare, and posts on", peer: "post", cpus: 1, env: []string{"FORWARD_URL=" + sink.url}},
		}, b.all(", FORWARD_URL", 1, false, "LOG_LEVEL=error", "FORWARD_URL="+sink.url)...)
		m, err := b.compare(subjects, deliveries{size: size}, 4)
		if err != nil {
			return err
		}
		bare := m[subjects[0].name].cpu
		posting := m[subjects[1].name].cpu - bare
		for _, s := range subjects[2:] {
			fmt.Printf("  %-34s less posting on: %.2f of bare\n", s.name, bare/(m[s.name].cpu-posting))
		}
	}
	return nil
}

// crowd sends more large messages at a time than there is room for.
func (b *bench) crowd() error {
	for _, s := range b.all("", 0, false, "LOG_LEVEL=error") {
		p, err := b.launch(s)
		if err != nil {
			return err
		}
		r, err := p.measure(deliveries{size: 10 << 20, mayFail: true}, 16, 2*b.time, 0)
		p.stop()
		if err != nil {
			return err
		}
		fmt.Printf("  %-34s answered 200: %.3f of %d, peak %d MB\n", s.name, 1-float64(r.failed)/float64(r.requests), r.requests, r.peak>>20)
	}
	return nil
}

// latency sends at half the rate that the slowest takes.
func (b *bench) latency() error {
	subjects := append([]subject{
		{name: "bare: pooled buffer, SHA-256", peer: "bare", cpus: 1},
		{name: "the guide's ninety lines", peer: "guide", cpus: 1},
	}, b.all(", info into a pipe", 1, true, "LOG_LEVEL=info")...)
	medians, err := b.compare(subjects, deliveries{size: 1 << 10}, 16)
	if err != nil {
		return err
	}
	slowest := medians[subjects[0].name].rate
	for _, m := range medians {
		slowest = min(slowest, m.rate)
	}
	for _, s := range subjects {
		p, err := b.launch(s)
		if err != nil {
			return err
		}
		r, err := p.measure(deliveries{size: 1 << 10}, 16, 2*b.time, slowest/2)
		p.stop()
		if err != nil {
			return err
		}
		fmt.Printf("  %-34s at %.0f/s: p50 %s, p99 %s\n", s.name, slowest/2, r.p50.Round(time.Microsecond), r.p99.Round(time.Microsecond))
	}
	return nil
}

func (b *bench) start() error {
	for _, s := range append([]subject{{name: "bare", peer: "bare"}}, b.all("", 0, false)...) {
		var took []time.Duration
		var rest int64
		for range 2*b.rounds + 1 {
			began := time.Now()
			p, err := b.launch(s)
			if err != nil {
				return err
			}
			if err := p.first(); err != nil {
				return err
			}
			took = append(took, time.Since(began))
			rest = p.memory("VmRSS")
			p.stop()
		}
		slices.Sort(took)
		size := int64(0)
		if info, err := os.Stat(s.exe); err == nil {
			size = info.Size()
		}
		fmt.Printf("  %-34s first answer %.1f ms after exec, %d MB at rest, binary %.1f MiB\n", s.name, took[len(took)/2].Seconds()*1000, rest>>20, float64(size)/(1<<20))
	}
	return nil
}
