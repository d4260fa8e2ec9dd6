package server

import (
	"os"
	"strings"
	"testing"

	"qstash-receiver/internal/deliver"
	"qstash-receiver/internal/once"
)

func TestEachMetricIsInTheOperatorsReference(t *testing.T) {
	text, err := os.ReadFile("../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	log, _ := newLog(0)
	s := New(Config{Store: once.NewMemory(0), Timing: deliver.NewTiming(0), Log: log})
	s.metrics.succeeded("scd_1")
	families, err := s.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if name := family.GetName(); strings.HasPrefix(name, "qstash_") && !strings.Contains(string(text), "| `"+name+"` |") {
			t.Errorf("docs/operating.md has no row for %s", name)
		}
	}
}
