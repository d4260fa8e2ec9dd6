package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// exposition is what one scrape of the metrics says.
type exposition struct {
	text   string
	kinds  map[string]string             // of each metric: counter, gauge, histogram
	series map[string]float64            // by name and labels, as they are written
	labels map[string]map[string]bool    // of each name as written (with _bucket and so on): its labels
	values map[string]map[string]float64 // of each label: the values seen, any metric's
}

var (
	sampleLine = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$`)
	labelPair  = regexp.MustCompile(`([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"`)
)

// scrape reads the metrics at url over HTTP.
func scrape(t testing.TB, url string) exposition {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := do(t, r)
	if got.status != 200 || !strings.HasPrefix(got.header.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Fatalf("the metrics are answered with %d %q", got.status, got.header.Get("Content-Type"))
	}
	e := exposition{text: got.body, kinds: map[string]string{}, series: map[string]float64{},
		labels: map[string]map[string]bool{}, values: map[string]map[string]float64{}}
	for line := range strings.Lines(got.body) {
		line = strings.TrimSuffix(line, "\n")
		if of, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ := strings.Cut(of, " ")
			e.kinds[name] = kind
			continue
		}
		if strings.HasPrefix(line, "#") {
			continue
		}
		m := sampleLine.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("not a sample: %q", line)
		}
		value, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		e.series[strings.TrimSuffix(line, " "+m[3])] = value
		if e.labels[m[1]] == nil {
			e.labels[m[1]] = map[string]bool{}
		}
		for _, pair := range labelPair.FindAllStringSubmatch(m[2], -1) {
			e.labels[m[1]][pair[1]] = true
			if e.values[pair[1]] == nil {
				e.values[pair[1]] = map[string]float64{}
			}
			e.values[pair[1]][pair[2]] += value
		}
	}
	return e
}

// counted returns the program's own series that are not 0, but for the histogram's sum and buckets.
func (e exposition) counted() map[string]float64 {
	own := map[string]float64{}
	for name, value := range e.series {
		if strings.HasPrefix(name, "qstash_") && value != 0 &&
			!strings.HasPrefix(name, "qstash_handling_seconds_bucket") && name != "qstash_handling_seconds_sum" {
			own[name] = value
		}
	}
	return own
}

// add makes e know what other knows.
func (e *exposition) add(other exposition) {
	if e.kinds == nil {
		*e = other
		return
	}
	maps.Copy(e.kinds, other.kinds)
	for name, labels := range other.labels {
		if e.labels[name] == nil {
			e.labels[name] = map[string]bool{}
		}
		maps.Copy(e.labels[name], labels)
	}
	for label, values := range other.values {
		if e.values[label] == nil {
			e.values[label] = map[string]float64{}
		}
		for value, n := range values {
			e.values[label][value] += n
		}
	}
}

// metered is a server whose metrics are served too.
type metered struct {
	*server
	url, metrics string
}

func startMetered(t testing.TB, env map[string]string, change func(*server)) metered {
	t.Helper()
	var m metered
	m.url, _ = startServer(t, env, func(s *server) { m.server = s; change(s) })
	m.metrics, _ = serveTest(t, newHTTPServer(m.server.metrics.handler(), m.log))
	return m
}

// closeStore takes the store away from under the program.
func (m metered) closeStore() { _ = m.deliverer.store.(*sqliteStore).db.Close() }

