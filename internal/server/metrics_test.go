//go:build !lambda

package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"qstash-receiver/internal/deliver"
	"qstash-receiver/internal/once"
	"qstash-receiver/internal/qstash"
	"qstash-receiver/internal/qstashtest"
)

// counted returns the program's own series that are not 0, as they are written, but for the histogram's buckets and sum.
func (p instance) counted(t testing.TB) map[string]float64 {
	t.Helper()
	families, err := p.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			name := family.GetName()
			if labels != nil {
				name += "{" + strings.Join(labels, ",") + "}"
			}
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			if strings.HasPrefix(name, "qstash_") && value != 0 {
				all[name] = value
			}
		}
	}
	return all
}

// byPath is business logic that ends as the path says.
func byPath(ctx context.Context, m *qstash.Message) ([]byte, error) {
	switch m.URL.Path {
	case "/error":
		return nil, errors.New("boom")
	case "/permanent":
		return nil, qstash.Permanent(errors.New("boom"))
	case "/retry":
		return nil, qstash.RetryAfter(time.Second, errors.New("boom"))
	case "/panic":
		panic("boom")
	case "/timeout":
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, nil
}

// closed is a store whose calls fail.
type closed struct{ once.Store }

func (closed) Claim(once.Claim) (once.Decision, error) { return once.Decision{}, errors.New("closed") }

// full is a store that takes claims alone.
type full struct{ once.Store }

func (full) Complete(once.Key, string, once.Answer) error { return errors.New("full") }
func (full) Release(once.Key, string) error               { return errors.New("full") }

func TestMetricsCount(t *testing.T) {
	t.Parallel()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	t.Cleanup(upstream.Close)
	to, _ := url.Parse(upstream.URL)
	const verified, handled = `qstash_verified_total{key="current"}`, "qstash_handling_seconds"
	delivery := func(r deliver.Reason) string {
		return fmt.Sprintf("qstash_deliveries_total{outcome=%q,reason=%q}", r.Row().Outcome, r.Row().Reason)
	}
	run := func(r deliver.Reason) map[string]float64 {
		return map[string]float64{delivery(r): 1, verified: 1, handled: 1}
	}
	for _, row := range []struct {
		sentence string
		change   func(*Config)
		status   int
		sent     []qstashtest.Sending
		want     map[string]float64
	}{
		{"nothing", nil, 0, nil, map[string]float64{}},
		{"a success", nil, 200, []qstashtest.Sending{{}}, run(deliver.Handled)},
		{"three successes, one by the next key", nil, 200, []qstashtest.Sending{{}, {Key: qstashtest.NextKey}, {}},
			map[string]float64{delivery(deliver.Handled): 3, verified: 2, `qstash_verified_total{key="next"}`: 1, handled: 3}},
		{"redeliveries are not handled", nil, 200, []qstashtest.Sending{{ID: "msg_1"}, {ID: "msg_1"}, {ID: "msg_1"}},
			map[string]float64{delivery(deliver.Handled): 1, delivery(deliver.Repeat): 2, verified: 3, handled: 1}},
		{"an error is handled again", nil, 500, []qstashtest.Sending{{ID: "msg_1", Path: "/error"}, {ID: "msg_1", Path: "/error"}},
			map[string]float64{delivery(deliver.Failed): 2, verified: 2, handled: 2}},
		{"a panic", nil, 500, []qstashtest.Sending{{Path: "/panic"}}, run(deliver.Panicked)},
		{"a permanent failure", nil, 489, []qstashtest.Sending{{Path: "/permanent"}}, run(deliver.Permanent)},
		{"a retry", nil, 503, []qstashtest.Sending{{Path: "/retry"}}, run(deliver.RetryAfter)},
		{"a timeout", func(c *Config) { c.Timing.Timeout = 10 * time.Millisecond }, 504, []qstashtest.Sending{{Path: "/timeout"}}, run(deliver.TimedOut)},
		{"an app that answers 418", func(c *Config) { c.Run = deliver.NewForwarder(to, 1000, false).Run }, 418, []qstashtest.Sending{{}}, run(deliver.AppFailed)},
		{"a stranger", nil, 401, []qstashtest.Sending{{Key: "sig_other"}}, map[string]float64{delivery(deliver.Signature): 1}},
		{"a body that is too large", func(c *Config) { c.MaxBody = 3 }, 413, []qstashtest.Sending{{Body: "four"}}, map[string]float64{delivery(deliver.TooLarge): 1}},
		{"a signed health check", nil, 200, []qstashtest.Sending{{Path: "/healthz"}}, map[string]float64{delivery(deliver.Checked): 1, verified: 1}},
		{"a store that is away", func(c *Config) { c.Store = closed{c.Store} }, 503, []qstashtest.Sending{{}},
			map[string]float64{delivery(deliver.StoreAway): 1, `qstash_store_errors_total{operation="claim"}`: 1, verified: 1}},
	} {
		t.Run(row.sentence, func(t *testing.T) {
			t.Parallel()
			p := start(t, runner(byPath), func(c *Config, _ *http.Server) {
				if row.change != nil {
					row.change(c)
				}
			})
			for _, s := range row.sent {
				if got := p.send(t, s); got.Status != row.status {
					t.Fatalf("%+v: got %+v", s, got)
				}
			}
			// An answer leaves after it was counted, so whoever has read it can read the metrics at once; a delivery is
			// in flight, and its body held, until a moment after.
			await(t, "something is still under way", func() bool { return p.deliverer.InFlight() == 0 && p.room.Held() == 0 })
			if got := p.counted(t); !maps.Equal(got, row.want) {
				t.Errorf("counted %v\nwant    %v", got, row.want)
			}
		})
	}
}

func TestMetricsOfWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan bool), make(chan bool)
	p := start(t, runner(func(context.Context, *qstash.Message) ([]byte, error) { begun <- true; <-finish; return nil, nil }),
		func(c *Config, _ *http.Server) { c.Store = full{c.Store} })
	first := p.begin(t, qstashtest.Sending{Body: "hello"})
	<-begun
	got := p.counted(t)
	if want := map[string]float64{"qstash_in_flight": 1, "qstash_held_bytes": 5, `qstash_verified_total{key="current"}`: 1}; !maps.Equal(got, want) {
		t.Errorf("while it runs: %v", got)
	}
	finish <- true
	if got := <-first; got.Status != 200 {
		t.Errorf("got %+v", got)
	}
	if got := p.counted(t); got["qstash_unrecorded"] != 1 || got[`qstash_store_errors_total{operation="complete"}`] < 1 {
		t.Errorf("what the store has not taken: %v", got)
	}
}

