// Bench makes what the measuring scripts beside it need:
//
//	bench requests N BYTES DIR THREADS [KEY]   N signed deliveries of a body of BYTES, for wrk
//	bench bare                                 a net/http server that reads the body and answers 200, on $PORT
//	bench refuse                               one that reads the body and answers 401, on $PORT; it closes unless $KEEP
//	bench start N DIR COMMAND...               median ms from exec of COMMAND to its first 200, of N
//	bench fsync DIR                            how often a second a file in DIR takes 4 KB and fdatasync
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
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
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
	case len(os.Args) == 2 && os.Args[1] == "refuse":
		log.Fatal(http.ListenAndServe(":"+os.Getenv("PORT"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.ReadAll(r.Body); err == nil {
				if os.Getenv("KEEP") == "" {
					w.Header().Set("Connection", "close")
				}
				w.WriteHeader(http.StatusUnauthorized)
			}
		})))
	case len(os.Args) >= 5 && os.Args[1] == "start":
		if err := start(os.Args[2], os.Args[3], os.Args[4:]); err != nil {
			log.Fatal("bench start: ", err)
		}
	case len(os.Args) == 3 && os.Args[1] == "fsync":
		if err := fsync(os.Args[2]); err != nil {
			log.Fatal("bench fsync: ", err)
		}
	default:
		log.Fatal("usage: bench requests N BYTES DIR THREADS [KEY] | bare | refuse | start N DIR COMMAND... | fsync DIR")
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

// start delivers the first message of DIR/tokens.0 to a command that serves on $PORT, as soon as it listens.
func start(times, dir string, command []string) error {
	n, err := strconv.Atoi(times)
	if err != nil {
		return err
	}
	line, err := os.ReadFile(filepath.Join(dir, "tokens.0"))
	if err != nil {
		return err
	}
	id, token, _ := strings.Cut(strings.SplitN(string(line), "\n", 2)[0], " ")
	body, err := os.ReadFile(filepath.Join(dir, "body"))
	if err != nil {
		return err
	}
	var took []float64
	for range n {
		c := exec.Command(command[0], command[1:]...)
		c.Stderr = os.Stderr
		began := time.Now()
		if err := c.Start(); err != nil {
			return err
		}
		for {
			r, err := http.NewRequest(http.MethodPost, "http://127.0.0.1:"+os.Getenv("PORT")+"/", bytes.NewReader(body))
			if err != nil {
				return err
			}
			r.Header.Set("Upstash-Message-Id", id)
			r.Header.Set("Upstash-Signature", token)
			r.Close = true
			answer, err := http.DefaultTransport.RoundTrip(r)
			if err == nil {
				answer.Body.Close()
				if answer.StatusCode != http.StatusOK {
					return fmt.Errorf("the first answer is %s", answer.Status)
				}
				break
			}
			if time.Since(began) > 10*time.Second {
				return err
			}
			time.Sleep(100 * time.Microsecond)
		}
		took = append(took, float64(time.Since(began).Microseconds())/1000)
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	slices.Sort(took)
	fmt.Printf("%.1f\n", took[n/2])
	return nil
}

func fsync(dir string) error {
	f, err := os.CreateTemp(dir, "fsync")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	page := make([]byte, 4096)
	n := 0
	for began := time.Now(); time.Since(began) < 2*time.Second; n++ {
		if _, err := f.Write(page); err != nil {
			return err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return err
		}
	}
	fmt.Println(n / 2)
	return nil
}
