package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v4"
)

// peers are the servers that the receiver is measured beside.
var peers = map[string]http.HandlerFunc{
	"discard": func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, ok)
	},
	"bare":  func(w http.ResponseWriter, r *http.Request) { pooled(w, r, func(*bytes.Buffer) error { return nil }) },
	"post":  func(w http.ResponseWriter, r *http.Request) { pooled(w, r, postOn(r)) },
	"guide": guide,
}

const ok = `{"message":"ok"}`

// serve serves h on $PORT under the deadlines that the receiver has.
func serve(h http.HandlerFunc) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "ok") })
	mux.Handle("/", h)
	server := &http.Server{
		Addr: ":" + os.Getenv("PORT"), Handler: mux,
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 120 * time.Second,
	}
	return server.ListenAndServe()
}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// pooled is the least that a verifier does: it reads the body into a pooled buffer and hashes it.
func pooled(w http.ResponseWriter, r *http.Request, then func(*bytes.Buffer) error) {
	body := buffers.Get().(*bytes.Buffer)
	defer buffers.Put(body)
	body.Reset()
	if r.ContentLength > 0 {
		body.Grow(int(r.ContentLength) + bytes.MinRead)
	}
	if _, err := body.ReadFrom(r.Body); err != nil {
		return
	}
	if sum := sha256.Sum256(body.Bytes()); sum == [32]byte{} || then(body) != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, ok)
}

func postOn(r *http.Request) func(*bytes.Buffer) error {
	return func(body *bytes.Buffer) error {
		request, err := http.NewRequest(http.MethodPost, os.Getenv("FORWARD_URL"), bytes.NewReader(body.Bytes()))
		if err != nil {
			return err
		}
		request.Header = r.Header.Clone()
		answer, err := http.DefaultTransport.RoundTrip(request)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		_, err = io.Copy(io.Discard, answer.Body)
		return err
	}
}

// guide verifies in the manner of the guide that Upstash publishes for Go on Fly: golang-jwt with its map of claims,
// the current key, then the next one. It runs nothing once only and logs nothing.
func guide(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	token := r.Header.Get("Upstash-Signature")
	err = guideVerify(body, token, os.Getenv("QSTASH_CURRENT_SIGNING_KEY"))
	if err != nil {
		err = guideVerify(body, token, os.Getenv("QSTASH_NEXT_SIGNING_KEY"))
	}
	if err != nil {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, ok)
}

func guideVerify(body []byte, tokenString, key string) error {
	claims := jwt.MapClaims{}
	_, err := jwt.ParseWithClaims(tokenString, claims, func(token *jwt.Token) (any, error) {
		if _, ok := token.Method.(*jwt.SigningMethodHMAC); !ok {
			return nil, errors.New("another signing method")
		}
		return []byte(key), nil
	})
	now := time.Now().Unix()
	hash := sha256.Sum256(body)
	switch {
	case err != nil:
		return err
	case !claims.VerifyIssuer("Upstash", true), !claims.VerifyExpiresAt(now, true), !claims.VerifyNotBefore(now, true):
		return errors.New("wrong claims")
	case claims["body"] != base64.URLEncoding.EncodeToString(hash[:]):
		return errors.New("another body")
	}
	return nil
}
