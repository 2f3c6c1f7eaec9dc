//! Retention: deletes what nobody can ask for any more, a bounded batch at a time.
//!
//! In this order, so that nothing is left pointing at what is gone: entries, ended reservations,
//! chains, windows with what is known of them, budgets and accounts that have retired. Never touched:
//! what a reservation holds, or was carved from, chains that the ledger may still use (the newest of
//! each account), each budget's newest window. The spending of deleted entries is noted in
//! `windows.pruned`, so sums can still be checked.
//!
//! The clock is the time of what is recorded: where nothing happens, nothing has to go.

use std::collections::HashSet;

use bursar_ledger::fact::{ChainId, WindowId};
use rusqlite::{Connection, Row, Transaction, TransactionBehavior, params};

use crate::config::StoreConfig;
use crate::entries::{EntryKind, TOTAL, total};
use crate::error::{Doing, StoreError};
use crate::import::Importer;
use crate::reader::first_entry_at;
use crate::reservations;

/// The most rows that one transaction deletes, and the most chains that it looks at.
const BATCH: usize = 2_000;

/// When to delete next, and how far a round has come.
#[derive(Debug)]
pub(crate) struct Retention {
    /// Not before this time.
    next_ms: i64,
    keep_ms: i64,
    /// How often to look, and how long deleting may take when nobody makes way for it.
    interval_ms: i64,
    round: Option<Round>,
}

/// One round, of what was over when it began.
#[derive(Debug)]
struct Round {
    time_ms: i64,
    chains: Option<ChainsLeft>,
}

/// The chains that a round has not looked at: up to this one. A nested reservation's goes before the
/// one that it rests on.
#[derive(Debug)]
struct ChainsLeft {
    last: ChainId,
    /// Those that reservations hold on. Nobody begins to hold on a chain that was replaced.
    held: HashSet<ChainId>,
}

/// What a batch has done.
enum Batch {
    /// Deleted rows that nothing else names.
    Rows,
    /// Looked at chains, or deleted what imports may know.
    Known,
    /// There was nothing left.
    Nothing,
}

impl Retention {
    /// For a store whose clock stands at `now_ms`.
    pub(crate) fn new(config: &StoreConfig, now_ms: i64) -> Retention {
        let (keep_ms, interval_ms) = (config.keep_ms(), config.slack_ms());
        Retention { next_ms: now_ms, keep_ms, interval_ms, round: None }
    }

    /// Whether there is something to do.
    pub(crate) fn is_due(&self, importer: &Importer) -> bool {
        importer.time_ms >= self.next_ms
    }

    /// Whether deleting does not keep up, as on a host whose cores are all busy.
    pub(crate) fn is_late(&self, importer: &Importer) -> bool {
        importer.time_ms >= self.next_ms.saturating_add(self.interval_ms)
    }

    /// Deletes one batch, if it is time.
    pub(crate) fn step(&mut self, importer: &mut Importer) -> Result<(), StoreError> {
        if self.is_due(importer) {
            let begun = Round { time_ms: importer.time_ms, chains: None };
            let round = self.round.get_or_insert(begun);
            match round.batch(&importer.conn, round.time_ms.saturating_sub(self.keep_ms))? {
                Batch::Rows => {}
                Batch::Known => importer.forget(),
                Batch::Nothing => {
                    self.next_ms = round.time_ms.saturating_add(self.interval_ms);
                    self.round = None;
                }
            }
        }
        Ok(())
    }
}

