package dev

import (
	"net"
	"net/http"
)

// checkOrigin refuses what another site's page may have sent: under a name of its own that leads to this machine, or
// across sites. Anybody else on this machine may publish; a page elsewhere may not.
func checkOrigin(r *http.Request) error {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if local == nil {
		return &apiError{http.StatusMisdirectedRequest, "the connection has no address of this machine"}
	}
	_, port, err := net.SplitHostPort(local.String())
	if err != nil {
		return &apiError{http.StatusMisdirectedRequest, "the connection has no port of this machine"}
	}
	if !ours(r.Host, port) {
		return &apiError{http.StatusMisdirectedRequest, "this is localhost:" + port + ", not " + r.Host}
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return nil
	}
	for _, origin := range r.Header.Values("Origin") { // browsers send it with all other methods
		if origin != "http://"+r.Host {
			return &apiError{http.StatusForbidden, "a page of " + origin + " may not change anything here"}
		}
	}
	return nil
}

func ours(host, port string) bool {
	for _, name := range []string{"localhost", "127.0.0.1"} {
		if host == name+":"+port || host == name && port == "80" {
			return true
		}
	}
	return false
}
