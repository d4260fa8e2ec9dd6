package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// signWith runs "receiver sign" in an environment and returns what it prints.
func signWith(s settings, stdin string, args ...string) (string, error) {
	var stdout bytes.Buffer
	err := run(context.Background(), append([]string{"sign"}, args...), s.getenv, strings.NewReader(stdin), &stdout, io.Discard)
	return stdout.String(), err
}

var bothKeys = []signingKey{{name: "current", secret: []byte(currentKey)}, {name: "next", secret: []byte(nextKey)}}

func TestSignedToken(t *testing.T) {
	t.Parallel()
	onFly := settings{"FLY_APP_NAME": "app"}
	two := settings{"RECEIVER_URL": "https://a.example,https://b.example"}
	for _, row := range []struct {
		sentence string
		settings settings
		args     []string
		subject  string
		body     string
		key      string
	}{
		{"by default", nil, nil, "http://localhost:8080/", `{"hello":"world"}`, "current"},
		{"on another port", settings{"PORT": "3000"}, nil, "http://localhost:3000/", `{"hello":"world"}`, "current"},
		{"of data", nil, []string{"-d", "x"}, "http://localhost:8080/", "x", "current"},
		{"of no data", nil, []string{"-d", ""}, "http://localhost:8080/", "", "current"},
		{"with the current key", nil, []string{"-key", "current"}, "http://localhost:8080/", `{"hello":"world"}`, "current"},
		{"with the next key", nil, []string{"-key", "next"}, "http://localhost:8080/", `{"hello":"world"}`, "next"},
		{"to a path and query", nil, []string{"-to", "https://x.example/a%2Fb//c?x=1"}, "https://x.example/a%2Fb//c?x=1", `{"hello":"world"}`, "current"},
		{"for the URL on Fly", onFly, nil, "https://app.fly.dev/", `{"hello":"world"}`, "current"},
		{"for the first of two URLs, and a path and query", two, []string{"-to", "http://localhost:1/a%2Fb//c?x=1"}, "https://a.example/a%2Fb//c?x=1", `{"hello":"world"}`, "current"},
		{"for a URL, to a root without a slash", two, []string{"-to", "http://localhost:1?x=1"}, "https://a.example/?x=1", `{"hello":"world"}`, "current"},
		{"with a store that is broken", settings{"STORE_URL": "nosuch://x"}, nil, "http://localhost:8080/", `{"hello":"world"}`, "current"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			before := time.Now().Unix()
			out, err := signWith(row.settings, "", append(row.args, "-token")...)
			if err != nil {
				t.Fatal(err)
			}
			token := strings.TrimSuffix(out, "\n")
			if c, err := checkToken(token, bothKeys, time.Now(), 0); err != nil || c.key.name != row.key {
				t.Errorf("the receiver says: %v, key %v", err, c.key)
			}
			parts := strings.Split(token, ".")
			header, _ := base64.RawURLEncoding.DecodeString(parts[0])
			payload, _ := base64.RawURLEncoding.DecodeString(parts[1])
			var says struct {
				IAT int64
				JTI string
			}
			if err := json.Unmarshal(payload, &says); err != nil {
				t.Fatal(err)
			}
			if says.IAT < before || says.IAT > time.Now().Unix() || len(says.JTI) != len("jwt_")+28 || !strings.HasPrefix(says.JTI, "jwt_") {
				t.Errorf("iat is %d, jti %q", says.IAT, says.JTI)
			}
			want := fmt.Sprintf(`{"aud":"","body":"%s","exp":%d,"iat":%d,"iss":"Upstash","jti":"%s","nbf":-62135596800,"sub":"%s"}`,
				hashOf(row.body), says.IAT+300, says.IAT, says.JTI, row.subject)
			if string(header) != `{"alg":"HS256","typ":"JWT"}` || string(payload) != want {
				t.Errorf("got  %s %s\nwant %s", header, payload, want)
			}
		})
	}
}

