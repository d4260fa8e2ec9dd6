package qstash

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
)

func TestCallbacks(t *testing.T) {
	t.Parallel()
	const ids = `"sourceMessageId":"msg_1","dlqId":"dlq_1"`
	for _, row := range []struct {
		sentence string
		callback string
		want     string // the Callback's fields that are not zero, as JSON, with bodies in base64; or what the error says
	}{
		{
			"the documented shape",
			`{"status":404,"header":{"key":["value"]},"body":"YmFzZTY0","retried":2,"maxRetries":3,` + ids + `,"topicName":"orders","endpointName":"first",
			"url":"https://app.fly.dev/orders","method":"POST","sourceHeader":{"key":"value"},"sourceBody":"aGVsbG8=","notBefore":"1701198458025",
			"createdAt":"1701198447054","scheduleId":"scd_1","callerIP":"192.0.2.1"}`,
			`{"MessageID":"msg_1","DLQID":"dlq_1","URL":"https://app.fly.dev/orders","Method":"POST","Status":404,"Header":{"Key":["value"]},"Body":"YmFzZTY0",
			"Retried":2,"MaxRetries":3,"URLGroup":"orders","Endpoint":"first","ScheduleID":"scd_1","SourceHeader":{"Key":["value"]},"SourceBody":"aGVsbG8=",
			"NotBefore":"2023-11-28T19:07:38.025Z","CreatedAt":"2023-11-28T19:07:27.054Z","CallerIP":"192.0.2.1"}`,
		},
		{
			"production's shape: times are numbers, what is empty or 0 is absent, what is unknown is there",
			`{"status":500,"header":{"Content-Type":["text/plain"]},"maxRetries":3,` + ids + `,"url":"https://app.fly.dev/","method":"POST",
			"sourceHeader":{"X-Two":["a","b"]},"createdAt":1701198447054,"callerIP":"192.0.2.1","failureCallbackInfo":{"x":[1]}}`,
			`{"MessageID":"msg_1","DLQID":"dlq_1","URL":"https://app.fly.dev/","Method":"POST","Status":500,"Header":{"Content-Type":["text/plain"]},
			"MaxRetries":3,"SourceHeader":{"X-Two":["a","b"]},"CreatedAt":"2023-11-28T19:07:27.054Z","CallerIP":"192.0.2.1"}`,
		},
		{"counts as text", `{` + ids + `,"status":"500","retried":"1"}`, `{"MessageID":"msg_1","DLQID":"dlq_1","Status":500,"Retried":1}`},
		{"headers of texts and of lists", `{` + ids + `,"header":{"a":"1","b":["2","3"],"c":[]}}`, `{"MessageID":"msg_1","DLQID":"dlq_1","Header":{"A":["1"],"B":["2","3"]}}`},
		{"header values that are neither", `{` + ids + `,"header":{"a":["x",1],"b":{},"c":"1"}}`, `{"MessageID":"msg_1","DLQID":"dlq_1","Header":{"C":["1"]}}`},
		{"a body in the URL alphabet", `{` + ids + `,"body":"_-8="}`, `{"MessageID":"msg_1","DLQID":"dlq_1","Body":"/+8="}`},
		{"a body in the standard alphabet", `{` + ids + `,"body":"/+8="}`, `{"MessageID":"msg_1","DLQID":"dlq_1","Body":"/+8="}`},
		{"a body without padding", `{` + ids + `,"sourceBody":"aGVsbG8"}`, `{"MessageID":"msg_1","DLQID":"dlq_1","SourceBody":"aGVsbG8="}`},
		{"a body that is plain text", `{` + ids + `,"body":"not found!"}`, `{"MessageID":"msg_1","DLQID":"dlq_1","Body":"bm90IGZvdW5kIQ=="}`},
		{"an empty body", `{` + ids + `,"body":""}`, `{"MessageID":"msg_1","DLQID":"dlq_1"}`},
		{"nothing but ids", `{` + ids + `}`, `{"MessageID":"msg_1","DLQID":"dlq_1"}`},
		{"a failure callback of a message that is not named", `{"dlqId":"dlq_1","status":500}`, `{"DLQID":"dlq_1","Status":500}`},
		{"the callback of an attempt that failed", `{"sourceMessageId":"msg_1","status":503}`, `{"MessageID":"msg_1","Status":503}`},
		{"the callback of an attempt that was not answered", `{"sourceMessageId":"msg_1"}`, `{"MessageID":"msg_1"}`},
		{"a dlqId, and a status of success", `{` + ids + `,"status":200}`, `{"MessageID":"msg_1","DLQID":"dlq_1","Status":200}`},
		{"the callback of a success", `{"sourceMessageId":"msg_1","status":200}`, `{"MessageID":"msg_1","Status":200}`},
		{"a body with escaped slashes", `{` + ids + `,"body":"\/+8="}`, `{"MessageID":"msg_1","DLQID":"dlq_1","Body":"/+8="}`},
		{"a status that is no whole number", `{` + ids + `,"status":4.04e2}`, `{"MessageID":"msg_1","DLQID":"dlq_1","Status":404}`},
		{"a field twice: the last counts", `{` + ids + `,"url":"a","url":"b"}`, `{"MessageID":"msg_1","DLQID":"dlq_1","URL":"b"}`},
		{"nulls", `{` + ids + `,"url":null,"status":null,"header":null,"body":null,"createdAt":null}`, `{"MessageID":"msg_1","DLQID":"dlq_1"}`},
		{"wrong types", `{"url":1,"method":{},"status":[],"header":"x","sourceHeader":[1],"body":{},"createdAt":"today","retried":true,"callerIP":[],"notBefore":1e99,` + ids + `}`,
			`{"MessageID":"msg_1","DLQID":"dlq_1"}`},

		{"no ids", `{"status":500}`, "neither a sourceMessageId nor a dlqId"},
		{"ids of another type", `{"sourceMessageId":1,"dlqId":[]}`, "neither a sourceMessageId nor a dlqId"},
		{"ids in other letters", `{"SourceMessageID":"msg_1","DLQID":"dlq_1"}`, "neither a sourceMessageId nor a dlqId"},
		{"an ordinary message", `{"hello":"world"}`, "neither a sourceMessageId nor a dlqId"},
		{"a list", `[{` + ids + `}]`, "neither a sourceMessageId nor a dlqId"},
		{"null", `null`, "neither a sourceMessageId nor a dlqId"},
		{"nothing", ``, "it is not JSON"},
		{"text", `hello`, "it is not JSON"},
		{"what ends too early", `{` + ids, "it is not JSON"},
		{"more brackets than a stack has room for", `{` + ids + `,"x":` + strings.Repeat("[", 10<<20), "it is not JSON"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			c, err := ParseCallback([]byte(row.callback))
			if !strings.HasPrefix(row.want, "{") {
				if err == nil || !strings.Contains(err.Error(), row.want) {
					t.Errorf("got %+v, %v; want an error that says %q", c, err, row.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var want Callback
			if err := json.Unmarshal([]byte(row.want), &want); err != nil {
				t.Fatal(err)
			}
			if got, want := inJSON(t, c), inJSON(t, want); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func inJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer(`{}`, `null`, `""`, `null`).Replace(string(b)) // empty is as good as absent
}

// manyNames is n members of a header, whose names have the prefix.
func manyNames(prefix string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"%s%d":"",`, prefix, i)
	}
	return strings.TrimSuffix(b.String(), ",")
}

func TestCallbacksThatAreTooLarge(t *testing.T) {
	t.Parallel()
	const head = `{"sourceMessageId":"msg_1","dlqId":"dlq_1","status":500,`
	encoded := func(n int) string { return base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", n))) }
	for _, row := range []struct {
		sentence   string
		fields     string
		leftOut    []string
		body       int // bytes
		sourceBody int
		names      int // in both headers
	}{
		{"two bodies of the largest size", `"body":"` + encoded(1<<20) + `","sourceBody":"` + encoded(1<<20) + `"`, nil, 1 << 20, 1 << 20, 0},
		{"a body that is one byte larger", `"body":"` + encoded(1<<20+1) + `","sourceBody":"` + encoded(5) + `"`, []string{"body"}, 0, 5, 0},
		{"a source body of 7 MB", `"body":"` + encoded(3) + `","sourceBody":"` + encoded(7<<20) + `"`, []string{"sourceBody"}, 3, 0, 0},
		{"a large body that is no base64", `"body":"` + strings.Repeat("x ", 1<<20) + `"`, []string{"body"}, 0, 0, 0},
		{"1,000 names", `"header":{` + manyNames("a", 500) + `},"sourceHeader":{` + manyNames("a", 500) + `}`, nil, 0, 0, 1000},
		{"one more", `"header":{` + manyNames("a", 500) + `},"sourceHeader":{` + manyNames("a", 501) + `}`, []string{"sourceHeader"}, 0, 0, 1000},
		{"a million names", `"header":{` + manyNames("a", 1_000_000) + `},"sourceHeader":{"a":"1"}`, []string{"header", "sourceHeader"}, 0, 0, 1000},
		{"a value of 2 MB", `"header":{"a":"1","b":"` + strings.Repeat("x", 2<<20) + `","c":"3"}`, []string{"header"}, 0, 0, 2},
		{"a million values", `"header":{"a":"1","b":[""` + strings.Repeat(`,""`, 1_000_000) + `]}`, []string{"header"}, 0, 0, 1},
		{"a URL of 2 MB", `"url":"` + strings.Repeat("x", 2<<20) + `"`, []string{"url"}, 0, 0, 0},
		{"a field that is too large a thousand times", strings.TrimSuffix(strings.Repeat(`"body":"`+encoded(1<<20+3)+`",`, 3), ","), []string{"body"}, 0, 0, 0},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			c, err := ParseCallback([]byte(head + row.fields + "}"))
			if err != nil {
				t.Fatal(err)
			}
			if c.MessageID != "msg_1" || c.DLQID != "dlq_1" || c.Status != 500 {
				t.Errorf("what fits is lost: %q %q %d", c.MessageID, c.DLQID, c.Status)
			}
			if !slices.Equal(c.LeftOut, row.leftOut) {
				t.Errorf("left out %q, want %q", c.LeftOut, row.leftOut)
			}
			if len(c.Body) != row.body || len(c.SourceBody) != row.sourceBody || len(c.Header)+len(c.SourceHeader) != row.names {
				t.Errorf("bodies of %d and %d bytes, %d names; want %d, %d, %d", len(c.Body), len(c.SourceBody), len(c.Header)+len(c.SourceHeader),
					row.body, row.sourceBody, row.names)
			}
		})
	}
}

// What is kept of a callback must not keep the message, nor change with it.
func TestCallbackIsACopy(t *testing.T) {
	t.Parallel()
	body := []byte(`{"sourceMessageId":"msg_1","dlqId":"dlq_1","url":"u","header":{"Name":"value"},"body":"no base64!","x":"` + strings.Repeat("x", 10) + `"}`)
	c, err := ParseCallback(body)
	if err != nil {
		t.Fatal(err)
	}
	for i := range body {
		body[i] = '#'
	}
	got := fmt.Sprint(c.MessageID, c.DLQID, c.URL, c.Header, string(c.Body))
	if strings.Contains(got, "#") {
		t.Errorf("it has changed: %s", got)
	}
}

func TestCallbackOfTenMegabytesOfNamesTakesLittle(t *testing.T) {
	body := []byte(`{"dlqId":"dlq_1","sourceHeader":{` + manyNames("", 900_000) + `}}`)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := ParseCallback(body); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 2<<20 {
		t.Errorf("%d bytes for a callback of %d", took, len(body))
	}
}

func TestUnverified(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		retried, most string
		attempt, max  int
		last          bool
	}{
		{"", "", 0, -1, false},
		{"0", "3", 0, 3, false},
		{"2", "3", 2, 3, false},
		{"3", "3", 3, 3, true},
		{"4", "3", 4, 3, true},
		{"0", "0", 0, 0, true},
		{"3", "", 3, -1, false},
		{"x", "y", 0, -1, false},
		{"1.5", "-7", 0, -1, false},
		{"-1", "3", 0, 3, false},
		{"99999999999999999999", "3", 0, 3, false},
	} {
		u := NewUnverified(map[string][]string{"Upstash-Retried": {row.retried}, "Upstash-Max-Retries": {row.most}})
		if u.Attempt != row.attempt || u.MaxRetries != row.max || u.LastAttempt != row.last {
			t.Errorf("%+v: got attempt %d of %d, last %v", row, u.Attempt, u.MaxRetries, u.LastAttempt)
		}
	}
	if u := NewUnverified(nil); u.Attempt != 0 || u.MaxRetries != -1 || u.LastAttempt {
		t.Errorf("no headers: %+v", u)
	}
}

func TestUnverifiedHasWhatTheHeadersSay(t *testing.T) {
	t.Parallel()
	got := NewUnverified(map[string][]string{
		"Upstash-Message-Id": {"msg_1"}, "Upstash-Schedule-Id": {"scd_1"}, "Upstash-Topic-Name": {"orders"}, "Upstash-Label": {"l"},
		"Upstash-Caller-Ip": {"192.0.2.1"}, "Upstash-Region": {"EU-CENTRAL-1"}, "X-Own": {"kept"},
	})
	if got.ID != "msg_1" || got.ScheduleID != "scd_1" || got.URLGroup != "orders" || got.Label != "l" || got.CallerIP != "192.0.2.1" ||
		got.Region != "EU-CENTRAL-1" || got.Header.Get("X-Own") != "kept" {
		t.Errorf("got %+v", got)
	}
}

func TestDecode(t *testing.T) {
	t.Parallel()
	type order struct{ ID int }
	if got, err := Decode[order](&Message{Body: []byte(`{"id":7}`)}); err != nil || got.ID != 7 {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, body := range []string{``, `{"id":"7"}`, `{"id":7`, `[]`, `{"id":7}x`} {
		got, err := Decode[order](&Message{Body: []byte(body)})
		if _, permanent := err.(*PermanentError); !permanent || got != (order{}) || !strings.HasPrefix(err.Error(), "decode the body as qstash.order: ") {
			t.Errorf("%q: got %+v, %v", body, got, err)
		}
	}
}

func FuzzCallback(f *testing.F) {
	f.Add([]byte(`{"status":404,"header":{"key":["value",1,null]},"body":"YmFz=","retried":"2","sourceMessageId":"msg_1","dlqId":"dlq_1","sourceHeader":{"key":"value"},"createdAt":"1701198447054"}`))
	f.Add([]byte(`{"sourceMessageId":"msg_1","status":2e2,"createdAt":-9e18,"notBefore":"NaN","header":[],"body":"\ud800"}`))
	f.Add([]byte(`[{}]`))
	f.Fuzz(func(t *testing.T, callback []byte) {
		c, err := ParseCallback(callback)
		var object map[string]json.RawMessage
		switch {
		case (c == nil) == (err == nil):
			t.Errorf("%q: got %v, %v", callback, c, err)
		case err == nil && (c.MessageID == "" && c.DLQID == "" || json.Unmarshal(callback, &object) != nil):
			t.Errorf("%q is taken for %+v", callback, c)
		}
	})
}
