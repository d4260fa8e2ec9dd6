// Receiver takes the messages that Upstash QStash delivers: it proves that QStash sent them, runs your function
// (handler.go) on each and answers so that QStash does the right thing next.
//
//	receiver        serves
//	receiver sign   prints a signed curl command to try it with (sign -h)
//	receiver -h     prints this
//
// All settings are environment variables. A blank one counts as unset.
//
//	PORT                          port to serve on (8080); 0: any free one
//	QSTASH_CURRENT_SIGNING_KEY    the key pair from the Upstash console,
//	QSTASH_NEXT_SIGNING_KEY       always both (required)
//	EU_CENTRAL_1_QSTASH_...       the same two names with a region in front: further
//	US_EAST_1_QSTASH_...          pairs; one whole pair must be set, all are tried
//	QSTASH_DEV                    true or 1: also take the published keys of QStash's
//	                              local server; refused on Fly (false)
//	RECEIVER_URL                  public origins of this service, comma separated, like
//	                              https://app.fly.dev: a message must be signed for one
//	                              of them and its own path and query; unset: for any
//	                              URL (on Fly https://$FLY_APP_NAME.fly.dev, on Lambda
//	                              the function URL)
//	CLOCK_TOLERANCE               how far the clocks may be apart (0s)
//	BEARER_TOKEN                  if set, a message must carry it too:
//	                              Authorization: Bearer ...
//	MAX_BODY_BYTES                largest message (10485760), at most 67108864
//	HANDLER_TIMEOUT               how long your function may take (45s); on Fly at most
//	                              15 s less than kill_timeout
//	STORE_URL                     where handled messages are remembered: memory:, a file
//	                              path (SQLite), redis://... or rediss://... (memory:)
//	STORE_TTL                     how long they are remembered (72h)
//	FORWARD_URL                   an HTTP service that messages are posted on to, path
//	                              and query added; unset: they go to handler.go
//	METRICS_PORT                  port of Prometheus metrics; 0: none (on Fly 9091, else 0)
//	LOG_LEVEL                     debug (for lines of your own), info, warn or
//	                              error (info)
package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

//go:embed main.go
var source string

func main() {
	ctx, stop := context.WithCancel(context.Background())
	if len(os.Args) == 1 { // serving; a command ends as any other does
		signals := make(chan os.Signal, 2)
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
		go func() {
			<-signals
			stop()
			<-signals
			fmt.Fprintln(os.Stderr, "receiver: ended at once by a second signal")
			os.Exit(1)
		}()
	}
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
	var text strings.Builder
	for line := range strings.Lines(comment) {
		text.WriteString(strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(line, "//"), " "), "\t"))
	}
	return text.String()
}