func TestSignedTokensDiffer(t *testing.T) {
	t.Parallel()
	one, _ := signWith(nil, "")
	two, _ := signWith(nil, "")
	for _, name := range []string{"Upstash-Message-Id: msg_", "Upstash-Signature: "} {
		_, a, ok := strings.Cut(one, name)
		_, b, _ := strings.Cut(two, name)
		a, _, _ = strings.Cut(a, "'")
		b, _, _ = strings.Cut(b, "'")
		if !ok || a == b {
			t.Errorf("%s is %q twice", name, a)
		}
	}
}

func TestExpiredTokenIsRefusedAsExpired(t *testing.T) {
	t.Parallel()
	for _, tolerance := range []time.Duration{0, time.Hour} {
		out, err := signWith(settings{"CLOCK_TOLERANCE": tolerance.String()}, "", "-expired", "-token")
		if err != nil {
			t.Fatal(err)
		}
		_, err = checkToken(strings.TrimSpace(out), bothKeys, time.Now(), tolerance)
		if ref := new(refusal); !errors.As(err, &ref) || ref.reason != "expired" {
			t.Errorf("with a tolerance of %s the receiver says: %v", tolerance, err)
		}
	}
}

// The printed command is run by a real shell and a real curl, against a real verifier.
func TestSignedCommandDelivers(t *testing.T) {
	t.Parallel()
	noise := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	file := filepath.Join(t.TempDir(), "it's a file")
	if err := os.WriteFile(file, noise, 0o600); err != nil {
		t.Fatal(err)
	}
	const asJSON, asText = "application/json", "text/plain"
	for _, row := range []struct {
		sentence    string
		args        []string
		stdin       string
		path        string
		body        string
		contentType string
	}{
		{"the default", nil, "", "/", `{"hello":"world"}`, asJSON},
		{"no data", []string{"-d", ""}, "", "/", "", asText},
		{"quotes of all kinds", []string{"-d", `it's "$HOME" \ ` + "`id` $(id) !! ''' %s \\n"}, "", "/", `it's "$HOME" \ ` + "`id` $(id) !! ''' %s \\n", asText},
		{"newlines and tabs", []string{"-d", "\na\n\tb\n\n"}, "", "/", "\na\n\tb\n\n", asText},
		{"carriage returns", []string{"-d", "a\r\nb\r"}, "", "/", "a\r\nb\r", asText},
		{"letters of any script", []string{"-d", "żółć 日本 🙂"}, "", "/", "żółć 日本 🙂", asText},
		{"a leading dash", []string{"-d", "-x"}, "", "/", "-x", asText},
		{"a leading @, by way of standard input", []string{"-d", "@-"}, "@/etc/hostname", "/", "@/etc/hostname", asText},
		{"zero bytes", []string{"-d", "@-"}, "a\x00b\x00", "/", "a\x00b\x00", asText},
		{"bytes that are no text", []string{"-d", "@-"}, "\xff\xfe", "/", "\xff\xfe", asText},
		{"standard input that ends in newlines", []string{"-d", "@-"}, "{}\n\n", "/", "{}\n\n", asJSON},
		{"a file of a megabyte", []string{"-d", "@" + file}, "", "/", string(noise), asText},
		{"a megabyte of text", []string{"-d", "@-"}, strings.Repeat("'", 1<<20), "/", strings.Repeat("'", 1<<20), asText},
		{"a path that curl would change", nil, "", "//a/../b/./{x,y}/[1-3]/it's%2F?x={a}&y=[1-2]&z=;#none", `{"hello":"world"}`, asJSON},
		{"the next key", []string{"-key", "next"}, "", "/", `{"hello":"world"}`, asJSON},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			v := &verifier{
				keys: bothKeys, origins: []string{"https://app.fly.dev"}, bearer: "it's s3cret", now: time.Now,
				bodies: &bodyReader{limit: 10 << 20, draining: context.Background()},
			}
			var got *Message
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				m, err := v.verify(w, r)
				if err != nil {
					http.Error(w, err.Error(), http.StatusUnauthorized)
					return
				}
				got = m
			}))
			defer server.Close()
			command, err := signWith(settings{"RECEIVER_URL": "https://app.fly.dev", "BEARER_TOKEN": "it's s3cret"}, row.stdin, append(row.args, "-to", server.URL+row.path)...)
			if err != nil {
				t.Fatal(err)
			}
			if !utf8.ValidString(command) || strings.ContainsAny(command, "\x00\r\x1b") {
				t.Errorf("a terminal cannot show %q", command)
			}
			sh := exec.Command("sh", "-e")
			sh.Env = []string{"PATH=" + os.Getenv("PATH")} // no proxy, no ~/.curlrc
			sh.Stdin = strings.NewReader(command)
			out, err := sh.CombinedOutput()
			server.Close() // no handler writes got after this
			if err != nil || got == nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if string(got.Body) != row.body {
				t.Errorf("%d bytes came, which are not the %d that were signed", len(got.Body), len(row.body))
			}
			h := got.Unverified.Header
			if id := got.Unverified.ID; len(id) != len("msg_")+28 || !strings.HasPrefix(id, "msg_") {
				t.Errorf("the message id is %q", id)
			}
			if h.Get("User-Agent") != "Upstash-QStash" || h.Get("Upstash-Retried") != "0" || h.Get("Content-Type") != row.contentType {
				t.Errorf("the headers are %q", h)
			}
		})
	}
}

