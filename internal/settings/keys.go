package settings

import (
	"errors"
	"fmt"
	"strings"

	"qstash-receiver/internal/api"
	"qstash-receiver/internal/signing"
)

// copyPair says how to set the key pair of a region: "", "EU_CENTRAL_1_", "US_EAST_1_".
func copyPair(region string) string {
	return fmt.Sprintf("copy both keys from the Upstash console (QStash, Signing Keys) and set them in one command: "+
		"flyctl secrets set %sQSTASH_CURRENT_SIGNING_KEY=sig_... %[1]sQSTASH_NEXT_SIGNING_KEY=sig_...", region)
}

// keys reads all key pairs and tokens, and QSTASH_DEV, into s.
func (e *environment) keys(s *Settings) {
	before := len(e.errs)
	s.Dev = e.dev(*s)
	var current, next []signing.Key
	for _, region := range api.Regions() {
		prefix := region.Prefix
		base := e.apiURL(region)
		if token := e.token(prefix + "QSTASH_TOKEN"); token != "" && base != nil {
			s.APIs = append(s.APIs, api.New(prefix, base, token))
		}
		currentName, nextName := prefix+"QSTASH_CURRENT_SIGNING_KEY", prefix+"QSTASH_NEXT_SIGNING_KEY"
		c, n := e.key(currentName, prefix), e.key(nextName, prefix)
		switch {
		case c == "" && n == "":
			continue
		case c == "":
			e.wrong(currentName, "not set, but %s is; %s", nextName, copyPair(prefix))
		case n == "":
			e.wrong(nextName, "not set, but %s is; %s", currentName, copyPair(prefix))
		case c == n:
			e.warnings = append(e.warnings, currentName+" and "+nextName+" are the same key: once the keys are rolled, every message is refused; "+copyPair(prefix))
		}
		current = append(current, signing.NewKey("current", prefix, c))
		next = append(next, signing.NewKey("next", prefix, n))
	}
	if s.Dev {
		current = append(current, signing.NewKey("current", signing.DevRegion, signing.DevCurrent))
		next = append(next, signing.NewKey("next", signing.DevRegion, signing.DevNext))
	}
	if len(current)+len(s.APIs) == 0 && len(e.errs) == before {
		e.wrong("QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY", "not set; %s; or set QSTASH_TOKEN, with which they are fetched "+
			"(on your own machine, QSTASH_DEV=true uses the keys of QStash's local server)", copyPair(""))
	}
	s.Keys = append(current, next...)
}

// key reads one key of a region's pair; "": not set.
func (e *environment) key(name, region string) string {
	v := e.variable(name)
	if v == "" {
		return ""
	}
	switch err := signing.Check(v); {
	case errors.Is(err, signing.ErrPublished):
		e.wrong(name, "%v; %s (on your own machine, QSTASH_DEV=true takes those of user 1)", err, copyPair(region))
	case err != nil:
		e.wrong(name, "%v; a key is sig_ and at least 20 letters and digits, as the Upstash console shows it (QStash, Signing Keys)", err)
	}
	return v
}

// dev reads QSTASH_DEV, which is refused where strangers can reach the program.
func (e *environment) dev(s Settings) bool {
	if v := e.oneOf("QSTASH_DEV", "true", "1", "false", "0"); v != "true" && v != "1" {
		return false
	}
	const why = "anyone can sign with the keys of the local server; unset it"
	if s.Deployed != "" {
		e.wrong("QSTASH_DEV", "refused where the program is deployed (%s is set): %s and %s", s.Deployed, why, copyPair(""))
		return false
	}
	for _, origin := range s.Origins {
		if strings.HasPrefix(origin, "https:") {
			e.wrong("QSTASH_DEV", "refused beside the RECEIVER_URL %s, which is public: %s, or unset RECEIVER_URL", origin, why)
			return false
		}
	}
	return true
}
