package dev

import (
	"embed"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	g "maragu.dev/gomponents"
)

//go:embed page
var pageFiles embed.FS

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

func (c counts) String() string {
	text := plural(c.All, "message", "messages")
	if c.Letters > 0 {
		text += ", " + plural(c.Letters, "dead letter", "dead letters")
	}
	if c.Forgotten > 0 {
		text += fmt.Sprintf(", %d forgotten to make room", c.Forgotten)
	}
	return text
}

func (q *QStash) counts() counts {
	return counts{All: len(q.held.order), Letters: len(q.letters), Forgotten: q.held.forgotten}
}

func (q *QStash) serveList(w http.ResponseWriter, r *http.Request) {
	l := listing{base: "http://" + r.Host, destination: q.config.Destination, speed: q.config.Speed}
	q.mu.Lock()
	end := len(q.held.order)
	before := r.URL.Query().Get("before")
	if m, ok := q.held.messages[before]; ok {
		end = slices.Index(q.held.order, m)
	}
	l.newest = end == len(q.held.order)
	begin := max(0, end-pageLength)
	for _, m := range slices.Backward(q.held.order[begin:end]) {
		l.rows = append(l.rows, m.row())
	}
	if begin > 0 {
		l.older = q.held.order[begin].ID
	}
	l.counts = q.counts()
	q.mu.Unlock()
	writePage(w, http.StatusOK, listPage(l))
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
	writePage(w, http.StatusOK, messagePage(s, m.curl("http://"+r.Host)))
}

func writePage(w http.ResponseWriter, status int, page g.Node) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_ = page.Render(w) // to a caller who may have hung up
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
	writePage(w, statusOf(err), refusedPage(err.Error()))
}
