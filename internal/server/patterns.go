package server

import (
	"log/slog"
	"sync"
	"time"
)

// rolled tells the owner, once a day for each region, that messages verify with the next key.
type rolled struct {
	log  *slog.Logger
	mu   sync.Mutex
	said map[string]time.Time // by region
}

func newRolled(log *slog.Logger) *rolled { return &rolled{log: log, said: map[string]time.Time{}} }

func (k *rolled) verified(region, key string) {
	if key != "next" {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if said, ever := k.said[region]; ever && time.Since(said) < 24*time.Hour {
		return
	}
	k.said[region] = time.Now()
	k.log.Warn("messages verify with the next signing key: the keys were rolled, and one more roll makes this program refuse everything. " +
		"Copy both keys from the Upstash console and set them in one command: flyctl secrets set " +
		region + "QSTASH_CURRENT_SIGNING_KEY=sig_... " + region + "QSTASH_NEXT_SIGNING_KEY=sig_...")
}

// strangers tells the owner, once, that nothing has been accepted since the start although QStash seems to deliver.
type strangers struct {
	log *slog.Logger
	mu  sync.Mutex
	all bool // a message was accepted, or it was said
	n   int  // refused whose claims look like ours
}

func (p *strangers) accepted() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = true
}

func (p *strangers) refused() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n++; p.all || p.n < 3 {
		return
	}
	p.all = true
	p.log.Error("no message has been accepted since the start, and three that look like QStash's were signed with other keys than ours: " +
		"the signing keys are another account's or region's, or were rolled twice. Copy both keys from the Upstash console and set them in one command: " +
		"flyctl secrets set QSTASH_CURRENT_SIGNING_KEY=sig_... QSTASH_NEXT_SIGNING_KEY=sig_...")
}
