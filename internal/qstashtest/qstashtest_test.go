package qstashtest

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// An answer from outside (RFC 7515, appendix A.1) pins the signer.
func TestToken(t *testing.T) {
	t.Parallel()
	key, err := base64.RawURLEncoding.DecodeString("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow")
	if err != nil {
		t.Fatal(err)
	}
	got := Token("{\"typ\":\"JWT\",\r\n \"alg\":\"HS256\"}",
		"{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}", string(key))
	const want = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9" +
		".eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ" +
		".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
	if got != want {
		t.Errorf("signed %s, the RFC %s", got, want)
	}
}

func TestSending(t *testing.T) {
	t.Parallel()
	received := make(chan *http.Request, 1)
	web := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { received <- r }))
	defer web.Close()
	s := Sending{
		Path: "/a%2Fb?x=1", Body: "hello", TokenID: "jwt_\"1\"\n", Claims: Claims{"aud": "", "exp": "1e400"},
		Header: map[string]string{"Upstash-Region": "", "Upstash-Retried": "2"}, Proxied: true,
	}
	overWire := Raw(t, web.URL, s.Whole(web.URL, ""))
	fromWire := <-received
	asRequest := Do(t, s.Request(t, web.URL))
	fromRequest := <-received
	if overWire.Status != 200 || asRequest.Status != 200 {
		t.Error(overWire, asRequest)
	}
	for name, r := range map[string]*http.Request{"over the wire": fromWire, "as a request": fromRequest} {
		part := strings.Split(r.Header.Get("Upstash-Signature"), ".")[1]
		payload, err := base64.RawURLEncoding.DecodeString(part)
		var claims map[string]json.RawMessage
		if err != nil || json.Unmarshal(payload, &claims) != nil {
			t.Errorf("%s: the claims are %q", name, payload)
		}
		if string(claims["exp"]) != "1e400" || claims["aud"] != nil || string(claims["jti"]) != `"jwt_\"1\"\n"` ||
			string(claims["sub"]) != `"`+web.URL+`/a%2Fb?x=1"` {
			t.Errorf("%s: the claims are %s", name, payload)
		}
		if r.RequestURI != "/a%2Fb?x=1" || r.Header.Get("Upstash-Retried") != "2" || r.Header["Upstash-Region"] != nil || len(r.Header) < 22 {
			t.Errorf("%s: got %s with %v", name, r.RequestURI, r.Header)
		}
	}
}
