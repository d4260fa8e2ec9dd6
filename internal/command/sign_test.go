package command

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
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

const (
	currentKey = "sig_TestCurrent1234567890abcdef"
	nextKey    = "sig_TestNext1234567890abcdefghi"
	apiToken   = "eyJVc2VySUQiOiJtZSIsIlBhc3N3b3JkIjoiaHVudGVyMiJ9"
)

// env is an environment that has a whole key pair unless it says otherwise.
type env map[string]string

func (e env) getenv(name string) string {
	pair := map[string]string{"QSTASH_CURRENT_SIGNING_KEY": currentKey, "QSTASH_NEXT_SIGNING_KEY": nextKey}
	if value, ok := e[name]; ok {
		return value
	}
	return pair[name]
}

// signWith runs sign in an environment and returns what it prints.
func signWith(t *testing.T, e env, stdin string, args ...string) (string, error) {
	t.Helper()
	var stdout bytes.Buffer
	err := Sign(t.Context(), args, e.getenv, strings.NewReader(stdin), &stdout)
	return stdout.String(), err
}

// claims are a token's, if secret signed it.
func claims(t *testing.T, token, secret string) (header, payload string) {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%q is no token", token)
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(parts[0] + "." + parts[1]))
	if want := base64.RawURLEncoding.EncodeToString(mac.Sum(nil)); parts[2] != want {
		t.Fatalf("the token was signed with another key")
	}
	for i, part := range []*string{&header, &payload} {
		decoded, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			t.Fatal(err)
		}
		*part = string(decoded)
	}
	return header, payload
}

func hashOf(body string) string {
	sum := sha256.Sum256([]byte(body))
	return base64.URLEncoding.EncodeToString(sum[:])
}

func TestSignedToken(t *testing.T) {
	t.Parallel()
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+apiToken || r.URL.Path != "/v2/keys" {
			w.WriteHeader(http.StatusUnauthorized)
		}
		fmt.Fprintf(w, `{"current":%q,"next":%q}`, currentKey, nextKey)
	}))
	defer keys.Close()
	onFly := env{"FLY_APP_NAME": "app"}
	two := env{"RECEIVER_URL": "https://a.example,https://b.example"}
	fetched := env{"QSTASH_CURRENT_SIGNING_KEY": "", "QSTASH_NEXT_SIGNING_KEY": "", "QSTASH_TOKEN": apiToken, "QSTASH_URL": keys.URL}
	for _, row := range []struct {
		sentence string
		env      env
		args     []string
		subject  string
		body     string
		key      string
	}{
		{"by default", nil, nil, "http://localhost:8080/", `{"hello":"world"}`, currentKey},
		{"on another port", env{"PORT": "3000"}, nil, "http://localhost:3000/", `{"hello":"world"}`, currentKey},
		{"of data", nil, []string{"-d", "x"}, "http://localhost:8080/", "x", currentKey},
		{"of no data", nil, []string{"-d", ""}, "http://localhost:8080/", "", currentKey},
		{"with the current key", nil, []string{"-key", "current"}, "http://localhost:8080/", `{"hello":"world"}`, currentKey},
		{"with the next key", nil, []string{"-key", "next"}, "http://localhost:8080/", `{"hello":"world"}`, nextKey},
		{"with a fetched key", fetched, nil, "http://localhost:8080/", `{"hello":"world"}`, currentKey},
		{"with a fetched next key", fetched, []string{"-key", "next"}, "http://localhost:8080/", `{"hello":"world"}`, nextKey},
		{"to a path and query", nil, []string{"-to", "https://x.example/a%2Fb//c?x=1"}, "https://x.example/a%2Fb//c?x=1", `{"hello":"world"}`, currentKey},
		{"for the URL on Fly", onFly, nil, "https://app.fly.dev/", `{"hello":"world"}`, currentKey},
		{"for the first of two URLs, and a path and query", two, []string{"-to", "http://localhost:1/a%2Fb//c?x=1"}, "https://a.example/a%2Fb//c?x=1", `{"hello":"world"}`, currentKey},
		{"for a URL, to a root without a slash", two, []string{"-to", "http://localhost:1?x=1"}, "https://a.example/?x=1", `{"hello":"world"}`, currentKey},
		{"with a store that is broken", env{"STORE_URL": "nosuch://x"}, nil, "http://localhost:8080/", `{"hello":"world"}`, currentKey},
	} {
		before := time.Now().Unix()
		out, err := signWith(t, row.env, "", append(row.args, "-token")...)
		if err != nil {
			t.Errorf("%s: %v", row.sentence, err)
			continue
		}
		header, payload := claims(t, strings.TrimSuffix(out, "\n"), row.key)
		var says struct {
			IAT int64
			JTI string
		}
		if err := json.Unmarshal([]byte(payload), &says); err != nil {
			t.Errorf("%s: %v", row.sentence, err)
		}
		if says.IAT < before || says.IAT > time.Now().Unix() || len(says.JTI) != len("jwt_")+28 || !strings.HasPrefix(says.JTI, "jwt_") {
			t.Errorf("%s: iat is %d, jti %q", row.sentence, says.IAT, says.JTI)
		}
		want := fmt.Sprintf(`{"aud":"","body":"%s","exp":%d,"iat":%d,"iss":"Upstash","jti":"%s","nbf":-62135596800,"sub":"%s"}`,
			hashOf(row.body), says.IAT+300, says.IAT, says.JTI, row.subject)
		if header != `{"alg":"HS256","typ":"JWT"}` || payload != want {
			t.Errorf("%s:\ngot  %s %s\nwant %s", row.sentence, header, payload, want)
		}
	}
}

