// Package command has the program's commands beside serving: sign and doctor.
package command

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"qstash-receiver/internal/settings"
	"qstash-receiver/internal/signing"
)

// UsageError is a command line that makes no sense.
type UsageError string

func (e UsageError) Error() string { return string(e) + "; see receiver -h" }

// Sign prints a curl command that delivers a message as QStash does, or the token of one. Where the keys come from
// QStash's API, it fetches them.
func Sign(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout io.Writer) error {
	s, wrong := settings.LoadSigning(getenv)
	flags := flag.NewFlagSet("sign", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	data := flags.String("d", `{"hello":"world"}`, "the message's body: `DATA`, @FILE, or @- for standard input")
	to := flags.String("to", fmt.Sprintf("http://localhost:%d/", s.Port), "the `URL` to post to; signed for RECEIVER_URL and its path if that is set")
	keyName := flags.String("key", "current", "the `NAME` of the key to sign with: current or next")
	expired := flags.Bool("expired", false, "make a token that has expired")
	tokenOnly := flags.Bool("token", false, "print the token alone")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(stdout, "receiver sign prints a signed curl command: receiver sign | sh")
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return nil
	} else if err != nil {
		return UsageError("sign: " + err.Error())
	}
	target, err := httpURL(*to)
	switch {
	case flags.NArg() > 0:
		return UsageError(fmt.Sprintf("sign: what is %q for? give the body with -d", flags.Arg(0)))
	case *keyName != "current" && *keyName != "next":
		return UsageError(fmt.Sprintf("sign: -key is %q, not current or next", *keyName))
	case err != nil:
		return UsageError("sign: -to is " + err.Error())
	case target.User != nil: // everyone on the machine can see the arguments of a process
		return UsageError("sign: -to has a login before its host; give it without")
	case wrong != nil:
		return wrong
	}
	body, err := readData(*data, stdin)
	if err != nil {
		return fmt.Errorf("sign: read the body: %w", err)
	}
	subject := *to
	if len(s.Origins) > 0 {
		subject = s.Origins[0] + target.RequestURI()
	}
	issued := time.Now()
	if *expired {
		issued = issued.Add(-signing.Lifetime - s.Tolerance - time.Minute)
	}
	key, err := signingKey(ctx, s, *keyName)
	if err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	token, err := key.Sign(body, subject, issued)
	if err != nil {
		return err
	}
	if *tokenOnly {
		_, err = fmt.Fprintln(stdout, token)
		return err
	}
	_, err = io.WriteString(stdout, curl(target.String(), headers(token, body), s.Bearer, body))
	return err
}

// httpURL parses an absolute http or https URL.
func httpURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%q, not an http or https URL", text)
	}
	return u, nil
}

// signingKey returns the first key of that name that is set or, where none is, that QStash's API gives.
func signingKey(ctx context.Context, s settings.Settings, name string) (signing.Key, error) {
	for _, key := range s.Keys {
		if key.Name == name {
			return key, nil
		}
	}
	client := s.Fetched()[0] // without keys there is a token, or the settings were wrong
	pair, err := client.Keys(ctx)
	if err != nil {
		return signing.Key{}, fmt.Errorf("fetch the keys with %s: %w", client.TokenName(), err)
	}
	if name == "next" {
		return pair.Next, nil
	}
	return pair.Current, nil
}

func readData(data string, stdin io.Reader) ([]byte, error) {
	file, ok := strings.CutPrefix(data, "@")
	switch {
	case !ok:
		return []byte(data), nil
	case file == "-":
		return io.ReadAll(stdin)
	}
	return os.ReadFile(file)
}

// headers are those of a first delivery, less the bearer's.
func headers(token string, body []byte) http.Header {
	h := http.Header{
		"Content-Type":       {"text/plain"},
		"User-Agent":         {"Upstash-QStash"},
		"Upstash-Message-Id": {"msg_" + signing.NewID()},
		"Upstash-Retried":    {"0"},
		"Upstash-Signature":  {token},
	}
	if json.Valid(body) {
		h.Set("Content-Type", "application/json")
	}
	return h
}

// curl returns a shell command that posts body to target with header and, unless it is "", bearer.
func curl(target string, header http.Header, bearer string, body []byte) string {
	// curl would expand brackets and remove dots from a path.
	command := "curl -sSi --globoff --path-as-is " + quote(target)
	for _, name := range slices.Sorted(maps.Keys(header)) {
		command += " \\\n  -H " + quote(name+": "+header.Get(name))
	}
	secret := "\n"
	if bearer != "" { // in a file of the shell's: everyone on the machine can see the arguments of a process
		command += " \\\n  -H @/dev/fd/3"
		secret = " 3<<'END'\nAuthorization: Bearer " + bearer + "\nEND\n"
	}
	if len(body) < 32<<10 && isText(body) {
		return command + " \\\n  --data-raw " + quote(string(body)) + secret
	}
	// A shell takes neither a zero byte nor an argument of over 128 KiB.
	return "printf %s " + base64.StdEncoding.EncodeToString(body) + " | base64 -d | " + command + " \\\n  --data-binary @-" + secret
}

func isText(b []byte) bool {
	return utf8.Valid(b) && !strings.ContainsFunc(string(b), func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' })
}

// quote makes s one word of a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
