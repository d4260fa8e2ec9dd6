package settings

import (
	"fmt"
	"net"
	"strings"
)

// LoadDev reads the settings of a receiver that stands beside a stand-in for QStash at apiURL: it is on loopback alone,
// has its keys from there, remembers in memory and takes any subject. What getenv says of these is ignored.
func LoadDev(getenv func(string) string, terminal bool, apiURL string) (Settings, error) {
	s, err := Load(func(name string) string {
		switch {
		case name == "QSTASH_TOKEN":
			return "any" // the stand-in takes any
		case name == "QSTASH_URL":
			return apiURL
		case strings.Contains(name, "QSTASH_"), name == "STORE_URL", name == "RECEIVER_URL", strings.HasPrefix(name, "RENDER_"),
			strings.HasPrefix(name, "RAILWAY_PUBLIC"):
			return ""
		}
		return getenv(name)
	}, terminal)
	if err == nil && s.Deployed != "" {
		return Settings{}, fmt.Errorf("dev is refused where the program is deployed (%s is set): anyone can sign with the keys of the stand-in", s.Deployed)
	}
	s.Host = "127.0.0.1"
	for _, client := range s.APIs {
		client.TakeLocal = true
	}
	return s, err
}

// Address is where the public listener is.
func (s Settings) Address() string { return net.JoinHostPort(s.Host, fmt.Sprint(s.Port)) }
