package settings

import (
	"log/slog"
	"slices"

	"qstash-receiver/internal/signing"
)

// Announce logs what the program runs with, and what its owner should know of that. Keys are those in use, the fetched
// ones too.
func (s Settings) Announce(log *slog.Logger, address string, keys []signing.Key) {
	forward := ""
	if s.Forward != nil {
		forward = s.Forward.String() // which has no login
	}
	log.Info("receiving", "address", address, "urls", s.Origins, "store", s.Store.Kind,
		"keys", len(keys), "keys_from", s.KeySources(), "forward", forward)
	for _, warning := range s.Warnings {
		log.Warn(warning)
	}
	if s.Dev {
		log.Warn("QSTASH_DEV IS ON: ANYONE CAN SIGN MESSAGES, because the keys of QStash's local server are published")
	}
	if len(s.Origins) == 0 && s.Deployed == "" {
		log.Info("RECEIVER_URL is not set: messages signed for any URL are taken")
	}
}

// KeySources names the settings that the keys come from.
func (s Settings) KeySources() []string {
	var sources []string
	for _, key := range s.Keys {
		source := key.Region + "QSTASH_CURRENT_SIGNING_KEY"
		if key.Region == signing.DevRegion {
			source = "QSTASH_DEV"
		}
		if !slices.Contains(sources, source) {
			sources = append(sources, source)
		}
	}
	for _, client := range s.Fetched() {
		source := client.TokenName()
		if client.TakeLocal {
			source = "dev"
		}
		sources = append(sources, source)
	}
	return sources
}
