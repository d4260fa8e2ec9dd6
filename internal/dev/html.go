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
	"maragu.dev/gomponents/components"
	h "maragu.dev/gomponents/html"
)

// The pages are no templates: html/template calls methods by name, so that the linker would keep every method in the
// program, which makes it 9 MB larger.

// page is a whole page.
func page(title string, body ...g.Node) g.Node {
	return components.HTML5(components.HTML5Props{
		Title:    title + " · QStash stand-in",
		Language: "en",
		Head: []g.Node{
			h.Link(h.Rel("icon"), h.Href("/icon.svg"), h.Type("image/svg+xml")),
			h.Link(h.Rel("stylesheet"), h.Href("/page.css")),
			h.Script(h.Src("/page.js"), h.Defer()),
		},
		Body: body,
	})
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
		h.Header(
			h.H1(g.Text("QStash stand-in")),
			h.P(g.Text(l.base), g.If(l.speed != 1, g.Textf(" · speed %v", l.speed))),
		),
		h.Main(h.Class("list"),
			section("publish", "Publish", publishForm(l.destination)),
			section("messages", "Messages",
				h.P(h.ID("counts"), h.Class("facts"), g.Text(l.counts.String())),
				offline(),
				h.Div(h.ID("empty"), g.If(len(l.rows) > 0, g.Attr("hidden")),
					h.P(g.Text("Nothing has been published yet. Use the form, or paste this into a terminal:")),
					h.Pre(g.Textf("curl -X POST %s/v2/publish/%s \\\n  -H 'Content-Type: application/json' -d '%s'",
						l.base, l.destination, exampleBody)),
				),
				h.Ol(h.ID("rows"), h.Class("rows"), h.Data("live", "/messages/live"), g.If(l.newest, g.Attr("data-newest")),
					g.Map(l.rows, listRow),
				),
				h.Nav(h.Aria("label", "Pages"),
					g.If(!l.newest, link("/", "Newest")),
					g.If(l.older != "", link("/?before="+l.older, "Older")),
				),
			),
		),
	)
}

const exampleBody = `{"order": 1}`

func publishForm(destination string) g.Node {
	asTyped := g.Group{h.AutoComplete("off"), g.Attr("spellcheck", "false")}
	return h.Form(h.Method("post"), h.Action("/messages"),
		h.Label(h.For("destination"), g.Text("Destination")),
		h.Input(h.ID("destination"), h.Name("destination"), h.Type("url"), h.Required(), h.Value(destination), asTyped),
		h.Label(h.For("body"), g.Text("Body")),
		h.Textarea(h.ID("body"), h.Name("body"), h.Rows("6"), asTyped, g.Text(exampleBody)),
		h.Label(h.For("fault"), g.Text("Fault in the first attempt")),
		h.Select(h.ID("fault"), h.Name("fault"),
			h.Option(h.Value(""), g.Text("none")),
			g.Map(faults, func(f fault) g.Node { return h.Option(h.Value(f.name), g.Text(f.name+": "+f.text)) }),
		),
		h.Button(h.Class("main"), g.Text("Publish")),
		result(),
	)
}

