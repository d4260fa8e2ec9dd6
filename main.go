// Receiver takes the messages that Upstash QStash delivers: it proves that QStash sent them, runs your function
// (handler.go) on each and answers so that QStash does the right thing next.
//
//	receiver        serves
//	receiver sign   prints a signed curl command to try it with (sign -h)
//	receiver -h     prints this
//
// All settings are environment variables. A blank one counts as unset.
//
//	PORT                          port to serve on (8080)
//	QSTASH_CURRENT_SIGNING_KEY    the key pair from the Upstash console,
//	QSTASH_NEXT_SIGNING_KEY       always both (required)
//	EU_CENTRAL_1_QSTASH_...       the same two names with a region in front: further
//	US_EAST_1_QSTASH_...          pairs; one whole pair must be set, all are tried
//	QSTASH_DEV                    true or 1: also take the published keys of QStash's
//	                              local server; refused on Fly (false)
//	RECEIVER_URL                  public origins of this service, comma separated, like
//	                              https://app.fly.dev: a message must be signed for one
//	                              of them and its own path and query; unset: for any
//	                              URL (on Fly https://$FLY_APP_NAME.fly.dev)
//	CLOCK_TOLERANCE               how far the clocks may be apart (0s)
//	BEARER_TOKEN                  if set, a message must bear it too:
//	                              Authorization: Bearer ...
//	MAX_BODY_BYTES                largest message (10485760)
//	HANDLER_TIMEOUT               how long your function may take (45s)
//	LOG_LEVEL                     debug, info, warn or error (info)
package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

//go:embed main.go
var source string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // so that a second signal ends the program at once
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "receiver:", err)
	if errors.As(err, new(usageError)) {
		os.Exit(2)
	}
	os.Exit(1)
}

// usageError is a command line that makes no sense.
type usageError string

func (e usageError) Error() string { return string(e) + "; see receiver -h" }

// run is the whole program. It returns when ctx has ended and all work is done, or with what went wrong.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		c, err := loadConfig(getenv)
		if err != nil {
			return err
		}
		return serve(ctx, c, slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: c.logLevel})))
	}
	switch args[0] {
	case "sign":
		return sign(args[1:], getenv, stdin, stdout)
	case "-h", "-help", "--help", "help":
		_, err := io.WriteString(stdout, help())
		return err
	}
	return usageError(fmt.Sprintf("unknown command %q", args[0]))
}

// help is the comment above.
func help() string {
	comment, _, _ := strings.Cut(source, "package main")
	return strings.ReplaceAll(strings.TrimPrefix(strings.ReplaceAll("\n"+comment, "\n//", "\n"), "\n "), "\n ", "\n")
}

// serve takes messages until ctx ends, then finishes those that it began.
func serve(ctx context.Context, c config, log *slog.Logger) error {
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", c.port))
	if err != nil {
		return fmt.Errorf("serve on port %d: %w; stop what uses the port, or set PORT to another", c.port, err)
	}
	inFlight := newInFlight()
	s := &server{
		verifier: &verifier{
			keys: c.keys, origins: c.origins, tolerance: c.tolerance, bearer: c.bearer, now: time.Now,
			bodies: &bodyReader{limit: c.maxBody, draining: inFlight.draining},
		},
		deliverer: &deliverer{run: runHandlers(handle, handleFailure), timeout: c.handlerTimeout, grace: 5 * time.Second, log: log, inFlight: inFlight},
		inFlight:  inFlight,
		log:       log,
		refusals: &lineLimit{rest: func(leftOut int) {
			log.Warn("refused deliveries left out of the log", "left_out", leftOut)
		}},
	}
	web := newHTTPServer(s, log)
	failed := make(chan error, 1)
	go func() { failed <- web.Serve(listener) }()
	c.announce(log, listener.Addr())

	select {
	case err := <-failed:
		return fmt.Errorf("serve on port %d: %w", c.port, err)
	case <-ctx.Done():
	}
	limit := c.handlerTimeout + 15*time.Second
	log.Info("stopping: no new messages, finishing what runs", "at_most", limit.String())
	stopped := make(chan error, 1)
	go func() { stopped <- web.Shutdown(context.Background()) }()
	select {
	case <-inFlight.drain():
	case <-time.After(limit):
		return fmt.Errorf("stop: still running after %s: %s", limit, strings.Join(inFlight.left(), ", "))
	}
	select { // the last answers leave; a stranger that keeps a connection open is not waited for
	case err = <-stopped:
	case <-time.After(5 * time.Second):
		err = web.Close()
	}
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("stop: %w", err)
	}
	log.Info("stopped")
	return nil
}

// announce logs what the program runs with, and what its owner should know of that.
func (c config) announce(log *slog.Logger, addr net.Addr) {
	if c.dev {
		log.Warn("QSTASH_DEV IS ON: ANYONE CAN SIGN MESSAGES, because the keys of QStash's local server are published")
	}
	log.Info("receiving", "address", addr.String(), "urls", c.origins, "keys", len(c.keys))
	if len(c.origins) == 0 {
		log.Info("RECEIVER_URL is not set: messages signed for any URL are taken")
	}
}
