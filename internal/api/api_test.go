package api

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"qstash-receiver/internal/signing"
)

const (
	currentKey = "sig_TestCurrent1234567890abcdef"
	nextKey    = "sig_TestNext1234567890abcdefghi"
	token      = "eyJVc2VySUQiOiJtZSIsIlBhc3N3b3JkIjoiaHVudGVyMi1odW50ZXIyIn0=" // of the user me, password hunter2-hunter2
	pair       = `{"current":"` + currentKey + `","next":"` + nextKey + `"}`
)

// clientOf returns a client of an API that answers as handler does.
func clientOf(t *testing.T, handler http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	base, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	return New("EU_CENTRAL_1_", base, token)
}

func TestKeys(t *testing.T) {
	t.Parallel()
	client := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.RequestURI != "/v2/keys" || r.Header.Get("Authorization") != "Bearer "+token {
			t.Errorf("asked %s %s with %q", r.Method, r.RequestURI, r.Header)
		}
		fmt.Fprint(w, pair)
	})
	got, err := client.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !got.Current.Equal(signing.NewKey("", "", currentKey)) || !got.Next.Equal(signing.NewKey("", "", nextKey)) || got.Date.IsZero() {
		t.Errorf("got %v", got)
	}
	if got.Current.String() != "EU_CENTRAL_1_current" || got.Next.String() != "EU_CENTRAL_1_next" {
		t.Errorf("they are called %v and %v", got.Current, got.Next)
	}
}

func TestBadAnswers(t *testing.T) {
	t.Parallel()
	status := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}
	}
	raw := func(answer string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			fmt.Fprint(conn, answer)
		}
	}
	for _, row := range []struct {
		sentence string
		handler  http.HandlerFunc
		says     string
	}{
		{"refused", status(401, `{"error":"invalid token"}`), "the API answers 401 Unauthorized (invalid token)"},
		{"refused, repeating the token", status(401, `{"error":"invalid token `+token+`"}`), "(invalid token [redacted])"},
		{"refused, repeating a part of the token", status(403, `{"error":"no user for `+token[20:40]+` here"}`), "403 Forbidden (no user for [redacted] here)"},
		{"refused, repeating what the token says", status(401, `{"error":"wrong password hunter2-hunter2!"}`), "(wrong password [redacted]!)"},
		{"refused, repeating the header", status(401, `{"error":"Bearer `+strings.ReplaceAll(token, "y", `\u0079`)+`"}`), "(Bearer [redacted])"},
		{"a key in an error", status(500, `{"error":"key `+currentKey+`"}`), "500 Internal Server Error (key [redacted])"},
		{"control characters in an error", status(500, `{"error":"\u001b[31m\u202ea\nb\u009b"}`), `(\u001b[31m\u202ea\u000ab\u009b)`},
		{"a long error", status(500, `{"error":"`+strings.Repeat("long ", 1000)+`"}`), "long ..."},
		{"an error that is no JSON", status(502, "<html>"+token), "the API answers 502 Bad Gateway"},
		{"too many requests", status(429, `{"error":"slow down"}`), "429 Too Many Requests (slow down)"},
		{"not quite 200", status(203, pair), "203"},
		{"a part of the answer", status(206, pair), "206"},
		{"nothing", status(204, ""), "204"},
		{"a redirect", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "https://elsewhere.example/"+token)
			w.WriteHeader(307)
		}, "a redirect to https://elsewhere.example, which is not followed"},
		{"a redirect to a host like the token", raw("HTTP/1.1 302 Found\r\nLocation: https://" + strings.TrimRight(token, "=") + "/\r\n\r\n"), "a redirect to https://[redacted]"},
		{"a redirect to no URL", raw("HTTP/1.1 302 Found\r\nLocation: http://[" + token + "\r\n\r\n"), "[redacted]"},
		{"no HTTP, repeating the header", raw("Bearer " + token + "\r\n\r\n"), "no answer: "},
		{"a header that is none", raw("HTTP/1.1 200 OK\r\nBearer " + token + "\r\n\r\n"), "[redacted]"},
		{"a trailer that is none", raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nBearer " + token + "\r\n\r\n"), "cut short: "},
		{"cut short", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			fmt.Fprint(w, pair)
		}, "cut short"},
		{"cut short between chunks", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, pair)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, "cut short"},
		{"closed without an answer", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "no answer"},
		{"too long", status(200, pair+strings.Repeat(" ", 64<<10)), "the answer is over 64 KiB"},
		{"no JSON", status(200, "<html>"+currentKey), "the answer is no JSON object with two keys"},
		{"half of the JSON", status(200, pair[:60]), "the answer is no JSON object with two keys"},
		{"JSON and more", status(200, pair+pair), "the answer is no JSON object with two keys"},
		{"a list", status(200, "["+pair+"]"), "the answer is no JSON object with two keys"},
		{"a number for a key", status(200, `{"current":1,"next":"`+nextKey+`"}`), "the answer is no JSON object with two keys"},
		{"one key", status(200, `{"current":"`+currentKey+`"}`), "next is no signing key"},
		{"a null", status(200, `{"current":null,"next":"`+nextKey+`"}`), "current is no signing key"},
		{"empty keys", status(200, `{"current":"","next":""}`), "is no signing key"},
		{"a short key", status(200, `{"current":"sig_abc","next":"`+nextKey+`"}`), "current is no signing key: it is too short"},
		{"published keys", status(200, `{"current":"`+signing.DevCurrent+`","next":"`+signing.DevNext+`"}`), "is no signing key: it is a key that Upstash publishes"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			client := clientOf(t, row.handler)
			_, err := client.Keys(t.Context())
			if err == nil || !strings.Contains(err.Error(), row.says) || !strings.Contains(err.Error(), "GET "+client.URL()+"/v2/keys: ") {
				t.Fatalf("got %v, want %q", err, row.says)
			}
			for _, secret := range []string{token, token[:20], currentKey, nextKey, "hunter2-hunter2", "\x1b", "\u202e"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%q tells %q", err, secret)
				}
			}
			if got, want := Refused(err), strings.HasPrefix(row.sentence, "refused"); got != want {
				t.Errorf("refused: %v, not %v", got, want)
			}
		})
	}
}

