package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v4"
)

// sign prints a curl command that delivers a message as QStash does, or the token of one.
func sign(args []string, getenv func(string) string, stdin io.Reader, stdout io.Writer) error {
	e := &environment{getenv: getenv}
	c := loadSigning(e)
	flags := flag.NewFlagSet("sign", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	data := flags.String("d", `{"hello":"world"}`, "the message's body: `DATA`, @FILE, or @- for standard input")
	to := flags.String("to", fmt.Sprintf("http://localhost:%d/", c.port), "the `URL` to post to; signed for RECEIVER_URL and its path if that is set")
	keyName := flags.String("key", "current", "the `NAME` of the key to sign with: current or next")
	expired := flags.Bool("expired", false, "make a token that has expired")
	tokenOnly := flags.Bool("token", false, "print the token alone")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(stdout, "receiver sign prints a signed curl command: receiver sign | sh")
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return nil
	} else if err != nil {
		return usageError("sign: " + err.Error())
	}
	target, err := url.Parse(*to)
	switch {
	case flags.NArg() > 0:
		return usageError(fmt.Sprintf("sign: what is %q for? give the body with -d", flags.Arg(0)))
	case *keyName != "current" && *keyName != "next":
		return usageError(fmt.Sprintf("sign: -key is %q, not current or next", *keyName))
	case err != nil || target.Scheme != "http" && target.Scheme != "https" || target.Host == "":
		return usageError(fmt.Sprintf("sign: -to is %q, not an http or https URL", *to))
	}
	if err := e.err(); err != nil {
		return err
	}
	body, err := readData(*data, stdin)
	if err != nil {
		return fmt.Errorf("sign: read the body: %w", err)
	}
	subject := *to
	if len(c.origins) > 0 {
		subject = c.origins[0] + target.RequestURI()
	}
	issued := time.Now()
	if *expired {
		issued = issued.Add(-tokenLifetime - c.tolerance - time.Minute)
	}
	var secret string
	for _, key := range c.keys {
		if key.name == *keyName {
			secret = string(key.secret)
			break
		}
	}
	token, err := signToken(body, subject, secret, issued)
	if err != nil {
		return err
	}
	// What is printed has been proven, so that a refusal is the receiver's word on its own settings.
	if err := verify(body, token, secret); err != nil && !*expired {
		return fmt.Errorf("sign: %w", err)
	}
	if *tokenOnly {
		_, err = fmt.Fprintln(stdout, token)
		return err
	}
	_, err = io.WriteString(stdout, curl(target.String(), token, c.bearer, body))
	return err
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

const tokenLifetime = 5 * time.Minute

// signToken makes a token with the claims of production's (captured in 2026), in its order.
func signToken(body []byte, subject, secret string, issued time.Time) (string, error) {
	hash := sha256.Sum256(body)
	return jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
		"aud":  "",
		"body": base64.URLEncoding.EncodeToString(hash[:]),
		"exp":  issued.Add(tokenLifetime).Unix(),
		"iat":  issued.Unix(),
		"iss":  "Upstash",
		"jti":  "jwt_" + randomID(),
		"nbf":  -62135596800, // the year 1, Go's zero time
		"sub":  subject,
	}).SignedString([]byte(secret))
}

// randomID is 28 characters that nobody guesses, like those in QStash's ids.
func randomID() string { return (rand.Text() + rand.Text())[:28] }

// curl returns a shell command that posts body to target with the headers of a first delivery.
func curl(target, token, bearer string, body []byte) string {
	contentType := "text/plain"
	if json.Valid(body) {
		contentType = "application/json"
	}
	headers := []string{
		"Content-Type: " + contentType,
		"User-Agent: Upstash-QStash",
		"Upstash-Message-Id: msg_" + randomID(),
		"Upstash-Retried: 0",
		"Upstash-Signature: " + token,
	}
	if bearer != "" {
		headers = append(headers, "Authorization: Bearer "+bearer)
	}
	// curl would expand brackets and remove dots from a path.
	command := "curl -sSi --globoff --path-as-is " + quote(target)
	for _, h := range headers {
		command += " \\\n  -H " + quote(h)
	}
	if len(body) < 32<<10 && isText(body) {
		return command + " \\\n  --data-raw " + quote(string(body)) + "\n"
	}
	// A shell takes neither a zero byte nor an argument of over 128 KiB.
	return "printf %s " + base64.StdEncoding.EncodeToString(body) + " | base64 -d | " + command + " \\\n  --data-binary @-\n"
}

func isText(b []byte) bool {
	return utf8.Valid(b) && !strings.ContainsFunc(string(b), func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' })
}

// quote makes s one word of a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
