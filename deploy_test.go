package main

import (
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// The files that deploy the program say what the program is by default.
func TestDeployedAsConfigured(t *testing.T) {
	t.Parallel()
	c, err := loadConfig(testEnv(map[string]string{"PORT": "", "FLY_APP_NAME": "app"}))
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(c.port)
	for _, row := range []struct{ file, pattern, want string }{
		{"Dockerfile", `(?m)^EXPOSE (\d+)$`, port},
		{"Dockerfile", `(?m)^USER (\w+)\nEXPOSE \d+\nENTRYPOINT \S+\n\z`, "nonroot"}, // the last stage, which is built by default
		{"fly.toml", `(?m)^  internal_port = (\d+)$`, port},
		{"fly.toml", `(?m)^kill_timeout = '(.+)'$`, strconv.Itoa(int((c.handlerTimeout + 15*time.Second).Seconds())) + "s"},
		{"fly.toml", `(?m)^\[metrics\]\n  port = (\d+)$`, strconv.Itoa(c.metricsPort)},
		{"fly.toml", `(?m)^  \[\[http_service.checks\]\]\n    method = 'GET'\n    path = '(.+)'$`, "/healthz"},
	} {
		text, err := os.ReadFile(row.file)
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(row.pattern).FindAllStringSubmatch(string(text), -1)
		if len(found) == 0 {
			t.Errorf("%s has nothing like %s", row.file, row.pattern)
		}
		for _, f := range found {
			if f[1] != row.want {
				t.Errorf("%s: %q, want %s", row.file, f[0], row.want)
			}
		}
	}
}
