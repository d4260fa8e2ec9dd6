package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"

	"qstash-receiver/internal/deliver"
	"qstash-receiver/internal/dev"
	"qstash-receiver/internal/settings"
)

// Heard is told what the receiver's log says of a delivery.
type Heard func(messageID string, attempt int, row *deliver.Row, next deliver.Next)

// Dev has serve run a receiver, and beside it a stand-in for QStash, until ctx ends or either fails. Terminal says
// that the log goes to one.
func Dev(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer, terminal bool,
	serve func(ctx context.Context, s settings.Settings, heard Heard) error) error {
	flags := flag.NewFlagSet("dev", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	port := flags.Int("port", 8081, "the `PORT` of the stand-in for QStash and its page, on 127.0.0.1")
	speed := flags.Float64("speed", 1, "divides delays and the waits between retries by `N`")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(stdout, "receiver dev serves on this machine alone, beside a stand-in for QStash with a page. All is in memory.")
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return nil
	} else if err != nil {
		return UsageError("dev: " + err.Error())
	}
	switch {
	case flags.NArg() > 0:
		return UsageError(fmt.Sprintf("dev: what is %q for?", flags.Arg(0)))
	case *port < 0 || *port > 65535:
		return UsageError(fmt.Sprintf("dev: -port is %d, not a port up to 65535", *port))
	case !(*speed >= 1):
		return UsageError(fmt.Sprintf("dev: -speed is %g, not a number from 1 on", *speed))
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	if err != nil {
		return fmt.Errorf("dev: serve the stand-in for QStash: %w; stop what uses the port, or give another with -port", err)
	}
	defer listener.Close()
	url := "http://" + listener.Addr().String()
	s, err := settings.LoadDev(getenv, terminal, url)
	if err != nil {
		return err
	}
	if s.Port == 0 { // what is published to is to be said before the receiver listens
		if s.Port, err = freePort(); err != nil {
			return err
		}
	}
	destination := fmt.Sprintf("http://localhost:%d/orders", s.Port)
	stand := dev.New(dev.Config{Speed: *speed, Destination: destination})
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		ended <- stand.Serve(ctx, listener)
		stop()
	}()
	fmt.Fprintf(stdout, "QStash stands in at %s, with a page there. Publish to it:\n\n  curl %s/v2/publish/%s -d '{\"order\":1}'\n\n", url, url, destination)
	err = serve(ctx, s, func(id string, attempt int, row *deliver.Row, next deliver.Next) {
		stand.Heard(id, attempt, row.Outcome, row.Reason, string(next))
	})
	stop()
	return errors.Join(err, <-ended)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("dev: find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
