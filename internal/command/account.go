package command

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"qstash-receiver/internal/api"
	"qstash-receiver/internal/settings"
)

// account compares what QStash's API says with the settings.
func (r *report) account(ctx context.Context, s settings.Settings, client *api.Client) {
	asked := time.Now()
	pair, err := client.Keys(ctx)
	answered := time.Now()
	switch {
	case api.Refused(err):
		r.wrong("token", "%s is refused by %s: %v; %s", client.TokenName(), regionOf(client), err, rightRegion(ctx, client))
		return
	case err != nil:
		r.wrong("token", "%s could not be tried: %v; see that this machine reaches the API", client.TokenName(), err)
		return
	}
	r.ok("token", "%s is taken by %s", client.TokenName(), regionOf(client))
	r.pair(s, client, pair)
	r.clock(pair.Date, asked, answered)
	r.failures(ctx, s.Origins, client)
	r.targets(ctx, s.Origins, client)
}

// regionOf says where a client's API is.
func regionOf(client *api.Client) string {
	for _, region := range api.Regions() {
		if region.URL == client.URL() || client.Region != "" && region.Prefix == client.Region {
			return fmt.Sprintf("%s (%s)", client.URL(), region.Name)
		}
	}
	return client.URL()
}

// rightRegion says what to do about a refused token. At Upstash's hosts it looks whether another region takes it.
func rightRegion(ctx context.Context, client *api.Client) string {
	const fix = "copy the token of this region from the Upstash console (QStash); each region has one of its own"
	regions := api.Regions()
	if !slices.ContainsFunc(regions, func(region api.Region) bool { return region.URL == client.URL() }) {
		return fix
	}
	for _, region := range regions {
		base, err := url.Parse(region.URL)
		if err != nil || region.URL == client.URL() {
			continue
		}
		if _, err := client.At(base).Keys(ctx); err == nil {
			return fmt.Sprintf("it is a token of %s: set it as %sQSTASH_TOKEN", region.Name, region.Prefix)
		}
	}
	return fix
}

// pair compares the key pair of the environment with that in force.
func (r *report) pair(s settings.Settings, client *api.Client, inForce api.Pair) {
	const what = "keys"
	names := client.Region + "QSTASH_CURRENT_SIGNING_KEY and " + client.Region + "QSTASH_NEXT_SIGNING_KEY"
	const fix = "copy both from the Upstash console (QStash, Signing Keys), or unset both: the token fetches them"
	set := s.Pair(client.Region)
	if len(set) == 0 {
		r.ok(what, "they are fetched with %s", client.TokenName())
		return
	}
	current, next := set[0], set[1]
	switch {
	case current.Equal(inForce.Current) && next.Equal(inForce.Next):
		r.ok(what, "%s are those in force", names)
	case next.Equal(inForce.Current) && current.Equal(inForce.Next):
		r.warning(what, "%s are in each other's place: all messages verify until the next roll; swap them", names)
	case next.Equal(inForce.Current):
		r.warning(what, "the keys were rolled once since %s were set: messages verify with the next one, and one more roll refuses everything; %s", names, fix)
	case current.Equal(inForce.Current) || next.Equal(inForce.Next) || current.Equal(inForce.Next):
		r.warning(what, "one of %s is not in force: a roll refuses messages; %s", names, fix)
	default:
		r.wrong(what, "%s are not in force: the keys were rolled twice, or these are another account's or region's, and every message is refused; %s", names, fix)
	}
}

// clock compares this machine's clock with the API's, which was read between asked and answered.
func (r *report) clock(date, asked, answered time.Time) {
	const what = "clock"
	if date.IsZero() {
		r.warning(what, "QStash's API does not say what time it is, so the clock was not compared")
		return
	}
	// A Date is cut to the second: on average, it is half a second more.
	off := asked.Add(answered.Sub(asked) / 2).Sub(date.Add(time.Second / 2)).Round(time.Second)
	direction := "ahead of"
	if off < 0 {
		direction, off = "behind", -off
	}
	switch {
	case off > time.Minute:
		r.wrong(what, "this machine's clock is %s %s QStash's: tokens are refused as expired or not yet valid; set it (NTP), and restart", off, direction)
	case off > 5*time.Second:
		r.warning(what, "this machine's clock is %s %s QStash's; set it (NTP), or allow for it with CLOCK_TOLERANCE", off, direction)
	default:
		r.ok(what, "it is within 5 s of QStash's")
	}
}

