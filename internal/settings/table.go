package settings

import (
	"fmt"
	"strings"
)

// setting is a row of the table.
type setting struct {
	name  string
	def   string        // its value where it is not set; "": none
	hosts []hostDefault // its values there instead
	words string        // what it means
}

// hostDefault is a setting's value on a host, which is known by a variable that it sets; "": on a terminal.
type hostDefault struct{ variable, value, where string }

// table has every setting. It is where names and defaults stand: reading, -h and README follow it.
func table() []setting {
	return []setting{
		{name: "PORT", def: "8080", words: "the public listener; 0: any free one, which the log names"},
		{name: "QSTASH_CURRENT_SIGNING_KEY", words: "the key pair from the Upstash console,"},
		{name: "QSTASH_NEXT_SIGNING_KEY", words: "always both"},
		{name: "QSTASH_TOKEN", words: "the token from there; where there is no key pair, it fetches the keys and keeps up with them"},
		{name: "QSTASH_URL", def: "https://qstash.upstash.io", words: "the API that the token is for"},
		{name: "EU_CENTRAL_1_QSTASH_...", words: "the same four names with a region before them: further pairs and"},
		{name: "US_EAST_1_QSTASH_...", words: "tokens, whose default URLs are the regional ones. One pair or token must be set; all keys are tried"},
		{name: "QSTASH_DEV", def: "false", words: "true or 1: also take the published keys of QStash's local server; refused where the program is deployed, " +
			"and beside a RECEIVER_URL that is https"},
		{name: "RECEIVER_URL", hosts: []hostDefault{
			{"FLY_APP_NAME", "https://$FLY_APP_NAME.fly.dev", "on Fly"},
			{"RENDER_EXTERNAL_URL", "$RENDER_EXTERNAL_URL", "on Render"},
			{"RAILWAY_PUBLIC_DOMAIN", "https://$RAILWAY_PUBLIC_DOMAIN", "on Railway"},
		}, words: "the public origins of this service, with commas between, like https://app.fly.dev: a message must be signed for one of them and its own path and query. " +
			"Unset: for any URL. On Lambda it is the function URL"},
		{name: "CLOCK_TOLERANCE", def: "0s", words: "how far the clocks may be apart"},
		{name: "BEARER_TOKEN", words: "if set, a message must carry it too: Authorization: Bearer ..."},
		{name: "MAX_BODY_BYTES", def: "10485760", words: "the largest message, at most 67108864"},
		{name: "HANDLER_TIMEOUT", def: "45s", words: "how long your function may take; on Fly at most 15 s less than kill_timeout"},
		{name: "STORE_URL", def: "memory:", words: "where handled messages are remembered: memory:, a file path (SQLite), redis://..., rediss://... or postgres://..."},
		{name: "STORE_TTL", def: "72h", words: "how long answers are remembered"},
		{name: "DEDUPE_KEY", words: "a JSON pointer into the body, like /order/id: messages to one path with the same value there are one message"},
		{name: "FORWARD_URL", words: "an HTTP service that messages are posted on to, path and query added; unset: they go to handler.go"},
		{name: "METRICS_PORT", def: "0", hosts: []hostDefault{{"FLY_APP_NAME", "9091", "on Fly"}}, words: "the port of Prometheus metrics, off Fly on loopback; 0: none"},
		{name: "LOG_LEVEL", def: "info", words: "debug (for lines of your own), info, warn or error"},
		{name: "LOG_FORMAT", def: "json", hosts: []hostDefault{{"", "text", "on a terminal"}}, words: "one JSON object a line, or a line for people (text)"},
	}
}

// defaults is the default in words: "9091 on Fly, else 0".
func (s setting) defaults() string {
	otherwise := s.def
	if otherwise == "" {
		otherwise = "unset"
	}
	if len(s.hosts) == 0 {
		return otherwise
	}
	var b strings.Builder
	for _, h := range s.hosts {
		fmt.Fprintf(&b, "%s %s, ", h.value, h.where)
	}
	return b.String() + "else " + otherwise
}

// Help is what -h prints: the commands, and the table in words.
func Help() string {
	const indent, width = 32, 100
	var b strings.Builder
	b.WriteString(`Receiver takes the messages that Upstash QStash delivers: it proves that QStash sent them, runs your
function (handler.go) on each and answers so that QStash does the right thing next.

  receiver           serves
  receiver sign      prints a signed curl command to try it with (sign -h)
  receiver doctor    checks settings, store, keys, and the way to it from outside (doctor -h)
  receiver dev       serves beside a stand-in for QStash, on this machine alone (dev -h)
  receiver -h        prints this

All settings are environment variables. A blank one counts as unset.

`)
	for _, s := range table() {
		words := s.words
		if d := s.defaults(); d != "unset" {
			words += " (" + d + ")"
		}
		fmt.Fprintf(&b, "  %-*s", indent-2, s.name)
		column := indent
		for i, word := range strings.Fields(words) {
			if column+len(word) >= width {
				fmt.Fprintf(&b, "\n%*s", indent, "")
				column = indent
			} else if i > 0 {
				b.WriteByte(' ')
				column++
			}
			b.WriteString(word)
			column += len(word)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
