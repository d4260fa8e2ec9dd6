// Package logs writes the program's log: one JSON object a line, or one line for people, with the same words. No line
// has more than 8 KiB, whatever goes into it: longer values are cut, and what a terminal or an editor would obey rather
// than show is escaped.
package logs

import (
	"io"
	"log/slog"
	"os"
)

// New returns the log that writes to w each line of level or above. Where w is a *Writer, a line at ERROR has it write
// at once.
func New(w io.Writer, level slog.Level, text bool) *slog.Logger {
	return slog.New(&handler{out: &output{w: w}, level: level, text: text, coloured: text && IsTerminal(w)})
}

// Flush has everything that log was given written, if it writes to a *Writer.
func Flush(log *slog.Logger) {
	if h, ok := log.Handler().(*handler); ok {
		h.out.flush()
	}
}

// IsTerminal says whether w is a terminal.
func IsTerminal(w io.Writer) bool {
	if gathered, ok := w.(*Writer); ok {
		w = gathered.w
	}
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