// byPath is business logic that ends as the path says.
func byPath(ctx context.Context, m *Message) ([]byte, error) {
	switch m.URL.Path {
	case "/error":
		return nil, errors.New("boom")
	case "/permanent":
		return nil, Permanent(errors.New("boom"))
	case "/retry":
		return nil, RetryAfter(time.Second, errors.New("boom"))
	case "/panic":
		panic("boom")
	case "/timeout":
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return nil, nil
}

const (
	verifiedByCurrent = `qstash_verified_total{key="current"}`
	verifiedByNext    = `qstash_verified_total{key="next"}`
	handledCount      = `qstash_handling_seconds_count`
)

func outcomeSeries(name string) string {
	return fmt.Sprintf(`qstash_deliveries_total{outcome=%q,reason=""}`, name)
}
func refusedSeries(reason string) string {
	return fmt.Sprintf(`qstash_deliveries_total{outcome="refused",reason=%q}`, reason)
}
func storeErrorSeries(operation string) string {
	return fmt.Sprintf(`qstash_store_errors_total{operation=%q}`, operation)
}

// metricsRow is some deliveries to a program that has had none, and all that it has then counted. An answer leaves
// after it was counted, so whoever has read it can read the metrics at once.
type metricsRow struct {
	name    string
	env     map[string]string
	deliver func(t testing.TB, m metered)
	want    map[string]float64
}

func (row metricsRow) scrape(t testing.TB) exposition {
	t.Helper()
	change := withHandler(byPath)
	if row.env["FORWARD_URL"] != "" {
		change = func(*server) {}
	}
	m := startMetered(t, row.env, change)
	row.deliver(t, m)
	return scrape(t, m.metrics)
}

func metricsRows(t testing.TB) []metricsRow {
	t.Helper()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/permanent" {
			w.Header().Set("Upstash-NonRetryable-Error", "true")
			w.WriteHeader(489)
			return
		}
		w.WriteHeader(418)
	}))
	t.Cleanup(upstream.Close)
	// send makes deliveries one after another, and fails unless the answers are these.
	send := func(want int, all ...sending) func(testing.TB, metered) {
		return func(t testing.TB, m metered) {
			t.Helper()
			for _, s := range all {
				if got := do(t, s.request(t, m.url)); got.status != want {
					t.Fatalf("%+v: answered %d %s, want %d", s, got.status, got.body, want)
				}
			}
		}
	}
	once := func(outcome string) map[string]float64 {
		return map[string]float64{outcomeSeries(outcome): 1, verifiedByCurrent: 1, handledCount: 1}
	}
	inFile := func() map[string]string { return map[string]string{"STORE_URL": t.TempDir() + "/receiver.db"} }
	return []metricsRow{
		{"no delivery counts nothing", nil, send(0), map[string]float64{}},
		{"a success", nil, send(200, sending{}), once("ok")},
		{"three successes, one by the next key", nil, send(200, sending{}, sending{key: nextKey}, sending{}),
			map[string]float64{outcomeSeries("ok"): 3, verifiedByCurrent: 2, verifiedByNext: 1, handledCount: 3}},
		{"a redelivery is a duplicate and is not handled", nil, send(200, sending{id: "msg_1"}, sending{id: "msg_1"}, sending{id: "msg_1"}),
			map[string]float64{outcomeSeries("ok"): 1, outcomeSeries("duplicate"): 2, verifiedByCurrent: 3, handledCount: 1}},
		{"an error", nil, send(500, sending{path: "/error"}), once("error")},
		{"an error is handled again", nil, send(500, sending{path: "/error", id: "msg_1"}, sending{path: "/error", id: "msg_1"}),
			map[string]float64{outcomeSeries("error"): 2, verifiedByCurrent: 2, handledCount: 2}},
		{"a panic", nil, send(500, sending{path: "/panic"}), once("panic")},
		{"a permanent failure", nil, send(489, sending{path: "/permanent"}), once("permanent")},
		{"a redelivered permanent failure is a duplicate", nil, send(489, sending{path: "/permanent", id: "msg_1"}, sending{path: "/permanent", id: "msg_1"}),
			map[string]float64{outcomeSeries("permanent"): 1, outcomeSeries("duplicate"): 1, verifiedByCurrent: 2, handledCount: 1}},
		{"a retry", nil, send(503, sending{path: "/retry"}), once("retry")},
		{"a timeout", map[string]string{"HANDLER_TIMEOUT": "20ms"}, send(504, sending{path: "/timeout"}), once("timeout")},
		{"an upstream that answers 418", map[string]string{"FORWARD_URL": upstream.URL}, send(418, sending{}), once("upstream")},
		{"an upstream that fails for good", map[string]string{"FORWARD_URL": upstream.URL}, send(489, sending{path: "/permanent"}), once("permanent")},
		{"a message that is still being run", nil, func(t testing.TB, m metered) {
			begun, finish, first := make(chan bool), make(chan bool), make(chan reply, 1)
			m.deliverer.wait = 0
			m.deliverer.run = func(context.Context, *Message) (answer, error) { close(begun); <-finish; return okAnswer(nil), nil }
			s := sending{id: "msg_1", body: "hello"}
			r := s.request(t, m.url)
			go func() { got, _ := tryDo(r); first <- got }()
			<-begun
			send(503, s)(t, m)
			during := scrape(t, m.metrics).counted()
			if want := (map[string]float64{outcomeSeries("in_flight"): 1, verifiedByCurrent: 2, "qstash_in_flight": 1, "qstash_held_bytes": 5}); !maps.Equal(during, want) {
				t.Errorf("while it runs: counted %v, want %v", during, want)
			}
			close(finish)
			if got := <-first; got.status != 200 {
				t.Errorf("the run was answered with %d", got.status)
			}
		}, map[string]float64{outcomeSeries("ok"): 1, outcomeSeries("in_flight"): 1, verifiedByCurrent: 2, handledCount: 1}},
		{"refusals by their reasons, none handled", map[string]string{"RECEIVER_URL": "https://receiver.example", "BEARER_TOKEN": "hunter2"}, func(t testing.TB, m metered) {
			r, _ := http.NewRequest(http.MethodPut, m.url, nil)
			if got := do(t, r); got.status != 405 {
				t.Errorf("PUT: answered %d", got.status)
			}
			bearer := map[string]string{"Authorization": "Bearer hunter2"}
			with := func(name, value string) map[string]string {
				h := maps.Clone(bearer)
				h[name] = value
				return h
			}
			past := `{"body":"","exp":1000,"iss":"Upstash","nbf":0,"sub":"https://receiver.example/"}`
			send(401,
				sending{subject: "https://receiver.example/", header: map[string]string{"Upstash-Signature": ""}},
				sending{subject: "https://receiver.example/", header: map[string]string{"Upstash-Signature": "x"}},
				sending{subject: "https://receiver.example/", key: "sig_other", header: bearer},
				sending{subject: "https://receiver.example/", key: "sig_other", header: bearer},
				sending{subject: "https://receiver.example/", header: with("Upstash-Signature", hmacToken(sha256.New, productionJOSE, past, currentKey))},
				sending{subject: "https://other.example/", header: bearer},
				sending{subject: "https://receiver.example/"},
				sending{subject: "https://receiver.example/", header: with("Upstash-Signature", tokenFor("other body", "https://receiver.example/"))},
			)(t, m)
			send(200, sending{subject: "https://receiver.example/", jti: "jwt_1", header: bearer})(t, m)
			send(401, sending{subject: "https://receiver.example/", jti: "jwt_1", header: bearer})(t, m)
		}, map[string]float64{refusedSeries("method"): 1, refusedSeries("missing"): 1, refusedSeries("malformed"): 1, refusedSeries("signature"): 2,
			refusedSeries("expired"): 1, refusedSeries("subject"): 1, refusedSeries("bearer"): 1, refusedSeries("body hash"): 1,
			outcomeSeries("ok"): 1, refusedSeries("replayed"): 1, verifiedByCurrent: 2, handledCount: 1}},
		{"a message that is too large is not verified", map[string]string{"MAX_BODY_BYTES": "3"}, send(413, sending{body: "four"}),
			map[string]float64{refusedSeries("too large"): 1}},
		{"a store that is away", inFile(), func(t testing.TB, m metered) { m.closeStore(); send(503, sending{})(t, m) },
			map[string]float64{outcomeSeries("store"): 1, storeErrorSeries("claim"): 1, verifiedByCurrent: 1}},
		{"a success that the store did not record", inFile(), func(t testing.TB, m metered) {
			m.deliverer.run = func(context.Context, *Message) (answer, error) { m.closeStore(); return okAnswer(nil), nil }
			send(200, sending{})(t, m)
		}, map[string]float64{outcomeSeries("ok"): 1, storeErrorSeries("complete"): 1, verifiedByCurrent: 1, handledCount: 1}},
		{"an error whose message the store did not give back", inFile(), func(t testing.TB, m metered) {
			m.deliverer.run = func(context.Context, *Message) (answer, error) {
				m.closeStore()
				return answer{}, errors.New("boom")
			}
			send(500, sending{})(t, m)
		}, map[string]float64{outcomeSeries("error"): 1, storeErrorSeries("release"): 1, verifiedByCurrent: 1, handledCount: 1}},
	}
}

