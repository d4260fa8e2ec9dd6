package command

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

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
	var file struct {
		KillTimeout any `toml:"kill_timeout"`
		Env         any `toml:"env"` // flyctl writes some tables as lists of one
	}
	if _, err := toml.Decode(text, &file); err != nil {
		return 0, 0, fmt.Errorf("read it: %w", err)
	}
	killTimeout = defaultKillTimeout
	if file.KillTimeout != nil {
		if killTimeout, err = flyDuration(file.KillTimeout); err != nil {
			return 0, 0, fmt.Errorf("kill_timeout: %w", err)
		}
	}
	tables, isList := file.Env.([]map[string]any)
	if table, ok := file.Env.(map[string]any); ok && !isList {
		tables = []map[string]any{table}
	}
	for _, table := range tables {
		text := strings.TrimSpace(fmt.Sprint(table["HANDLER_TIMEOUT"]))
		if table["HANDLER_TIMEOUT"] == nil || text == "" {
			continue
		}
		if handlerTimeout, err = time.ParseDuration(text); err != nil || handlerTimeout <= 0 {
			return 0, 0, fmt.Errorf("env: HANDLER_TIMEOUT is %q, not a duration; write it like '45s'", text)
		}
	}
	return killTimeout, handlerTimeout, nil
}

// flyDuration reads a duration as Fly does: a number is seconds.
func flyDuration(value any) (time.Duration, error) {
	text := fmt.Sprint(value)
	if seconds, err := strconv.ParseFloat(text, 64); err == nil {
		return time.Duration(seconds * float64(time.Second)), nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration; write it like '60s'", text)
	}
	return d, nil
}
