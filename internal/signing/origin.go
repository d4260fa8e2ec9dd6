package signing

import (
	"net/url"
	"strings"
)

// Origin returns u's scheme and host as they are compared, without the scheme's default port: "https://app.fly.dev".
func Origin(u *url.URL) string {
	scheme, host := lower(u.Scheme), lower(u.Host)
	switch scheme {
	case "https":
		host = strings.TrimSuffix(host, ":443")
	case "http":
		host = strings.TrimSuffix(host, ":80")
	}
	return scheme + "://" + strings.TrimSuffix(host, ":")
}

// lower lowers A to Z and no other letter: strings.ToLower makes an i of U+0130, whose host is another one.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}
