package postgres

import (
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"qstash-receiver/internal/once"
)

// Parse checks a postgres:// or postgresql:// URL without connecting. Its error holds no password.
func Parse(url string) (*pgx.ConnConfig, error) {
	const shape = "write it like postgres://user:password@host:5432/database, " +
		"with / ? # % @ in the password as %2F %3F %23 %25 %40"
	_, rest, _ := strings.Cut(url, "://")
	if end := strings.IndexAny(rest, "@/"); end >= 0 && rest[end] == '@' {
		rest = rest[end+1:]
	}
	if strings.ContainsAny(rest, "@#") { // part of a password that would be read, and printed, as a host or a database
		return nil, errors.New("not a Postgres URL; " + shape)
	}
	config, err := pgx.ParseConfig(url)
	if err != nil {
		if cause := errors.Unwrap(err); cause != nil { // the error itself repeats the URL
			return nil, fmt.Errorf("not a Postgres URL: %w; %s", cause, shape)
		}
		return nil, errors.New("not a Postgres URL; " + shape)
	}
	if !strings.Contains(url, "default_query_exec_mode=") {
		// pgx prepares statements otherwise, which a pooler does not find again on another of its connections.
		config.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = once.Timeout
	}
	config.OnPgError = func(_ *pgconn.PgConn, err *pgconn.PgError) bool { // false: the connection is given up
		return err.SeverityUnlocalized != "FATAL" && err.Code != readOnly // a primary that has become a replica
	}
	delete(config.RuntimeParams, "pgbouncer") // meant for Prisma, and in many a URL that people are given
	return config, nil
}

// Open connects to the Postgres of config, makes the tables where they are not there, and carries out a claim, a
// completion and a release. A Postgres that does not answer, is starting up, or has no connection to spare is tried
// again for wait; one that cannot serve is an error at once, with its fix.
func Open(ctx context.Context, config *pgx.ConnConfig, ttl, wait time.Duration, log *slog.Logger) (*Store, error) {
	s := newStore(config, ttl)
	if err := s.try(ctx, config, wait, log); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("STORE_URL: Postgres at %s:%d: %w", config.Host, config.Port, err)
	}
	return s, nil
}