const productionJOSE = `{"alg":"HS256","typ":"JWT"}`

// tokenFor is a good token for body, which another body may be sent with.
func tokenFor(body, subject string) string {
	return hmacToken(sha256.New, productionJOSE, fmt.Sprintf(`{"body":%q,"exp":%d,"iss":"Upstash","nbf":0,"sub":%q}`,
		hashOf(body), time.Now().Unix()+300, subject), currentKey)
}

func TestMetricsCount(t *testing.T) {
	t.Parallel()
	for _, row := range metricsRows(t) {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			e := row.scrape(t)
			if got := e.counted(); !maps.Equal(got, row.want) {
				t.Errorf("counted %v\nwant    %v", got, row.want)
			}
			for _, gauge := range []string{"qstash_in_flight", "qstash_held_bytes"} {
				if n, ok := e.series[gauge]; !ok || n != 0 {
					t.Errorf("%s is %v (exposed: %v), want 0 with nothing under way", gauge, n, ok)
				}
			}
			if all := e.series[`qstash_handling_seconds_bucket{le="+Inf"}`]; all != row.want[handledCount] {
				t.Errorf("the handling times of %v messages are in a bucket, want %v", all, row.want[handledCount])
			}
		})
	}
}

func TestMetricsBeforeTheFirstDelivery(t *testing.T) {
	t.Parallel()
	e := scrape(t, startMetered(t, nil, withHandler(byPath)).metrics)
	for _, series := range []string{
		verifiedByCurrent, verifiedByNext, storeErrorSeries("claim"), storeErrorSeries("complete"), storeErrorSeries("release"), handledCount, outcomeSeries("ok"),
		"qstash_in_flight", "qstash_held_bytes", "go_goroutines", "go_memstats_heap_alloc_bytes", "process_resident_memory_bytes", "process_start_time_seconds",
	} {
		if _, ok := e.series[series]; !ok {
			t.Errorf("%s is not exposed, so that its first increase is not seen", series)
		}
	}
	for metric, label := range map[string]string{"go_info": "version", "go_build_info": "version"} {
		if !e.labels[metric][label] {
			t.Errorf("%s has no label %s", metric, label)
		}
	}
}

