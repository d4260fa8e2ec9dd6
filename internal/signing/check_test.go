package signing

import (
	"net/url"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	const key = "sig_6JqLzVvP4WnJ9oZ3nT1hQbKfXcYd"
	for _, row := range []struct{ sentence, secret, says string }{
		{"a key", key, ""},
		{"a key of the least length", "sig_" + strings.Repeat("a1B", 7)[:20], ""},
		{"an older key", "sig_" + strings.Repeat("a", 50), ""},
		{"one character less", "sig_" + strings.Repeat("a", 19), "too short: 19 characters"},
		{"user 1's current key", "sig_7kYjw48mhY7kAjqNGcy6cr29RJ6r", "publishes"},
		{"user 1's next key", "sig_5ZB6DVzB1wjE8S6rZ7eenA8Pdnhs", "publishes"},
		{"user 2's current key", "sig_7GVPjvuwsfqF65iC8fSrs1dfYruM", "publishes"},
		{"user 2's next key", "sig_5NoELc3EFnZn4DVS5bDs2Nk4b7Ua", "publishes"},
		{"user 3's current key", "sig_6jWGaWRxHsw4vMSPJprXadyvrybF", "publishes"},
		{"user 3's next key", "sig_7qHbvhmahe5GwfePDiS5Lg3pi6Qx", "publishes"},
		{"user 4's current key", "sig_5T8FcSsynBjn9mMLBsXhpacRovJf", "publishes"},
		{"user 4's next key", "sig_7GFR4YaDshFcqsxWRZpRB161jguD", "publishes"},
		{"double quotes", `"` + key + `"`, "quotes"},
		{"single quotes", "'" + key + "'", "quotes"},
		{"curly quotes", "“" + key + "”", "quotes"},
		{"one quote", key + `"`, "quotes"},
		{"a name before it", "QSTASH_CURRENT_SIGNING_KEY=" + key, "NAME="},
		{"a name and quotes", `QSTASH_CURRENT_SIGNING_KEY="` + key + `"`, "quotes"},
		{"another name before it", "KEY=" + key, "NAME="},
		{"an export before it", "export QSTASH_NEXT_SIGNING_KEY=" + key, "NAME="},
		{"an equals sign", key + "=", "equals sign"},
		{"a token", "eyJVc2VySUQiOiJkZWZhdWx0VXNlciIsIlBhc3N3b3JkIjoiZGVmYXVsdFBhc3N3b3JkIn0", "token"},
		{"a padded token", "eyJVc2VySUQiOiJkZWZhdWx0VXNlciJ9=", "token"},
		{"the guide's placeholder", "sig_...", "placeholder"},
		{"an ellipsis", "sig_…", "placeholder"},
		{"angle brackets", "<your key>", "placeholder"},
		{"a variable", "$QSTASH_KEY", "placeholder"},
		{"sig_ alone", "sig_", "placeholder"},
		{"a letter", "a", "does not begin with sig_"},
		{"upper case", strings.ToUpper(key), "does not begin with sig_"},
		{"two keys", key + "," + key, "neither an ASCII letter nor a digit"},
		{"a letter that only looks like one", "sig_" + strings.Repeat("a", 20) + "е", "neither an ASCII letter nor a digit"},
		{"a line break", key + "\n" + key, "neither an ASCII letter nor a digit"},
		{"an invisible character", key + "\u200b", "neither an ASCII letter nor a digit"},
		{"a mark of the byte order", "\ufeff" + key, "does not begin with sig_"},
	} {
		err := Check(row.secret)
		switch {
		case row.says == "" && err != nil:
			t.Errorf("%s: %v", row.sentence, err)
		case row.says != "" && (err == nil || !strings.Contains(err.Error(), row.says)):
			t.Errorf("%s: got %v, want %q", row.sentence, err, row.says)
		case err != nil && strings.Contains(err.Error(), key):
			t.Errorf("%s: %q tells the key", row.sentence, err)
		}
	}
}

func TestOrigin(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ url, origin string }{
		{"https://app.fly.dev/a?b", "https://app.fly.dev"},
		{"HTTPS://App.Fly.Dev", "https://app.fly.dev"},
		{"https://a.example:443", "https://a.example"},
		{"https://a.example:80", "https://a.example:80"},
		{"http://a.example:80", "http://a.example"},
		{"http://a.example:443", "http://a.example:443"},
		{"https://a.example:", "https://a.example"},
		{"https://[::1]:443", "https://[::1]"},
		{"https://w\u0130nter.fly.dev", "https://w\u0130nter.fly.dev"}, // not winter
		{"https://\u212Aiwi.example", "https://\u212Aiwi.example"},     // the sign for kelvin, not a k
	} {
		u, err := url.Parse(row.url)
		if err != nil {
			t.Fatal(err)
		}
		if got := Origin(u); got != row.origin {
			t.Errorf("%q: got %q, want %q", row.url, got, row.origin)
		}
	}
}

func TestEqual(t *testing.T) {
	t.Parallel()
	a, b := NewKey("current", "", "a"), NewKey("next", "EU_CENTRAL_1_", "a")
	if !a.Equal(b) || a.Equal(NewKey("current", "", "b")) || a.Equal(Key{}) {
		t.Error("keys are compared by more or less than their secrets")
	}
}
