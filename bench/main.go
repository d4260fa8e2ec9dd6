// Bench makes what the measuring scripts beside it need:
//
//	bench requests N BYTES DIR THREADS [KEY]   N signed deliveries of a body of BYTES, for wrk
//	bench bare                                 a net/http server that reads the body and answers 200, on $PORT
package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/golang-jwt/jwt/v4"
)

func main() {
	log.SetFlags(0)
	switch {
	case len(os.Args) >= 6 && os.Args[1] == "requests":
		if err := requests(os.Args[2:]); err != nil {
			log.Fatal("bench requests: ", err)
		}
	case len(os.Args) == 2 && os.Args[1] == "bare":
		log.Fatal(http.ListenAndServe(":"+os.Getenv("PORT"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.ReadAll(r.Body); err == nil {
				_, _ = io.WriteString(w, `{"message":"ok"}`)
			}
		})))
	default:
		log.Fatal("usage: bench requests N BYTES DIR THREADS [KEY], or bench bare")
	}
}

// requests writes DIR/body and, for each thread, DIR/tokens.<i> with a message id and a token on each line.
func requests(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	size, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	threads, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	key := os.Getenv("QSTASH_CURRENT_SIGNING_KEY")
	if len(args) > 4 {
		key = args[4]
	}
	body := bytes.Repeat([]byte("x"), size)
	if err := os.WriteFile(filepath.Join(args[2], "body"), body, 0o600); err != nil {
		return err
	}
	hash := sha256.Sum256(body)
	now := time.Now().Unix()
	for i := range threads {
		f, err := os.Create(filepath.Join(args[2], fmt.Sprintf("tokens.%d", i)))
		if err != nil {
			return err
		}
		w := bufio.NewWriter(f)
		for range n / threads {
			id := rand.Text()
			token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.MapClaims{
				"aud": "", "body": base64.URLEncoding.EncodeToString(hash[:]), "exp": now + 300, "iat": now,
				"iss": "Upstash", "jti": "jwt_" + id, "nbf": -62135596800, "sub": "https://receiver.example/",
			}).SignedString([]byte(key))
			if err != nil {
				return err
			}
			fmt.Fprintln(w, "msg_"+id, token)
		}
		if err := w.Flush(); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}