// What strangers and senders choose must not become a label: each value would be one more series, for ever.
func TestMetricsKeepNothingThatWasSent(t *testing.T) {
	t.Parallel()
	m := startMetered(t, nil, withHandler(func(_ context.Context, m *Message) ([]byte, error) {
		if strings.HasPrefix(m.URL.Path, "/ok") {
			return m.Body, nil
		}
		return nil, errors.New(string(m.Body))
	}))
	round := func(word string) exposition {
		header := map[string]string{"Upstash-Retried": word, "Upstash-Schedule-Id": word, "Upstash-Topic-Name": word, "Upstash-Region": word,
			"Upstash-Caller-Ip": word, "User-Agent": word, "X-Forwarded-For": word, "Fly-Region": word}
		for _, s := range []sending{
			{path: "/ok/" + word + "?" + word, id: word, jti: word, body: word, header: header},
			{path: "/error/" + word, body: word, header: header},
			{path: "/" + word, id: word, key: "sig_" + word, header: header},
			{path: "/", header: map[string]string{"Upstash-Signature": word}},
			{path: "/", header: map[string]string{"Upstash-Signature": hmacToken(sha256.New, `{"alg":"`+word+`"}`, `{}`, currentKey)}},
			{path: "/", header: map[string]string{"Upstash-Signature": hmacToken(sha256.New, productionJOSE, `{"iss":"`+word+`","exp":9e9,"nbf":0,"body":""}`, currentKey)}},
		} {
			do(t, s.request(t, m.url))
		}
		r, _ := http.NewRequest(strings.ToUpper(word), m.url+"/"+word, nil)
		do(t, r)
		return scrape(t, m.metrics)
	}
	first := round("needle")
	if strings.Contains(strings.ToLower(first.text), "needle") {
		t.Errorf("the metrics repeat what was sent:\n%s", first.text)
	}
	second := round("thread")
	if a, b := slices.Sorted(maps.Keys(first.series)), slices.Sorted(maps.Keys(second.series)); !slices.Equal(a, b) {
		t.Errorf("other deliveries of the same kinds made other series:\n%q\n%q", a, b)
	}
}