func TestMetricsOfSchedules(t *testing.T) {
	t.Parallel()
	p := start(t, runner(byPath), nil)
	schedule := func(id, path string) qstashtest.Sending {
		return qstashtest.Sending{Path: path, ID: "msg" + path, Header: map[string]string{"Upstash-Schedule-Id": id}}
	}
	for _, path := range []string{"/error", "/permanent", "/permanent"} { // the last is a repeat
		p.send(t, schedule("scd_fails", path))
	}
	for _, path := range []string{"/", "/healthz"} {
		p.send(t, schedule("scd"+path, path))
	}
	for _, id := range []string{"scd_\xff", strings.Repeat("long", 1000)} {
		if got := p.send(t, schedule(id, "/odd")); got.Status != 200 {
			t.Errorf("%.8q: got %+v", id, got)
		}
	}
	var known []string
	last := 0.0
	for name, value := range p.counted(t) {
		if id, ok := strings.CutPrefix(name, `qstash_schedule_last_success_timestamp_seconds{schedule="`); ok {
			known = append(known, strings.TrimSuffix(id, `"}`))
			last = value
		}
	}
	slices.Sort(known)
	if !slices.Equal(known, []string{strings.Repeat("long", maxClipped/4) + "...", "scd/", "scd/healthz", "scd_\uFFFD"}) || time.Since(time.Unix(int64(last), 0)) > time.Minute {
		t.Errorf("last successes of %q, one at %v", known, last)
	}
	for i := range 300 {
		p.send(t, qstashtest.Sending{Header: map[string]string{"Upstash-Schedule-Id": fmt.Sprint("scd_", i)}})
	}
	if n := testutil.CollectAndCount(p.metrics.schedules); n != maxSchedules {
		t.Errorf("%d schedules are told apart", n)
	}
}

// What strangers and senders choose must not become a label, schedules apart: each value would be a series for ever.
func TestMetricsKeepNothingThatWasSent(t *testing.T) {
	t.Parallel()
	p := start(t, runner(func(_ context.Context, m *qstash.Message) ([]byte, error) { return nil, errors.New(string(m.Body)) }), nil)
	send := func(word string) {
		header := map[string]string{"Upstash-Retried": word, "Upstash-Schedule-Id": word, "Upstash-Topic-Name": word, "Upstash-Region": word, "User-Agent": word}
		for _, s := range []qstashtest.Sending{
			{Path: "/" + word + "?" + word, ID: word, TokenID: word, Body: word, Header: header},
			{Path: "/" + word, ID: word, Key: "sig_" + word, Header: header},
			{Header: map[string]string{"Upstash-Signature": word}},
		} {
			p.send(t, s)
		}
		r, _ := http.NewRequest(word, p.url+"/"+word, nil)
		qstashtest.Do(t, r)
	}
	send("first")
	before := slices.Sorted(maps.Keys(p.counted(t)))
	send("second")
	if after := slices.Sorted(maps.Keys(p.counted(t))); !slices.Equal(before, after) {
		t.Errorf("series\n%q became\n%q", before, after)
	}
}

