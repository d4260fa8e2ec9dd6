package settings

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"qstash-receiver/internal/api"
	"qstash-receiver/internal/signing"
)

// environment reads settings and collects what is wrong with them.
type environment struct {
	getenv   func(string) string
	terminal bool // the log goes to one
	errs     []error
	warnings []string
}

func (e *environment) wrong(name, format string, args ...any) {
	e.errs = append(e.errs, fmt.Errorf(name+": "+format, args...))
}

func (e *environment) err() error {
	if len(e.errs) == 0 {
		return nil
	}
	return &WrongError{e.errs}
}

// WrongError names every wrong setting.
type WrongError struct{ Each []error }

func (e *WrongError) Error() string {
	return fmt.Sprintf("these settings are wrong:\n%v", errors.Join(e.Each...))
}

// variable returns a variable without the white space round it.
func (e *environment) variable(name string) string { return strings.TrimSpace(e.getenv(name)) }

// get returns the setting, or its default where it is blank.
func (e *environment) get(name string) string {
	if v := e.variable(name); v != "" {
		return v
	}
	for _, s := range table() {
		if s.name != name {
			continue
		}
		for _, h := range s.hosts {
			if h.variable == "" && e.terminal || h.variable != "" && e.variable(h.variable) != "" {
				return os.Expand(h.value, e.variable)
			}
		}
		return s.def
	}
	panic("settings: " + name + " is not in the table")
}

func (e *environment) integer(name string, low, high int) int {
	v := e.get(name)
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		e.wrong(name, "%q is not a whole number from %d to %d", v, low, high)
	}
	return n
}

func (e *environment) duration(name string, low time.Duration) time.Duration {
	v := e.get(name)
	d, err := time.ParseDuration(v)
	const high = 365 * 24 * time.Hour // sums of two stay far from what a Duration holds
	if err != nil || d < low || d > high {
		e.wrong(name, "%q is not a duration from %s to %s; write it like 45s, 1m30s or 72h", v, low, high)
	}
	return d
}

func (e *environment) oneOf(name string, values ...string) string {
	v := strings.ToLower(e.get(name))
	if !slices.Contains(values, v) {
		e.wrong(name, "%q is none of %s", v, strings.Join(values, ", "))
	}
	return v
}

// bearer reads a secret that stands behind "Bearer " in a header.
func (e *environment) bearer(name string) string {
	v := e.variable(name)
	switch scheme, _, _ := strings.Cut(v, " "); {
	case strings.EqualFold(scheme, "Bearer"):
		e.wrong(name, "it starts with Bearer; give what follows alone")
	case strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }):
		e.wrong(name, "it has a control character in it, which no header carries; copy it again")
	}
	return v
}

// token reads a token of QStash's API; "": there is none, or it is wrong.
func (e *environment) token(name string) string {
	v := e.variable(name)
	fix := "copy the token from the Upstash console (QStash)"
	switch assigned, _, _ := strings.Cut(v, "="); {
	case strings.HasPrefix(v, "Bearer"):
		e.wrong(name, "it starts with Bearer; give what follows alone")
	case strings.HasPrefix(v, "sig_"):
		e.wrong(name, "it is a signing key, which begins with sig_; %s", fix)
	case strings.ContainsAny(v, "\"'`“”‘’"):
		e.wrong(name, "it has quotes round it; give it without")
	case strings.HasSuffix(assigned, "QSTASH_TOKEN"):
		e.wrong(name, "it has NAME= before it; give what follows alone")
	case strings.Contains(v, "..") || strings.ContainsAny(v, "…<>${}"):
		e.wrong(name, "it looks like a placeholder; %s", fix)
	case strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		e.wrong(name, "it has white space or another character in it that a token has not; %s", fix)
	default:
		return v
	}
	return ""
}

// apiURL reads where the API of a region is; nil: it is wrong.
func (e *environment) apiURL(region api.Region) *url.URL {
	name := region.Prefix + "QSTASH_URL"
	v := e.variable(name)
	if v == "" {
		v = region.URL
	}
	u := e.httpURL(name, v)
	switch {
	case u == nil:
		return nil
	case strings.Trim(u.Path, "/") != "":
		e.wrong(name, "%q has a path; give the origin alone: %s", u, signing.Origin(u))
	case u.Scheme != "https" && !isLoopback(u.Hostname()):
		e.wrong(name, "%s would show the token to everyone on the way; give the https URL (http is for loopback alone)", signing.Origin(u))
	default:
		return u
	}
	return nil
}

func isLoopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && address.IsLoopback()
}

// origins reads a comma list of origins, each as signing.Origin returns it.
func (e *environment) origins(name string) []string {
	v := e.get(name)
	if v == "" {
		return nil
	}
	var list []string
	for item := range strings.SplitSeq(v, ",") {
		item = strings.TrimSpace(item)
		if strings.ContainsAny(item, " ;\t\n") {
			e.wrong(name, "it has something other than commas between the origins; write it like https://a.example,https://b.example")
			continue
		}
		u := e.httpURL(name, item)
		if u == nil {
			continue
		}
		if u.Path != "" && u.Path != "/" {
			e.wrong(name, "%q has a path; give the origin alone: %s", u, signing.Origin(u))
			continue
		}
		list = append(list, signing.Origin(u))
	}
	return list
}

// httpURL parses an absolute http or https URL that has neither login, query nor fragment; nil: it is wrong.
func (e *environment) httpURL(name, v string) *url.URL {
	const likeThis = "write it like https://host or http://host:port"
	u, err := url.Parse(v)
	switch {
	case err != nil: // its text repeats v, which may hold a password
		e.wrong(name, "not a URL; %s", likeThis)
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "": // v may be a login
		e.wrong(name, "not an http or https URL; %s", likeThis)
	case u.User != nil:
		e.wrong(name, "%s has a login before it; give it without", signing.Origin(u))
	case strings.ContainsAny(v, "?#"):
		e.wrong(name, "%s has a query or a fragment behind it; give it without", signing.Origin(u))
	case u.Port() != "" && !isPort(u.Port()):
		e.wrong(name, "%s has no port of a network; give one up to 65535", signing.Origin(u))
	default:
		return u
	}
	return nil
}

func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0
}
