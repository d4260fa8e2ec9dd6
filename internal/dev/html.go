package dev

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	g "maragu.dev/gomponents"
	h "maragu.dev/gomponents/html"
)

// The pages are no templates: html/template calls methods by name, so that the linker would keep every method in the
// program, which makes it 9 MB larger.

// el, attr and text are gomponents', which the compiler would copy to each of the 200 places that call them, for
// another 200 KB.

//go:noinline
func el(name string, children ...g.Node) g.Node { return g.El(name, children...) }

//go:noinline
func attr(name string, value ...string) g.Node { return g.Attr(name, value...) }

//go:noinline
func text(t string) g.Node { return g.Text(t) }

// page is a whole page.
func page(title string, body ...g.Node) g.Node {
	return h.Doctype(el("html", attr("lang", "en"),
		el("head",
			el("meta", attr("charset", "utf-8")),
			el("meta", attr("name", "viewport"), attr("content", "width=device-width, initial-scale=1")),
			el("title", text(title+" · QStash stand-in")),
			el("link", attr("rel", "icon"), attr("href", "/icon.svg"), attr("type", "image/svg+xml")),
			el("link", attr("rel", "stylesheet"), attr("href", "/page.css")),
			el("script", attr("src", "/page.js"), attr("defer")),
		),
		el("body", body...),
	))
}

// listing is what the list of messages shows.
type listing struct {
	base        string // the stand-in's URL
	destination string // that the form proposes
	speed       float64
	rows        []row  // the newest first
	newest      bool   // there are no newer ones
	older       string // the message that the next page goes on after; "": there is none
	counts      counts
}

func listPage(l listing) g.Node {
	return page("Messages",
		el("header",
			el("h1", text("QStash stand-in")),
			el("p", text(l.base), g.If(l.speed != 1, text(fmt.Sprintf(" · speed %v", l.speed)))),
		),
		el("main", attr("class", "list"),
			section("publish", "Publish", publishForm(l.destination)),
			section("messages", "Messages",
				el("p", attr("id", "counts"), attr("class", "facts"), text(l.counts.String())),
				offline(),
				el("div", attr("id", "empty"), g.If(len(l.rows) > 0, attr("hidden")),
					el("p", text("Nothing has been published yet. Use the form, or paste this into a terminal:")),
					el("pre", text(fmt.Sprintf("curl -X POST %s/v2/publish/%s \\\n  -H 'Content-Type: application/json' -d '%s'",
						l.base, l.destination, exampleBody))),
				),
				el("ol", attr("id", "rows"), attr("class", "rows"), attr("data-live", "/messages/live"), g.If(l.newest, attr("data-newest")),
					g.Map(l.rows, listRow),
				),
				el("nav", attr("aria-label", "Pages"),
					g.If(!l.newest, link("/", "Newest")),
					g.If(l.older != "", link("/?before="+l.older, "Older")),
				),
			),
		),
	)
}

const exampleBody = `{"order": 1}`

func publishForm(destination string) g.Node {
	asTyped := g.Group{attr("autocomplete", "off"), attr("spellcheck", "false")}
	return el("form", attr("method", "post"), attr("action", "/messages"),
		el("label", attr("for", "destination"), text("Destination")),
		el("input", attr("id", "destination"), attr("name", "destination"), attr("type", "url"), attr("required"), attr("value", destination), asTyped),
		el("label", attr("for", "body"), text("Body")),
		el("textarea", attr("id", "body"), attr("name", "body"), attr("rows", "6"), asTyped, text(exampleBody)),
		el("label", attr("for", "fault"), text("Fault in the first attempt")),
		el("select", attr("id", "fault"), attr("name", "fault"),
			el("option", attr("value", ""), text("none")),
			g.Map(faults, func(f fault) g.Node { return el("option", attr("value", f.name), text(f.name+": "+f.text)) }),
		),
		el("button", attr("class", "main"), text("Publish")),
		result(),
	)
}

func listRow(r row) g.Node {
	return el("li", attr("id", r.ID),
		messageLink(r.ID),
		el("span", attr("class", "destination"), text(r.Destination)),
		el("span", attr("class", "live"), rowNow(r)),
	)
}

