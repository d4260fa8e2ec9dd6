package deliver

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
)

// What a pointer finds is what encoding/json finds.
func FuzzPointer(f *testing.F) {
	f.Add("/order/id", []byte(`{"order":{"id":"x"}}`))
	f.Add("/0/a~1b", []byte(`[{"a/b":1e5}]`))
	f.Add("/", []byte(`{"":"\ud800"}`))
	f.Add("/a", []byte(`{"a":1,"a":{"b":2}}`))
	f.Fuzz(func(t *testing.T, text string, body []byte) {
		p, err := ParsePointer(text)
		if err != nil {
			return
		}
		value, found := p.value(body)
		var at any
		d := json.NewDecoder(strings.NewReader(string(body)))
		d.UseNumber()
		if !json.Valid(body) || d.Decode(&at) != nil {
			if found {
				t.Errorf("%s finds %q in %q, which is no JSON", text, value, body)
			}
			return
		}
		for _, name := range p {
			switch v := at.(type) {
			case map[string]any:
				at = v[name]
			case []any:
				i, err := strconv.Atoi(name)
				if at = nil; err == nil && i >= 0 && i < len(v) && strconv.Itoa(i) == name {
					at = v[i]
				}
			default:
				at = nil
			}
		}
		want := ""
		switch v := at.(type) {
		case string:
			if v != "" {
				want = "text " + v
			}
		case json.Number:
			want = "number " + v.String()
		}
		if strings.Contains(string(body), `\u`) || strings.ToValidUTF8(string(body), "?") != string(body) {
			return // of half a character each makes something else
		}
		if found != (want != "") || found && value != want {
			t.Errorf("%s finds %q (%v) in %q, encoding/json %q", text, value, found, body, want)
		}
	})
}