func TestTheTokenIsShownToOneHostOnly(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("asked %s with %q", r.RequestURI, r.Header) }))
	defer elsewhere.Close()
	client := clientOf(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) })
	if _, err := client.Keys(t.Context()); err == nil {
		t.Error("no error")
	}
}

func TestTheLocalServersKeysAreTakenWhereTheyMayBe(t *testing.T) {
	t.Parallel()
	client := clientOf(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"current":%q,"next":%q}`, signing.DevCurrent, signing.DevNext)
	})
	client.TakeLocal = true
	if _, err := client.Keys(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestLists(t *testing.T) {
	t.Parallel()
	client := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
		switch path, query := r.URL.Path, r.URL.Query(); {
		case path == "/v2/dlq" && query.Get("cursor") == "":
			fmt.Fprint(w, `{"cursor":"2","messages":[
				{"url":"https://app.example/orders?secret","responseStatus":401,"responseBody":"{\"error\":\"unauthorized\"}","body":"eA=="},
				{"url":"https://APP.example:443/","responseStatus":489,"responseBodyBase64":"eyJlcnJvciI6Im5vIHN1Y2ggb3JkZXIifQ=="}]}`)
		case path == "/v2/dlq":
			fmt.Fprint(w, `{"messages":[{"url":"https://app.example/","error":"no such host","responseStatus":"odd"}]}`)
		case path == "/v2/logs" && query.Get("state") == "ERROR":
			fmt.Fprint(w, `{"events":[{"state":"ERROR","url":"https://app.example/","responseStatus":500,"responseBody":"eyJlcnJvciI6InBhbmljIn0="},
				{"state":"DELIVERED","url":"https://app.example/"}]}`)
		case path == "/v2/logs":
			fmt.Fprint(w, `{"cursor":"","logs":[{"url":"https://app.example/","responseStatus":404,"responseBody":"bm90IGZvdW5kCg=="}]}`)
		case path == "/v2/schedules":
			fmt.Fprint(w, `[{"scheduleId":"scd_1","destination":"https://app.example/a","method":"GET","isPaused":true},{"scheduleId":"scd_2","destination":"a-group"}]`)
		case path == "/v2/topics":
			fmt.Fprint(w, `[{"name":"group","endpoints":[{"url":"http://app.example:8080/b"},{"url":"https://\u202ex.example/"}]}]`)
		}
	})
	for _, row := range []struct {
		name string
		ask  func() (any, error)
		want any
	}{
		{"dead letters", func() (any, error) { return client.DeadLetters(t.Context()) }, []Failure{
			{"https://app.example", 401, "unauthorized"}, {"https://app.example", 489, "no such order"}, {"https://app.example", 0, "no such host"},
		}},
		{"failed deliveries", func() (any, error) { return client.FailedDeliveries(t.Context()) }, []Failure{
			{"https://app.example", 500, "panic"}, {"https://app.example", 404, "not found"},
		}},
		{"schedules", func() (any, error) { return client.Schedules(t.Context()) }, []Target{
			{Name: "scd_1", Origin: "https://app.example", Method: "GET", Paused: true}, {Name: "scd_2"},
		}},
		{"URL groups", func() (any, error) { return client.URLGroups(t.Context()) }, []Target{
			{Name: "group", Origin: "http://app.example:8080"}, {Name: "group", Origin: `https://\u202ex.example`},
		}},
	} {
		got, err := row.ask()
		if err != nil || !reflect.DeepEqual(got, row.want) {
			t.Errorf("%s: got %+v, %v\nwant %+v", row.name, got, err, row.want)
		}
	}
}

func TestListsEnd(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ sentence, answer, says string }{
		{"the same page for ever", `{"cursor":"1","messages":[{"url":"https://app.example"}]}`, "the same page again and again"},
		{"no JSON", `<html>`, "not what QStash's documentation says"},
	} {
		client := clientOf(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, row.answer) })
		if _, err := client.DeadLetters(t.Context()); err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: %v", row.sentence, err)
		}
	}
	pages := 0
	client := clientOf(t, func(w http.ResponseWriter, _ *http.Request) {
		pages++
		fmt.Fprintf(w, `{"cursor":"%d","messages":[{"url":"https://app.example"}]}`, pages)
	})
	found, err := client.DeadLetters(t.Context())
	if err == nil || !strings.Contains(err.Error(), "over 1000 pages") || len(found) != 1000 {
		t.Errorf("%d found, %v", len(found), err)
	}
	if errors.As(err, new(*StatusError)) {
		t.Error("it is no answer of the API's")
	}
}
