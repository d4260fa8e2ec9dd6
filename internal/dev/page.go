package dev

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

//go:embed page
var pageFiles embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"clock":     func(t time.Time) string { return t.Local().Format("15:04:05.000") },
	"seconds":   func(t time.Time) string { return t.Local().Format(time.TimeOnly) },
	"moment":    func(t time.Time) string { return t.Format(time.RFC3339Nano) },
	"took":      func(a Attempt) string { return short(a.Ended.Sub(a.Started)) },
	"body":      func(body []byte) string { return excerpt(indented(body), 64<<10) },
	"answer":    func(body []byte) string { return excerpt(body, 2<<10) },
	"headers":   headerLines,
	"attemptID": attemptID,
	"plural":    plural,
}).ParseFS(pageFiles, "page/*.html"))

// pageLength is how many messages the page shows at a time.
const pageLength = 100

func (q *QStash) newPages() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", q.serveList)
	mux.HandleFunc("POST /messages", q.servePublish)
	mux.HandleFunc("GET /messages/live", func(w http.ResponseWriter, r *http.Request) {
		first := true
		q.serveLive(w, r, "", q.nextRows(&first))
	})
	mux.HandleFunc("GET /messages/{id}", q.withMessage(q.serveMessage))
	mux.HandleFunc("GET /messages/{id}/body", q.withMessage(serveBody))
	mux.HandleFunc("GET /messages/{id}/live", q.withMessage(func(w http.ResponseWriter, r *http.Request, m *message) {
		q.serveLive(w, r, m.ID, q.nextAttempts(m, 0))
	}))
	mux.HandleFunc("POST /messages/{id}/now", q.withMessage(q.serveNow))
	mux.HandleFunc("POST /messages/{id}/again", q.withMessage(q.serveAgain))
	mux.HandleFunc("POST /messages/{id}/new", q.withMessage(q.serveNew))
	for _, name := range []string{"page.css", "page.js", "icon.svg"} {
		mux.HandleFunc("GET /"+name, func(w http.ResponseWriter, r *http.Request) {
			http.ServeFileFS(w, r, pageFiles, "page/"+name)
		})
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "+
			"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Referrer-Policy", "same-origin")
		header.Set("Cache-Control", "no-store")
		mux.ServeHTTP(w, r)
	})
}

// row is a message in the list.
type row struct {
	ID, Destination, Source, Outcome string
	State                            State
	Created, Due                     time.Time
	Attempts, Status                 int
}

func (m *message) row() row {
	last := m.last()
	return row{
		ID:          m.ID,
		Destination: m.destination,
		Source:      m.source,
		State:       m.state,
		Created:     m.created,
		Due:         m.due,
		Attempts:    len(m.attempts),
		Status:      last.Status,
		Outcome:     last.Outcome,
	}
}

// counts is how many messages are held.
type counts struct{ All, Letters, Forgotten int }

func (q *QStash) counts() counts {
	return counts{All: len(q.held.order), Letters: len(q.letters), Forgotten: q.held.forgotten}
}

func (q *QStash) serveList(w http.ResponseWriter, r *http.Request) {
	page := struct {
		Base, Destination, Older string
		Newest                   bool
		Speed                    float64
		Faults                   []struct{ Name, Text string }
		Rows                     []row
		Counts                   counts
	}{
		Base:        "http://" + r.Host,
		Destination: q.config.Destination,
		Speed:       q.config.Speed,
		Faults:      faults,
	}
	q.mu.Lock()
	end := len(q.held.order)
	before := r.URL.Query().Get("before")
	if m, ok := q.held.messages[before]; ok {
		end = slices.Index(q.held.order, m)
	}
	page.Newest = end == len(q.held.order)
	begin := max(0, end-pageLength)
	for _, m := range slices.Backward(q.held.order[begin:end]) {
		page.Rows = append(page.Rows, m.row())
	}
	if begin > 0 {
		page.Older = q.held.order[begin].ID
	}
	page.Counts = q.counts()
	q.mu.Unlock()
	writePage(w, "list.html", page)
}

func (q *QStash) withMessage(serve func(http.ResponseWriter, *http.Request, *message)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q.mu.Lock()
		m, ok := q.held.messages[r.PathValue("id")]
		q.mu.Unlock()
		if !ok {
			refuse(w, r, notFound("message", r.PathValue("id")))
			return
		}
		serve(w, r, m)
	}
}

func (q *QStash) serveMessage(w http.ResponseWriter, r *http.Request, m *message) {
	q.mu.Lock()
	s := m.snapshot()
	q.mu.Unlock()
	writePage(w, "message.html", struct {
		Message
		Curl string
	}{s, m.curl("http://" + r.Host)})
}

func writePage(w http.ResponseWriter, name string, data any) {
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, name, data); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write(b.Bytes()) // to a caller who may have hung up
}