func TestMetricsAreServed(t *testing.T) {
	t.Parallel()
	p := start(t, runner(byPath), nil)
	web := httptest.NewServer(p.metrics.handler())
	t.Cleanup(web.Close)
	got := qstashtest.Get(t, web.URL+"/metrics")
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(got.Body))
	if got.Status != 200 || err != nil {
		t.Fatalf("got %d, %v", got.Status, err)
	}
	for _, name := range []string{
		"qstash_deliveries_total", "qstash_verified_total", "qstash_store_errors_total", "qstash_handling_seconds", "qstash_in_flight", "qstash_held_bytes",
		"qstash_unrecorded", "go_goroutines", "go_memstats_heap_alloc_bytes", "go_build_info", "process_resident_memory_bytes", "process_start_time_seconds",
	} {
		if families[name] == nil {
			t.Errorf("%s is not exposed before the first delivery, so that its first increase is not seen", name)
		}
	}
	problems, err := testutil.GatherAndLint(p.metrics.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}
}

var (
	metricName   = regexp.MustCompile(`\b(?:qstash|go|process)_[a-z0-9_]+`)
	matcherLabel = regexp.MustCompile(`(\w+)(=~|!~|!=|=)"`)
	byLabels     = regexp.MustCompile(`by \(([^)]*)\)`)
	legendLabel  = regexp.MustCompile(`\{\{(\w+)\}\}`)
)

// The dashboard asks for what the program exposes, by labels that it has, and shows all that is its own.
func TestDashboard(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/dashboard/grafana.json")
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("there is no dashboard here")
	}
	var dashboard struct {
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr, LegendFormat string }

			Description string
			FieldConfig struct {
				Overrides []struct{ Matcher struct{ Options string } }
			}
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	p := start(t, runner(byPath), nil)
	p.metrics.succeeded("scd_1")
	families, err := p.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string][]string{} // by name
	for _, family := range families {
		own := []string{"app", "region", "instance"} // which Fly puts on each
		for _, l := range family.GetMetric()[0].GetLabel() {
			own = append(own, l.GetName())
		}
		labels[family.GetName()] = own
		if family.GetMetric()[0].GetHistogram() != nil {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				labels[family.GetName()+suffix] = append(own, "le")
			}
		}
	}
	ids, shown := map[int]bool{}, ""
	for _, panel := range dashboard.Panels {
		if at := panel.GridPos; ids[panel.ID] || at.X+at.W > 24 || panel.Description == "" || len(panel.Targets) == 0 {
			t.Errorf("%s: %+v", panel.Title, panel)
		}
		ids[panel.ID] = true
		for _, target := range panel.Targets {
			shown += target.Expr + "\n"
			name := metricName.FindString(target.Expr)
			if labels[name] == nil || !strings.Contains(target.Expr, `app="$app"`) {
				t.Errorf("%s: %s asks for %q, which is not exposed, or not of one app", panel.Title, target.Expr, name)
			}
			var asked []string
			for _, m := range matcherLabel.FindAllStringSubmatch(target.Expr, -1) {
				asked = append(asked, m[1])
			}
			var kept []string
			for _, m := range byLabels.FindAllStringSubmatch(target.Expr, -1) {
				kept = append(kept, strings.Split(m[1], ", ")...)
			}
			for _, label := range append(asked, kept...) {
				if !slices.Contains(labels[name], label) {
					t.Errorf("%s: %s has no label %s", panel.Title, name, label)
				}
			}
			for _, m := range legendLabel.FindAllStringSubmatch(target.LegendFormat, -1) {
				if !slices.Contains(kept, m[1]) {
					t.Errorf("%s: the legend shows %s, which %s does not keep", panel.Title, m[1], target.Expr)
				}
			}
		}
		if panel.Title != "Deliveries by outcome" {
			continue
		}
		coloured, outcomes := map[string]bool{}, map[string]bool{}
		for _, o := range panel.FieldConfig.Overrides {
			coloured[o.Matcher.Options] = true
		}
		for _, row := range deliver.Table() {
			outcomes[row.Outcome] = true
		}
		if !maps.Equal(coloured, outcomes) {
			t.Errorf("%q have a colour, there are %q", slices.Sorted(maps.Keys(coloured)), slices.Sorted(maps.Keys(outcomes)))
		}
	}
	for _, family := range families {
		if name := family.GetName(); strings.HasPrefix(name, "qstash_") && !strings.Contains(shown, name) {
			t.Errorf("%s is on no panel", name)
		}
	}
}
