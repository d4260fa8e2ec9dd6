package deliver

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unsafe"

	"github.com/tidwall/gjson"
)

// Pointer is a JSON pointer (RFC 6901), read: the names and indexes on the way. Nil finds nothing.
type Pointer []string

// ParsePointer reads a JSON pointer like /order/id. It must name a value inside the document.
func ParsePointer(text string) (Pointer, error) {
	rest, ok := strings.CutPrefix(text, "/")
	if !ok {
		return nil, errors.New("a JSON pointer begins with a slash; write it like /order/id")
	}
	var p Pointer
	for part := range strings.SplitSeq(rest, "/") {
		for _, after := range strings.Split(part, "~")[1:] {
			if !strings.HasPrefix(after, "0") && !strings.HasPrefix(after, "1") {
				return nil, fmt.Errorf("%q has a ~ that is neither ~0 (which stands for ~) nor ~1 (which stands for /)", text)
			}
		}
		p = append(p, strings.NewReplacer("~1", "/", "~0", "~").Replace(part))
	}
	return p, nil
}

// value returns what tells apart the texts and numbers that p finds in body. Found is false where body is no JSON, or
// has neither there, or an empty text.
func (p Pointer) value(body []byte) (value string, found bool) {
	// Not gjson's own check, which takes a stack frame for each bracket: ten million of them end the program.
	if p == nil || !json.Valid(body) {
		return "", false
	}
	// Not a copy: a body can be 64 MiB. What is found is copied by whoever hashes it.
	at := gjson.Parse(unsafe.String(unsafe.SliceData(body), len(body)))
	for _, name := range p {
		at = child(at, name)
	}
	switch at.Type {
	case gjson.String:
		return "text " + at.Str, at.Str != ""
	case gjson.Number:
		return "number " + at.Raw, true
	}
	return "", false
}

// child is the member of an object, or the element of an array, that name stands for.
func child(parent gjson.Result, name string) (found gjson.Result) {
	switch {
	case parent.IsObject():
		parent.ForEach(func(key, value gjson.Result) bool {
			if key.Str == name {
				found = value // the last of a name, as encoding/json has it
			}
			return true
		})
	case parent.IsArray():
		index, err := strconv.Atoi(name)
		if err != nil || strconv.Itoa(index) != name { // 01 and + 1 are no indexes
			return found
		}
		parent.ForEach(func(_, value gjson.Result) bool {
			if index == 0 {
				found = value
			}
			index--
			return index >= 0
		})
	}
	return found
}
