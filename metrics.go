package main

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics is what the program counts. Labels have values from fixed sets only.
type metrics struct {
	registry   *prometheus.Registry
	deliveries *prometheus.CounterVec // outcome, and of those refused the reason
	handling   prometheus.Histogram
	verified   *prometheus.CounterVec // key: current, next
	storeError *prometheus.CounterVec // operation: claim, complete, release
}

func newMetrics(inFlight, heldBytes func() float64) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "qstash_deliveries_total", Help: "Deliveries answered, by outcome; refused ones by reason too.",
		}, []string{"outcome", "reason"}),
		handling: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "qstash_handling_seconds", Help: "How long the business logic took.",
			Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
		}),
		verified: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "qstash_verified_total", Help: "Messages verified, by the signing key that did it.",
		}, []string{"key"}),
		storeError: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "qstash_store_errors_total", Help: "Store operations that failed, a lost lease included.",
		}, []string{"operation"}),
	}
	m.registry.MustRegister(m.deliveries, m.handling, m.verified, m.storeError,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "qstash_in_flight", Help: "Messages being claimed, waited for or run.",
		}, inFlight),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "qstash_held_bytes", Help: "Bytes of message bodies in memory.",
		}, heldBytes),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewBuildInfoCollector(),
	)
	for _, key := range []string{"current", "next"} {
		m.verified.WithLabelValues(key)
	}
	m.deliveries.WithLabelValues("ok", "") // so that the dashboard finds the program before its first delivery
	for _, operation := range []string{"claim", "complete", "release"} {
		m.storeError.WithLabelValues(operation)
	}
	return m
}

// handler serves the metrics on every path.
func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
