package sqlite

import (
	"net/http"

	"qstash-receiver/internal/once"
)

// writeHeader returns the content type, which most answers have and nothing else, and lines with the rest.
func writeHeader(h http.Header) (contentType, lines string) {
	if values := h["Content-Type"]; len(values) == 1 {
		if len(h) == 1 {
			return values[0], ""
		}
		rest := h.Clone()
		delete(rest, "Content-Type")
		return values[0], once.EncodeHeader(rest)
	}
	return "", once.EncodeHeader(h)
}

// readHeader reads what writeHeader returned.
func readHeader(contentType, lines string) (http.Header, error) {
	h, err := once.DecodeHeader(lines)
	if err != nil || contentType == "" {
		return h, err
	}
	if h == nil {
		h = http.Header{}
	}
	h["Content-Type"] = []string{contentType}
	return h, nil
}
