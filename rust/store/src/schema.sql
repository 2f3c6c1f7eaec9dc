-- The database of a Bursar store: where accounts, windows and reservations stand, and every
-- movement.
--
-- Written by one process, by group, out of the log (`meta.applied_seq` moves in the same
-- transaction). Open to `sqlite3 -readonly` at any time. Times are Unix milliseconds. Read the
-- movements through the view `entries`, reservations through `reservation_list` (views.sql). A
-- change of these tables is a step in migrations.rs.
--
-- For every window, at any moment:
--   windows.spent = windows.pruned + the sum of the spending that counts in it:
--     SELECT sum(e.amount) FROM entries e JOIN chain_windows c ON c.chain = e.chain
--       JOIN windows w ON w.id = c.window JOIN budgets b ON b.id = w.budget
--       WHERE e.kind = 'spend' AND e.unit = b.unit AND w.id = ?;

-- One row about the store itself.
CREATE TABLE meta (
  one             INTEGER PRIMARY KEY CHECK (one = 1),
  store_id        INTEGER NOT NULL,   -- also in the log's headers: another store's log is known
  applied_seq     INTEGER NOT NULL,   -- the last log record that is in here
  ledger_time_ms  INTEGER NOT NULL,   -- the latest time that was recorded
  clean_shutdown  INTEGER NOT NULL,   -- 1 from close to open: everything is in here
  durability      TEXT NOT NULL,      -- of the last session: process, power, memory
  max_account     INTEGER NOT NULL,   -- the highest ids ever given out, deleted ones included
  max_budget      INTEGER NOT NULL,
  max_window      INTEGER NOT NULL,
  max_chain       INTEGER NOT NULL,
  max_reservation INTEGER NOT NULL
) STRICT;

CREATE TABLE units (id INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;
CREATE TABLE kinds (id INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;

-- A path can have several accounts, one after the other: idle ones retire and are opened anew.
CREATE TABLE accounts (
  id            INTEGER PRIMARY KEY,
  path          TEXT NOT NULL,
  automatic     INTEGER NOT NULL,     -- 1: created by a pattern, may retire
  frozen        INTEGER NOT NULL,
  freeze_reason TEXT NOT NULL,
  created_ms    INTEGER NOT NULL,
  retired_ms    INTEGER               -- absent: it is in use
) STRICT;
CREATE INDEX accounts_path ON accounts (path);
CREATE INDEX accounts_in_use ON accounts (id) WHERE retired_ms IS NULL;

CREATE TABLE budgets (
  id           INTEGER PRIMARY KEY,
  account      INTEGER NOT NULL,
  unit         TEXT NOT NULL,
  period       TEXT NOT NULL,         -- total, hour, day, week, month, rolling
  time_zone    TEXT NOT NULL,
  length_ms    INTEGER NOT NULL,      -- of a rolling period; else 0
  limit_amount INTEGER NOT NULL,
  thresholds   TEXT NOT NULL,         -- JSON
  manual       INTEGER NOT NULL       -- 1: set by an operator, no longer by the configuration
) STRICT;
CREATE INDEX budgets_account ON budgets (account);

CREATE TABLE windows (
  id           INTEGER PRIMARY KEY,
  budget       INTEGER NOT NULL,
  start_ms     INTEGER NOT NULL,
  end_ms       INTEGER NOT NULL,      -- 9223372036854775807: never
  limit_amount INTEGER NOT NULL,      -- the latest while it was the current one
  spent        INTEGER NOT NULL,      -- by settled reservations; for a rolling window: ever
  pruned       INTEGER NOT NULL       -- the part of it whose entries retention has deleted
) STRICT;
CREATE INDEX windows_budget ON windows (budget);

-- What was spent in a rolling window, by 64ths of its length; those that have left it are deleted.
CREATE TABLE window_buckets (
  window   INTEGER NOT NULL,
  start_ms INTEGER NOT NULL,
  spent    INTEGER NOT NULL,
  PRIMARY KEY (window, start_ms)
) STRICT, WITHOUT ROWID;

-- Thresholds that were crossed and reported; for a rolling window the latest time each.
CREATE TABLE crossings (
  window   INTEGER NOT NULL,
  permille INTEGER NOT NULL,
  time_ms  INTEGER NOT NULL,
  PRIMARY KEY (window, permille)
) STRICT, WITHOUT ROWID;

-- The windows that a charge on an account counted in at one moment.
CREATE TABLE chains (
  id         INTEGER PRIMARY KEY,
  account    INTEGER NOT NULL,
  time_ms    INTEGER NOT NULL,
  last_ms    INTEGER NOT NULL,        -- the latest entry that names it
  base       INTEGER,                 -- nested: the chain of the parent reservation's hold
  base_units INTEGER                  -- nested: the units that it covers, one bit per unit id
) STRICT;
CREATE INDEX chains_account ON chains (account);
CREATE INDEX chains_base ON chains (base) WHERE base IS NOT NULL;

-- Flattened: with the base's windows of the units that it covers.
CREATE TABLE chain_windows (
  chain    INTEGER NOT NULL,
  window   INTEGER NOT NULL,
  position INTEGER,                   -- the order of charging; absent for those out of the base
  PRIMARY KEY (chain, window)
) STRICT, WITHOUT ROWID;
CREATE INDEX chain_windows_window ON chain_windows (window);

CREATE TABLE reservations (
  sequence   INTEGER PRIMARY KEY,
  slot       INTEGER NOT NULL,
  account    INTEGER NOT NULL,
  parent     INTEGER,                 -- the sequence of the one that it was carved from
  state      TEXT NOT NULL,           -- pending, committed, released, expired
  holds      INTEGER NOT NULL,        -- 1: pending, or expired with capacity kept
  model      TEXT,
  key        BLOB,                    -- hash of account and idempotency key
  payload    BLOB NOT NULL,           -- hash of the request
  created_ms INTEGER NOT NULL,
  ended_ms   INTEGER,
  used       BLOB,                    -- floor of what is debited, 8 × i64 little-endian by unit id
  body       BLOB NOT NULL            -- postcard of the facts Reserved (as it is now) and Settled
) STRICT;
CREATE INDEX reservations_holding ON reservations (sequence) WHERE holds = 1;
CREATE INDEX reservations_parent ON reservations (parent) WHERE holds = 1 AND parent IS NOT NULL;
CREATE INDEX reservations_ended ON reservations (ended_ms) WHERE ended_ms IS NOT NULL;

-- Every movement, append-only. Rows of one log record share the high part of the id. Times never
-- fall with rising ids, so a time is found by bisection and needs no index.
CREATE TABLE entry (
  id          INTEGER PRIMARY KEY,    -- log sequence × 65536 + row
  time_ms     INTEGER NOT NULL,
  account     INTEGER NOT NULL,
  reservation INTEGER,
  chain       INTEGER,                -- which windows it counts in
  unit        INTEGER,
  kind        INTEGER NOT NULL,
  amount      INTEGER NOT NULL
) STRICT;
CREATE INDEX entry_account ON entry (account);
CREATE INDEX entry_reservation ON entry (reservation) WHERE reservation IS NOT NULL;

-- What there is to say of an entry in words: of a runaway its action, rule and figures.
CREATE TABLE details (
  entry INTEGER PRIMARY KEY,
  text  TEXT NOT NULL
) STRICT;
