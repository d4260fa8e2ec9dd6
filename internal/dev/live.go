package dev

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	g "maragu.dev/gomponents"
)

// view is an open page: of one message, or of the list.
type view struct {
	id      string // "": the list
	changed map[string]struct{}
	signal  chan struct{} // holds one when there is something in changed
}

// changed tells the open pages of a change of m, and of its attempt if a is not nil. The caller holds q.mu.
func (q *QStash) changed(m *message, a *Attempt) {
	q.number++
	if a != nil {
		a.changed = q.number
	}
	for v := range q.views {
		if v.id == "" || v.id == m.ID {
			v.changed[m.ID] = struct{}{}
			v.wake()
		}
	}
}

func (v *view) wake() {
	select {
	case v.signal <- struct{}{}:
	default:
	}
}

// A page is told at most this often, and at least so often that a connection that broke is noticed.
const (
	minPause = 100 * time.Millisecond
	maxPause = 20 * time.Second
)

// serveLive sends what changes as server-sent events, each the JSON that next returns; first everything that the page
// shows, so that nothing is missed between page and stream. next may return nil.
func (q *QStash) serveLive(w http.ResponseWriter, r *http.Request, id string, next func(*view) any) {
	v := &view{id: id, changed: map[string]struct{}{}, signal: make(chan struct{}, 1)}
	v.wake()
	q.mu.Lock()
	q.views[v] = struct{}{}
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		delete(q.views, v)
		q.mu.Unlock()
	}()

	connection := http.NewResponseController(w)
	_ = connection.SetReadDeadline(time.Time{}) // the server's is for requests, not for how long a page stays open
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	for {
		line := []byte(": still here\n\n")
		select {
		case <-v.signal:
			event := next(v)
			if event == nil {
				continue
			}
			data, err := json.Marshal(event)
			if err != nil {
				return
			}
			line = fmt.Appendf(nil, "data: %s\n\n", data) // JSON has no line breaks
		case <-time.After(maxPause):
		case <-r.Context().Done():
			return
		case <-q.ctx.Done():
			return
		}
		if _, err := w.Write(line); err != nil {
			return
		}
		if connection.Flush() != nil {
			return
		}
		select {
		case <-time.After(minPause):
		case <-r.Context().Done():
			return
		}
	}
}

// fragment is an element of a page: all of it for a page that has it not, else the part of it that changes.
type fragment struct {
	ID   string `json:"id"`
	HTML string `json:"html"` // "": a page that has it not does without
	Live string `json:"live"`
	More string `json:"more,omitempty"` // what comes once, after the rest
}

// nextRows returns the rows of the list that changed, the newest last.
func (q *QStash) nextRows(first *bool) func(*view) any {
	return func(v *view) any {
		q.mu.Lock()
		newest := q.held.order[max(0, len(q.held.order)-pageLength):]
		var older, rows []row
		for _, m := range newest {
			if _, changed := v.changed[m.ID]; changed || *first {
				rows = append(rows, m.row())
			}
		}
		if len(v.changed) <= pageLength { // a page of older messages may show them
			for id := range v.changed {
				if m, ok := q.held.messages[id]; ok && m.created.Before(newest[0].created) {
					older = append(older, m.row())
				}
			}
		}
		clear(v.changed)
		counts := q.counts()
		q.mu.Unlock()

		*first = false
		fragments := []fragment{}
		for _, row := range older {
			fragments = append(fragments, fragment{ID: row.ID, Live: rendered(rowNow(row))})
		}
		for _, row := range rows {
			fragments = append(fragments, fragment{ID: row.ID, HTML: rendered(listRow(row)), Live: rendered(rowNow(row))})
		}
		return map[string]any{"rows": fragments, "counts": counts.String()}
	}
}

// nextAttempts returns the message's state, and the attempts that changed after the given number.
func (q *QStash) nextAttempts(m *message, after int64) func(*view) any {
	return func(v *view) any {
		q.mu.Lock()
		clear(v.changed)
		s := m.snapshot()
		now := q.number
		q.mu.Unlock()

		attempts := []fragment{}
		for _, a := range s.Attempts {
			if a.changed > after {
				attempts = append(attempts, fragment{
					ID:   attemptID(a),
					HTML: rendered(attemptItem(a)),
					Live: rendered(attemptNow(a)),
					More: rendered(attemptMore(a)),
				})
			}
		}
		after = now
		return map[string]any{"attempts": attempts, "state": rendered(stateNow(s)), "due": rendered(dueNow(s)), "waits": s.waits()}
	}
}

// rendered is the text of part of a page.
func rendered(node g.Node) string {
	var b strings.Builder
	_ = node.Render(&b) // to a Builder, which takes everything
	return b.String()
}
