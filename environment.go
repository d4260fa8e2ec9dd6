package main

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// environment reads settings and collects what is wrong with them.
type environment struct {
	getenv func(string) string
	errs   []error
}

func (e *environment) wrong(name, format string, args ...any) {
	e.errs = append(e.errs, fmt.Errorf(name+": "+format, args...))
}

func (e *environment) err() error {
	if len(e.errs) == 0 {
		return nil
	}
	return fmt.Errorf("the environment has %d wrong setting(s):\n%w", len(e.errs), errors.Join(e.errs...))
}

// get returns the setting without surrounding white space, or def where that leaves nothing.
func (e *environment) get(name, def string) string {
	if v := strings.TrimSpace(e.getenv(name)); v != "" {
		return v
	}
	return def
}

// token reads a secret that senders put behind "Bearer ".
func (e *environment) token(name string) string {
	v := e.get(name, "")
	if scheme, _, ok := strings.Cut(v, " "); ok && strings.EqualFold(scheme, "Bearer") {
		e.wrong(name, "it starts with Bearer; give what follows alone")
	}
	return v
}

func (e *environment) integer(name, def string, low, high int) int {
	v := e.get(name, def)
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		e.wrong(name, "%q is not a whole number from %d to %d", v, low, high)
	}
	return n
}

func (e *environment) duration(name, def string, low time.Duration) time.Duration {
	v := e.get(name, def)
	d, err := time.ParseDuration(v)
	const high = 365 * 24 * time.Hour // sums of two stay far from what a Duration holds
	if err != nil || d < low || d > high {
		e.wrong(name, "%q is not a duration from %s to %s; write it like 45s, 1m30s or 72h", v, low, high)
	}
	return d
}

func (e *environment) oneOf(name, def string, values ...string) string {
	v := strings.ToLower(e.get(name, def))
	if !slices.Contains(values, v) {
		e.wrong(name, "%q is none of %s", v, strings.Join(values, ", "))
		return def
	}
	return v
}

// keys reads all key pairs: the ordinary one, the regional ones and, if dev, the published one.
func (e *environment) keys(dev bool, flyApp string) []signingKey {
	var current, next []signingKey
	wrong := len(e.errs)
	for _, region := range []string{"", "EU_CENTRAL_1_", "US_EAST_1_"} {
		currentName, nextName := region+"QSTASH_CURRENT_SIGNING_KEY", region+"QSTASH_NEXT_SIGNING_KEY"
		c, n := e.get(currentName, ""), e.get(nextName, "")
		switch {
		case c == "" && n == "":
			continue
		case c == "":
			e.wrong(currentName, "not set, but %s is; %s", nextName, setKeys(region))
		case n == "":
			e.wrong(nextName, "not set, but %s is; %s", currentName, setKeys(region))
		}
		published := []string{devCurrentKey, devNextKey}
		for _, key := range [][2]string{{currentName, c}, {nextName, n}} {
			if flyApp != "" && slices.Contains(published, key[1]) {
				e.wrong(key[0], "this is the published development key, with which anyone can sign; %s", setKeys(region))
			}
		}
		current = append(current, signingKey{name: "current", secret: []byte(c), region: region})
		next = append(next, signingKey{name: "next", secret: []byte(n), region: region})
	}
	if dev && flyApp != "" {
		e.wrong("QSTASH_DEV", "refused on Fly (FLY_APP_NAME is %q): anyone can sign with the development keys; unset it and %s", flyApp, setKeys(""))
	} else if dev {
		current = append(current, signingKey{name: "current", secret: []byte(devCurrentKey), region: devRegion})
		next = append(next, signingKey{name: "next", secret: []byte(devNextKey), region: devRegion})
	}
	if len(current) == 0 && len(e.errs) == wrong {
		e.wrong("QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY",
			"not set; %s (on your own machine, QSTASH_DEV=true uses the keys of QStash's local server)", setKeys(""))
	}
	return append(current, next...)
}

// originList reads a comma list of origins, each as origin returns it.
func (e *environment) originList(name, def string) []string {
	v := e.get(name, def)
	if v == "" {
		return nil
	}
	var list []string
	for item := range strings.SplitSeq(v, ",") {
		u := e.httpURL(name, strings.TrimSpace(item))
		if u == nil {
			continue
		}
		if u.Path != "" && u.Path != "/" {
			e.wrong(name, "%q has a path; give the origin alone: %s", u, origin(u))
			continue
		}
		list = append(list, origin(u))
	}
	return list
}

// httpURL parses an absolute http or https URL that has neither login, query nor fragment; nil: it is wrong.
func (e *environment) httpURL(name, v string) *url.URL {
	u, err := url.Parse(v)
	switch {
	case err != nil: // its text repeats v, which may hold a password
		e.wrong(name, "not a URL; write it like https://host or http://host:port")
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		e.wrong(name, "not an http or https URL; write it like https://host or http://host:port") // v may be a login
	case u.User != nil:
		e.wrong(name, "%s has a login before it; give it without", origin(u))
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		e.wrong(name, "%s has a query or a fragment behind it; give it without", origin(u))
	case len(u.Port()) > 5 || len(u.Port()) == 5 && u.Port() > "65535":
		e.wrong(name, "%s has no port of a network; give one up to 65535", origin(u))
	default:
		return u
	}
	return nil
}

// origin returns u's scheme and host in lower case, without the scheme's default port: "https://app.fly.dev".
func origin(u *url.URL) string {
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	switch scheme {
	case "https":
		host = strings.TrimSuffix(host, ":443")
	case "http":
		host = strings.TrimSuffix(host, ":80")
	}
	return scheme + "://" + strings.TrimSuffix(host, ":")
}