// failures reports what failed at origins, or anywhere without them, by what the answers said.
func (r *report) failures(ctx context.Context, origins []string, client *api.Client) {
	const what = "dead letters"
	dead, err := client.DeadLetters(ctx)
	if err != nil {
		r.warning(what, "not all could be read: %v", err)
	}
	failed, err := client.FailedDeliveries(ctx)
	if err != nil {
		r.warning(what, "not all failed deliveries could be read: %v", err)
	}
	type group struct {
		status int
		said   string
	}
	type count struct{ dead, failed int }
	counts := map[group]count{}
	tally := func(failures []api.Failure, add func(*count)) {
		for _, f := range failures {
			if len(origins) > 0 && !slices.Contains(origins, f.Origin) {
				continue
			}
			g := group{f.Status, f.Said}
			c := counts[g]
			add(&c)
			counts[g] = c
		}
	}
	tally(dead, func(c *count) { c.dead++ })
	tally(failed, func(c *count) { c.failed++ })
	if len(counts) == 0 {
		r.ok(what, "none, and no failed deliveries, of %s", urlsOf(origins))
	}
	groups := slices.SortedFunc(maps.Keys(counts), func(a, b group) int {
		return cmp.Or(cmp.Compare(counts[b].dead, counts[a].dead), cmp.Compare(counts[b].failed, counts[a].failed), cmp.Compare(a.said, b.said), cmp.Compare(a.status, b.status))
	})
	for _, g := range groups {
		answer := fmt.Sprint(g.status)
		if g.status == 0 {
			answer = "no answer"
		}
		r.warning(what, `%d dead, %d failed deliveries of %s: %s "%s"; %s`, counts[g].dead, counts[g].failed, urlsOf(origins), answer, g.said, remedy(g.status))
	}
}

// remedy says what to do about deliveries that were answered with status.
func remedy(status int) string {
	const retry = ", then retry them from the dead letter queue"
	switch {
	case status == 0:
		return "see that the URL is the right one and is reached from outside" + retry
	case status == 401:
		return "the keys, RECEIVER_URL, BEARER_TOKEN or the clock were wrong: doctor -to shows whether they still are" + retry
	case status == 404 || status == 405:
		return "another program answers there, or the message is no POST: mend the URL or Upstash-Method and publish anew"
	case status == 489:
		return "handler.go gave them up: mend the cause" + retry
	}
	return "the receiver's log says more" + retry
}

func urlsOf(origins []string) string {
	if len(origins) == 0 {
		return "all URLs (RECEIVER_URL is not set)"
	}
	return strings.Join(origins, ", ")
}

// targets reports schedules and URL groups that deliver to the host of origins in another way than it takes.
func (r *report) targets(ctx context.Context, origins []string, client *api.Client) {
	const what = "schedules"
	schedules, err := client.Schedules(ctx)
	if err != nil {
		r.warning(what, "not all could be read: %v", err)
	}
	groups, err := client.URLGroups(ctx)
	if err != nil {
		r.warning(what, "not all URL groups could be read: %v", err)
	}
	var others []string
	check := func(kind string, targets []api.Target) {
		for _, target := range targets {
			if wrongs := oddities(target, origins); len(wrongs) > 0 {
				r.warning(what, "the %s %s to %s %s", kind, target.Name, target.Origin, strings.Join(wrongs, ", and "))
			} else if target.Origin != "" {
				others = append(others, target.Origin)
			}
		}
	}
	check("schedule", schedules)
	check("URL group", groups)
	slices.Sort(others)
	if others = slices.Compact(others); len(others) == 0 {
		others = []string{"none"}
	}
	r.ok(what, "those and the URL groups with nothing odd go to: %s", strings.Join(others, ", "))
}

// oddities says what is wrong with a target on the host of one of origins; on another host nothing is.
func oddities(target api.Target, origins []string) (wrongs []string) {
	u, err := url.Parse(target.Origin)
	if err != nil {
		return nil
	}
	ours := slices.ContainsFunc(origins, func(origin string) bool {
		our, err := url.Parse(origin)
		return err == nil && our.Hostname() == u.Hostname()
	})
	if !ours {
		return nil
	}
	if target.Method != "" && target.Method != "POST" {
		wrongs = append(wrongs, fmt.Sprintf("is %s, and only POST is taken: set Upstash-Method", target.Method))
	}
	if !slices.Contains(origins, target.Origin) {
		if u.Scheme == "http" {
			wrongs = append(wrongs, "is plain http, which RECEIVER_URL has not: give the https URL")
		} else {
			wrongs = append(wrongs, "is on another port than RECEIVER_URL: give the right one")
		}
	}
	if target.Paused {
		wrongs = append(wrongs, "is paused: resume it if that is not meant")
	}
	return wrongs
}
