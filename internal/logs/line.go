package logs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxLine    = 8 << 10 // bytes, its end included
	maxMessage = 2 << 10
	maxName    = 128
	maxRest    = 512 // what an attribute and the end of the line need at least
)

// line is one line on its way to the log. Each value takes at most half of what is left, so that one long value leaves
// room for those behind it; when little is left the rest is left out, which the line says.
type line struct {
	buf            []byte
	most           int // bytes that buf and all that is held back may have
	text, coloured bool
	cut            bool // attributes were left out

	open   int    // groups that are open; as JSON each is an object in the line's own
	prefix string // text: their names, each with a dot behind it

	// Text: a delivery's outcome and what matters next stand in columns before everything else, its detail behind.
	columned bool
	start    int // where the columns begin in buf
	columns  [len(columns)]string
	detail   []byte
}

// columns are the attributes of a delivery that a line for people shows in columns of a width.
var columns = [...]struct {
	name  string
	width int
}{{"outcome", 9}, {"reason", 15}, {"status", 3}, {"ms", 8}, {"next", 23}}

// begin writes what each line begins with.
func (l *line) begin(r slog.Record) {
	if l.text {
		l.beginText(r)
		return
	}
	l.buf = append(l.buf, '{')
	if !r.Time.IsZero() {
		l.name("time")
		l.buf = append(l.buf, '"')
		l.buf = r.Time.UTC().AppendFormat(l.buf, time.RFC3339Nano)
		l.buf = append(l.buf, '"')
	}
	l.name("level")
	l.quoted(r.Level.String(), maxName)
	l.name("msg")
	l.quoted(r.Message, maxMessage)
}

func (l *line) beginText(r slog.Record) {
	if !r.Time.IsZero() {
		l.buf = r.Time.AppendFormat(l.buf, "15:04:05.000 ")
	}
	l.colour(levelColour(r.Level))
	l.buf = fmt.Appendf(l.buf, "%-5s", r.Level)
	l.colour(plain)
	l.buf = append(l.buf, ' ')
	l.buf = appendEscaped(l.buf, r.Message, maxMessage, false)
	if l.columned = r.Message == "delivery"; l.columned {
		l.start = len(l.buf)
		l.most -= len(columns) * 2 * maxName
	}
}

// resume goes on behind what h adds to each line.
func (l *line) resume(h *handler) {
	l.buf = append(l.buf, h.fixed...)
	l.open = h.opened
	if !l.text {
		return
	}
	for _, name := range h.groups[:h.opened] {
		l.prefix += name + "."
	}
}

// within calls members in groups, which are opened only if it adds something. They stay open.
func (l *line) within(groups []string, members func()) {
	start, open, prefix := len(l.buf), l.open, l.prefix
	for _, name := range groups {
		if l.isFull() {
			return
		}
		l.group(name)
	}
	began := len(l.buf)
	members()
	if len(l.buf) == began {
		l.buf, l.open, l.prefix = l.buf[:start], open, prefix
	}
}

func (l *line) group(name string) {
	l.open++
	if l.text {
		l.prefix += name + "."
		return
	}
	l.name(name)
	l.buf = append(l.buf, '{')
}

// closeTo ends groups until n are open.
func (l *line) closeTo(n int) {
	for ; l.open > n; l.open-- {
		if !l.text {
			l.buf = append(l.buf, '}')
		}
	}
}

// attr adds a, which may be a group of others.
func (l *line) attr(a slog.Attr) {
	v := a.Value.Resolve()
	switch {
	case a.Key == "" && v.Kind() == slog.KindAny && v.Any() == nil: // nothing, by slog's rules
	case v.Kind() != slog.KindGroup:
		l.value(a.Key, v)
	case a.Key == "":
		for _, member := range v.Group() {
			l.attr(member)
		}
	default:
		l.nested(a.Key, v.Group())
	}
}

func (l *line) nested(name string, members []slog.Attr) {
	if l.isFull() {
		return
	}
	open, prefix := l.open, l.prefix
	l.within([]string{name}, func() {
		for _, member := range members {
			l.attr(member)
		}
	})
	l.closeTo(open)
	l.prefix = prefix
}

// isFull says that there is no room for another attribute.
func (l *line) isFull() bool {
	if l.room()-l.open >= maxRest {
		return false
	}
	if !l.cut {
		l.cut = true
		l.name("cut")
		l.buf = append(l.buf, "true"...)
	}
	return true
}

// room is how many bytes may still come.
func (l *line) room() int { return l.most - len(l.buf) - len(l.detail) }