func (s *Store) try(ctx context.Context, config *pgx.ConnConfig, wait time.Duration, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		err := s.prepare(ctx)
		if err == nil {
			err = once.Try(s)
		}
		if err == nil {
			return nil
		}
		if refused := refusalOf(err); refused != nil {
			return refused
		}
		if len(config.Fallbacks) == 0 && strings.Contains(err.Error(), "server refused TLS connection") {
			return errors.New("it speaks no TLS, which the URL asks for by sslmode; take sslmode out, or give its TLS address")
		}
		if ctx.Err() == nil {
			log.Warn("Postgres does not answer, trying again", "error", inOneLine(err))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it did not answer within %s: %s; does the address reach it from this machine?", wait, inOneLine(err))
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// inOneLine is the text of err, which pgx writes in several lines.
func inOneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// prepare sees whether this Postgres will do, makes the tables, and sweeps them, which needs the right to DELETE.
func (s *Store) prepare(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, once.Timeout)
	defer cancel()
	if err := s.check(ctx); err != nil {
		return err
	}
	if err := s.makeTables(ctx); err != nil {
		return err
	}
	return s.sweep(ctx)
}

// check sees whether this Postgres takes a store's writes, as a store needs them.
func (s *Store) check(ctx context.Context) error {
	var version int
	var replica bool
	var writes, isolation string
	err := s.decisions.QueryRowContext(ctx, `
		SELECT current_setting('server_version_num')::int, pg_is_in_recovery(),
			current_setting('transaction_read_only'), current_setting('transaction_isolation')`).
		Scan(&version, &replica, &writes, &isolation)
	switch {
	case err != nil:
		return err
	case version < 13_00_00:
		return refusal(fmt.Sprintf("it is version %d; give one of version 13 or later", version/10000))
	case replica:
		return refusal("it is a read-only replica; give the primary's address")
	case writes != "off":
		return refusal("its transactions are read-only by default; set for this login: " +
			"ALTER ROLE ... SET default_transaction_read_only = off")
	case isolation != "read committed":
		return refusal(fmt.Sprintf("its transactions are %s by default; set for this login: "+
			"ALTER ROLE ... SET default_transaction_isolation = 'read committed'", isolation))
	}
	return nil
}

// makeTables makes the tables if one is not there.
func (s *Store) makeTables(ctx context.Context) error {
	var err error
	for range 3 { // another process may make them at the same time, and then one of the two fails
		missing, lookErr := s.missing(ctx)
		if lookErr != nil || !missing {
			return lookErr
		}
		if _, err = s.decisions.ExecContext(ctx, schema); err == nil { // in one transaction: both tables or none
			return nil
		}
		var answer *pgconn.PgError
		if errors.As(err, &answer) && (answer.Code == "42501" || answer.Code == "3F000") { // not permitted; no schema
			return refusal(fmt.Sprintf("the tables qstash_messages and qstash_tokens are not there, "+
				"and this login may not make them (%s): GRANT CREATE ON SCHEMA to it, "+
				"or start the program once with a login that may", answer.Message))
		}
	}
	return err
}

// missing says whether one of the tables is not there. It refuses tables that are another program's.
func (s *Store) missing(ctx context.Context) (bool, error) {
	missing := false
	for table, want := range map[string]string{"qstash_messages": messagesColumns, "qstash_tokens": tokensColumns} {
		var kind string
		var columns sql.NullString
		err := s.decisions.QueryRowContext(ctx, `
			SELECT relkind::text, (SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum)
				FROM pg_attribute WHERE attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped)
			FROM pg_class WHERE oid = to_regclass($1)`, table).Scan(&kind, &columns)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			missing = true
		case err != nil:
			return false, err
		case kind != "r" || columns.String != want:
			return false, refusal(fmt.Sprintf("its %s is another program's; "+
				"give a database, or a schema by search_path, without one", table))
		}
	}
	return missing, nil
}

// readOnly is what Postgres answers where nothing may be written.
const readOnly = "25006"

// refusal is why a Postgres cannot serve, with its fix.
type refusal string

func (r refusal) Error() string { return string(r) }

// refusalOf returns why this Postgres cannot serve, or nil if err may pass.
func refusalOf(err error) error {
	var refused refusal
	if errors.As(err, &refused) {
		return refused
	}
	var certificate *tls.CertificateVerificationError
	if errors.As(err, &certificate) {
		return fmt.Errorf("its certificate is not good for this address: %w; see sslmode and sslrootcert", certificate)
	}
	var answer *pgconn.PgError
	if !errors.As(err, &answer) {
		return nil
	}
	fix := "see STORE_URL and its log"
	switch text := answer.Message; {
	case strings.Contains(text, "startup parameter") || answer.Code == "42704" || answer.Code == "22023":
		fix = "take that parameter out of the URL"
	case answer.Code == "28P01" || strings.Contains(text, "authentication failed") || strings.Contains(text, "no such user"):
		fix = "check user and password in the URL"
	case strings.HasPrefix(answer.Code, "28"):
		fix = "check the user in the URL, its sslmode, and pg_hba.conf"
	case answer.Code == "3D000":
		fix = "check the database in the URL, or create it"
	case answer.Code == "42501":
		fix = "GRANT SELECT, INSERT, UPDATE, DELETE ON qstash_messages, qstash_tokens to this login"
	case answer.Code == "42P10":
		fix = "its tables are another program's; give a database, or a schema by search_path, without them"
	case answer.Code == readOnly:
		fix = "it takes no writes; give the primary's address"
	case answer.Code == "53100":
		fix = "free space on its disk"
	case worthAgain(answer), answer.Code == "57P03", strings.HasPrefix(answer.Code, "08"), strings.HasPrefix(answer.Code, "53"):
		return nil // it starts up, has no connection to spare, or is a pooler without its database
	}
	return fmt.Errorf("it answers %q (%s): %s", answer.Message, answer.Code, fix)
}
