package postgres

import (
	"bytes"
	"database/sql"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"qstash-receiver/internal/once"
	"qstash-receiver/internal/once/oncetest"
	"qstash-receiver/internal/qstashtest"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"postgres://h/db":                                 "",
		"postgresql://me:secret@h:1,i:2/db":               "",
		"postgres://me:secret@h/db?sslmode=require":       "",
		"postgres://me:secret@h/db?pgbouncer=true":        "",
		"postgres://me:secret@h/db?sslmode=yes":           "sslmode is invalid",
		"postgres://me:secret@h/db?sslrootcert=/none.pem": "unable to read CA file",
		"postgres://me:secret@h:port/db":                  "not a Postgres URL",
		"postgres://me:secret/2@h:1":                      "not a Postgres URL",
		"postgres://me:1/secret@h:1":                      "not a Postgres URL",
		"postgres://me:1@secret@h:1":                      "not a Postgres URL",
		"postgres://me:1#secret@h/db#":                    "not a Postgres URL",
		"postgres://me:%zzsecret@h:1":                     "not a Postgres URL",
		"postgres://h/db?user=me@secret":                  "not a Postgres URL",
	} {
		_, err := Parse(url)
		if got := fmt.Sprint(err); want == "" && err != nil || !strings.Contains(got, want) || strings.Contains(got, "secret") {
			t.Errorf("%s: %s, want %q", url, got, want)
		}
	}
}

// with is url with a parameter.
func with(url, parameter string) string { return url + "?" + parameter }