// serveBody gives the body as it is. It may be anything, so no browser shows it.
func serveBody(w http.ResponseWriter, _ *http.Request, m *message) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", `attachment; filename="body"`)
	_, _ = w.Write(m.body) // to a caller who may have hung up
}

func (q *QStash) servePublish(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 2*maxBody) // it is escaped
	if err := r.ParseForm(); err != nil {
		refuse(w, r, badRequest("read the form: %s", err))
		return
	}
	body := []byte(strings.ReplaceAll(r.PostForm.Get("body"), "\r\n", "\n")) // forms have CRLF whatever was typed
	header := http.Header{}
	if fault := r.PostForm.Get("fault"); fault != "" {
		header.Set("Upstash-Dev-Fault", fault)
	}
	switch {
	case json.Valid(body):
		header.Set("Content-Type", "application/json")
	case len(body) > 0:
		header.Set("Content-Type", "text/plain; charset=utf-8")
	}
	id, err := q.Publish(strings.TrimSpace(r.PostForm.Get("destination")), header, body)
	if err != nil {
		refuse(w, r, err)
		return
	}
	done(w, r, "Published "+id, "/", false)
}

func (q *QStash) serveNow(w http.ResponseWriter, r *http.Request, m *message) {
	if err := q.deliverNow(m); err != nil {
		refuse(w, r, err)
		return
	}
	done(w, r, "The next attempt is made now", "/messages/"+m.ID, false)
}

func (q *QStash) serveAgain(w http.ResponseWriter, r *http.Request, m *message) {
	if err := q.deliverAgain(m); err != nil {
		refuse(w, r, err)
		return
	}
	done(w, r, "Sent again as the same message", "/messages/"+m.ID, false)
}

func (q *QStash) serveNew(w http.ResponseWriter, r *http.Request, m *message) {
	p, err := m.changedBy(nil)
	if err != nil {
		refuse(w, r, err)
		return
	}
	q.mu.Lock()
	id := q.hold(p, "").ID
	q.mu.Unlock()
	done(w, r, "Sent again as "+id, "/messages/"+id, true)
}

// done answers a form: the page's script gets the text and stays where it is, unless the browser is to move; without
// the script it goes to the location.
func done(w http.ResponseWriter, r *http.Request, text, location string, move bool) {
	if r.Header.Get("Accept") != "application/json" {
		http.Redirect(w, r, location, http.StatusSeeOther)
		return
	}
	answer := map[string]string{"text": text}
	if move {
		answer["location"] = location
	}
	writeJSON(w, http.StatusOK, answer)
}

func refuse(w http.ResponseWriter, r *http.Request, err error) {
	if r.Header.Get("Accept") == "application/json" {
		writeError(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(statusOf(err))
	_ = templates.ExecuteTemplate(w, "refused.html", err.Error()) // to a caller who may have hung up
}

// StateText is what there is to say besides the state's name.
func (m Message) StateText() string {
	switch {
	case m.State == Waiting && m.Due.IsZero():
		return "behind others of queue " + m.Queue
	case m.State == Waiting && len(m.Attempts) == 0:
		return "for its time"
	case m.State == Waiting:
		return "for the next attempt"
	case m.State == Failed:
		return "after " + plural(len(m.Attempts), "attempt", "attempts") + ": dead letter " + m.DLQID
	case m.State == Delivered:
		return "after " + plural(len(m.Attempts), "attempt", "attempts")
	}
	return ""
}

// Waits says whether there is an attempt that can be made now instead of later.
func (m Message) Waits() bool { return m.State == Waiting && !m.Due.IsZero() }

// Class is how an attempt looks.
func (a Attempt) Class() string {
	switch {
	case a.Ended.IsZero():
		return "delivering"
	case a.Status >= 200 && a.Status <= 299:
		return "delivered"
	}
	return "failed"
}

func attemptID(a Attempt) string { return fmt.Sprintf("attempt-%d", a.number) }

// indented is a body with its JSON indented, if it is JSON.
func indented(body []byte) []byte {
	var b bytes.Buffer
	if json.Indent(&b, body, "", "  ") != nil {
		return body
	}
	return b.Bytes()
}

// excerpt is the text of a body, up to about most bytes.
func excerpt(body []byte, most int) string {
	if !utf8.Valid(body) || bytes.IndexByte(body, 0) >= 0 {
		return fmt.Sprintf("(%d bytes that are no text)", len(body))
	}
	if len(body) <= most {
		return string(body)
	}
	for !utf8.RuneStart(body[most]) {
		most--
	}
	return fmt.Sprintf("%s\n... (%d bytes in all)", body[:most], len(body))
}

func headerLines(h http.Header) string {
	var b strings.Builder
	_ = h.Write(&b) // to a Builder, which takes everything
	return strings.TrimSpace(strings.ReplaceAll(b.String(), "\r\n", "\n"))
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// short is a duration that is quickly read.
func short(d time.Duration) string {
	if d >= 10*time.Second {
		return d.Round(time.Second).String()
	}
	return d.Round(time.Millisecond).String()
}
