package logs

import (
	"unicode"
	"unicode/utf8"
)

// dots stand for what was cut.
const dots = "..."

// appendEscaped appends s so that it shows as what it is: control characters and those that turn the direction of
// writing are spelled as JSON spells them, quotes and backslashes too where quoted, and what is not UTF-8 becomes
// U+FFFD. Of a long s it appends as much as fits into most bytes, and dots.
func appendEscaped(buf []byte, s string, most int, quoted bool) []byte {
	cut := len(s) > most
	if cut {
		s = s[:runeBefore(s, most)]
	}
	end := len(buf) + most
	from := 0 // s[from:i] is as it should be, and not appended yet
	for i := 0; i < len(s); {
		if s[i] >= ' ' && s[i] < 0x7f && (!quoted || s[i] != '"' && s[i] != '\\') {
			i++
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if !mustSpell(r, size) {
			i += size
			continue
		}
		if len(buf)+i-from+len(`\u0000`) > end {
			s, cut = s[:i], true
			break
		}
		buf = append(buf, s[from:i]...)
		buf = appendSpelled(buf, r)
		i += size
		from = i
	}
	rest := s[from:]
	if room := end - len(buf); len(rest) > room {
		rest, cut = rest[:runeBefore(rest, room)], true
	}
	buf = append(buf, rest...)
	if cut {
		buf = append(buf, dots...)
	}
	return buf
}

// mustSpell says whether r, which took size bytes, is no character to be shown. Quotes and backslashes are not either.
func mustSpell(r rune, size int) bool {
	if r < utf8.RuneSelf {
		return true
	}
	return r == utf8.RuneError && size == 1 || unicode.In(r, unicode.Cc, unicode.Bidi_Control, unicode.Zl, unicode.Zp)
}

// appendSpelled appends r, which is below U+10000, as JSON spells it.
func appendSpelled(buf []byte, r rune) []byte {
	switch r {
	case '"', '\\':
		return append(buf, '\\', byte(r))
	case '\n':
		return append(buf, `\n`...)
	case '\r':
		return append(buf, `\r`...)
	case '\t':
		return append(buf, `\t`...)
	}
	const hex = "0123456789abcdef"
	return append(buf, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}

// runeBefore is where the last rune of s begins that ends after most bytes, or most.
func runeBefore(s string, most int) int {
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return max(most, 0)
}
