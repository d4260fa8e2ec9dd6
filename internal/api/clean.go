package api

import (
	"encoding/base64"
	"fmt"
	"regexp"
	"strings"
	"unicode"
)

// secrets is what looks like a signing key, or like a token.
var secrets = regexp.MustCompile(`sig_[A-Za-z0-9]+|eyJ[A-Za-z0-9_+/=.-]+`)

const redacted = "[redacted]"

// clean makes a text of the API's fit for a log or a terminal: without the token, whole or in pieces, without keys,
// with control and bidirectional characters escaped, and short.
func (c *Client) clean(text string) string {
	const most = 300
	text = text[:min(len(text), 4*most)]
	text = secrets.ReplaceAllLiteralString(text, redacted)
	text = without(text, c.token)
	if decoded, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(c.token, "=")); err == nil {
		text = without(text, string(decoded)) // a token is the base64 of a user and a password
	}
	var b strings.Builder
	for _, r := range text {
		if b.Len() >= most {
			return b.String() + "..."
		}
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// without replaces every piece of secret in text that is long enough to tell something.
func without(text, secret string) string {
	const piece = 8
	if len(secret) == 0 {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); {
		end := min(i+min(piece, len(secret)), len(text))
		if !strings.Contains(secret, text[i:end]) || end-i < min(piece, len(secret)) {
			b.WriteByte(text[i])
			i++
			continue
		}
		for end < len(text) && strings.Contains(secret, text[i:end+1]) {
			end++
		}
		b.WriteString(redacted)
		i = end
	}
	return b.String()
}