impl Round {
    /// Deletes at most one batch of what was over before a time.
    fn batch(&mut self, conn: &Connection, before_ms: i64) -> Result<Batch, StoreError> {
        let tx = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)
            .doing("begin a clean-up")?;
        let done = if entries(&tx, before_ms)? > 0 || delete(&tx, RESERVATIONS, before_ms)? > 0 {
            Batch::Rows
        } else {
            let mut more = self.chains(&tx, before_ms)?;
            for sql in [WINDOWS, CROSSINGS, BUCKETS, BUDGETS, ACCOUNTS] {
                more = more || delete(&tx, sql, before_ms)? > 0;
            }
            if more { Batch::Known } else { Batch::Nothing }
        };
        tx.commit().doing("end a clean-up")?;
        Ok(done)
    }

    /// Of the next chains, deletes those that no entry names any more, that the account has replaced,
    /// and that nothing hangs on. Returns whether there were any to look at.
    fn chains(&mut self, tx: &Transaction<'_>, before_ms: i64) -> Result<bool, StoreError> {
        const NEXT: &str = "SELECT c.id, c.last_ms < ?1
            AND (c.base IS NOT NULL OR coalesce(a.retired_ms < ?1, 0) OR EXISTS
                (SELECT 1 FROM chains n WHERE n.account = c.account AND n.id > c.id
                    AND n.base IS NULL AND n.time_ms < ?1))
            FROM chains c LEFT JOIN accounts a ON a.id = c.account
            WHERE c.id <= ?2 ORDER BY c.id DESC LIMIT ?3";
        const RESTS: &str = "SELECT 1 FROM chains WHERE base = ?1 LIMIT 1";
        let left = if let Some(left) = &mut self.chains {
            left
        } else {
            let (last, held) = (ChainId::MAX >> 1, held_chains(tx)?);
            self.chains.insert(ChainsLeft { last, held })
        };
        let next: Vec<(ChainId, bool)> = tx
            .prepare_cached(NEXT)
            .and_then(|mut next| {
                let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
                next.query_map(params![before_ms, left.last, BATCH], read)?.collect()
            })
            .doing("clean up")?;
        let Some((lowest, _)) = next.last() else { return Ok(false) };
        left.last = lowest.saturating_sub(1);
        for (chain, is_over) in &next {
            if !is_over || left.held.contains(chain) {
                continue;
            }
            let rests = tx.prepare_cached(RESTS).and_then(|mut rests| rests.exists([chain]));
            if rests.doing("clean up")? {
                continue;
            }
            for sql in
                ["DELETE FROM chain_windows WHERE chain = ?1", "DELETE FROM chains WHERE id = ?1"]
            {
                let delete = tx.prepare_cached(sql);
                delete.and_then(|mut delete| delete.execute([chain])).doing("clean up")?;
            }
        }
        Ok(true)
    }
}

/// Not those that a holding reservation was carved from: what it gives back passes through them.
const RESERVATIONS: &str = "DELETE FROM reservations WHERE sequence IN
    (SELECT r.sequence FROM reservations r WHERE r.ended_ms < ?1 AND r.holds = 0
        AND NOT EXISTS (SELECT 1 FROM reservations c
            WHERE c.parent = r.sequence AND c.parent IS NOT NULL AND c.holds = 1) LIMIT ?2)";

const WINDOWS: &str = "DELETE FROM windows WHERE id IN
    (SELECT w.id FROM windows w JOIN budgets b ON b.id = w.budget
        JOIN accounts a ON a.id = b.account
        WHERE (w.end_ms < ?1 OR a.retired_ms < ?1)
        AND (a.retired_ms IS NOT NULL
            OR EXISTS (SELECT 1 FROM windows n WHERE n.budget = w.budget AND n.id > w.id))
        AND NOT EXISTS (SELECT 1 FROM chain_windows c WHERE c.window = w.id) LIMIT ?2)";

/// What is left of windows that have gone.
const CROSSINGS: &str = "DELETE FROM crossings WHERE (window, permille) IN
    (SELECT c.window, c.permille FROM crossings c
        WHERE NOT EXISTS (SELECT 1 FROM windows w WHERE w.id = c.window) LIMIT ?2)";

const BUCKETS: &str = "DELETE FROM window_buckets WHERE (window, start_ms) IN
    (SELECT b.window, b.start_ms FROM window_buckets b
        WHERE NOT EXISTS (SELECT 1 FROM windows w WHERE w.id = b.window) LIMIT ?2)";

const BUDGETS: &str = "DELETE FROM budgets WHERE id IN
    (SELECT b.id FROM accounts a JOIN budgets b ON b.account = a.id WHERE a.retired_ms < ?1
        AND NOT EXISTS (SELECT 1 FROM windows w WHERE w.budget = b.id) LIMIT ?2)";

