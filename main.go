// Receiver takes the messages that Upstash QStash delivers: it proves that QStash sent them, runs your function
// (handler.go) on each and answers so that QStash does the right thing next. receiver -h lists commands and settings.
package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	// Renamed, because a file's imports share a namespace with the names in handler.go.
	commandpkg "qstash-receiver/internal/command"
	deliverpkg "qstash-receiver/internal/deliver"
	keyspkg "qstash-receiver/internal/keys"
	logspkg "qstash-receiver/internal/logs"
	serverpkg "qstash-receiver/internal/server"
	settingspkg "qstash-receiver/internal/settings"
	signingpkg "qstash-receiver/internal/signing"
)

// checkHandler is looked at for the comment that a user's own code replaces.
//
//go:embed handler.go
var checkHandler string

func main() {
	stderr := logspkg.NewWriter(os.Stderr)
	defer stderr.Flush()
	ctx, stop := context.WithCancel(context.Background())
	if len(os.Args) == 1 || os.Args[1] == "dev" { // other commands end as any program does
		signals := make(chan os.Signal, 2)
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
		go func() {
			<-signals
			stop()
			for first := time.Now(); ; {
				<-signals
				if time.Since(first) > time.Second { // sooner it is the same one, sent to a group and to the program
					fmt.Fprintln(stderr, "receiver: ended at once by a second signal")
					_ = stderr.Flush()
					os.Exit(1)
				}
			}
		}()
	}
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, stderr)
	if err == nil {
		return
	}
	fmt.Fprintln(stderr, "receiver:", err)
	_ = stderr.Flush()
	if errors.As(err, new(commandpkg.UsageError)) {
		os.Exit(2)
	}
	os.Exit(1)
}

// run is the whole program. It returns when ctx has ended and all work is done, or with what went wrong.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	terminal := logspkg.IsTerminal(stderr)
	if len(args) == 0 {
		c, err := settingspkg.Load(getenv, terminal)
		if err != nil {
			return errors.Join(err, c.TryStore(ctx))
		}
		return serve(ctx, c, nil, stderr)
	}
	switch args[0] {
	case "sign":
		return commandpkg.Sign(ctx, args[1:], getenv, stdin, stdout)
	case "doctor":
		return commandpkg.Doctor(ctx, args[1:], getenv, stdout)
	case "dev":
		return commandpkg.Dev(ctx, args[1:], getenv, stdout, terminal, func(ctx context.Context, c settingspkg.Settings, heard commandpkg.Heard) error {
			return serve(ctx, c, heard, stderr)
		})
	case "-h", "-help", "--help", "help":
		_, err := io.WriteString(stdout, settingspkg.Help())
		return err
	}
	return commandpkg.UsageError(fmt.Sprintf("unknown command %q", args[0]))
}

// serve takes messages until ctx ends, then finishes those that it began. Heard, if not nil, is told of each delivery.
func serve(ctx context.Context, c settingspkg.Settings, heard commandpkg.Heard, stderr io.Writer) error {
	log := logspkg.New(stderr, c.LogLevel, c.LogText)
	defer logspkg.CaptureStandard(log)()
	listeners, listening := serverpkg.Listen(c.Address(), c.MetricsAddress())
	if listening == nil {
		defer listeners.Close()
	}
	set := signingpkg.NewSet()
	fetcher := keyspkg.New(keyspkg.Config{Set: set, Fixed: c.Keys, APIs: c.Fetched(), Log: log})
	fetching := fetcher.Start(ctx)
	store, opening := c.Store.Open(ctx, c.StoreTTL, serverpkg.StoreWait, log)
	if ctx.Err() != nil {
		return nil // stopped before it began
	}
	if err := errors.Join(listening, fetching, opening); err != nil { // all that is wrong, not the first alone
		if opening == nil {
			err = errors.Join(err, store.Close())
		}
		return err
	}
	go fetcher.Run(ctx)
	v := checker{keys: set, origins: c.Origins, tolerance: c.Tolerance, bearer: c.Bearer, now: time.Now, wanted: fetcher.Wanted}
	runner := deliverpkg.Handlers(handle, handleFailure)
	if c.Forward != nil {
		runner = deliverpkg.NewForwarder(c.Forward, c.MaxBody, c.Bearer != "").Run
	}
	fetched := map[string]bool{}
	for _, region := range c.Fetched() {
		fetched[region.Region] = true
	}
	s := serverpkg.New(serverpkg.Config{
		Verify: v.verify, Run: runner, Store: store, Timing: deliverpkg.NewTiming(c.HandlerTimeout), Dedupe: c.Dedupe, MaxBody: c.MaxBody, Log: log,
		OnFly: c.OnFly, Fetched: fetched, Heard: heard,
	})
	c.Announce(log, listeners.Address(), set.Keys())
	if c.Forward == nil && strings.Contains(checkHandler, "As shipped, this only logs") {
		log.Info("handler.go is as shipped: messages are logged and nothing else is done with them")
	}
	return s.Serve(ctx, listeners)
}
