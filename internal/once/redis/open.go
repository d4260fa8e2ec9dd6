package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"qstash-receiver/internal/once"
)

// try carries out what the store will do, once. What does not answer is tried again for wait.
func (s *Store) try(ctx context.Context, wait time.Duration, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		err := s.client.Ping(ctx).Err() // ends with ctx
		if err == nil || redis.HasErrorPrefix(err, "NOPERM") {
			err = once.Try(s)
		}
		if err == nil {
			return nil
		}
		if refused := s.refusal(ctx, err); refused != nil {
			return refused
		}
		if ctx.Err() == nil {
			log.Warn("Redis does not answer, trying again", "address", s.client.Options().Addr, "error", err.Error())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it did not answer within %s: %w; does the address reach it from this machine?", wait, err)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// passing are the beginnings of replies that another try may not get.
var passing = []string{"LOADING", "MASTERDOWN", "TRYAGAIN", "BUSY", "NOREPLICAS", "max number of clients"}

// fixes says what to do about a reply that has text in it.
var fixes = []struct{ text, fix string }{
	{"NOAUTH", "put the login into the URL, like redis://default:password@host:6379"},
	{"WRONGPASS", "check user and password in the URL"},
	{"DB index", "check the number behind the last / of the URL, or leave it out"},
	{"NOPERM", needs},
	{"ACL failure", needs},
	{"can't run this command", needs},
	{"READONLY", "it is a replica, which takes no claims; give the primary's address"},
	{"MOVED", cluster},
	{"ASK ", cluster},
	{"CROSSSLOT", cluster},
	{"CLUSTERDOWN", cluster},
	{"cluster mode", cluster},
	{"OOM", "its memory is full; free some, or give it a larger maxmemory"},
	{"MISCONF", "it cannot write to its disk and takes no more; free space there, or see its log"},
	{"unknown command", "it needs scripts (EVALSHA), which this server does not have; give a Redis 7"},
}

const (
	needs = "allow its login what a claim does: ACL SETUSER <user> on ~qstash:* " +
		"+eval +evalsha +set +get +hset +hmget +pttl +pexpire +time +ping +select"
	cluster = "it is a node of a cluster, where a message and its token lie apart; give a Redis without cluster mode"
)

// refusal returns why this Redis cannot serve, with the fix, or nil if err may pass.
func (s *Store) refusal(ctx context.Context, err error) error {
	var reply redis.Error
	var certificate *tls.CertificateVerificationError
	options := s.client.Options()
	switch {
	case errors.As(err, &reply):
		for _, prefix := range passing {
			if redis.HasErrorPrefix(err, prefix) {
				return nil
			}
		}
		for _, f := range fixes {
			if strings.Contains(reply.Error(), f.text) {
				return fmt.Errorf("it answers %q: %s", reply.Error(), f.fix)
			}
		}
		return fmt.Errorf("it answers %q: check login and database in the URL", reply.Error())
	case errors.As(err, &certificate):
		return fmt.Errorf("its certificate is not good for this address: %w", err)
	case options.TLSConfig == nil && speaksTLS(ctx, options.Addr):
		return errors.New("it speaks TLS; write rediss:// instead of redis://")
	case options.TLSConfig != nil && speaksPlain(ctx, options.Addr):
		return errors.New("it speaks no TLS; write redis:// instead of rediss://")
	}
	return nil
}

const probeTimeout = 2 * time.Second

// speaksTLS says whether the other side at addr shakes hands as TLS does. Nothing else is sent to it, so it does not
// matter who it is.
func speaksTLS(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// speaksPlain says whether the other side at addr answers a PING as Redis does.
func speaksPlain(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(probeTimeout))
	reply := make([]byte, 1)
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return false
	}
	if _, err := conn.Read(reply); err != nil {
		return false
	}
	return reply[0] == '+' || reply[0] == '-' // +PONG, or an error that asks for a login
}

// warnOfEviction says so where Redis may drop keys before they expire. Every key here expires, so the policies that
// evict only such keys are no better. A Redis that does not tell its policy is left alone.
func (s *Store) warnOfEviction(ctx context.Context, log *slog.Logger) {
	policy := ""
	if config, err := s.client.ConfigGet(ctx, "maxmemory-policy").Result(); err == nil {
		policy = config["maxmemory-policy"]
	} else if info, err := s.client.Info(ctx, "memory").Result(); err == nil {
		_, rest, _ := strings.Cut(info, "maxmemory_policy:")
		policy, _, _ = strings.Cut(rest, "\r\n")
	}
	if policy != "" && policy != "noeviction" {
		log.Warn("Redis may evict what it remembers when its memory is full, and those messages run again: "+
			"set maxmemory-policy to noeviction", "maxmemory_policy", policy)
	}
}