// value adds an attribute that is no group.
func (l *line) value(name string, v slog.Value) {
	if l.isFull() {
		return
	}
	if l.columned && l.prefix == "" && l.holdBack(name, v) {
		return
	}
	l.name(name)
	switch v.Kind() {
	case slog.KindString:
		l.string(v.String())
	case slog.KindInt64:
		l.buf = strconv.AppendInt(l.buf, v.Int64(), 10)
	case slog.KindUint64:
		l.buf = strconv.AppendUint(l.buf, v.Uint64(), 10)
	case slog.KindFloat64:
		l.float(v.Float64())
	case slog.KindBool:
		l.buf = strconv.AppendBool(l.buf, v.Bool())
	case slog.KindTime:
		l.string(v.Time().Format(time.RFC3339Nano))
	case slog.KindAny:
		l.any(v.Any())
	default: // a duration
		l.string(v.String())
	}
}

// holdBack keeps an attribute of a delivery for its place on a line for people, if it has one.
func (l *line) holdBack(name string, v slog.Value) bool {
	if name == "detail" {
		l.detail = appendEscaped(l.detail, v.String(), l.room()/2, false)
		return true
	}
	for i, column := range columns {
		if column.name == name {
			l.columns[i] = v.String()
			return true
		}
	}
	return false
}

// name begins an attribute.
func (l *line) name(name string) {
	if !l.text {
		if n := len(l.buf); n == 0 || l.buf[n-1] != '{' {
			l.buf = append(l.buf, ',')
		}
		l.quoted(name, maxName)
		l.buf = append(l.buf, ':')
		return
	}
	l.buf = append(l.buf, ' ')
	l.colour(dim)
	l.buf = appendEscaped(l.buf, l.prefix+name, maxName, true)
	l.buf = append(l.buf, '=')
	l.colour(plain)
}

// string adds a text as a value: for people in quotes only where it would be misread without.
func (l *line) string(s string) {
	if l.text && s != "" && s[0] != '"' && !strings.ContainsAny(s, " =\\\n\r\t") {
		l.buf = appendEscaped(l.buf, s, l.room()/2, false)
		return
	}
	l.quoted(s, l.room()/2)
}

func (l *line) quoted(s string, most int) {
	l.buf = append(l.buf, '"')
	l.buf = appendEscaped(l.buf, s, most, true)
	l.buf = append(l.buf, '"')
}

func (l *line) float(f float64) {
	if math.IsNaN(f) || math.IsInf(f, 0) { // JSON has no number for them
		l.string(strconv.FormatFloat(f, 'g', -1, 64))
		return
	}
	format := byte('f')
	if size := math.Abs(f); size != 0 && (size < 1e-6 || size >= 1e21) {
		format = 'e'
	}
	l.buf = strconv.AppendFloat(l.buf, f, format, -1, 64)
}

// any adds a value of any type: an error as its text, anything else as JSON.
func (l *line) any(v any) {
	encoded, isText := encode(v)
	if isText || len(encoded) > l.room()/2 {
		l.string(encoded)
		return
	}
	// What has to be spelled stands in JSON's texts alone, where it may be.
	spelled := appendEscaped(nil, encoded, len(encoded)*len(`\u0000`), false)
	if len(spelled) > l.room()/2 {
		l.string(encoded)
		return
	}
	l.buf = append(l.buf, spelled...)
}

// encode returns v as a text, or as JSON. The methods that it calls are somebody else's, and may panic.
func encode(v any) (encoded string, isText bool) {
	defer func() {
		if p := recover(); p != nil {
			encoded, isText = fmt.Sprintf("cannot be shown: %v", p), true
		}
	}()
	if err, ok := v.(error); ok {
		return err.Error(), true
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Sprintf("%+v", v), true
	}
	return strings.TrimSuffix(b.String(), "\n"), false
}

// end completes the line.
func (l *line) end() {
	l.closeTo(0)
	if !l.text {
		l.buf = append(l.buf, "}\n"...)
		return
	}
	if l.columned {
		l.buf = slices.Insert(l.buf, l.start, l.row()...)
	}
	if len(l.detail) > 0 {
		l.buf = append(append(l.buf, ' '), l.detail...)
	}
	l.buf = append(l.buf, '\n')
}

// row is the columns of a delivery.
func (l *line) row() []byte {
	var row []byte
	for i, value := range l.columns {
		row = append(row, ' ')
		row = appendEscaped(row, value, maxName, false)
		row = fmt.Appendf(row, "%*s", max(columns[i].width-len(value), 0), "")
	}
	return row
}

const (
	plain = "\x1b[0m"
	dim   = "\x1b[2m"
)

func (l *line) colour(code string) {
	if l.coloured {
		l.buf = append(l.buf, code...)
	}
}

func levelColour(level slog.Level) string {
	switch {
	case level >= slog.LevelError:
		return "\x1b[31m" // red
	case level >= slog.LevelWarn:
		return "\x1b[33m" // yellow
	case level >= slog.LevelInfo:
		return "\x1b[32m" // green
	}
	return dim
}
