package deliver

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"qstash-receiver/internal/once"
	"qstash-receiver/internal/qstash"
)

func pointer(t testing.TB, text string) Pointer {
	t.Helper()
	p, err := ParsePointer(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestParsePointer(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ text, says string }{
		{"/id", ""}, {"/order/id", ""}, {"/", ""}, {"/a//b", ""}, {"/a~0b~1c", ""}, {"/0", ""},
		{"", "begins with a slash"},
		{"id", "write it like /order/id"},
		{"#/id", "begins with a slash"},
		{"$.id", "begins with a slash"},
		{"/a~", "neither ~0"},
		{"/a~2", "neither ~0"},
		{"/~~0", "neither ~0"},
	} {
		_, err := ParsePointer(row.text)
		if row.says == "" && err != nil || row.says != "" && (err == nil || !strings.Contains(err.Error(), row.says)) {
			t.Errorf("%q: got %v, want %q", row.text, err, row.says)
		}
	}
}

func TestPointerFinds(t *testing.T) {
	t.Parallel()
	// RFC 6901, section 5, and what else a body may be.
	const rfc = `{"foo":["bar","baz"],"":0,"a/b":1,"c%d":2,"e^f":3,"g|h":4,"i\\j":5,"k\"l":6," ":7,"m~n":8}`
	for _, row := range []struct{ pointer, body, value string }{ // "": nothing
		{"/foo/0", rfc, "text bar"},
		{"/foo/1", rfc, "text baz"},
		{"/", rfc, "number 0"},
		{"/a~1b", rfc, "number 1"},
		{"/c%d", rfc, "number 2"},
		{"/e^f", rfc, "number 3"},
		{"/g|h", rfc, "number 4"},
		{`/i\j`, rfc, "number 5"},
		{`/k"l`, rfc, "number 6"},
		{"/ ", rfc, "number 7"},
		{"/m~0n", rfc, "number 8"},
		{"/foo", rfc, ""},
		{"/foo/2", rfc, ""},
		{"/foo/-1", rfc, ""},
		{"/foo/-", rfc, ""},
		{"/foo/00", rfc, ""},
		{"/foo/+1", rfc, ""},
		{"/foo/0/x", rfc, ""},
		{"/nothing", rfc, ""},
		{"/~01", `{"~1":"x","/":"y"}`, "text x"},
		{"/id", `{"id":1}`, "number 1"},
		{"/id", `{"id":"1"}`, "text 1"},
		{"/id", `{"id": 1.0 }`, "number 1.0"},
		{"/id", `{"id":1e3}`, "number 1e3"},
		{"/id", `{"id":-0}`, "number -0"},
		{"/id", `{"id":123456789012345678901234567890}`, "number 123456789012345678901234567890"},
		{"/id", `{"id":"\u0061\n\ud83d\ude00"}`, "text a\n😀"},
		{"/id", `{"i\u0064":"x"}`, "text x"},
		{"/id", " \r\n\t{\"id\":\"x\"}\n", "text x"},
		{"/id", `{"id":"first","id":"last"}`, "text last"},
		{"/id", `{"ID":"x"}`, ""},
		{"/id", `{"id":""}`, ""},
		{"/id", `{"id":null}`, ""},
		{"/id", `{"id":true}`, ""},
		{"/id", `{"id":{}}`, ""},
		{"/id", `{"id":[1]}`, ""},
		{"/id", `{"id":"x"`, ""},
		{"/id", `{"id":"x"}x`, ""},
		{"/id", `{"id":01}`, ""},
		{"/id", `{'id':'x'}`, ""},
		{"/id", `id=x`, ""},
		{"/id", `"id"`, ""},
		{"/id", ``, ""},
		{"/0", `[1,2]`, "number 1"},
		{"/0", `{"0":"member"}`, "text member"},
		{"/a/1/b", `{"a":[{"b":1},{"b":2}]}`, "number 2"},
		{"/a.b", `{"a":{"b":1},"a.b":2}`, "number 2"}, // a dot, a star or a bracket means nothing
		{"/*", `{"a":1}`, ""},
		{"/id", strings.Repeat("[", 10<<20), ""},
		{"/id", `{"id":"x","deep":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}`, "text x"},
	} {
		value, found := pointer(t, row.pointer).value([]byte(row.body))
		if value != row.value && found || found != (row.value != "") {
			t.Errorf("%s in %.60s: got %q, %v, want %q", row.pointer, row.body, value, found, row.value)
		}
	}
	if _, found := Pointer(nil).value([]byte(rfc)); found {
		t.Error("no pointer finds something")
	}
}

func testDedupeKey(t *testing.T, store once.Store) {
	a := unique(t)
	id := func(value string) string { return `{"order":{"id":` + value + `}}` }
	quoted := strconv.Quote(a)
	var runs atomic.Int64
	s := start(counting(&runs, succeed), func(c *Config) { c.Store, c.Dedupe = store, pointer(t, "/order/id") })
	for _, row := range []struct {
		sentence     string
		target, body string
		reason       Reason
	}{
		{"the first", "/" + a, id(quoted), Handled},
		{"published again, in another body", "/" + a, ` {"n":2,"order":{"id":` + quoted + `}}`, Repeat},
		{"with a query", "/" + a + "?retry=1", id(quoted), Repeat},
		{"to another path", "/" + a + "/b", id(quoted), Handled},
		{"to a path that is written in another way", "/%" + strconv.FormatInt(int64(a[0]), 16) + a[1:], id(quoted), Handled},
		{"a number", "/" + a, id("1"), Handled},
		{"the same number", "/" + a, id("1"), Repeat},
		{"a text that looks like it", "/" + a, id(`"1"`), Handled},
		{"a number of the same size", "/" + a, id("1.0"), Handled},
		{"an empty text", "/" + a, id(`""`), Handled},
		{"another empty text", "/" + a, id(`""`), Handled},
		{"another body", "/" + a, "hello", Handled},
		{"the same other body", "/" + a, "hello", Handled},
	} {
		// Each has an id of its own, as what is published twice has.
		if o := s.send(message{id: unique(t), target: row.target, body: row.body}); o.Reason != row.reason {
			t.Errorf("%s: got %s", row.sentence, o.Reason.Row().Reason)
		}
	}
	// An ordinary message is still known by its id.
	m := message{id: unique(t), target: "/" + a, body: "hello"}
	for _, reason := range []Reason{Handled, Repeat} {
		if o := s.send(m); o.Reason != reason {
			t.Errorf("a body without the value: got %s", o.Reason.Row().Reason)
		}
	}
}

func testDedupeKeyAndFailures(t *testing.T, store once.Store) {
	boom := errors.New("boom")
	ends := []error{boom, qstash.Permanent(boom), qstash.RetryAfter(time.Second, boom), nil}
	var runs atomic.Int64
	s := start(runner(func(context.Context, *qstash.Message) ([]byte, error) {
		return []byte("done"), ends[runs.Add(1)-1]
	}), func(c *Config) { c.Store, c.Dedupe = store, pointer(t, "/id") })
	target := "/" + unique(t)
	for i, status := range []int{500, 489, 503, 200, 200, 200} {
		o := s.send(message{id: unique(t), target: target, body: `{"id":7}`})
		if o.Answer.Status != status || o.Replayed != (i > 3) {
			t.Errorf("delivery %d got %d %s (replayed: %v)", i, o.Answer.Status, o.Answer.Body, o.Replayed)
		}
	}
	if runs.Load() != 4 {
		t.Errorf("ran %d times", runs.Load())
	}
}

func testDedupeKeyTwoAtOnce(t *testing.T, store once.Store) {
	for _, row := range []struct {
		sentence string
		first    error
		runs     int64
		body     string
		replayed bool
	}{
		{"the second gets the first's success", nil, 1, "run 1", true},
		{"the second runs when the first has failed", errors.New("boom"), 2, "run 2", false},
		{"also when that was for good", qstash.Permanent(errors.New("boom")), 2, "run 2", false},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			begun, finish := make(chan bool), make(chan bool)
			var runs, running atomic.Int64
			s := start(runner(func(context.Context, *qstash.Message) ([]byte, error) {
				if running.Add(1) > 1 {
					t.Error("two at once")
				}
				defer running.Add(-1)
				if n := runs.Add(1); n > 1 {
					return []byte("run 2"), nil
				}
				begun <- true
				<-finish
				return []byte("run 1"), row.first
			}), func(c *Config) { c.Store, c.Dedupe = store, pointer(t, "/id") })
			target := "/" + unique(t)
			first := s.begin(message{id: unique(t), target: target, body: `{"id":7}`})
			<-begun
			second := s.begin(message{id: unique(t), target: target, body: `{"id":7,"n":2}`})
			finish <- true
			<-first
			expect(t, <-second, 200, row.body, row.replayed)
			if runs.Load() != row.runs {
				t.Errorf("ran %d times", runs.Load())
			}
		})
	}
}