func TestSignedTokensDiffer(t *testing.T) {
	t.Parallel()
	one, _ := signWith(t, nil, "")
	two, _ := signWith(t, nil, "")
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

func TestExpiredToken(t *testing.T) {
	t.Parallel()
	for _, tolerance := range []time.Duration{0, time.Hour} {
		out, err := signWith(t, env{"CLOCK_TOLERANCE": tolerance.String()}, "", "-expired", "-token")
		if err != nil {
			t.Fatal(err)
		}
		_, payload := claims(t, strings.TrimSpace(out), currentKey)
		var says struct{ EXP int64 }
		if err := json.Unmarshal([]byte(payload), &says); err != nil || time.Unix(says.EXP, 0).Add(tolerance).After(time.Now()) {
			t.Errorf("with a tolerance of %s it is valid until %d: %v", tolerance, says.EXP, err)
		}
	}
}

// The printed command is run by a real shell and a real curl.
func TestSignedCommandDelivers(t *testing.T) {
	t.Parallel()
	noise := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	file := filepath.Join(t.TempDir(), "it's a file")
	if err := os.WriteFile(file, noise, 0o600); err != nil {
		t.Fatal(err)
	}
	const asJSON, asText, bearer = "application/json", "text/plain", `it's "s3cret" $HOME \`
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
		{"the end of a here-document", []string{"-d", "a\nEND\nb"}, "", "/", "a\nEND\nb", asText},
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
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			got := make(chan *http.Request, 1)
			var body []byte
			server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				body, _ = io.ReadAll(r.Body)
				got <- r
			}))
			defer server.Close()
			command, err := signWith(t, env{"RECEIVER_URL": "https://app.fly.dev", "BEARER_TOKEN": bearer}, row.stdin, append(row.args, "-to", server.URL+row.path)...)
			if err != nil {
				t.Fatal(err)
			}
			if !utf8.ValidString(command) || strings.ContainsAny(command, "\x00\r\x1b") {
				t.Errorf("a terminal cannot show %q", command)
			}
			if arguments, _, _ := strings.Cut(command, "3<<"); strings.Contains(arguments, "s3cret") {
				t.Errorf("the bearer token is among the arguments of curl: %s", arguments)
			}
			sh := exec.Command("sh", "-e")
			sh.Env = []string{"PATH=" + os.Getenv("PATH")} // no proxy, no ~/.curlrc
			sh.Stdin = strings.NewReader(command)
			if out, err := sh.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			r := <-got
			if string(body) != row.body {
				t.Errorf("%d bytes came, which are not the %d that were signed", len(body), len(row.body))
			}
			_, payload := claims(t, r.Header.Get("Upstash-Signature"), currentKey)
			var says struct{ Body, Sub string }
			if err := json.Unmarshal([]byte(payload), &says); err != nil || says.Body != hashOf(row.body) || says.Sub != "https://app.fly.dev"+r.RequestURI {
				t.Errorf("%s came to %q, %v", payload, r.RequestURI, err)
			}
			if id := r.Header.Get("Upstash-Message-Id"); len(id) != len("msg_")+28 || !strings.HasPrefix(id, "msg_") {
				t.Errorf("the message id is %q", id)
			}
			if r.Header.Get("User-Agent") != "Upstash-QStash" || r.Header.Get("Upstash-Retried") != "0" ||
				r.Header.Get("Content-Type") != row.contentType || r.Header.Get("Authorization") != "Bearer "+bearer {
				t.Errorf("the headers are %q", r.Header)
			}
		})
	}
}

func TestSignRefuses(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		sentence string
		env      env
		args     []string
		usage    bool // exit code 2
		words    string
	}{
		{"an unknown flag", nil, []string{"-x"}, true, "-x"},
		{"a flag without its value", nil, []string{"-d"}, true, "-d"},
		{"a word too many", nil, []string{"hello"}, true, `what is "hello" for? give the body with -d`},
		{"another key", nil, []string{"-key", "previous"}, true, `-key is "previous", not current or next`},
		{"a -to of no URL", nil, []string{"-to", "http://%zz/"}, true, "not an http or https URL"},
		{"a -to with a login", nil, []string{"-to", "http://me:hunter2@localhost:8080/"}, true, "-to has a login before its host"},
		{"a -to without a scheme", nil, []string{"-to", "localhost:8080"}, true, "not an http or https URL"},
		{"a -to that is a path", nil, []string{"-to", "/a"}, true, "not an http or https URL"},
		{"a bad flag when settings are wrong too", env{"PORT": "x"}, []string{"-x"}, true, "-x"},
		{"no keys", env{"QSTASH_CURRENT_SIGNING_KEY": "", "QSTASH_NEXT_SIGNING_KEY": ""}, nil, false, "QSTASH_CURRENT_SIGNING_KEY and QSTASH_NEXT_SIGNING_KEY: not set"},
		{"half a pair", env{"QSTASH_NEXT_SIGNING_KEY": ""}, nil, false, "QSTASH_NEXT_SIGNING_KEY: not set"},
		{"a wrong RECEIVER_URL", env{"RECEIVER_URL": "x"}, nil, false, "RECEIVER_URL"},
		{"a file that is not there", nil, []string{"-d", "@/nosuch/file"}, false, "/nosuch/file"},
		{"an API that is away", env{"QSTASH_CURRENT_SIGNING_KEY": "", "QSTASH_NEXT_SIGNING_KEY": "", "QSTASH_TOKEN": apiToken, "QSTASH_URL": "http://127.0.0.1:1"},
			nil, false, "fetch the keys with QSTASH_TOKEN"},
	} {
		out, err := signWith(t, row.env, "", row.args...)
		if err == nil || !strings.Contains(err.Error(), row.words) || strings.Contains(err.Error(), apiToken) {
			t.Errorf("%s: got %v, want an error that says %q", row.sentence, err, row.words)
		}
		if got := errors.As(err, new(UsageError)); got != row.usage {
			t.Errorf("%s: a usage error: %v, not %v (%v)", row.sentence, got, row.usage, err)
		}
		if out != "" {
			t.Errorf("%s: it prints %q", row.sentence, out)
		}
	}
}

func TestSignHelp(t *testing.T) {
	t.Parallel()
	if out, err := signWith(t, env{"PORT": "x"}, "", "-h"); err != nil || !strings.HasPrefix(out, "receiver sign prints") {
		t.Errorf("it prints %q, %v", out, err)
	}
}
