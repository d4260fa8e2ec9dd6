package redis

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"

	"qstash-receiver/internal/once"
)

const (
	// senders send pipelines beside each other: a reply that is lost on the way holds up only those behind it.
	senders = 2
	// longest is how many decisions one pipeline has at most.
	longest = 64
)

// decision is one script to run, for a caller that waits for its reply.
type decision struct {
	ctx    context.Context // once it has ended, the script is not sent any more
	script *redis.Script
	keys   []string
	args   []any
	reply  chan *redis.Cmd
}

func newStore(options *redis.Options, ttl time.Duration) *Store {
	logging.Disable() // it would write lines of its own to standard error; what fails comes back as an error
	o := *options
	o.ContextTimeoutEnabled = true
	o.DisableIdentity = true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	o.DialerRetries = 1     // a pipeline is tried again as a whole
	o.PipelinePoolSize = -1 // nothing but pipelines is sent: one pool will do
	s := &Store{client: redis.NewClient(&o), ttl: ttl, decisions: make(chan *decision, longest)}
	for range senders {
		s.senders.Go(s.send)
	}
	return s
}

// decide has d sent, and returns its reply, or an error when ctx ends.
func (s *Store) decide(ctx context.Context, d *decision) *redis.Cmd {
	d.reply = make(chan *redis.Cmd, 1)
	select {
	case s.decisions <- d:
		select {
		case reply := <-d.reply:
			return reply
		case <-ctx.Done():
		}
	case <-ctx.Done():
	}
	late := redis.NewCmd(ctx)
	late.SetErr(fmt.Errorf("no reply within %s: %w", once.Timeout, ctx.Err()))
	return late
}

// send sends decisions, those that wait together as one pipeline: Redis takes most of its time to read and answer, and
// does that once for all of them.
func (s *Store) send() {
	for first := range s.decisions {
		batch := []*decision{first}
		for more := true; more && len(batch) < longest; {
			select {
			case next, open := <-s.decisions:
				if more = open; open {
					batch = append(batch, next)
				}
			default:
				more = false
			}
		}
		s.pipeline(batch)
	}
}

// pipeline sends batch and hands out the replies.
func (s *Store) pipeline(batch []*decision) {
	ctx, cancel := context.WithTimeout(context.Background(), once.Timeout)
	defer cancel()
	replies := s.exec(ctx, batch, (*redis.Script).EvalSha)
	var unknown []*decision // to a Redis that was started anew
	for n, reply := range replies {
		if redis.HasErrorPrefix(reply.Err(), "NOSCRIPT") {
			unknown = append(unknown, batch[n])
		} else {
			batch[n].reply <- reply
		}
	}
	for n, reply := range s.exec(ctx, unknown, (*redis.Script).Eval) {
		unknown[n].reply <- reply
	}
}

// exec runs the scripts of batch by run in one pipeline, and returns a reply for each.
func (s *Store) exec(ctx context.Context, batch []*decision,
	run func(*redis.Script, context.Context, redis.Scripter, []string, ...any) *redis.Cmd) []*redis.Cmd {
	pipe := s.client.Pipeline()
	replies := make([]*redis.Cmd, len(batch))
	for n, d := range batch {
		if err := d.ctx.Err(); err != nil {
			replies[n] = redis.NewCmd(ctx)
			replies[n].SetErr(err)
			continue
		}
		replies[n] = run(d.script, ctx, pipe, d.keys, d.args...)
	}
	_, _ = pipe.Exec(ctx) // each reply has its error
	return replies
}
