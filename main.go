// Receiver takes the messages that Upstash QStash delivers: it proves that QStash sent them, runs your function
// (handler.go) on each and answers so that QStash does the right thing next. receiver -h lists commands and settings.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"qstash-receiver/internal/command"
	"qstash-receiver/internal/deliver"
	"qstash-receiver/internal/logs"
	"qstash-receiver/internal/server"
	"qstash-receiver/internal/settings"
	"qstash-receiver/internal/signing"
)

func main() {
	ctx, stop := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-signals
		stop()
		for first := time.Now(); ; {
			<-signals
			if time.Since(first) > time.Second { // sooner it is the same one, sent to a group and to the program
				fmt.Fprintln(os.Stderr, "receiver: ended at once by a second signal")
				os.Exit(1)
			}
		}
	}()
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "receiver:", err)
	if errors.As(err, new(command.UsageError)) {
		os.Exit(2)
	}
	os.Exit(1)
}

// run is the whole program. It returns when ctx has ended and all work is done, or with what went wrong.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return serve(ctx, getenv, stderr)
	}
	switch args[0] {
	case "sign":
		return command.Sign(ctx, args[1:], getenv, stdin, stdout)
	case "-h", "-help", "--help", "help":
		_, err := io.WriteString(stdout, settings.Help())
		return err
	}
	return command.UsageError(fmt.Sprintf("unknown command %q", args[0]))
}

// serve takes messages until ctx ends, then finishes those that it began.
func serve(ctx context.Context, getenv func(string) string, stderr io.Writer) error {
	c, err := settings.Load(getenv, logs.IsTerminal(stderr))
	if err != nil {
		return err
	}
	log := logs.New(stderr, c.LogLevel, c.LogText)
	listeners, err := server.Listen(c.Port, c.MetricsAddress())
	if err != nil {
		return err
	}
	defer listeners.Close()
	store, err := c.Store.Open(ctx, c.StoreTTL, server.StoreWait, log)
	if ctx.Err() != nil {
		return nil // stopped before it began
	}
	if err != nil {
		return err
	}
	keys := signing.NewSet(c.Keys...)
	v := verifier{keys: keys, origins: c.Origins, tolerance: c.Tolerance, bearer: c.Bearer, now: time.Now}
	runner := deliver.Handlers(handle, handleFailure)
	if c.Forward != nil {
		runner = deliver.NewForwarder(c.Forward, c.MaxBody, c.Bearer != "").Run
	}
	s := server.New(server.Config{
		Verify: v.verify, Run: runner, Store: store, Timing: deliver.NewTiming(c.HandlerTimeout), Dedupe: c.Dedupe, MaxBody: c.MaxBody, Log: log,
	})
	c.Announce(log, listeners.Address(), keys.Keys())
	return s.Serve(ctx, listeners)
}
