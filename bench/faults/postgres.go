package main

import (
	"database/sql"
	"math/rand/v2"
	"slices"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // database/sql's driver "pgx"

	"qstash-receiver/internal/qstashtest"
)

// lease is how long a receiver with HANDLER_TIMEOUT=1s holds a message.
const lease = 11 * time.Second

// postgres plays with two receivers on one Postgres: one of them is killed, or stands still until the other has taken
// its messages over; all connections are ended; the server crashes.
func postgres(c size, commit, pooled bool) func(*lab) result {
	return func(l *lab) result {
		server := qstashtest.NewPostgres(l)
		url := server.URL("postgres") + "?sslmode=disable"
		qstashtest.PostgresExec(l, url, "CREATE TABLE effects (message text, attempt integer)")
		store, effects := url, "own"
		if pooled {
			store = qstashtest.NewPgBouncer(l, url, 10).URL(url)
		}
		if commit {
			effects = "commit"
		}
		receivers := l.receivers(2, "HANDLER_TIMEOUT=1s", "STORE_URL="+store, "EFFECTS="+effects, "EFFECTS_URL="+url,
			"EFFECTS_INSERT=INSERT INTO effects VALUES ($1, $2)")
		one := func() *receiver { return receivers[rand.IntN(len(receivers))] }
		faults := slices.Concat(
			times(c.kills, func() { one().restart() }),
			times(10, func() {
				qstashtest.PostgresExec(l, url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "+
					"WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")
			}),
			times(5, func() { server.Stop(); server.Start(l) }),
			times(3, func() { one().freeze(lease + 2*time.Second) }),
		)
		s := story{
			receivers: receivers, messages: c.messages, faults: faults,
			effects:  func() map[string]int { return l.effects("pgx", url) },
			patience: 5 * time.Second, limit: lease + 9*time.Second,
		}
		return s.play(l)
	}
}

// effects counts the rows of each message in the table of that name.
func (l *lab) effects(driver, source string) map[string]int {
	db, err := sql.Open(driver, source)
	l.check(err)
	defer db.Close()
	rows, err := db.Query("SELECT message, count(*) FROM effects GROUP BY message")
	l.check(err)
	defer rows.Close()
	counts := map[string]int{}
	for rows.Next() {
		var id string
		var n int
		l.check(rows.Scan(&id, &n))
		counts[id] = n
	}
	l.check(rows.Err())
	return counts
}
