package signing

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Check returns nil if secret is a signing key: sig_ and at least 20 ASCII letters or digits, and none that Upstash
// publishes. Else it says what it looks like, without a piece of it.
func Check(secret string) error {
	if slices.Contains(published(), secret) {
		return ErrPublished
	}
	rest, isKey := strings.CutPrefix(secret, "sig_")
	odd := strings.ContainsFunc(rest, func(r rune) bool { return !isLetterOrDigit(r) })
	name, _, isSetting := strings.Cut(secret, "=")
	switch {
	case isKey && !odd && len(rest) >= 20:
		return nil
	case strings.ContainsAny(secret, "\"'`“”‘’"):
		return errors.New("it has quotes round it; give it without")
	case strings.HasPrefix(secret, "eyJ") || strings.HasPrefix(secret, "Bearer "):
		return errors.New("it looks like a token, which begins with eyJ; the signing keys stand apart from it")
	case isSetting && strings.HasSuffix(name, "SIGNING_KEY"):
		return errors.New("it has NAME= before it; give what follows alone")
	case isSetting:
		return errors.New("it has an equals sign in it, as NAME= before it would; give the key alone")
	case secret == "sig_" || strings.Contains(secret, "..") || strings.ContainsAny(secret, "…<>${}[]*"):
		return errors.New("it looks like a placeholder; put the key in its place")
	case !isKey:
		return errors.New("it does not begin with sig_")
	case odd:
		return errors.New("it has a character behind sig_ that is neither an ASCII letter nor a digit; copy it again")
	}
	return fmt.Errorf("it is too short: %d characters behind sig_, a key has at least 20; copy all of it", len(rest))
}

// ErrPublished says that anyone can sign with a key.
var ErrPublished = errors.New("it is a key that Upstash publishes for its local server: anyone can sign with it")

func isLetterOrDigit(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
}

// published has the pairs of the local server's users 1 to 4.
func published() []string {
	return []string{
		DevCurrent, DevNext,
		"sig_7GVPjvuwsfqF65iC8fSrs1dfYruM", "sig_5NoELc3EFnZn4DVS5bDs2Nk4b7Ua",
		"sig_6jWGaWRxHsw4vMSPJprXadyvrybF", "sig_7qHbvhmahe5GwfePDiS5Lg3pi6Qx",
		"sig_5T8FcSsynBjn9mMLBsXhpacRovJf", "sig_7GFR4YaDshFcqsxWRZpRB161jguD",
	}
}