const ACCOUNTS: &str = "DELETE FROM accounts WHERE id IN
    (SELECT a.id FROM accounts a WHERE a.retired_ms < ?1
        AND NOT EXISTS (SELECT 1 FROM budgets b WHERE b.account = a.id)
        AND NOT EXISTS (SELECT 1 FROM chains c WHERE c.account = a.id)
        AND NOT EXISTS (SELECT 1 FROM entry e WHERE e.account = a.id)
        AND a.id NOT IN (SELECT account FROM reservations WHERE holds = 1) LIMIT ?2)";

fn delete(tx: &Transaction<'_>, sql: &str, before_ms: i64) -> Result<usize, StoreError> {
    tx.prepare_cached(sql)
        .and_then(|mut delete| delete.execute(params![before_ms, BATCH]))
        .doing("clean up")
}

fn entries(tx: &Transaction<'_>, before_ms: i64) -> Result<usize, StoreError> {
    const OLD: &str = "FROM (SELECT * FROM entry WHERE id < ?1 ORDER BY id LIMIT ?2)";
    let before = first_entry_at(tx, before_ms)?;
    let params = params![before, BATCH];
    let spent = format!(
        "SELECT w.id, w.pruned, {TOTAL}
        FROM (SELECT chain, unit, kind, amount {OLD}) e
        JOIN chain_windows c ON c.chain = e.chain
        JOIN windows w ON w.id = c.window JOIN budgets b ON b.id = w.budget
        JOIN units u ON u.name = b.unit
        WHERE e.kind = {} AND e.unit = u.id GROUP BY w.id",
        EntryKind::Spend as u8
    );
    let read = |row: &Row<'_>| {
        let (window, pruned): (WindowId, i64) = (row.get(0)?, row.get(1)?);
        Ok((window, pruned.saturating_add(total(row.get(2)?, row.get(3)?))))
    };
    let spent: Vec<(WindowId, i64)> = tx
        .prepare_cached(&spent)
        .and_then(|mut spent| spent.query_map(params, read)?.collect())
        .doing("sum what deleted entries spent")?;
    for one in spent {
        tx.prepare_cached("UPDATE windows SET pruned = ?2 WHERE id = ?1")
            .and_then(|mut prune| prune.execute(one))
            .doing("note what deleted entries spent")?;
    }
    let details = format!("DELETE FROM details WHERE entry IN (SELECT id {OLD})");
    tx.prepare_cached(&details)
        .and_then(|mut delete| delete.execute(params))
        .doing("clean up details")?;
    let delete = format!("DELETE FROM entry WHERE id IN (SELECT id {OLD})");
    tx.prepare_cached(&delete).and_then(|mut delete| delete.execute(params)).doing("clean up")
}