func TestSignRefuses(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		sentence string
		settings settings
		args     []string
		usage    bool // exit code 2
		words    string
	}{
		{"an unknown flag", nil, []string{"-x"}, true, "-x"},
		{"a flag without its value", nil, []string{"-d"}, true, "-d"},
		{"a word too many", nil, []string{"hello"}, true, `what is "hello" for? give the body with -d`},
		{"another key", nil, []string{"-key", "previous"}, true, `-key is "previous", not current or next`},
		{"a -to of no URL", nil, []string{"-to", "http://%zz/"}, true, "not an http or https URL"},
		{"a -to without a scheme", nil, []string{"-to", "localhost:8080"}, true, "not an http or https URL"},
		{"a -to that is a path", nil, []string{"-to", "/a"}, true, "not an http or https URL"},
		{"a bad flag when settings are wrong too", settings{"PORT": "x"}, []string{"-x"}, true, "-x"},
		{"no keys", settings{"QSTASH_CURRENT_SIGNING_KEY": "", "QSTASH_NEXT_SIGNING_KEY": ""}, nil, false, "QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY: not set"},
		{"half a pair", settings{"QSTASH_NEXT_SIGNING_KEY": ""}, nil, false, "QSTASH_NEXT_SIGNING_KEY: not set"},
		{"a wrong RECEIVER_URL", settings{"RECEIVER_URL": "x"}, nil, false, "RECEIVER_URL"},
		{"a file that is not there", nil, []string{"-d", "@/nosuch/file"}, false, "/nosuch/file"},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			out, err := signWith(row.settings, "", row.args...)
			if err == nil || !strings.Contains(err.Error(), row.words) {
				t.Fatalf("got %v, want an error that says %q", err, row.words)
			}
			if got := errors.As(err, new(usageError)); got != row.usage {
				t.Errorf("a usage error: %v, not %v (%v)", got, row.usage, err)
			}
			if out != "" {
				t.Errorf("it prints %q", out)
			}
		})
	}
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		args   []string
		prints string // the start of it; "": a usage error
	}{
		{[]string{"-h"}, "Receiver takes the messages"},
		{[]string{"--help"}, "Receiver takes the messages"},
		{[]string{"help"}, "Receiver takes the messages"},
		{[]string{"sign", "-h"}, "receiver sign prints"},
		{[]string{"serve"}, ""},
		{[]string{"-x"}, ""},
		{[]string{""}, ""},
	} {
		var out bytes.Buffer
		nothing := func(string) string { return "" }
		err := run(t.Context(), row.args, nothing, strings.NewReader(""), &out, io.Discard)
		if got := errors.As(err, new(usageError)); got != (row.prints == "") || err != nil && !got {
			t.Errorf("%q: %v", row.args, err)
		}
		if !strings.HasPrefix(out.String(), row.prints) || row.prints == "" && out.Len() > 0 {
			t.Errorf("%q prints %q", row.args, out.String())
		}
	}
}
