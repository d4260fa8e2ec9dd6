package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestFailureCallbacks(t *testing.T) {
	t.Parallel()
	const ids = `"sourceMessageId":"msg_1","dlqId":"dlq_1"`
	for _, row := range []struct {
		sentence string
		callback string
		want     string // the Failure's fields that are not zero, as JSON; bodies are base64 there
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
		{"no dlqId, and a status of failure", `{"sourceMessageId":"msg_1","status":503}`, `{"MessageID":"msg_1","Status":503}`},
		{"no dlqId, and no status: there was no answer", `{"sourceMessageId":"msg_1"}`, `{"MessageID":"msg_1"}`},
		{"a dlqId, and a status of success", `{` + ids + `,"status":200}`, `{"MessageID":"msg_1","DLQID":"dlq_1","Status":200}`},
		{"nulls", `{` + ids + `,"url":null,"status":null,"header":null,"body":null,"createdAt":null}`, `{"MessageID":"msg_1","DLQID":"dlq_1"}`},
		{"wrong types", `{"url":1,"method":{},"status":[],"header":"x","sourceHeader":[1],"body":{},"createdAt":"today","retried":true,"callerIP":[],"notBefore":1e99,` + ids + `}`,
			`{"MessageID":"msg_1","DLQID":"dlq_1"}`},

		{"a success callback", `{"sourceMessageId":"msg_1","status":200}`, "so it is a success callback"},
		{"a success callback with its status as text", `{"sourceMessageId":"msg_1","status":"204"}`, "so it is a success callback"},
		{"no source message", `{"status":500,"dlqId":"dlq_1"}`, "no sourceMessageId"},
		{"a source message of another type", `{"sourceMessageId":1,"dlqId":"dlq_1"}`, "no sourceMessageId"},
		{"an ordinary message", `{"hello":"world"}`, "publish messages to another path"},
		{"a list", `[{` + ids + `}]`, "no sourceMessageId"},
		{"null", `null`, "no sourceMessageId"},
		{"nothing", ``, "read a failure callback: unexpected end of JSON input"},
		{"not JSON", `hello`, "read a failure callback: invalid character"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			f, err := parseFailure([]byte(row.callback))
			if !strings.HasPrefix(row.want, "{") {
				if err == nil || !strings.Contains(err.Error(), row.want) {
					t.Errorf("got %+v, %v; want an error that says %q", f, err, row.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var want Failure
			if err := json.Unmarshal([]byte(row.want), &want); err != nil {
				t.Fatal(err)
			}
			if got, want := inJSON(t, f), inJSON(t, want); got != want {
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

func TestAttemptIsANumber(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]int{"": 0, "0": 0, "3": 3, "x": 0, "1.5": 0, "99999999999999999999": 0} {
		if got := attempt(map[string][]string{"Upstash-Retried": {value}}); got != want {
			t.Errorf("Upstash-Retried %q is attempt %d, not %d", value, got, want)
		}
	}
	if got := attempt(nil); got != 0 {
		t.Errorf("no Upstash-Retried is attempt %d", got)
	}
}

func FuzzFailure(f *testing.F) {
	f.Add([]byte(`{"status":404,"header":{"key":["value",1,null]},"body":"YmFz=","retried":"2","sourceMessageId":"msg_1","dlqId":"dlq_1","sourceHeader":{"key":"value"},"createdAt":"1701198447054"}`))
	f.Add([]byte(`{"sourceMessageId":"msg_1","status":2e2,"createdAt":-9e18,"notBefore":"NaN","header":[],"body":"\ud800"}`))
	f.Add([]byte(`[{}]`))
	f.Fuzz(func(t *testing.T, callback []byte) {
		failure, err := parseFailure(callback)
		switch {
		case (failure == nil) == (err == nil):
			t.Errorf("%q: got %v, %v", callback, failure, err)
		case err == nil && (failure.MessageID == "" || failure.DLQID == "" && failure.Status/100 == 2 || !json.Valid(callback)):
			t.Errorf("%q is taken for %+v", callback, failure)
		}
	})
}
