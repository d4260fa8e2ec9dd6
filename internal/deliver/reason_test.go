package deliver

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// theirs are the statuses that somebody else chooses.
var theirs = map[Reason]string{Repeat: "the first's", AppFailed: "the app's"}

func TestEachRowIsInTheOperatorsReference(t *testing.T) {
	text, err := os.ReadFile("../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := len(regexp.MustCompile("(?m)^\\| `[a-z_]+` \\| `[a-z ]+` \\|.*\\| (INFO|WARN|ERROR) \\|").FindAll(text, -1))
	for reason := range Table() {
		row := Reason(reason).Row()
		status := fmt.Sprint(row.Status)
		if row.Status == 0 {
			status = theirs[Reason(reason)]
		}
		want := fmt.Sprintf("\n| `%s` | `%s` | %s | %s | %s | ", row.Outcome, row.Reason, status, row.Next, row.Level)
		if !strings.Contains(string(text), want) {
			t.Errorf("docs/operating.md has no row%s", want)
		}
	}
	if rows != len(Table()) {
		t.Errorf("docs/operating.md has %d rows, there are %d reasons", rows, len(Table()))
	}
}

func TestEachReasonIsOfOneRow(t *testing.T) {
	known := map[string]bool{}
	for i, row := range Table() {
		if row.Outcome == "" || row.Reason == "" || row.Next == "" {
			t.Errorf("row %d is not whole: %+v", i, row)
		}
		if known[row.Reason] {
			t.Errorf("two rows have the reason %q", row.Reason)
		}
		known[row.Reason] = true
	}
}

func TestTheDashboardAsksForWhatThereIs(t *testing.T) {
	files, err := filepath.Glob("../../docs/dashboard/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("there is no dashboard: %v", err)
	}
	known := map[string]bool{}
	for _, row := range Table() {
		known["outcome="+row.Outcome], known["reason="+row.Reason] = true, true
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var dashboard struct {
			Panels []struct {
				Title   string
				Targets []struct{ Expr string }
			}
		}
		if err := json.Unmarshal(text, &dashboard); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, panel := range dashboard.Panels {
			for _, target := range panel.Targets {
				for _, asked := range regexp.MustCompile(`(outcome|reason)="([^"]+)"`).FindAllStringSubmatch(target.Expr, -1) {
					if !known[asked[1]+"="+asked[2]] {
						t.Errorf("the panel %q asks for the %s %q, which there is not", panel.Title, asked[1], asked[2])
					}
				}
			}
		}
	}
}