func TestMetricsHaveAPortOfTheirOwn(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	p := startProgram(t, map[string]string{"METRICS_PORT": port, "FORWARD_URL": succeedingService(t)})
	if got := do(t, sending{}.request(t, p.url)); got.status != 200 {
		t.Fatalf("answered %d", got.status)
	}
	if n := scrape(t, "http://localhost:"+port+"/metrics").series[outcomeSeries("ok")]; n != 1 {
		t.Errorf("METRICS_PORT shows %v deliveries, want 1", n)
	}
	for method, want := range map[string]int{http.MethodGet: 405, http.MethodHead: 405, http.MethodPost: 401} {
		r, _ := http.NewRequest(method, p.url+"/metrics", nil)
		if got := do(t, r); got.status != want || strings.Contains(got.body, "qstash_") {
			t.Errorf("%s /metrics on PORT: answered %d %s, want %d", method, got.status, got.body, want)
		}
	}
	r, _ := http.NewRequest(http.MethodPost, "http://localhost:"+port+"/", strings.NewReader("{}"))
	r.Header = sending{body: "{}"}.request(t, p.url).Header
	do(t, r)
	if n := scrape(t, "http://localhost:"+port+"/metrics").series[outcomeSeries("ok")]; n != 1 {
		t.Errorf("a message to METRICS_PORT was taken: %v deliveries", n)
	}
}

// grafana is as much of a dashboard as is checked.
type grafana struct {
	UID           string
	SchemaVersion int
	Templating    struct {
		List []struct {
			Name, Type string
			Datasource grafanaSource
			Query      json.RawMessage
		}
	}
	Panels []grafanaPanel
}

type grafanaSource struct{ Type, UID string }

type grafanaPanel struct {
	ID                       int
	Type, Title, Description string
	GridPos                  struct{ X, Y, W, H int }
	Datasource               grafanaSource
	Targets                  []grafanaTarget
	FieldConfig              struct {
		Defaults  struct{ Unit string }
		Overrides []struct {
			Matcher struct{ ID, Options string }
		}
	}
}

type grafanaTarget struct {
	RefID, Expr, LegendFormat string
	Datasource                grafanaSource
}