// rowNow is the part of a row that changes.
func rowNow(r row) g.Node {
	var also strings.Builder
	add := func(there bool, text string) {
		if there {
			also.WriteString(" · " + text)
		}
	}
	add(r.Source != "", "callback")
	add(r.Attempts > 0, plural(r.Attempts, "attempt", "attempts"))
	add(r.Status > 0, strconv.Itoa(r.Status))
	add(r.Outcome != "", r.Outcome)
	add(!r.Due.IsZero(), "next at "+r.Due.Local().Format(time.TimeOnly))
	return g.Group{pill(r.State), el("span", attr("class", "facts"), moment(r.Created), text(also.String()))}
}

func messagePage(m Message, curl string) g.Node {
	path := "/messages/" + m.ID
	action := func(name, label string, attributes ...g.Node) g.Node {
		return el("form", attr("method", "post"), attr("action", path+"/"+name), el("button", g.Group(attributes), text(label)))
	}
	return page(m.ID,
		el("header",
			allMessages(),
			el("h1", el("span", attr("class", "id"), text(m.ID))),
			el("p", attr("class", "destination"), text(m.Method+" "+m.Destination)),
		),
		el("main", attr("class", "message"),
			section("state-name", "State",
				offline(),
				el("p",
					el("span", attr("id", "state"), attr("aria-live", "polite"), stateNow(m)),
					text(" "),
					el("span", attr("id", "due"), attr("class", "facts"), dueNow(m)),
				),
				el("div", attr("class", "buttons"),
					action("now", "Deliver the next attempt now", attr("id", "now"), g.If(!m.waits(), attr("aria-disabled", "true"))),
					action("again", "Send again as the same message"),
					action("new", "Send again as a new message"),
					el("button", attr("type", "button"), attr("id", "copy"), text("Copy as curl")),
				),
				result(),
				el("details", el("summary", text("curl command")), el("pre", attr("id", "curl"), text(curl))),
			),
			section("attempts-name", "Attempts",
				el("ol", attr("id", "attempts"), attr("class", "attempts"), attr("data-live", path+"/live"), g.Map(m.Attempts, attemptItem)),
			),
			section("message-name", "Message",
				el("dl",
					fact("published", moment(m.Created)),
					fact("retries", text(fmt.Sprint("at most ", m.MaxRetries))),
					g.If(m.Source != "", fact("callback of", messageLink(m.Source))),
					g.If(m.Queue != "", fact("queue", text(m.Queue))),
					g.If(m.Label != "", fact("label", text(m.Label))),
				),
				g.If(len(m.Header) > 0, g.Group{el("h3", text("Headers")), headers(m.Header)}),
				el("h3", text("Body")),
				messageBody(m),
			),
		),
	)
}

func messageBody(m Message) g.Node {
	if len(m.Body) == 0 {
		return el("p", attr("class", "facts"), text("empty"))
	}
	return g.Group{
		el("pre", text(excerpt(indented(m.Body), 64<<10))),
		el("p", el("a", attr("href", "/messages/"+m.ID+"/body"), attr("download"), text("All of the body as it is"))),
	}
}

// stateNow is the message's state, and what there is to say besides its name.
func stateNow(m Message) g.Node {
	attempts := plural(len(m.Attempts), "attempt", "attempts")
	more := ""
	switch {
	case m.State == Waiting && m.Due.IsZero():
		more = "behind others of queue " + m.Queue
	case m.State == Waiting && len(m.Attempts) == 0:
		more = "for its time"
	case m.State == Waiting:
		more = "for the next attempt"
	case m.State == Failed:
		more = "after " + attempts + ": dead letter " + m.DLQID
	case m.State == Delivered:
		more = "after " + attempts
	}
	return g.Group{pill(m.State), text(" " + more)}
}

// dueNow is when the next attempt is made; the page's script adds how long that is from now.
func dueNow(m Message) g.Node {
	if !m.waits() {
		return g.Group{}
	}
	return g.Group{
		text("at " + m.Due.Local().Format(time.TimeOnly)),
		el("span", attr("class", "left"), attr("data-due", strconv.FormatInt(m.Due.UnixMilli(), 10))),
	}
}

