package logs

import (
	"log"
	"log/slog"
	"strings"
)

// CaptureStandard has what the standard library prints, and what anyone prints with the packages log and log/slog,
// written as lines of l. Restore undoes that.
func CaptureStandard(l *slog.Logger) (restore func()) {
	slogger, writer, flags, prefix := slog.Default(), log.Writer(), log.Flags(), log.Prefix()
	slog.SetDefault(l)
	log.SetOutput(standard{l})
	log.SetFlags(0)
	log.SetPrefix("")
	return func() {
		slog.SetDefault(slogger)
		log.SetOutput(writer)
		log.SetFlags(flags)
		log.SetPrefix(prefix)
	}
}

// standard takes what the standard log prints.
type standard struct{ log *slog.Logger }

// Write implements io.Writer.
func (s standard) Write(p []byte) (int, error) {
	text := strings.TrimSuffix(string(p), "\n")
	// net/http quotes what it was sent here, which is the app's or whoever's.
	const unsolicited = "Unsolicited response received on idle HTTP channel"
	switch {
	case strings.HasPrefix(text, unsolicited):
		s.log.Warn("a service that this program calls has sent something without being asked, on a kept connection, " +
			"which is given up; what it sent is not shown")
	case strings.HasPrefix(text, "http"):
		s.log.Warn(text)
	default:
		s.log.Info(text)
	}
	Flush(s.log) // it may be log.Fatal's
	return len(p), nil
}