func readDashboard(t *testing.T) grafana {
	t.Helper()
	text, err := os.ReadFile("dashboard/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var g grafana
	if err := json.Unmarshal(text, &g); err != nil {
		t.Fatalf("dashboard/grafana.json: %v", err)
	}
	return g
}

// promExpression is what a PromQL text asks for.
type promExpression struct {
	selectors []promSelector
	by        []string // the labels that are left
	unknown   []string // words that are none of what the dashboard is known to use
}

type promSelector struct {
	metric  string
	match   map[string]string // label: wanted value
	ranged  bool              // followed by [$__rate_interval]
	counted bool              // and within increase, which, unlike rate, has Fly's Prometheus see a counter's first value too
}

var (
	selectorText = regexp.MustCompile(`(increase\()?([a-zA-Z_:][a-zA-Z0-9_:]*)\{([^}]*)\}(\[\$__rate_interval\])?`)
	byText       = regexp.MustCompile(`\bby \(([^)]*)\)`)
	promWord     = regexp.MustCompile(`[a-zA-Z_$][a-zA-Z0-9_:]*`)
	promQL       = []string{"sum", "max", "count", "increase", "histogram_quantile", "time", "$__rate_interval_ms"}
)

// readExpression understands the PromQL that the dashboard uses: selectors with braces, by (labels) before the
// brackets, and functions.
func readExpression(expr string) promExpression {
	var e promExpression
	for _, m := range selectorText.FindAllStringSubmatch(expr, -1) {
		s := promSelector{metric: m[2], match: map[string]string{}, ranged: m[4] != "", counted: m[1] != "" && m[4] != ""}
		for _, pair := range labelPair.FindAllStringSubmatch(m[3], -1) {
			s.match[pair[1]] = pair[2]
		}
		e.selectors = append(e.selectors, s)
	}
	for _, m := range byText.FindAllStringSubmatch(expr, -1) {
		for label := range strings.SplitSeq(m[1], ",") {
			e.by = append(e.by, strings.TrimSpace(label))
		}
	}
	rest := byText.ReplaceAllString(selectorText.ReplaceAllString(expr, "$1"), "")
	for _, w := range promWord.FindAllString(rest, -1) {
		if !slices.Contains(promQL, w) {
			e.unknown = append(e.unknown, w)
		}
	}
	return e
}

// flyLabels are those that Fly puts on every custom metric, and le is a histogram's own.
var flyLabels = []string{"app", "region", "instance", "le"}

var legendLabel = regexp.MustCompile(`\{\{\s*(\w+)\s*\}\}`)

func TestDashboardAsksForWhatIsExposed(t *testing.T) {
	t.Parallel()
	var e exposition
	for _, row := range metricsRows(t) {
		e.add(row.scrape(t))
	}
	g := readDashboard(t)
	asked := map[string]bool{}
	check := func(where string, expr string) promExpression {
		x := readExpression(expr)
		if len(x.selectors) == 0 || len(x.unknown) > 0 {
			t.Errorf("%s: %s has %d metrics and, not understood, %q", where, expr, len(x.selectors), x.unknown)
		}
		for _, s := range x.selectors {
			labels, ok := e.labels[s.metric]
			if !ok {
				t.Errorf("%s: the program does not expose %s", where, s.metric)
				continue
			}
			family := s.metric
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				if base, ok := strings.CutSuffix(s.metric, suffix); ok && e.kinds[base] == "histogram" {
					family = base
				}
			}
			asked[family] = true
			if isCounter := e.kinds[family] != "gauge"; isCounter != s.counted || isCounter != s.ranged {
				t.Errorf("%s: %s is a %s; in increase() with [$__rate_interval]: %v", where, s.metric, e.kinds[family], s.counted)
			}
			if s.match["app"] != "$app" {
				t.Errorf("%s: %s is not asked of $app alone", where, s.metric)
			}
			for label, value := range s.match {
				if slices.Contains(flyLabels, label) {
					continue
				}
				if !labels[label] {
					t.Errorf("%s: %s has no label %s", where, s.metric, label)
				} else if e.values[label][value] == 0 {
					t.Errorf("%s: nothing was counted with %s=%q", where, label, value)
				}
			}
			for _, label := range x.by {
				if !labels[label] && !slices.Contains(flyLabels, label) {
					t.Errorf("%s: %s has no label %s", where, s.metric, label)
				}
			}
		}
		return x
	}
	for _, p := range g.Panels {
		drawn := map[string]bool{}
		for _, target := range p.Targets {
			x := check(p.Title, target.Expr)
			if len(legendLabel.FindAllString(target.LegendFormat, -1)) == 0 {
				drawn[target.LegendFormat] = true
			}
			for _, m := range legendLabel.FindAllStringSubmatch(target.LegendFormat, -1) {
				if !slices.Contains(x.by, m[1]) {
					t.Errorf("%s: the legend shows %s, which %s does not keep", p.Title, m[1], target.Expr)
				}
				for value := range e.values[m[1]] {
					drawn[legendLabel.ReplaceAllString(target.LegendFormat, value)] = true
				}
			}
		}
		for _, o := range p.FieldConfig.Overrides {
			if !drawn[o.Matcher.Options] {
				t.Errorf("%s: nothing is called %q, whose looks are set", p.Title, o.Matcher.Options)
			}
		}
		if p.Title == "Deliveries by outcome" && len(p.FieldConfig.Overrides) != len(e.values["outcome"]) {
			t.Errorf("%s: %d outcomes have a colour, there are %q", p.Title, len(p.FieldConfig.Overrides), slices.Sorted(maps.Keys(e.values["outcome"])))
		}
	}
	for metric := range e.kinds {
		if strings.HasPrefix(metric, "qstash_") && !asked[metric] {
			t.Errorf("%s is on no panel", metric)
		}
	}
	variables := map[string]bool{}
	for _, v := range g.Templating.List {
		variables[v.Type+" "+v.Name] = true
		if v.Name != "app" {
			continue
		}
		var query struct{ Query string }
		if err := json.Unmarshal(v.Query, &query); err != nil {
			t.Errorf("the variable app: %v", err)
		}
		metric, label, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(query.Query, "label_values("), ")"), ", ")
		if e.labels[metric] == nil || label != "app" || v.Datasource.UID != "${datasource}" {
			t.Errorf("the variable app asks %s of %q", query.Query, v.Datasource.UID)
		}
	}
	if !variables["datasource datasource"] || !variables["query app"] {
		t.Errorf("the variables are %v", variables)
	}
}