func TestCannotServe(t *testing.T) {
	t.Parallel()
	p := qstashtest.NewPostgres(t)
	admin := p.URL("postgres")
	open(t, admin, time.Hour) // makes the tables
	replica := p.NewReplica(t)
	bouncer := qstashtest.NewPgBouncer(t, admin, 4)
	qstashtest.PostgresExec(t, admin,
		`CREATE ROLE locked LOGIN PASSWORD 'right'`,
		`CREATE ROLE enough LOGIN`,
		`GRANT SELECT, INSERT, UPDATE, DELETE ON qstash_messages, qstash_tokens TO enough`,
		`GRANT enough TO locked`,
		`CREATE ROLE reads LOGIN`,
		`GRANT SELECT ON qstash_messages, qstash_tokens TO reads`,
		`CREATE ROLE deletes_nothing LOGIN`,
		`GRANT SELECT, INSERT, UPDATE ON qstash_messages, qstash_tokens TO deletes_nothing`,
		`CREATE ROLE read_only LOGIN IN ROLE enough`,
		`ALTER ROLE read_only SET default_transaction_read_only = on`,
		`CREATE ROLE serial LOGIN IN ROLE enough`,
		`ALTER ROLE serial SET default_transaction_isolation = 'serializable'`,
		`CREATE ROLE homeless LOGIN`,
		`ALTER ROLE homeless SET search_path = nowhere`,
		`CREATE ROLE maker LOGIN`,
		`CREATE SCHEMA theirs`,
		`CREATE TABLE theirs.qstash_messages (id integer, body text)`,
		`CREATE SCHEMA half AUTHORIZATION maker`,
		`CREATE VIEW half.qstash_tokens AS SELECT * FROM qstash_tokens`,
		`GRANT USAGE ON SCHEMA theirs TO maker`,
		`CREATE SCHEMA empty`,
		`GRANT USAGE ON SCHEMA empty TO maker`,
		`CREATE SCHEMA own AUTHORIZATION maker`,
	)
	for _, row := range []struct {
		name, url string
		want      []string // in the error; nil: it serves
	}{
		{"it can", strings.Replace(p.URL("locked"), "locked", "locked:right", 1), nil},
		{"a login that may do what is needed and nothing else", p.URL("enough"), nil},
		{"the same through a pooler", bouncer.URL(admin), nil},
		{"a login that may make tables", with(p.URL("maker"), "search_path=own"), nil},
		{"pgbouncer=true", with(admin, "pgbouncer=true"), nil},
		{"pgbouncer=true through a pooler", with(bouncer.URL(admin), "pgbouncer=true"), nil},
		{"no password", p.URL("locked"), []string{"check user and password"}},
		{"a wrong password", strings.Replace(p.URL("locked"), "locked", "locked:wr0ng-secret", 1), []string{"password authentication failed", "check user and password"}},
		{"a user that is not there", p.URL("nobody"), []string{"does not exist", "check the user"}},
		{"a database that is not there", admin + "x", []string{"does not exist", "create it"}},
		{"a replica", replica.URL("postgres"), []string{"read-only replica", "primary"}},
		{"a login that only reads by default", p.URL("read_only"), []string{"default_transaction_read_only"}},
		{"a stricter default isolation", p.URL("serial"), []string{"serializable", "default_transaction_isolation = 'read committed'"}},
		{"a login that may only read the tables", p.URL("reads"), []string{"permission denied", "GRANT SELECT, INSERT, UPDATE, DELETE"}},
		{"a login that may not delete", p.URL("deletes_nothing"), []string{"permission denied", "GRANT SELECT, INSERT, UPDATE, DELETE"}},
		{"no tables, and a login that may not make them", with(p.URL("maker"), "search_path=empty"), []string{"may not make them", "GRANT CREATE"}},
		{"no schema to make tables in", p.URL("homeless"), []string{"may not make them"}},
		{"another program's table", with(p.URL("maker"), "search_path=theirs"), []string{"qstash_messages is another program's"}},
		{"a view in a table's place", with(p.URL("maker"), "search_path=half"), []string{"qstash_tokens is another program's"}},
		{"a parameter that it does not know", with(admin, "pool_max_conns=3"), []string{"pool_max_conns", "take that parameter out"}},
		{"a parameter with a value that it does not take", with(admin, "statement_timeout=soon"), []string{"statement_timeout", "take that parameter out"}},
		{"a parameter that a pooler does not pass on", with(bouncer.URL(admin), "statement_timeout=1000"), []string{"statement_timeout", "take that parameter out"}},
		{"no TLS where the URL asks for it", with(admin, "sslmode=require"), []string{"no TLS", "sslmode"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			config, err := Parse(row.url)
			if err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			s, err := Open(t.Context(), config, time.Hour, 15*time.Second, discard)
			if err == nil {
				oncetest.Want(t, s, oncetest.NewClaim(), once.Claimed)
				_ = s.Close()
			}
			if (err == nil) != (row.want == nil) {
				t.Fatalf("got %v, want %q", err, row.want)
			}
			for _, want := range append(row.want, "STORE_URL", fmt.Sprint(config.Port)) {
				if err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("%v has no %q", err, want)
				}
			}
			if text := fmt.Sprint(err); strings.Contains(text, "secret") || strings.Contains(text, "\n") {
				t.Errorf("a password or a second line is in the error: %s", text)
			}
			if took := time.Since(begin); took > 10*time.Second {
				t.Errorf("it took %s to say so", took)
			}
		})
	}
	t.Cleanup(func() { // what was refused was left alone
		var tables string
		query(t, admin, &tables, `SELECT string_agg(schemaname || '.' || tablename, ' ' ORDER BY 1) FROM
			(SELECT schemaname, tablename FROM pg_tables WHERE tablename LIKE 'qstash_%' ORDER BY 1, 2) AS t`)
		if want := "own.qstash_messages own.qstash_tokens public.qstash_messages public.qstash_tokens theirs.qstash_messages"; tables != want {
			t.Errorf("the tables are %s, want %s", tables, want)
		}
	})
}

