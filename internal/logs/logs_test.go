package logs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/slogtest"
	"time"
	"unicode"
	"unicode/utf8"
)

// written returns the line that log writes in a format.
func written(text bool, log func(*slog.Logger)) string {
	var out bytes.Buffer
	log(New(&out, slog.LevelDebug, text))
	return out.String()
}

// withoutTime is line without when it was written.
func withoutTime(line string) string {
	return regexp.MustCompile(`"time":"[^"]*",|^[0-9:.]{12} `).ReplaceAllString(line, "")
}

func TestHandlerKeepsSlogsContract(t *testing.T) {
	var out bytes.Buffer
	slogtest.Run(t, func(*testing.T) slog.Handler {
		out.Reset()
		return New(&out, slog.LevelInfo, false).Handler()
	}, func(t *testing.T) map[string]any {
		line := map[string]any{}
		if err := json.Unmarshal(out.Bytes(), &line); err != nil {
			t.Fatalf("the line is no JSON: %v: %s", err, &out)
		}
		return line
	})
}

type awkward struct{}

func (awkward) MarshalJSON() ([]byte, error) { panic("no such luck") }

func TestLine(t *testing.T) {
	for _, c := range []struct {
		name       string
		log        func(*slog.Logger)
		json, text string
	}{
		{"values of every kind", func(l *slog.Logger) {
			l.Info("hello", "text", "a", "int", -1, "uint", uint(7), "float", 0.25, "yes", true, "for", 90*time.Second, "at", time.Unix(0, 0).UTC())
		},
			`{"level":"INFO","msg":"hello","text":"a","int":-1,"uint":7,"float":0.25,"yes":true,"for":"1m30s","at":"1970-01-01T00:00:00Z"}`,
			`INFO  hello text=a int=-1 uint=7 float=0.25 yes=true for=1m30s at=1970-01-01T00:00:00Z`},
		{"numbers that JSON has not", func(l *slog.Logger) { l.Info("x", "a", math.NaN(), "b", math.Inf(-1), "c", 1e300) },
			`{"level":"INFO","msg":"x","a":"NaN","b":"-Inf","c":1e+300}`, `INFO  x a=NaN b=-Inf c=1e+300`},
		{"an error is its text", func(l *slog.Logger) { l.Warn("x", "error", errors.New(`open "a"`)) },
			`{"level":"WARN","msg":"x","error":"open \"a\""}`, `WARN  x error="open \"a\""`},
		{"anything else is JSON", func(l *slog.Logger) { l.Debug("x", "urls", []string{"https://a", "https://b"}, "none", nil) },
			`{"level":"DEBUG","msg":"x","urls":["https://a","https://b"],"none":null}`, `DEBUG x urls=["https://a","https://b"] none=null`},
		{"JSON that a terminal would obey is spelled", func(l *slog.Logger) { l.Info("x", "urls", []string{"a\x7fb\u202ec"}) },
			`{"level":"INFO","msg":"x","urls":["a\u007fb\u202ec"]}`, `INFO  x urls=["a\u007fb\u202ec"]`},
		{"what panics when it is asked", func(l *slog.Logger) { l.Info("x", "a", awkward{}) },
			`{"level":"INFO","msg":"x","a":"cannot be shown: no such luck"}`, `INFO  x a="cannot be shown: no such luck"`},
		{"groups", func(l *slog.Logger) {
			l.With("a", 1).WithGroup("g").With("b", 2).WithGroup("h").Info("x", "c", 3, slog.Group("i", "d", 4))
		},
			`{"level":"INFO","msg":"x","a":1,"g":{"b":2,"h":{"c":3,"i":{"d":4}}}}`, `INFO  x a=1 g.b=2 g.h.c=3 g.h.i.d=4`},
		{"groups with nothing in them", func(l *slog.Logger) { l.WithGroup("g").Info("x", slog.Group("h", slog.Group("i"))) },
			`{"level":"INFO","msg":"x"}`, `INFO  x`},
		{"two from one", func(l *slog.Logger) {
			g := l.WithGroup("g")
			_ = g.With("a", 1)
			g.With("b", 2).Info("x")
		},
			`{"level":"INFO","msg":"x","g":{"b":2}}`, `INFO  x g.b=2`},
		{"a delivery", func(l *slog.Logger) {
			l.Error("delivery", "outcome", "refused", "reason", "subject", "detail", `run: flyctl secrets set A="b"`, "next", "not run, QStash retries",
				"signature", "current", "status", 401, "ms", 0.25)
		},
			`{"level":"ERROR","msg":"delivery","outcome":"refused","reason":"subject","detail":"run: flyctl secrets set A=\"b\"","next":"not run, QStash retries","signature":"current","status":401,"ms":0.25}`,
			`ERROR delivery refused   subject         401 0.25     not run, QStash retries signature=current run: flyctl secrets set A="b"`},
		{"JSON in a text", func(l *slog.Logger) { l.Info("x", "a", `{"b":1}`, "c", `{"d": 1}`, "e", `"f"`, "g", "") },
			`{"level":"INFO","msg":"x","a":"{\"b\":1}","c":"{\"d\": 1}","e":"\"f\"","g":""}`, `INFO  x a={"b":1} c="{\"d\": 1}" e="\"f\"" g=""`},
		{"a line break in a value", func(l *slog.Logger) { l.Info("x\ny", "a", "b\nc") },
			`{"level":"INFO","msg":"x\ny","a":"b\nc"}`, `INFO  x\ny a="b\nc"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := withoutTime(written(false, c.log)); got != c.json+"\n" {
				t.Errorf("as JSON it is\n%swant\n%s", got, c.json)
			}
			if got := withoutTime(written(true, c.log)); got != c.text+"\n" {
				t.Errorf("for people it is\n%swant\n%s", got, c.text)
			}
		})
	}
}

// hostile has everything that a line must not have as it is: control characters of both sets, bidirectional ones, line
// separators, broken UTF-8.
var hostile = func() string {
	var b strings.Builder
	for r := rune(0); r < 0xa0; r++ {
		b.WriteRune(r)
	}
	b.WriteString("\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\xff\xc3(\xed\xa0\x80 äöü 漢字 🙂")
	return b.String()
}()

func TestEveryLineIsShortAndHarmless(t *testing.T) {
	long := strings.Repeat(hostile, 1000)
	many := []any{"message", "msg_1"}
	for i := range 3000 {
		many = append(many, fmt.Sprintf("name%d", i), long)
	}
	deep := slog.Any("leaf", long)
	for range 5000 {
		deep = slog.Group("g", deep, slog.Int("n", 1))
	}
	for name, log := range map[string]func(*slog.Logger){
		"a message":               func(l *slog.Logger) { l.Info(hostile) },
		"a value":                 func(l *slog.Logger) { l.Info("x", "a", hostile) },
		"a name":                  func(l *slog.Logger) { l.Info("x", hostile, "a") },
		"a value that is JSON":    func(l *slog.Logger) { l.Info("x", "a", map[string]string{hostile: hostile}) },
		"a long message":          func(l *slog.Logger) { l.Info(long) },
		"a long value":            func(l *slog.Logger) { l.Info("x", "a", long, "message", "msg_1") },
		"a long name":             func(l *slog.Logger) { l.Info("x", long, "a") },
		"long JSON":               func(l *slog.Logger) { l.Info("x", "a", []string{long}) },
		"JSON that grows":         func(l *slog.Logger) { l.Info("x", "a", []string{strings.Repeat("\x7f", 3000)}) },
		"a long error":            func(l *slog.Logger) { l.Info("x", "a", errors.New(long)) },
		"many values":             func(l *slog.Logger) { l.Info("x", many...) },
		"groups in groups":        func(l *slog.Logger) { l.Info("x", deep) },
		"a long With":             func(l *slog.Logger) { l.With(many...).Info(long, many...) },
		"a long With, and groups": func(l *slog.Logger) { l.With("a", 1).WithGroup(long).With(many...).WithGroup(long).Info(long, many...) },
		"many groups": func(l *slog.Logger) {
			for i := range 200 {
				if l = l.WithGroup(hostile); i%50 == 20 {
					l = l.With("a", i)
				}
			}
			l.Info("x", "a", 1)
		},
		"a long delivery": func(l *slog.Logger) {
			l.Info("delivery", append([]any{"outcome", long, "detail", long, "next", long}, many...)...)
		},
	} {
		for _, text := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, text %t", name, text), func(t *testing.T) {
				got := written(text, log)
				if len(got) > maxLine {
					t.Errorf("the line has %d bytes, at most %d are allowed", len(got), maxLine)
				}
				if strings.Count(got, "\n") != 1 || !strings.HasSuffix(got, "\n") {
					t.Errorf("it is not one line: %q", got)
				}
				if !utf8.ValidString(got) {
					t.Errorf("it is no UTF-8: %q", got)
				}
				bad := func(r rune) bool { return unicode.In(r, unicode.Cc, unicode.Bidi_Control, unicode.Zl, unicode.Zp) }
				if i := strings.IndexFunc(strings.TrimSuffix(got, "\n"), bad); i >= 0 {
					t.Errorf("it has %q at %d", got[i:i+1], i)
				}
				if !text && !json.Valid([]byte(got)) {
					t.Errorf("it is no JSON: %s", got)
				}
			})
		}
	}
}

func TestALongValueLeavesTheOthersWhole(t *testing.T) {
	got := written(false, func(l *slog.Logger) {
		l.Info("x", "message", "msg_1", "a", strings.Repeat("a", 10000), "b", strings.Repeat("b", 10000), "last", "z")
	})
	for _, want := range []string{`"message":"msg_1"`, `aaa..."`, `bbb..."`, `"last":"z"`} {
		if !strings.Contains(got, want) {
			t.Errorf("the line has no %s: %s", want, got)
		}
	}
	got = written(false, func(l *slog.Logger) {
		var many []any
		for i := range 1000 {
			many = append(many, fmt.Sprint("name", i), "value")
		}
		l.Info("x", many...)
	})
	if !strings.HasSuffix(got, `,"cut":true}`+"\n") {
		t.Errorf("the line does not say that values were left out: ...%s", got[max(len(got)-100, 0):])
	}
}

func TestEscapedTextIsTheSameText(t *testing.T) {
	quoted := string(appendEscaped([]byte(`"`), hostile, 1<<20, true)) + `"`
	var back string
	if err := json.Unmarshal([]byte(quoted), &back); err != nil {
		t.Fatalf("%s is no JSON: %v", quoted, err)
	}
	if want := strings.ToValidUTF8(hostile, "\ufffd"); strings.ReplaceAll(back, "\ufffd", "") != strings.ReplaceAll(want, "\ufffd", "") {
		t.Errorf("read back it is %q, want %q", back, want)
	}
}

func FuzzEscaped(f *testing.F) {
	f.Add(hostile, 100)
	f.Add(strings.Repeat("\x01", 50), 20)
	f.Add("äöü", 3)
	f.Fuzz(func(t *testing.T, s string, most int) {
		if most < 0 || most > 1<<16 {
			return
		}
		for _, quoted := range []bool{false, true} {
			got := string(appendEscaped(nil, s, most, quoted))
			if len(got) > most+len(dots) {
				t.Errorf("%q takes %d bytes of %d", s, len(got), most)
			}
			if !utf8.ValidString(got) {
				t.Errorf("%q of %q is no UTF-8", got, s)
			}
			if quoted && !json.Valid([]byte(`"`+got+`"`)) {
				t.Errorf("%q of %q is no JSON", got, s)
			}
		}
	})
}

// notes is a file that notes each write.
type notes struct {
	mu     sync.Mutex
	writes []string
}

func (s *notes) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes = append(s.writes, string(p))
	return len(p), nil
}

func (s *notes) has() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.writes)
}

func TestWriter(t *testing.T) {
	t.Run("writes at once what comes after a pause", func(t *testing.T) {
		var file notes
		w := NewWriter(&file)
		fmt.Fprint(w, "first")
		if got := file.has(); !slices.Equal(got, []string{"first"}) {
			t.Errorf("the file has %q", got)
		}
	})
	t.Run("gathers what comes soon, and writes it without being told", func(t *testing.T) {
		var file notes
		w := NewWriter(&file)
		for range 1000 {
			fmt.Fprint(w, "x")
		}
		waitFor(t, func() bool { return strings.Join(file.has(), "") == strings.Repeat("x", 1000) })
		if n := len(file.has()); n > 500 {
			t.Errorf("1000 lines took %d writes", n)
		}
	})
	t.Run("writes everything when it is flushed, in its order", func(t *testing.T) {
		var file notes
		w := NewWriter(&file)
		want := ""
		for i := range 100 {
			fmt.Fprintln(w, i)
			want += fmt.Sprintln(i)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(file.has(), ""); got != want {
			t.Errorf("the file has %q", got)
		}
	})
	t.Run("holds no more than its bound", func(t *testing.T) {
		var file notes
		w := NewWriter(&file)
		line := strings.Repeat("x", gatherBytes/4)
		for range 100 {
			fmt.Fprint(w, line)
		}
		for _, write := range file.has() {
			if len(write) > gatherBytes+len(line) {
				t.Errorf("one write has %d bytes", len(write))
			}
		}
	})
	t.Run("writes at once when a log says ERROR", func(t *testing.T) {
		var file notes
		l := New(NewWriter(&file), slog.LevelInfo, false)
		for range 10 {
			l.Info("x")
		}
		l.With("a", 1).Error("y")
		if got := strings.Join(file.has(), ""); strings.Count(got, "\n") != 11 {
			t.Errorf("the file has %s", got)
		}
	})
	t.Run("writes at once when a log is flushed", func(t *testing.T) {
		var file notes
		l := New(NewWriter(&file), slog.LevelInfo, false)
		for range 10 {
			l.Info("x")
		}
		Flush(l)
		if got := strings.Join(file.has(), ""); strings.Count(got, "\n") != 10 {
			t.Errorf("the file has %s", got)
		}
	})
	t.Run("keeps the lines of many whole", func(t *testing.T) {
		var file notes
		gathered := NewWriter(&file)
		l := New(gathered, slog.LevelInfo, false)
		var group sync.WaitGroup
		for i := range 8 {
			group.Go(func() {
				mine := l.With("by", i)
				for n := range 200 {
					mine.Info("x", "n", n)
				}
			})
		}
		group.Wait()
		if err := gathered.Flush(); err != nil {
			t.Fatal(err)
		}
		next := map[float64]float64{}
		for line := range strings.Lines(strings.Join(file.has(), "")) {
			var got map[string]any
			if err := json.Unmarshal([]byte(line), &got); err != nil {
				t.Fatalf("%q is no JSON: %v", line, err)
			}
			by, n := got["by"].(float64), got["n"].(float64)
			if next[by] != n {
				t.Fatalf("line %v of %v came in place of %v", n, by, next[by])
			}
			next[by]++
		}
		if len(next) != 8 || next[0] != 200 {
			t.Errorf("lines are missing: %v", next)
		}
	})
}

// waitFor waits until done, or for ten seconds.
func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it has not come within ten seconds")
		}
	}
}

func TestIsTerminal(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("there are no terminals here: %v", err)
	}
	defer terminal.Close()
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, c := range []struct {
		name string
		w    io.Writer
		want bool
	}{
		{"a terminal", terminal, true},
		{"a terminal whose lines are gathered", NewWriter(terminal), true},
		{"a file", file, false},
		{"a file whose lines are gathered", NewWriter(file), false},
		{"memory", &bytes.Buffer{}, false},
	} {
		if got := IsTerminal(c.w); got != c.want {
			t.Errorf("%s is a terminal: %t", c.name, got)
		}
	}
}

func TestColours(t *testing.T) {
	var out bytes.Buffer
	l := slog.New(&handler{out: &output{w: &out}, text: true, coloured: true})
	l.Error("x", "a", "b\x1b[31m")
	if got, want := withoutTime(out.String()), "\x1b[31mERROR\x1b[0m x \x1b[2ma=\x1b[0mb\\u001b[31m\n"; got != want {
		t.Errorf("the line is %q, want %q", got, want)
	}
}
