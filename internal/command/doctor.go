package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"

	"qstash-receiver/internal/logs"
	"qstash-receiver/internal/settings"
	"qstash-receiver/internal/signing"
)

// Doctor checks what the program would run with, a line each: its settings, its store, fly.toml, with a token what
// QStash's API says, with -to the way there from outside. It runs no business logic, and changes nothing. Its error
// says that something is wrong.
func Doctor(ctx context.Context, args []string, getenv func(string) string, stdout io.Writer) error {
	flags := flag.NewFlagSet("doctor", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	to := flags.String("to", "", "the public `URL` of a running receiver, to be asked as QStash would: https://app.fly.dev")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(stdout, "receiver doctor checks settings, store, fly.toml and, with a token, what QStash says of them")
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return nil
	} else if err != nil {
		return UsageError("doctor: " + err.Error())
	}
	if flags.NArg() > 0 {
		return UsageError(fmt.Sprintf("doctor: what is %q for? give the URL with -to", flags.Arg(0)))
	}
	var target *url.URL
	if *to != "" {
		var err error
		if target, err = httpURL(*to); err != nil {
			return UsageError("doctor: -to is " + err.Error())
		}
		if target.User != nil {
			return UsageError("doctor: -to has a login before its host; give it without")
		}
	}

	r := &report{out: stdout, colour: logs.IsTerminal(stdout)}
	s := r.settings(getenv)
	r.store(ctx, s)
	r.flyToml("fly.toml", s)
	for _, client := range s.APIs {
		r.account(ctx, s, client)
	}
	if target != nil {
		r.way(ctx, s, target)
	}
	if r.wrongs > 0 {
		return fmt.Errorf("doctor: %d wrong, each with its fix in its line", r.wrongs)
	}
	return nil
}

// report is what has been found. A line is printed as soon as its check was made.
type report struct {
	out    io.Writer
	colour bool
	wrongs int
}

func (r *report) ok(what, format string, args ...any) { r.line("ok", "32", what, format, args) }

func (r *report) warning(what, format string, args ...any) {
	r.line("warning", "33", what, format, args)
}

func (r *report) wrong(what, format string, args ...any) {
	r.wrongs++
	r.line("wrong", "31", what, format, args)
}

func (r *report) line(verdict, colour, what, format string, args []any) {
	verdict = fmt.Sprintf("%-7s", verdict)
	if r.colour {
		verdict = "\x1b[" + colour + "m" + verdict + "\x1b[0m"
	}
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	fmt.Fprintf(r.out, "%s  %-13s  %s\n", verdict, what, text)
}

// settings reads them as serving does. Of wrong ones, what is right is checked all the same.
func (r *report) settings(getenv func(string) string) settings.Settings {
	s, err := settings.Load(getenv, false)
	var wrong *settings.WrongError
	if errors.As(err, &wrong) {
		for _, each := range wrong.Each {
			r.wrong("settings", "%v", each)
		}
	} else {
		urls := strings.Join(s.Origins, ", ")
		if urls == "" {
			urls = "any URL, as RECEIVER_URL is not set"
		}
		r.ok("settings", "keys from %s; for %s; store %s", strings.Join(s.KeySources(), ", "), urls, s.Store.Kind)
	}
	for _, warning := range s.Warnings {
		r.warning("settings", "%s", warning)
	}
	if s.Dev {
		r.warning("settings", "QSTASH_DEV is on: anyone can sign messages with the keys of QStash's local server")
	}
	return s
}

// warnings is a log that has its warnings reported, each once.
type warnings struct {
	slog.Handler
	report *report
	what   string
	said   map[string]bool
}

// Handle implements slog.Handler.
func (w warnings) Handle(_ context.Context, record slog.Record) error {
	if record.Level < slog.LevelWarn || w.said[record.Message] {
		return nil
	}
	w.said[record.Message] = true
	text := record.Message
	record.Attrs(func(a slog.Attr) bool {
		text += fmt.Sprintf(", %s %s", a.Key, a.Value)
		return true
	})
	w.report.warning(w.what, "%s", text)
	return nil
}

func (r *report) log(what string) *slog.Logger {
	return slog.New(warnings{slog.DiscardHandler, r, what, map[string]bool{}})
}

// firstKey returns a key to sign with.
func firstKey(ctx context.Context, s settings.Settings) (signing.Key, error) {
	if len(s.Keys)+len(s.APIs) == 0 {
		return signing.Key{}, errors.New("there is no key to sign with")
	}
	return signingKey(ctx, s, "current")
}