func TestDashboardCanBeImported(t *testing.T) {
	t.Parallel()
	g := readDashboard(t)
	if g.SchemaVersion < 36 || g.UID == "" || len(g.Panels) < 7 {
		t.Errorf("schema version %d, uid %q, %d panels", g.SchemaVersion, g.UID, len(g.Panels))
	}
	ids, taken := map[int]bool{}, map[[2]int]string{}
	for _, p := range g.Panels {
		if p.ID <= 0 || ids[p.ID] {
			t.Errorf("%s: the id %d is not its own", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.Type == "" || p.Title == "" || p.FieldConfig.Defaults.Unit == "" || !strings.HasSuffix(p.Description, ".") || strings.Contains(p.Description, "\n") {
			t.Errorf("panel %d: type %q, title %q, unit %q, description %q", p.ID, p.Type, p.Title, p.FieldConfig.Defaults.Unit, p.Description)
		}
		at := p.GridPos
		if at.X < 0 || at.Y < 0 || at.W <= 0 || at.H <= 0 || at.X+at.W > 24 {
			t.Errorf("%s: does not fit into 24 columns: %+v", p.Title, at)
		}
		for x := at.X; x < at.X+at.W; x++ {
			for y := at.Y; y < at.Y+at.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("%s lies on %s", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		refs, source := map[string]bool{}, grafanaSource{"prometheus", "${datasource}"}
		for _, target := range p.Targets {
			if target.RefID == "" || refs[target.RefID] || target.Datasource != source || p.Datasource != source {
				t.Errorf("%s: query %q of %v, panel of %v", p.Title, target.RefID, target.Datasource, p.Datasource)
			}
			refs[target.RefID] = true
		}
	}
}