// query scans the one row of a query.
func query(t testing.TB, url string, into any, text string, args ...any) {
	t.Helper()
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow(text, args...).Scan(into); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

func TestOpenLeavesNothing(t *testing.T) {
	t.Parallel()
	url := qstashtest.PostgresURL(t)
	open(t, url, time.Hour)
	var rows int
	query(t, url, &rows, "SELECT (SELECT count(*) FROM qstash_messages) + (SELECT count(*) FROM qstash_tokens)")
	if rows != 0 {
		t.Errorf("opening it left %d rows", rows)
	}
}

func TestManyMakeTheTablesAtOnce(t *testing.T) {
	t.Parallel()
	config, err := Parse(qstashtest.PostgresURL(t))
	if err != nil {
		t.Fatal(err)
	}
	opened := make(chan error, 8)
	for range cap(opened) {
		go func() {
			s, err := Open(t.Context(), config, time.Hour, 10*time.Second, discard)
			if err == nil {
				err = s.Close()
			}
			opened <- err
		}()
	}
	for range cap(opened) {
		if err := <-opened; err != nil {
			t.Error(err)
		}
	}
}

// A database that takes no writes for a while is used again on new connections.
func TestReadOnlyForAWhile(t *testing.T) {
	t.Parallel()
	p := qstashtest.NewPostgres(t)
	admin := p.URL("postgres")
	qstashtest.PostgresExec(t, admin, "CREATE ROLE app SUPERUSER LOGIN")
	s := open(t, p.URL("app"), time.Hour)
	turn := func(setting string) {
		qstashtest.PostgresExec(t, admin, "ALTER ROLE app SET default_transaction_read_only = "+setting)
	}
	turn("on")
	qstashtest.PostgresExec(t, admin, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'")
	for range 2 {
		if d, err := s.Claim(oncetest.NewClaim()); err == nil {
			t.Fatalf("%s in a database that takes no writes", d.State)
		}
	}
	turn("off")
	oncetest.Want(t, s, oncetest.NewClaim(), once.Claimed)
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	config, err := Parse("postgres://me:wr0ng-secret@127.0.0.1:1/db")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), config, time.Hour, 700*time.Millisecond, slog.New(slog.NewTextHandler(&log, nil)))
	for _, want := range []string{"STORE_URL", "127.0.0.1:1", "did not answer within 700ms"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v has no %q", err, want)
		}
	}
	if text := log.String() + fmt.Sprint(err); !strings.Contains(text, "trying again") || strings.Contains(text, "secret") {
		t.Errorf("log: %s", text)
	}
}

func TestWaitedForAtStart(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name string
		away func(t *testing.T) (url string, back func()) // one that does not serve until back is called
	}{
		{"not started yet", func(t *testing.T) (string, func()) {
			p := qstashtest.NewPostgres(t)
			p.Stop()
			return p.URL("postgres"), func() { p.Start(t) }
		}},
		{"a pooler without its database", func(t *testing.T) (string, func()) {
			p := qstashtest.NewPostgres(t)
			p.Stop()
			return qstashtest.NewPgBouncer(t, p.URL("postgres"), 4).URL(p.URL("postgres")), func() { p.Start(t) }
		}},
		{"no connection to spare", func(t *testing.T) (string, func()) {
			p := qstashtest.NewPostgres(t)
			qstashtest.PostgresExec(t, p.URL("postgres"), "CREATE ROLE many SUPERUSER LOGIN", "ALTER ROLE postgres CONNECTION LIMIT 0", "ALTER ROLE postgres NOSUPERUSER")
			return p.URL("postgres"), func() { qstashtest.PostgresExec(t, p.URL("many"), "ALTER ROLE postgres SUPERUSER CONNECTION LIMIT -1") }
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			url, back := row.away(t)
			config, err := Parse(url)
			if err != nil {
				t.Fatal(err)
			}
			log := qstashtest.NewLog()
			opened := make(chan error, 1)
			go func() {
				s, err := Open(t.Context(), config, time.Hour, 15*time.Second, slog.New(slog.NewJSONHandler(log, nil)))
				if err == nil {
					err = s.Close()
				}
				opened <- err
			}()
			log.Await(t, "trying again")
			back()
			if err := <-opened; err != nil {
				t.Error(err)
			}
		})
	}
}
