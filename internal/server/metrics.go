package server

import (
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"qstash-receiver/internal/deliver"
)

// metrics is what the program counts. Labels have values from fixed sets, but for schedules, of which the first
// maxSchedules are told apart.
type metrics struct {
	registry   *prometheus.Registry
	deliveries *prometheus.CounterVec // outcome, reason
	handling   prometheus.Histogram
	checked    *prometheus.CounterVec // key: current, next
	storeError *prometheus.CounterVec // operation: claim, complete, release, commit
	schedules  *prometheus.GaugeVec   // schedule

	mu    sync.Mutex
	known map[string]bool // schedules
}

const maxSchedules = 100

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "qstash_deliveries_total", Help: "Deliveries answered, by outcome and reason.",
		}, []string{"outcome", "reason"}),
		handling: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "qstash_handling_seconds", Help: "How long the business logic took.",
			Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
		}),
		checked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "qstash_verified_total", Help: "Messages verified, by the signing key that did it.",
		}, []string{"key"}),
		storeError: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "qstash_store_errors_total", Help: "Store operations that failed.",
		}, []string{"operation"}),
		schedules: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "qstash_schedule_last_success_timestamp_seconds", Help: "When a message of the schedule last succeeded.",
		}, []string{"schedule"}),
		known: map[string]bool{},
	}
	m.registry.MustRegister(m.deliveries, m.handling, m.checked, m.storeError, m.schedules,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewBuildInfoCollector(),
	)
	for _, key := range []string{"current", "next"} {
		m.checked.WithLabelValues(key)
	}
	ok := deliver.Handled.Row()
	m.deliveries.WithLabelValues(ok.Outcome, ok.Reason) // so that the dashboard finds the program before its first delivery
	for _, operation := range []string{"claim", "complete", "release", "commit"} {
		m.storeError.WithLabelValues(operation)
	}
	return m
}

// watch has the gauges of s read at each scrape.
func (m *metrics) watch(s *Server) {
	gauge := func(name, help string, value func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("qstash_in_flight", "Messages being claimed, waited for or run.", func() float64 { return float64(s.deliverer.InFlight()) })
	gauge("qstash_held_bytes", "Bytes of message bodies in memory.", func() float64 { return float64(s.room.Held()) })
	gauge("qstash_unrecorded", "Answers that the store has not taken yet.", func() float64 { return float64(s.deliverer.Unrecorded()) })
}

// Handled implements deliver.Observer.
func (m *metrics) Handled(took time.Duration) { m.handling.Observe(took.Seconds()) }

// StoreFailed implements deliver.Observer.
func (m *metrics) StoreFailed(operation string) { m.storeError.WithLabelValues(operation).Inc() }

// verified counts the key that proved a message.
func (m *metrics) verified(key string) { m.checked.WithLabelValues(key).Inc() }

// succeeded notes the success of a schedule's message; "": no schedule sent it.
func (m *metrics) succeeded(schedule string) {
	if schedule == "" {
		return
	}
	schedule = strings.ToValidUTF8(clip(schedule, maxClipped), "\uFFFD") // a label must be valid
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.known[schedule] {
		if len(m.known) == maxSchedules {
			return
		}
		m.known[schedule] = true
	}
	m.schedules.WithLabelValues(schedule).SetToCurrentTime()
}
