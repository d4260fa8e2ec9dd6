package command

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2/unstable"

	"qstash-receiver/internal/settings"
)

const (
	// stopTime is how long a stop takes at most, after the business logic's deadline.
	stopTime = 15 * time.Second
	// Of Fly's: what it gives a machine to stop where fly.toml does not say, and at most.
	defaultKillTimeout = 5 * time.Second
	maxKillTimeout     = 300 * time.Second
)

// flyToml checks that Fly gives a machine the time that a stop takes.
func (r *report) flyToml(path string, s settings.Settings) {
	const what = "fly.toml"
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		r.wrong(what, "%v", err)
		return
	}
	killTimeout, handlerTimeout, err := readFlyToml(string(text))
	if handlerTimeout == 0 {
		handlerTimeout = s.HandlerTimeout
	}
	needed := handlerTimeout + stopTime
	switch {
	case err != nil:
		r.wrong(what, "%v", err)
	case handlerTimeout == 0: // a wrong setting, which has its line
	case killTimeout > maxKillTimeout:
		r.wrong(what, "kill_timeout is %s, Fly allows %s; set it to that, and HANDLER_TIMEOUT to at most %s", killTimeout, maxKillTimeout, maxKillTimeout-stopTime)
	case needed > maxKillTimeout:
		r.wrong(what, "HANDLER_TIMEOUT is %s, and Fly gives a machine at most %s to stop; set it to at most %s, and kill_timeout to 300s",
			handlerTimeout, maxKillTimeout, maxKillTimeout-stopTime)
	case killTimeout < needed:
		r.wrong(what, "kill_timeout is %s, but messages that run at a stop take up to HANDLER_TIMEOUT (%s) + %s; set kill_timeout = '%.0fs'",
			killTimeout, handlerTimeout, stopTime, needed.Seconds())
	default:
		r.ok(what, "kill_timeout is %s, a stop takes up to HANDLER_TIMEOUT (%s) + %s", killTimeout, handlerTimeout, stopTime)
	}
}

// readFlyToml returns how long Fly lets a machine take to stop, and the HANDLER_TIMEOUT that [env] sets; 0: none.
func readFlyToml(text string) (killTimeout, handlerTimeout time.Duration, err error) {
	values, err := flySettings(text)
	if err != nil {
		return 0, 0, fmt.Errorf("read it: %w", err)
	}
	killTimeout = defaultKillTimeout
	if text, ok := values["kill_timeout"]; ok {
		if killTimeout, err = flyDuration(text); err != nil {
			return 0, 0, fmt.Errorf("kill_timeout: %w", err)
		}
	}
	if text := strings.TrimSpace(values["env.HANDLER_TIMEOUT"]); text != "" {
		if handlerTimeout, err = time.ParseDuration(text); err != nil || handlerTimeout <= 0 {
			return 0, 0, fmt.Errorf("env: HANDLER_TIMEOUT is %q, not a duration; write it like '45s'", text)
		}
	}
	return killTimeout, handlerTimeout, nil
}

// flySettings returns the texts of a fly.toml's values by their names, like env.HANDLER_TIMEOUT. It looks through lists:
// flyctl writes some tables as lists of one. Only the parser is used: decoding would make the program 200 KB larger.
func flySettings(text string) (map[string]string, error) {
	values := map[string]string{}
	var keep func(name string, value *unstable.Node)
	keep = func(name string, value *unstable.Node) {
		switch value.Kind {
		case unstable.Array, unstable.InlineTable:
			for inner := value.Children(); inner.Next(); {
				keep(name, inner.Node())
			}
		case unstable.KeyValue:
			keep(name+flyName(value), value.Value())
		default:
			values[strings.TrimPrefix(name, ".")] = string(value.Data)
		}
	}
	var parser unstable.Parser
	parser.Reset([]byte(text))
	table := ""
	for parser.NextExpression() {
		switch line := parser.Expression(); line.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = flyName(line)
		case unstable.KeyValue:
			keep(table, line)
		}
	}
	return values, parser.Error()
}

// flyName is the name of a table or key, a dot before each part.
func flyName(node *unstable.Node) string {
	name := ""
	for part := node.Key(); part.Next(); {
		name += "." + string(part.Node().Data)
	}
	return name
}

// flyDuration reads a duration as Fly does: a number is seconds.
func flyDuration(text string) (time.Duration, error) {
	if seconds, err := strconv.ParseFloat(text, 64); err == nil {
		return time.Duration(seconds * float64(time.Second)), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration; write it like '60s'", text)
	}
	return d, nil
}
