package postgres

// One statement a decision, in READ COMMITTED: an INSERT with ON CONFLICT DO UPDATE waits for whoever changes the row
// and then sees what that one has left there, so that it decides on the newest state and nothing has to be asked
// before. Time is statement_timestamp(): the same throughout a statement, and its own even within a long transaction.
// A statement that had to wait knows an earlier time, and takes for held what has just lapsed; never the other way.

// schema is made where it is not there. A pair of tables with other columns is another program's.
const (
	schema = `
CREATE TABLE IF NOT EXISTS qstash_messages (
  key bytea PRIMARY KEY,
  holder text NOT NULL,         -- who claimed it last, or finished it; '': nobody yet
  until timestamptz NOT NULL,   -- the end of the lease; 'epoch': there is none
  tokens timestamptz NOT NULL,  -- the last of the tokens that are bound to it is valid until then
  expires timestamptz NOT NULL, -- from then on it is as if it were not there
  status integer,               -- NULL: not finished
  header bytea,
  body bytea
);
CREATE INDEX IF NOT EXISTS qstash_messages_expires ON qstash_messages (expires);
CREATE TABLE IF NOT EXISTS qstash_tokens (
  token bytea PRIMARY KEY,
  key bytea NOT NULL,
  expires timestamptz NOT NULL
);
CREATE INDEX IF NOT EXISTS qstash_tokens_expires ON qstash_tokens (expires);`

	messagesColumns = "key bytea, holder text, until timestamp with time zone, tokens timestamp with time zone, " +
		"expires timestamp with time zone, status integer, header bytea, body bytea"
	tokensColumns = "token bytea, key bytea, expires timestamp with time zone"
)

const (
	now = `statement_timestamp()`

	// finished and free are said of a message m. It is free for excluded.holder if it is not finished and nobody else
	// holds it.
	finished = `(m.status IS NOT NULL AND m.expires > ` + now + `)`
	free     = `(m.expires <= ` + now + ` OR m.status IS NULL AND (m.until <= ` + now + ` OR m.holder = excluded.holder))`

	// bind binds the token $1 to the key $2 for $3 ms, unless it is bound to another.
	bind = `
WITH bound AS (
  INSERT INTO qstash_tokens AS t (token, key, expires) VALUES ($1, $2, ` + now + ` + $3::bigint * interval '1 ms')
  ON CONFLICT (token) DO UPDATE SET
    key = CASE WHEN t.expires <= ` + now + ` THEN excluded.key ELSE t.key END,
    expires = CASE WHEN t.expires <= ` + now + ` OR t.key = excluded.key
      THEN greatest(t.expires, excluded.expires) ELSE t.expires END
  RETURNING key, expires
)`

	// state says how things stand afterwards, for the holder $4. There is no row if the token was bound to another key.
	state = `
RETURNING status, header, body, holder = $4, ceil(extract(epoch FROM until - ` + now + `) * 1000)::bigint`

	// claim is for the holder $4, with a lease of $5 ms and a message's ttl of $6 ms.
	claim = bind + `
INSERT INTO qstash_messages AS m (key, holder, until, tokens, expires)
SELECT key, $4, ` + now + ` + $5::bigint * interval '1 ms', expires,
  greatest(` + now + ` + $6::bigint * interval '1 ms', expires) + $5::bigint * interval '1 ms'
FROM bound WHERE key = $2
ON CONFLICT (key) DO UPDATE SET
  holder = CASE WHEN ` + free + ` THEN excluded.holder ELSE m.holder END,
  until = CASE WHEN ` + free + ` THEN excluded.until ELSE m.until END,
  tokens = greatest(m.tokens, excluded.tokens),
  expires = greatest(m.expires, CASE WHEN ` + free + ` THEN excluded.expires ELSE excluded.tokens END),` + keep + state

	// look leaves a row where there was none, which lasts as long as the token.
	look = bind + `
INSERT INTO qstash_messages AS m (key, holder, until, tokens, expires)
SELECT key, '', 'epoch', expires, expires FROM bound WHERE key = $2
ON CONFLICT (key) DO UPDATE SET
  tokens = greatest(m.tokens, excluded.tokens),
  expires = greatest(m.expires, excluded.tokens),` + keep + state

	// keep drops an answer that has expired.
	keep = `
  status = CASE WHEN ` + finished + ` THEN m.status END,
  header = CASE WHEN ` + finished + ` THEN m.header END,
  body = CASE WHEN ` + finished + ` THEN m.body END`

	// finish makes $4, $5 and $6 the answer of the message $1, finished by $2, and kept for $3 ms or while a token that
	// is bound to it is valid. The first answer stands.
	finish = `
INSERT INTO qstash_messages AS m (key, holder, until, tokens, expires, status, header, body)
VALUES ($1, $2, 'epoch', 'epoch', ` + now + ` + $3::bigint * interval '1 ms', $4, $5, $6)
ON CONFLICT (key) DO UPDATE SET
  holder = excluded.holder,
  until = excluded.until,
  expires = CASE WHEN ` + finished + ` THEN m.expires ELSE greatest(excluded.expires, m.tokens) END,
  status = CASE WHEN ` + finished + ` THEN m.status ELSE excluded.status END,
  header = CASE WHEN ` + finished + ` THEN m.header ELSE excluded.header END,
  body = CASE WHEN ` + finished + ` THEN m.body ELSE excluded.body END
WHERE ` + free

	// complete may be repeated by whoever finished the message.
	complete = finish + ` OR m.holder = excluded.holder`

	// record is complete for a transaction with effects, which must not be committed twice: it is not repeated. COMMIT
	// is sent behind it, before its result is known; so a lease that was lost is made an error, which ends the
	// transaction: no row, and a division by zero.
	record = `WITH recorded AS (` + finish + ` RETURNING key) SELECT 1 / count(*) FROM recorded`

	// divisionByZero is what Postgres says then.
	divisionByZero = "22012"

	release = `UPDATE qstash_messages SET until = 'epoch' WHERE key = $1 AND holder = $2 AND expires > ` + now

	forget = `
WITH message AS (DELETE FROM qstash_messages WHERE key = $1)
DELETE FROM qstash_tokens WHERE token = $2`

	// sweep deletes at most $1 rows of each table. It waits for nobody and holds up nobody for long.
	sweep = `
WITH messages AS (
  DELETE FROM qstash_messages WHERE key = ANY (ARRAY(
    SELECT key FROM qstash_messages WHERE expires <= ` + now + ` ORDER BY expires LIMIT $1 FOR UPDATE SKIP LOCKED))
)
DELETE FROM qstash_tokens WHERE token = ANY (ARRAY(
  SELECT token FROM qstash_tokens WHERE expires <= ` + now + ` ORDER BY expires LIMIT $1 FOR UPDATE SKIP LOCKED))`
)
