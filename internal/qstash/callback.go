package qstash

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/tidwall/gjson"
)

// Callback is what QStash posts to the callback or the failure callback of a message (its documentation:
// Features, Callbacks). Bodies are decoded; what QStash left out is zero.
type Callback struct {
	MessageID    string // sourceMessageId: of the message that it is about
	DLQID        string // of its place in the dead letter queue; "": it is not there, so this is no failure callback
	URL          string // where it was to be delivered
	Method       string
	Status       int         // of the last answer
	Header       http.Header // of the last answer
	Body         []byte      // of the last answer
	Retried      int         // retries made
	MaxRetries   int
	URLGroup     string // topicName
	Endpoint     string // endpointName
	ScheduleID   string
	SourceHeader http.Header // of the message
	SourceBody   []byte      // of the message
	NotBefore    time.Time
	CreatedAt    time.Time
	CallerIP     string
	// LeftOut names what was too large to decode, as QStash calls it: "sourceBody" where that has over 1 MiB, "header"
	// or "sourceHeader" where the two have over 1,000 names, any other field that has no place in another 1 MiB.
	LeftOut []string
}

// Bounds of what one callback takes in memory.
const (
	maxCallbackBody    = 1 << 20 // bytes of each body, decoded
	maxCallbackText    = 1 << 20 // bytes of all else together
	maxCallbackHeaders = 1000    // names in both headers together
)

// ParseCallback reads a callback, of a failure or of one attempt. Times may be numbers or text (milliseconds since
// 1970), header values text or lists, bodies base64 of either alphabet. A field of another type than usual stays zero.
func ParseCallback(body []byte) (*Callback, error) {
	if !json.Valid(body) {
		return nil, errors.New("it is no callback of QStash's: it is not JSON")
	}
	// Not a copy: it can have 64 MiB. What is kept of it is copied.
	all := gjson.Parse(unsafe.String(unsafe.SliceData(body), len(body)))
	p := callbackParser{text: maxCallbackText, names: maxCallbackHeaders}
	if all.IsObject() {
		all.ForEach(p.field)
	}
	if p.MessageID == "" && p.DLQID == "" {
		return nil, errors.New("it is no callback of QStash's: it has neither a sourceMessageId nor a dlqId")
	}
	return &p.Callback, nil
}

// callbackParser fills a Callback within its bounds.
type callbackParser struct {
	Callback
	text  int // bytes that are left
	names int // of headers that are left
}

// field reads one field of the JSON. It returns true, for all are read.
func (p *callbackParser) field(name, v gjson.Result) bool {
	fits := true
	switch name.Str {
	case "sourceMessageId":
		p.MessageID, fits = p.string(v)
	case "dlqId":
		p.DLQID, fits = p.string(v)
	case "url":
		p.URL, fits = p.string(v)
	case "method":
		p.Method, fits = p.string(v)
	case "topicName":
		p.URLGroup, fits = p.string(v)
	case "endpointName":
		p.Endpoint, fits = p.string(v)
	case "scheduleId":
		p.ScheduleID, fits = p.string(v)
	case "callerIP":
		p.CallerIP, fits = p.string(v)
	case "status":
		p.Status = int(integer(v))
	case "retried":
		p.Retried = int(integer(v))
	case "maxRetries":
		p.MaxRetries = int(integer(v))
	case "notBefore":
		p.NotBefore = milliseconds(v)
	case "createdAt":
		p.CreatedAt = milliseconds(v)
	case "header":
		p.Header, fits = p.header(v)
	case "sourceHeader":
		p.SourceHeader, fits = p.header(v)
	case "body":
		p.Body, fits = decodeBody(v)
	case "sourceBody":
		p.SourceBody, fits = decodeBody(v)
	}
	if !fits && !slices.Contains(p.LeftOut, name.Str) {
		p.LeftOut = append(p.LeftOut, strings.Clone(name.Str))
	}
	return true
}

// string returns the text that v is; "": it is none.
func (p *callbackParser) string(v gjson.Result) (s string, fits bool) {
	const overhead = 16 // bytes of a string beside its text
	switch {
	case v.Type != gjson.String:
		return "", true
	case p.text < len(v.Str)+overhead:
		return "", false
	}
	p.text -= len(v.Str) + overhead
	return strings.Clone(v.Str), true
}

// header returns the object v, whose values are texts or lists of texts; what is neither is left out.
func (p *callbackParser) header(v gjson.Result) (h http.Header, fits bool) {
	if !v.IsObject() {
		return nil, true
	}
	h, fits = http.Header{}, true
	v.ForEach(func(name, value gjson.Result) bool {
		if p.names == 0 {
			fits = false
			return false
		}
		p.names--
		copied, nameFits := p.string(name)
		values, valuesFit := p.strings(value)
		if fits = fits && nameFits && valuesFit; nameFits && valuesFit && values != nil {
			key := http.CanonicalHeaderKey(copied)
			h[key] = append(h[key], values...)
		}
		return true
	})
	return h, fits
}

// strings returns the text or the texts that v is; nil: it is neither.
func (p *callbackParser) strings(v gjson.Result) (all []string, fits bool) {
	fits = true
	add := func(_, v gjson.Result) bool {
		var s string
		if s, fits = p.string(v); !fits || v.Type != gjson.String {
			all = nil
			return false
		}
		all = append(all, s)
		return true
	}
	if v.IsArray() {
		v.ForEach(add)
	} else {
		add(v, v)
	}
	return all, fits
}

// integer returns the number that v is, whole or not, or the one in a text; anything else is 0.
func integer(v gjson.Result) int64 {
	f := 0.0
	switch v.Type {
	case gjson.Number:
		f = v.Num
	case gjson.String:
		f, _ = strconv.ParseFloat(v.Str, 64)
	}
	if f > -1<<62 && f < 1<<62 {
		return int64(f)
	}
	return 0
}

func milliseconds(v gjson.Result) time.Time {
	n := integer(v)
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMilli(n).UTC()
}

// decodeBody returns the bytes whose base64, of either alphabet, padded or not, v is; a text that is neither stands
// for itself.
func decodeBody(v gjson.Result) (body []byte, fits bool) {
	switch {
	case v.Type != gjson.String || v.Str == "":
		return nil, true
	case len(v.Str) > base64.StdEncoding.EncodedLen(maxCallbackBody):
		return nil, false
	}
	standard := strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(v.Str, "="))
	body, err := base64.RawStdEncoding.DecodeString(standard)
	if err != nil {
		body = []byte(v.Str)
	}
	if len(body) > maxCallbackBody {
		return nil, false
	}
	return body, true
}