/// The chains that reservations hold on.
fn held_chains(tx: &Transaction<'_>) -> Result<HashSet<ChainId>, StoreError> {
    let query = format!("SELECT {} FROM reservations WHERE holds = 1", reservations::COLUMNS);
    let mut query = tx.prepare_cached(&query).doing("clean up")?;
    let mut rows = query.query(()).doing("clean up")?;
    let mut held = HashSet::new();
    while let Some(row) = rows.next().doing("clean up")? {
        let stored = reservations::read(row).doing("clean up")??;
        held.extend(stored.body.reserved.slices.iter().map(|slice| slice.chain));
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use bursar_ledger::fact::{Fact, Record, Settled};
    use bursar_ledger::{Amounts, ReservationId, State, Unit};

    use super::*;
    use crate::files::FILES;
    use crate::importing::Importing;
    use crate::open::open;
    use crate::shared::Shared;
    use crate::syncing::sync;

    /// A store without threads, which keeps things for five minutes and as long again.
    fn stepped(folder: &tempfile::TempDir) -> (Arc<Shared>, Importing) {
        let config = StoreConfig {
            entry_retention_ms: 300_000,
            key_retention_ms: 0,
            ..StoreConfig::new(folder.path().join("ledger.db"))
        };
        let opened = open(&config, 0, FILES, &mut |_| Ok(())).expect("it opens");
        let shared = Arc::new(Shared::new(config, opened.store_id, opened.log));
        let importing = Importing::new(opened.importer, &shared).expect("it begins");
        (shared, importing)
    }

    /// Goal: on a host whose cores are all busy a store does not grow for ever. Method: more is over
    /// than one step deletes; what is late is urgent until it has gone.
    #[test]
    fn deleting_that_does_not_keep_up_is_urgent_until_it_does() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (shared, mut importing) = stepped(&folder);
        let mut step = |time_ms, count| {
            for _ in 0..count {
                let fact = Fact::Frozen { account: 1, frozen: true, reason: String::new() };
                shared.log.append(&Record { time_ms, facts: vec![fact] });
            }
            shared.log.write().and_then(|()| sync(&shared)).expect("synced");
            importing.step(&shared, || true, || true);
            assert_eq!(shared.log.failure(), None);
            let query = "SELECT count(*) FROM entry";
            let left = importing.importer.conn.query_row(query, (), |row| row.get(0));
            (left.expect("counted"), shared.is_cleanup_urgent())
        };
        let all = 3 * BATCH;
        assert_eq!(step(0, all), (all, false));
        // So long it is kept, and so much longer because somebody may be about to use it.
        assert_eq!(step(600_000, 1), (all + 1, false));
        assert_eq!(step(750_000, 1), (all + 2, false), "not due");
        // Due, and not late yet.
        assert_eq!(step(900_000, 1), (all + 3 - BATCH, false));
        assert_eq!(step(1_200_000, 1), (all + 4 - 2 * BATCH, true));
        assert_eq!(step(1_200_000, 0), (4, true));
        assert_eq!(step(1_200_000, 0), (4, false), "there is nothing more");
        // Late from the start: nothing happened for long.
        assert_eq!(step(7_500_000, 0), (4, false), "the clock is that of what is recorded");
        assert_eq!(step(7_500_000, 1), (1, true));
        assert_eq!(step(7_500_000, 0), (1, false));
    }

    #[test]
    fn while_deleting_is_late_the_import_waits_until_it_is_worth_while() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (shared, _importing) = stepped(&folder);
        let urgent = |late, bytes| {
            let reason = "x".repeat(bytes);
            let fact = Fact::Frozen { account: 1, frozen: true, reason };
            shared.log.append(&Record { time_ms: 0, facts: vec![fact] });
            shared.log.write().expect("written");
            shared.cleanup_late.store(late, Ordering::Relaxed);
            shared.is_import_urgent()
        };
        assert!(!urgent(true, 1 << 20));
        assert!(urgent(true, 1 << 20));
        assert!(!urgent(false, 0));
    }

    /// Goal: of many chains, those go that nothing needs. Method: more than one batch looks at; the
    /// newest stays, and one that a nested reservation's rests on.
    #[test]
    fn chains_go_but_for_the_newest_and_those_that_others_rest_on() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (shared, mut importing) = stepped(&folder);
        let many = 2 * BATCH as ChainId + 500;
        let chain = |chain, base| Fact::ChainOpened { chain, account: 1, windows: vec![], base };
        let account = Fact::AccountOpened { account: 1, path: "a".into(), automatic: false };
        let mut facts = vec![account];
        facts.extend((1..=many).map(|id| chain(id, None)));
        facts.push(chain(many + 1, Some((10, 1))));
        let overdraft = Amounts::of(Unit::Tokens, 1);
        let spending = Settled { beyond: Some((many + 1, overdraft)), ..nothing_settled() };
        for (time_ms, facts) in [(0, facts), (1_000_000, vec![Fact::Settled(spending)])] {
            shared.log.append(&Record { time_ms, facts });
            shared.log.write().and_then(|()| sync(&shared)).expect("synced");
            importing.step(&shared, || true, || true);
        }
        for _ in 0..8 {
            importing.step(&shared, || true, || true);
        }
        assert_eq!(shared.log.failure(), None);
        let conn = &importing.importer.conn;
        let mut ids = conn.prepare("SELECT id FROM chains ORDER BY id").expect("a query");
        let ids = ids.query_map((), |row| row.get::<_, ChainId>(0)).expect("rows");
        let ids: Vec<_> = ids.map(|id| id.expect("an id")).collect();
        assert_eq!(ids, [10, many, many + 1]);
    }

    fn nothing_settled() -> Settled {
        Settled {
            id: ReservationId { sequence: 1, slot: 0 },
            account: 1,
            state: State::Committed,
            payload: 0,
            slices: Vec::new(),
            beyond: None,
            overdraft: Amounts::ZERO,
            spent: Amounts::ZERO,
            returned: Amounts::ZERO,
            kept: Amounts::ZERO,
            model: None,
        }
    }
}
