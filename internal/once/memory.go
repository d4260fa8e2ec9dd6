package once

import (
	"hash/maphash"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Memory is a Store for one process until it ends. A lease lasts until its holder ends it: whoever holds it is alive.
//
// It remembers in at most 32 MiB. When they are full it forgets, the oldest first: messages whose tokens are over;
// then, of finished messages, the answers; then tokens, each with its message.
type Memory struct {
	ttl   time.Duration
	limit int // bytes
	seed  maphash.Seed

	mu        sync.Mutex
	size      int // bytes, about; rather too many
	messages  *table[memoryMessage]
	tokens    *table[memoryToken]
	answers   answers
	shortened int // answers at places before this one have gone
}

// What a message, a token and an answer take beside the answer's text, with their share of an index.
const (
	memoryMessageBytes = 88
	memoryTokenBytes   = 96
	memoryAnswerBytes  = 150
)

// memoryMessage is a message that is running or finished, or free: nobody holds it, but a token is bound to it.
type memoryMessage struct {
	holder uint64 // a hash of the last that claimed it; 0: nobody
	until  int64  // running: the end of the lease; finished: of STORE_TTL; ms since 1970, as all times here
	bound  int64  // the end of its last token: it is remembered till then
	answer int32  // finished: the place of its answer
	state  memoryState
}

type memoryState uint8

const (
	memoryFree memoryState = iota
	memoryRunning
	memoryFinished
)

type memoryToken struct {
	message Key
	until   int64
}

// NewMemory returns a store that remembers finished messages for ttl, or less long where there are many.
func NewMemory(ttl time.Duration) *Memory {
	return &Memory{
		ttl: ttl, limit: 32 << 20, seed: maphash.MakeSeed(),
		messages: newTable[memoryMessage](), tokens: newTable[memoryToken](),
		answers: answers{at: map[string]int32{}},
	}
}

// Claim implements Store.
func (s *Memory) Claim(c Claim) (Decision, error) {
	holder := maphash.String(s.seed, c.Holder)
	s.mu.Lock()
	d, text := s.claim(c, holder, time.Now().UnixMilli())
	s.mu.Unlock()
	if d.State == Finished {
		d.Answer = decodeAnswer(text)
	}
	return d, nil
}

// claim returns a finished message's answer as text, which is read outside the lock.
func (s *Memory) claim(c Claim, holder uint64, now int64) (d Decision, text string) {
	defer s.makeRoom(now)
	bound := now + Milliseconds(c.TokenTTL)
	if !s.bind(c, bound, now) {
		return Decision{State: Replayed}, ""
	}
	m, _ := s.message(c.Key, now)
	m.bound = max(m.bound, bound)
	switch {
	case m.state == memoryFinished:
		return Decision{State: Finished}, s.answers.text(m.answer)
	case m.state == memoryRunning && (c.Look || m.holder != holder):
		return Decision{State: Running, Left: LivingLease(time.Duration(m.until-now)*time.Millisecond, c.Lease)}, ""
	case c.Look:
		return Decision{State: Free}, ""
	}
	m.state, m.holder, m.until = memoryRunning, holder, now+Milliseconds(c.Lease)
	return Decision{State: Claimed}, ""
}

// bind reports whether c's token is now bound to c's message.
func (s *Memory) bind(c Claim, until, now int64) bool {
	if place, known := s.tokens.find(c.Token); known {
		if t := s.tokens.at(place).value; now < t.until {
			return t.message == c.Key
		}
		s.tokens.at(s.tokens.renew(place)).value = memoryToken{c.Key, until}
		return true
	}
	s.tokens.add(c.Token, memoryToken{c.Key, until})
	s.size += memoryTokenBytes
	return true
}

// message returns the message of key and its place; one that is new, or was remembered long enough, is free.
func (s *Memory) message(key Key, now int64) (*memoryMessage, int) {
	place, known := s.messages.find(key)
	if !known {
		place = s.messages.add(key, memoryMessage{})
		s.size += memoryMessageBytes
	}
	m := &s.messages.at(place).value
	if m.state == memoryFinished && m.over(now) {
		s.size -= s.answers.drop(m.answer)
		*m = memoryMessage{}
	}
	return m, place
}

// over reports whether m may be forgotten.
func (m *memoryMessage) over(now int64) bool {
	return m.state != memoryRunning && m.bound <= now && (m.state != memoryFinished || m.until <= now)
}

// Complete implements Store.
func (s *Memory) Complete(key Key, holder string, a Answer) error {
	text, holderHash := encodeAnswer(a), maphash.String(s.seed, holder)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now().UnixMilli()
	m, place := s.message(key, now)
	switch {
	case m.state != memoryFree && m.holder != holderHash:
		return ErrLeaseLost
	case m.state == memoryFinished:
		return nil
	}
	s.shortened = min(s.shortened, place)
	answer, bytes := s.answers.keep(text)
	s.size += bytes
	m.state, m.holder, m.answer, m.until = memoryFinished, holderHash, answer, now+Milliseconds(s.ttl)
	s.makeRoom(now)
	return nil
}

// Release implements Store.
func (s *Memory) Release(key Key, holder string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	place, known := s.messages.find(key)
	if !known {
		return ErrLeaseLost
	}
	m := &s.messages.at(place).value
	if m.holder != maphash.String(s.seed, holder) {
		return ErrLeaseLost
	}
	if m.state == memoryRunning {
		m.state = memoryFree
	}
	return nil
}

// Close implements Store.
func (s *Memory) Close() error { return nil }

// makeRoom forgets a few that are over, few so that nobody waits, and then the oldest until the size is right.
func (s *Memory) makeRoom(now int64) {
	for range 4 {
		if place, found := s.oldestToken(1); found && s.tokens.at(place).value.until <= now {
			s.forgetToken(place)
		}
		if place, found := s.oldestMessage(1); found && s.messages.at(place).value.over(now) {
			s.forgetMessage(place)
		}
	}
	for s.size > s.limit {
		place, found := s.oldestMessage(s.messages.len())
		switch {
		case found && s.messages.at(place).value.bound <= now:
			s.forgetMessage(place)
		case found && s.shortened < s.messages.next:
			s.shortenNext()
		default:
			place, found := s.oldestToken(s.tokens.len())
			if !found {
				return
			}
			t := s.forgetToken(place)
			message, known := s.messages.find(t.message)
			if known && s.messages.at(message).value.bound <= t.until { // it was the last
				s.forgetMessage(message)
			}
		}
	}
}

// oldestMessage returns the place of the oldest message, if it is among the first few. One that is running, or bound
// for longer than the next, is renewed: it must not keep those behind it from being forgotten.
func (s *Memory) oldestMessage(few int) (place int, found bool) {
	for range min(few, s.messages.len()) {
		place := s.messages.first
		if i := s.messages.at(place); i.key != (Key{}) {
			next := s.messages.newer(place)
			if i.value.state != memoryRunning && (next == nil || i.value.bound <= next.value.bound) {
				return place, true
			}
			s.messages.renew(place)
		}
		s.messages.drop()
	}
	return 0, false
}

// oldestToken is oldestMessage for tokens.
func (s *Memory) oldestToken(few int) (place int, found bool) {
	for range min(few, s.tokens.len()) {
		place := s.tokens.first
		if i := s.tokens.at(place); i.key != (Key{}) {
			if next := s.tokens.newer(place); next == nil || i.value.until <= next.value.until {
				return place, true
			}
			s.tokens.renew(place)
		}
		s.tokens.drop()
	}
	return 0, false
}

// forgetMessage forgets the message at place, unless it is running.
func (s *Memory) forgetMessage(place int) {
	switch m := s.messages.at(place).value; m.state {
	case memoryRunning:
		return
	case memoryFinished:
		s.size -= s.answers.drop(m.answer)
	}
	s.messages.remove(place)
	s.size -= memoryMessageBytes
}

func (s *Memory) forgetToken(place int) memoryToken {
	t := s.tokens.at(place).value
	s.tokens.remove(place)
	s.size -= memoryTokenBytes
	return t
}

// shortenNext replaces the oldest answer that is whole by its short form.
func (s *Memory) shortenNext() {
	s.shortened = max(s.shortened, s.messages.first)
	if m := &s.messages.at(s.shortened).value; m.state == memoryFinished && !s.answers.common(m.answer) {
		short := encodeAnswer(decodeAnswer(s.answers.text(m.answer)).Short())
		s.size -= s.answers.drop(m.answer)
		var bytes int
		m.answer, bytes = s.answers.keep(short)
		s.size += bytes
	}
	s.shortened++
}

// answers keeps each answer once, however many messages have it: most have the same. An answer is one text, so that
// its size is known.
type answers struct {
	kept  []keptAnswer
	empty []int32 // places in kept
	at    map[string]int32
}

type keptAnswer struct {
	text string
	uses int
}

// keep returns the place of text, and by how many bytes the store has grown.
func (a *answers) keep(text string) (place int32, bytes int) {
	if place, known := a.at[text]; known {
		a.kept[place].uses++
		return place, 0
	}
	bytes = textBytes(text)
	if n := len(a.empty); n > 0 {
		place, a.empty = a.empty[n-1], a.empty[:n-1]
	} else {
		place = int32(len(a.kept))
		a.kept = append(a.kept, keptAnswer{})
		bytes += memoryAnswerBytes // for good: neither the list nor the map shrinks
	}
	a.kept[place] = keptAnswer{text, 1}
	a.at[text] = place
	return place, bytes
}

func (a *answers) text(place int32) string { return a.kept[place].text }

// common reports whether the answer at place is short, and others have it too.
func (a *answers) common(place int32) bool {
	return len(a.kept[place].text) < memoryAnswerBytes && a.kept[place].uses > 1
}

// drop ends one use of the answer at place, and returns by how many bytes the store has shrunk.
func (a *answers) drop(place int32) (bytes int) {
	k := &a.kept[place]
	if k.uses--; k.uses > 0 {
		return 0
	}
	bytes = textBytes(k.text)
	delete(a.at, k.text)
	*k = keptAnswer{}
	a.empty = append(a.empty, place)
	return bytes
}

// textBytes adds an eighth, by which the allocator rounds up.
func textBytes(text string) int { return len(text) * 9 / 8 }

// encodeAnswer writes a as one text of its own, much as it goes over the wire.
func encodeAnswer(a Answer) string {
	var b strings.Builder
	header := EncodeHeader(a.Header)
	b.Grow(len("200\r\n\r\n") + len(header) + len(a.Body))
	b.WriteString(strconv.Itoa(a.Status))
	b.WriteString("\r\n")
	b.WriteString(header)
	b.WriteString("\r\n")
	b.Write(a.Body)
	return b.String()
}

func decodeAnswer(text string) Answer {
	head, body, _ := strings.Cut(text, "\r\n\r\n")
	status, lines, _ := strings.Cut(head, "\r\n")
	a := Answer{Body: []byte(body)}
	a.Status, _ = strconv.Atoi(status)
	if lines != "" {
		a.Header, _ = DecodeHeader(lines + "\r\n")
	}
	return a
}
