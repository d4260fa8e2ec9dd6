package main

import (
	"bytes"
	"sync"
	"time"
)

// memoryStore remembers in at most limit bytes, for one process until it stops. A lease lasts until it is given
// back, renewed as often as it takes: whoever holds it is alive.
type memoryStore struct {
	ttl   time.Duration
	limit int

	mu       sync.Mutex
	size     int // bytes, about
	messages map[messageKey]*memoryMessage
	tokens   map[messageKey]memoryToken
	// What may be forgotten, oldest first: messages that are not running, and tokens.
	oldMessages, oldTokens []memoryItem
}

type memoryMessage struct {
	holder  string
	state   state     // running, finished, or claimed for one that was released
	until   time.Time // running: the end of the lease
	expires time.Time // else
	answer  answer
}

type memoryToken struct {
	key     messageKey
	expires time.Time
}

// memoryItem names a message or a token as it was then: it may have been claimed anew since.
type memoryItem struct {
	key            messageKey
	holder         string // of a message
	since, expires time.Time
}

// What a message and a token take beside an answer's text, measured; the maps' spare room is most of it.
const (
	memoryMessageBytes = 512
	memoryTokenBytes   = 384
)

func newMemoryStore(ttl time.Duration) *memoryStore {
	return &memoryStore{ttl: ttl, limit: 32 << 20, messages: map[messageKey]*memoryMessage{}, tokens: map[messageKey]memoryToken{}}
}

func (s *memoryStore) claim(c claim) (decision, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.forget(now)
	if c.token != nil {
		switch t, bound := s.tokens[*c.token]; {
		case !bound || !now.Before(t.expires):
			if !bound {
				s.size += memoryTokenBytes
			}
			expires := now.Add(c.tokenTTL)
			s.tokens[*c.token] = memoryToken{c.key, expires}
			s.oldTokens = append(s.oldTokens, memoryItem{key: *c.token, since: now, expires: expires})
		case t.key != c.key:
			return decision{state: replayed}, nil
		}
	}
	m := s.messages[c.key]
	switch {
	case m == nil:
		s.size += memoryMessageBytes
	case m.state == running && m.holder != c.holder:
		for !now.Before(m.until) {
			m.until = m.until.Add(c.lease)
		}
		return decision{state: running, left: m.until.Sub(now)}, nil
	case m.state == finished && now.Before(m.expires):
		return decision{state: finished, answer: m.answer}, nil
	default:
		s.size -= m.answerBytes()
	}
	s.messages[c.key] = &memoryMessage{holder: c.holder, state: running, until: now.Add(c.lease)}
	return decision{state: claimed}, nil
}

func (s *memoryStore) complete(key messageKey, holder string, a answer) error {
	return s.end(key, holder, finished, a)
}

func (s *memoryStore) release(key messageKey, holder string) error {
	return s.end(key, holder, claimed, answer{})
}

func (s *memoryStore) end(key messageKey, holder string, to state, a answer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.messages[key]
	switch {
	case m == nil || m.holder != holder:
		return errLeaseLost
	case m.state != running: // a repeat
		return nil
	}
	now := time.Now()
	a.body = bytes.Clone(a.body) // it may be a few bytes of a large buffer, or one that is used again
	m.state, m.answer, m.expires = to, a, now.Add(s.ttl)
	s.size += m.answerBytes()
	s.oldMessages = append(s.oldMessages, memoryItem{key, holder, now, m.expires})
	s.forget(now)
	return nil
}

func (s *memoryStore) close() error { return nil }

func (m *memoryMessage) answerBytes() int {
	return len(m.answer.body) + len(m.answer.contentType) + len(m.answer.upstash)
}

// forget drops the oldest until the size is right, and a few that have expired: few, so that nobody waits.
func (s *memoryStore) forget(now time.Time) {
	for range 4 {
		if len(s.oldTokens) > 0 && !now.Before(s.oldTokens[0].expires) {
			s.forgetToken()
		}
		if len(s.oldMessages) > 0 && !now.Before(s.oldMessages[0].expires) {
			s.forgetMessage()
		}
	}
	for s.size > s.limit && len(s.oldTokens)+len(s.oldMessages) > 0 {
		if len(s.oldMessages) == 0 || len(s.oldTokens) > 0 && s.oldTokens[0].since.Before(s.oldMessages[0].since) {
			s.forgetToken()
		} else {
			s.forgetMessage()
		}
	}
}

func (s *memoryStore) forgetToken() {
	old := s.oldTokens[0]
	s.oldTokens = s.oldTokens[1:]
	if t, ok := s.tokens[old.key]; ok && t.expires.Equal(old.expires) {
		s.size -= memoryTokenBytes
		delete(s.tokens, old.key)
	}
}

func (s *memoryStore) forgetMessage() {
	old := s.oldMessages[0]
	s.oldMessages = s.oldMessages[1:]
	if m := s.messages[old.key]; m != nil && m.state != running && m.holder == old.holder {
		s.size -= memoryMessageBytes + m.answerBytes()
		delete(s.messages, old.key)
	}
}