func listRow(r row) g.Node {
	return h.Li(h.ID(r.ID),
		messageLink(r.ID),
		h.Span(h.Class("destination"), g.Text(r.Destination)),
		h.Span(h.Class("live"), rowNow(r)),
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
	return g.Group{pill(r.State), h.Span(h.Class("facts"), moment(r.Created), g.Text(also.String()))}
}

func messagePage(m Message, curl string) g.Node {
	path := "/messages/" + m.ID
	action := func(name, text string, attributes ...g.Node) g.Node {
		return h.Form(h.Method("post"), h.Action(path+"/"+name), h.Button(g.Group(attributes), g.Text(text)))
	}
	return page(m.ID,
		h.Header(
			allMessages(),
			h.H1(h.Span(h.Class("id"), g.Text(m.ID))),
			h.P(h.Class("destination"), g.Text(m.Method+" "+m.Destination)),
		),
		h.Main(h.Class("message"),
			section("state-name", "State",
				offline(),
				h.P(
					h.Span(h.ID("state"), h.Aria("live", "polite"), stateNow(m)),
					g.Text(" "),
					h.Span(h.ID("due"), h.Class("facts"), dueNow(m)),
				),
				h.Div(h.Class("buttons"),
					action("now", "Deliver the next attempt now", h.ID("now"), g.If(!m.waits(), h.Aria("disabled", "true"))),
					action("again", "Send again as the same message"),
					action("new", "Send again as a new message"),
					h.Button(h.Type("button"), h.ID("copy"), g.Text("Copy as curl")),
				),
				result(),
				h.Details(h.Summary(g.Text("curl command")), h.Pre(h.ID("curl"), g.Text(curl))),
			),
			section("attempts-name", "Attempts",
				h.Ol(h.ID("attempts"), h.Class("attempts"), h.Data("live", path+"/live"), g.Map(m.Attempts, attemptItem)),
			),
			section("message-name", "Message",
				h.Dl(
					fact("published", moment(m.Created)),
					fact("retries", g.Textf("at most %d", m.MaxRetries)),
					g.If(m.Source != "", fact("callback of", messageLink(m.Source))),
					g.If(m.Queue != "", fact("queue", g.Text(m.Queue))),
					g.If(m.Label != "", fact("label", g.Text(m.Label))),
				),
				g.If(len(m.Header) > 0, g.Group{h.H3(g.Text("Headers")), headers(m.Header)}),
				h.H3(g.Text("Body")),
				messageBody(m),
			),
		),
	)
}

func messageBody(m Message) g.Node {
	if len(m.Body) == 0 {
		return h.P(h.Class("facts"), g.Text("empty"))
	}
	return g.Group{
		h.Pre(g.Text(excerpt(indented(m.Body), 64<<10))),
		h.P(h.A(h.Href("/messages/"+m.ID+"/body"), g.Attr("download"), g.Text("All of the body as it is"))),
	}
}

// stateNow is the message's state, and what there is to say besides its name.
func stateNow(m Message) g.Node {
	attempts := plural(len(m.Attempts), "attempt", "attempts")
	text := ""
	switch {
	case m.State == Waiting && m.Due.IsZero():
		text = "behind others of queue " + m.Queue
	case m.State == Waiting && len(m.Attempts) == 0:
		text = "for its time"
	case m.State == Waiting:
		text = "for the next attempt"
	case m.State == Failed:
		text = "after " + attempts + ": dead letter " + m.DLQID
	case m.State == Delivered:
		text = "after " + attempts
	}
	return g.Group{pill(m.State), g.Text(" " + text)}
}

// dueNow is when the next attempt is made; the page's script adds how long that is from now.
func dueNow(m Message) g.Node {
	if !m.waits() {
		return g.Group{}
	}
	return g.Group{
		g.Text("at " + m.Due.Local().Format(time.TimeOnly)),
		h.Span(h.Class("left"), h.Data("due", strconv.FormatInt(m.Due.UnixMilli(), 10))),
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
	return h.Li(h.ID(attemptID(a)),
		h.H3(g.Text(name+" "), moment(a.Started)),
		h.Div(h.Class("live"), attemptNow(a)),
		h.Div(h.Class("more"), attemptMore(a)),
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
		h.Span(h.Class("dot " + class)),
		h.P(h.Class("answer "+class), attemptAnswer(a)),
		h.Dl(
			g.If(a.Outcome != "", g.Group{
				fact("receiver", h.B(g.Text(a.Outcome)),
					g.If(a.Reason != "", g.Group{g.Text(" "), h.Span(h.Class("reason"), g.Text(a.Reason))})),
				fact("next", g.Text(a.Next)),
			}),
			g.If(a.Then != "", fact("QStash", g.Text(a.Then))),
		),
	}
}

func attemptAnswer(a Attempt) g.Node {
	if a.Ended.IsZero() {
		return g.Text("on its way")
	}
	status := "no answer"
	if a.Status > 0 {
		status = strconv.Itoa(a.Status)
	}
	after := " after " + short(a.Ended.Sub(a.Started))
	if a.Err != "" {
		after += ": " + a.Err
	}
	return g.Group{h.B(g.Text(status)), g.Text(after)}
}

// attemptMore is what there is to an attempt once it has ended.
func attemptMore(a Attempt) g.Node {
	if a.Ended.IsZero() {
		return g.Group{}
	}
	return g.Group{
		g.If(len(a.Body) > 0, h.Pre(g.Text(excerpt(a.Body, 2<<10)))),
		g.If(len(a.Sent) > 0, h.Details(
			h.Summary(g.Text("Headers")),
			h.P(h.Class("facts"), g.Text("sent")), headers(a.Sent),
			g.If(len(a.Header) > 0, g.Group{h.P(h.Class("facts"), g.Text("answered")), headers(a.Header)}),
		)),
	}
}

func refusedPage(reason string) g.Node {
	return page("Refused",
		h.Header(allMessages(), h.H1(g.Text("Refused"))),
		h.Main(h.P(h.Class("result wrong"), g.Text(reason))),
	)
}

// section is a section of a page under its name; id is that of the heading.
func section(id, name string, content ...g.Node) g.Node {
	return h.Section(h.Aria("labelledby", id), h.H2(h.ID(id), g.Text(name)), g.Group(content))
}

// fact is an entry of a list of facts.
func fact(name string, content ...g.Node) g.Node {
	return g.Group{h.Dt(g.Text(name)), h.Dd(content...)}
}

func link(to, text string) g.Node { return h.A(h.Href(to), g.Text(text)) }

func allMessages() g.Node { return h.P(link("/", "All messages")) }

func messageLink(id string) g.Node {
	return h.A(h.Class("id"), h.Href("/messages/"+id), g.Text(id))
}

func moment(t time.Time) g.Node {
	return h.Time(h.DateTime(t.Format(time.RFC3339Nano)), g.Text(t.Local().Format("15:04:05.000")))
}

func pill(s State) g.Node { return h.Span(h.Class("pill "+string(s)), g.Text(string(s))) }

func headers(header http.Header) g.Node {
	var b strings.Builder
	_ = header.Write(&b) // to a Builder, which takes everything
	return h.Pre(g.Text(strings.TrimSpace(strings.ReplaceAll(b.String(), "\r\n", "\n"))))
}

// result is where the page's script says what came of a form.
func result() g.Node { return h.P(h.Class("result"), h.Role("status")) }

// offline is where it says that the stand-in is gone.
func offline() g.Node { return h.P(h.ID("offline"), h.Class("offline"), h.Role("status")) }

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
