package dev

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxCurlBody is up to where a body stands in the command itself.
const maxCurlBody = 32 << 10

// curl returns the command that publishes the same once more to the stand-in at base. A body that no shell takes as an
// argument is fetched from there.
func (p *message) curl(base string) string {
	path := "/v2/publish/"
	if p.queue != "" {
		path = "/v2/enqueue/" + p.queue + "/"
	}
	var b strings.Builder
	inline := len(p.body) <= maxCurlBody && utf8.Valid(p.body) && bytes.IndexByte(p.body, 0) < 0
	if !inline {
		fmt.Fprintf(&b, "curl -s %s | ", quote(base+"/messages/"+p.ID+"/body"))
	}
	fmt.Fprintf(&b, "curl -g --path-as-is -X POST %s", quote(base+path+p.destination))
	for _, name := range slices.Sorted(maps.Keys(p.asked)) {
		for _, v := range p.asked[name] {
			header := name + ": " + v
			if v == "" {
				header = name + ";" // curl drops "name:"
			}
			fmt.Fprintf(&b, " \\\n  -H %s", quote(header))
		}
	}
	if _, ok := p.asked["Content-Type"]; !ok {
		b.WriteString(" \\\n  -H 'Content-Type:'") // curl would set one
	}
	if inline {
		fmt.Fprintf(&b, " \\\n  --data-raw %s", quote(string(p.body)))
	} else {
		b.WriteString(" \\\n  --data-binary @-")
	}
	return b.String()
}

// quote makes s one word of a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