// waits says whether there is an attempt that can be made now instead of later.
func (m Message) waits() bool { return m.State == Waiting && !m.Due.IsZero() }

func attemptItem(a Attempt) g.Node {
	name := "First attempt"
	if a.Retried > 0 {
		name = fmt.Sprintf("Retry %d", a.Retried)
	}
	if a.Extra != "" {
		name += ", " + a.Extra
	}
	return el("li", attr("id", attemptID(a)),
		el("h3", text(name+" "), moment(a.Started)),
		el("div", attr("class", "live"), attemptNow(a)),
		el("div", attr("class", "more"), attemptMore(a)),
	)
}

func attemptID(a Attempt) string { return fmt.Sprintf("attempt-%d", a.number) }

// attemptNow is the part of an attempt that changes.
func attemptNow(a Attempt) g.Node {
	class := "failed"
	switch {
	case a.Ended.IsZero():
		class = "delivering"
	case a.Status >= 200 && a.Status <= 299:
		class = "delivered"
	}
	return g.Group{
		el("span", attr("class", "dot "+class)),
		el("p", attr("class", "answer "+class), attemptAnswer(a)),
		el("dl",
			g.If(a.Outcome != "", g.Group{
				fact("receiver", el("b", text(a.Outcome)),
					g.If(a.Reason != "", g.Group{text(" "), el("span", attr("class", "reason"), text(a.Reason))})),
				fact("next", text(a.Next)),
			}),
			g.If(a.Then != "", fact("QStash", text(a.Then))),
		),
	}
}

func attemptAnswer(a Attempt) g.Node {
	if a.Ended.IsZero() {
		return text("on its way")
	}
	status := "no answer"
	if a.Status > 0 {
		status = strconv.Itoa(a.Status)
	}
	after := " after " + short(a.Ended.Sub(a.Started))
	if a.Err != "" {
		after += ": " + a.Err
	}
	return g.Group{el("b", text(status)), text(after)}
}

// attemptMore is what there is to an attempt once it has ended.
func attemptMore(a Attempt) g.Node {
	if a.Ended.IsZero() {
		return g.Group{}
	}
	return g.Group{
		g.If(len(a.Body) > 0, el("pre", text(excerpt(a.Body, 2<<10)))),
		g.If(len(a.Sent) > 0, el("details",
			el("summary", text("Headers")),
			el("p", attr("class", "facts"), text("sent")), headers(a.Sent),
			g.If(len(a.Header) > 0, g.Group{el("p", attr("class", "facts"), text("answered")), headers(a.Header)}),
		)),
	}
}

func refusedPage(reason string) g.Node {
	return page("Refused",
		el("header", allMessages(), el("h1", text("Refused"))),
		el("main", el("p", attr("class", "result wrong"), text(reason))),
	)
}

// section is a section of a page under its name; id is that of the heading.
func section(id, name string, content ...g.Node) g.Node {
	return el("section", attr("aria-labelledby", id), el("h2", attr("id", id), text(name)), g.Group(content))
}

// fact is an entry of a list of facts.
func fact(name string, content ...g.Node) g.Node {
	return g.Group{el("dt", text(name)), el("dd", content...)}
}

func link(to, label string) g.Node { return el("a", attr("href", to), text(label)) }

func allMessages() g.Node { return el("p", link("/", "All messages")) }

func messageLink(id string) g.Node {
	return el("a", attr("class", "id"), attr("href", "/messages/"+id), text(id))
}

func moment(t time.Time) g.Node {
	return el("time", attr("datetime", t.Format(time.RFC3339Nano)), text(t.Local().Format("15:04:05.000")))
}

func pill(s State) g.Node { return el("span", attr("class", "pill "+string(s)), text(string(s))) }

func headers(header http.Header) g.Node {
	var b strings.Builder
	_ = header.Write(&b) // to a Builder, which takes everything
	return el("pre", text(strings.TrimSpace(strings.ReplaceAll(b.String(), "\r\n", "\n"))))
}

// result is where the page's script says what came of a form.
func result() g.Node { return el("p", attr("class", "result"), attr("role", "status")) }

// offline is where it says that the stand-in is gone.
func offline() g.Node {
	return el("p", attr("id", "offline"), attr("class", "offline"), attr("role", "status"))
}

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
