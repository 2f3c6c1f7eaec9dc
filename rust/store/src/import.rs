//! Brings the log into SQLite: facts become rows, a group of records in one transaction.
//!
//! Owns the writing connection. `meta.applied_seq` moves in the same transaction, so a record is
//! imported exactly once, whatever happens in between. States results only: it checks no limit, and
//! a fact about something that retention has deleted changes nothing but the entries. Called by the
//! import thread and, before the threads start, by `open`.

use std::collections::{BTreeMap, BTreeSet};

use bursar_ledger::canary;
use bursar_ledger::fact::{
    AccountId, ChainId, Fact, Record, ReservationId, Reserved, Settled, WindowId,
};
use bursar_ledger::rolling::BUCKETS;
use bursar_ledger::{Amounts, HighIds, Period};
use rusqlite::{Connection, Row, Transaction, TransactionBehavior, params};

use crate::database::Meta;
use crate::entries::{About, EntryKind, Rows};
use crate::error::{Doing, StoreError};
use crate::known::{Known, Window, period_name};
use crate::reservations::Touched;

/// Writes records into the database.
pub(crate) struct Importer {
    pub(crate) conn: Connection,
    pub(crate) applied: u64,
    /// The latest time that was recorded.
    pub(crate) time_ms: i64,
    pub(crate) high: HighIds,
    known: Known,
}

impl Importer {
    pub(crate) fn new(conn: Connection, meta: &Meta) -> Importer {
        let Meta { applied, time_ms, high, .. } = *meta;
        Importer { conn, applied, time_ms, high, known: Known::default() }
    }

    /// Imports a group; records that are in already are passed over.
    pub(crate) fn import(&mut self, records: &[(u64, Record)]) -> Result<(), StoreError> {
        let done = self.try_import(records);
        if done.is_err() {
            self.forget();
        }
        done
    }

    /// Forgets what was read: something else has written.
    pub(crate) fn forget(&mut self) {
        self.known = Known::default();
    }

    fn try_import(&mut self, records: &[(u64, Record)]) -> Result<(), StoreError> {
        self.known.bound();
        let tx = Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate)
            .doing("begin an import")?;
        let mut group = Group {
            conn: &self.conn,
            known: &mut self.known,
            time_ms: self.time_ms,
            high: self.high,
            spent: BTreeSet::new(),
            buckets: BTreeMap::new(),
            touched: Touched::default(),
            chains: BTreeMap::new(),
            rows: Rows::new(&self.conn)?,
        };
        let mut applied = self.applied;
        for (seq, record) in records.iter().filter(|(seq, _)| *seq > self.applied) {
            group.record(*seq, record)?;
            applied = *seq;
        }
        let (time_ms, high) = (group.time_ms, group.high);
        group.flush(applied)?;
        tx.commit().doing("end an import")?;
        (self.applied, self.time_ms, self.high) = (applied, time_ms, high);
        Ok(())
    }
}

/// What a group of records changes.
struct Group<'a> {
    conn: &'a Connection,
    known: &'a mut Known,
    time_ms: i64,
    high: HighIds,
    /// Windows whose `spent` has changed.
    spent: BTreeSet<WindowId>,
    buckets: BTreeMap<(WindowId, i64), i64>,
    touched: Touched,
    /// When entries named a chain last.
    chains: BTreeMap<ChainId, i64>,
    rows: Rows<'a>,
}

impl Group<'_> {
    fn record(&mut self, seq: u64, record: &Record) -> Result<(), StoreError> {
        // Threads read the time before they reach the log: between records it may step back a
        // little.
        self.time_ms = self.time_ms.max(record.time_ms);
        self.rows.begin(seq, self.time_ms);
        if seq.is_multiple_of(16) && canary::sings("forgotten-fact") {
            return Ok(());
        }
        record.facts.iter().try_for_each(|fact| self.fact(fact))
    }

    fn fact(&mut self, fact: &Fact) -> Result<(), StoreError> {
        match fact {
            Fact::AccountOpened { account, path, automatic } => {
                self.high.account = self.high.account.max(*account);
                let open = "INSERT OR REPLACE INTO accounts VALUES (?1, ?2, ?3, 0, '', ?4, NULL)";
                self.execute(open, params![account, path, automatic, self.time_ms])
            }
            Fact::AccountRetired { account } => {
                let retire = "UPDATE accounts SET retired_ms = ?2 WHERE id = ?1";
                self.execute(retire, params![account, self.time_ms])
            }
            Fact::BudgetSet { .. } => self.set_budget(fact),
            Fact::WindowOpened { window, budget, start_ms, end_ms } => {
                self.high.window = self.high.window.max(*window);
                let open = "INSERT OR IGNORE INTO windows
                    SELECT ?1, ?2, ?3, ?4, limit_amount, 0, 0 FROM budgets WHERE id = ?2";
                self.execute(open, params![window, budget, start_ms, end_ms])
            }
            Fact::ChainOpened { chain, account, windows, base } => {
                self.open_chain(*chain, *account, windows, *base)
            }
            Fact::Reserved(reserved) => self.reserve(reserved),
            Fact::Resliced { id, account, slices, ttl_ms, added } => {
                let before = self.touched.reslice(self.conn, *id, slices, *ttl_ms)?;
                // A top-up goes to one chain: the one whose slice has grown.
                let grown = slices.iter().find(|slice| {
                    let same = before.iter().find(|before| before.chain == slice.chain);
                    same.is_none_or(|before| before.held != slice.held)
                });
                let chain = grown.or(slices.last()).map(|slice| slice.chain);
                let about = About { account: *account, reservation: Some(id.sequence), chain };
                // Less than before: a lease's unused top-up was taken back.
                let (more, less) = (added.max(&Amounts::ZERO), added.min(&Amounts::ZERO));
                let back = Amounts::ZERO.checked_sub(&less).unwrap_or(Amounts::ZERO);
                self.push_all(EntryKind::Hold, about, &more)?;
                self.push_all(EntryKind::Return, about, &back)
            }
            Fact::Used(used) => {
                for (id, used) in used {
                    self.touched.used(*id, used);
                }
                Ok(())
            }
            Fact::Settled(settled) => self.settle(settled),
            Fact::Frozen { account, frozen, reason } => {
                let freeze = "UPDATE accounts SET frozen = ?2, freeze_reason = ?3 WHERE id = ?1";
                self.execute(freeze, params![account, frozen, reason])?;
                let kind = if *frozen { EntryKind::Freeze } else { EntryKind::Unfreeze };
                self.rows.push(kind, about_account(*account), None, 0)?;
                if *frozen && !reason.is_empty() {
                    self.rows.detail(reason)?;
                }
                Ok(())
            }
            Fact::Crossed { window, permille } => self.cross(*window, *permille),
            Fact::Runaway { account, finding, action } => {
                let about = about_account(*account);
                self.rows.push(EntryKind::Runaway, about, finding.unit, finding.figure)?;
                self.rows.detail(&format!("{}: {finding}", action.name()))
            }
            Fact::Judged { id, account, success } => {
                let about =
                    About { account: *account, reservation: Some(id.sequence), chain: None };
                let kind = if *success { EntryKind::Success } else { EntryKind::Failure };
                self.rows.push(kind, about, None, 0)
            }
            Fact::Operated { account, detail } => {
                self.rows.push(EntryKind::Operated, about_account(*account), None, 0)?;
                self.rows.detail(detail)
            }
            // For restoring only; they say nothing new.
            Fact::WindowStood { .. } | Fact::Remembered { .. } => Ok(()),
        }
    }

    fn execute(&self, sql: &str, params: impl rusqlite::Params) -> Result<(), StoreError> {
        let mut statement = self.conn.prepare_cached(sql).doing("prepare an import")?;
        statement.execute(params).doing("import a fact").map(|_| ())
    }

    fn set_budget(&mut self, fact: &Fact) -> Result<(), StoreError> {
        let Fact::BudgetSet { budget, account, unit, period, limit, thresholds, manual } = fact
        else {
            return Ok(());
        };
        self.high.budget = self.high.budget.max(*budget);
        let thresholds = serde_json::to_string(thresholds)
            .map_err(|error| StoreError::malformed(format!("budget {budget}"), &error))?;
        let set = "INSERT OR REPLACE INTO budgets VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
        let Period { kind, time_zone, length_ms } = period;
        let kind = period_name(*kind);
        let row = params![
            budget,
            account,
            unit.name(),
            kind,
            time_zone,
            length_ms,
            limit,
            thresholds,
            manual
        ];
        self.execute(set, row)?;
        let current = "UPDATE windows SET limit_amount = ?2
            WHERE id = (SELECT max(id) FROM windows WHERE budget = ?1)";
        self.execute(current, params![budget, limit])?;
        self.rows.push(EntryKind::Limit, about_account(*account), Some(*unit), *limit)
    }

    fn open_chain(
        &mut self,
        chain: ChainId,
        account: AccountId,
        windows: &[WindowId],
        base: Option<(ChainId, u8)>,
    ) -> Result<(), StoreError> {
        self.high.chain = self.high.chain.max(chain);
        let (base, base_units) = base.unzip();
        let open = "INSERT OR REPLACE INTO chains VALUES (?1, ?2, ?3, ?3, ?4, ?5)";
        self.execute(open, params![chain, account, self.time_ms, base, base_units])?;
        let add = "INSERT OR IGNORE INTO chain_windows VALUES (?1, ?2, ?3)";
        for (position, window) in windows.iter().enumerate() {
            self.execute(add, params![chain, window, position])?;
        }
        if let (Some(base), Some(units)) = (base, base_units) {
            let base = self.known.chain(self.conn, base)?;
            for (window, unit) in &base.windows {
                if units & (1 << unit.index()) != 0 {
                    self.execute(add, params![chain, window, None::<i64>])?;
                }
            }
        }
        Ok(())
    }

    fn reserve(&mut self, reserved: &Reserved) -> Result<(), StoreError> {
        let id = reserved.id;
        self.high.sequence = self.high.sequence.max(id.sequence);
        self.touched.reserve(reserved, self.time_ms);
        for slice in &reserved.slices {
            let nested = reserved.parent.is_some();
            let carved =
                if nested { self.known.chain(self.conn, slice.chain)?.base_units } else { 0 };
            let about = About {
                account: reserved.account,
                reservation: Some(id.sequence),
                chain: Some(slice.chain),
            };
            self.chains.insert(slice.chain, self.time_ms);
            for (unit, amount) in slice.held.iter() {
                let carved = carved & (1 << unit.index()) != 0;
                let kind = if carved { EntryKind::Carve } else { EntryKind::Hold };
                self.rows.push(kind, about, Some(unit), amount)?;
            }
        }
        Ok(())
    }

    fn settle(&mut self, settled: &Settled) -> Result<(), StoreError> {
        let reservation = Some(settled.id.sequence);
        let about = |chain| About { account: settled.account, reservation, chain };
        for slice in &settled.slices {
            self.push_all(EntryKind::Spend, about(Some(slice.chain)), &slice.spent)?;
            self.spend(settled.id, slice.chain, &slice.spent)?;
        }
        if let Some((chain, amounts)) = &settled.beyond {
            self.push_all(EntryKind::Spend, about(Some(*chain)), amounts)?;
            self.spend(settled.id, *chain, amounts)?;
        }
        let sole = match settled.slices.as_slice() {
            [slice] => Some(slice.chain),
            _ => None,
        };
        self.push_all(EntryKind::Return, about(sole), &settled.returned)?;
        let beyond = settled.beyond.as_ref().map(|(chain, _)| *chain);
        self.push_all(EntryKind::Overdraft, about(beyond), &settled.overdraft)?;
        self.touched.settle(self.conn, settled, self.time_ms)
    }

    fn push_all(
        &mut self,
        kind: EntryKind,
        about: About,
        amounts: &Amounts,
    ) -> Result<(), StoreError> {
        if let Some(chain) = about.chain.filter(|_| !amounts.is_zero()) {
            self.chains.insert(chain, self.time_ms);
        }
        amounts
            .iter()
            .try_for_each(|(unit, amount)| self.rows.push(kind, about, Some(unit), amount))
    }

    fn spend(
        &mut self,
        by: ReservationId,
        chain: ChainId,
        amounts: &Amounts,
    ) -> Result<(), StoreError> {
        let chain = self.known.chain(self.conn, chain)?;
        for (window, unit) in &chain.windows {
            let amount = amounts.get(*unit);
            if amount == 0 {
                continue;
            }
            let time_ms = self.time_ms;
            let Some(known) = self.known.window(self.conn, *window)? else { continue };
            // The ledger keeps every window within i64; a rolling one's total of all time may stop.
            known.spent = known.spent.saturating_add(amount);
            let bucket_ms = known.bucket_ms;
            self.spent.insert(*window);
            if bucket_ms != 0 && amount < 0 {
                self.take_back(by, *window, bucket_ms, amount.saturating_neg())?;
            } else if bucket_ms != 0 {
                let start_ms = time_ms - time_ms.rem_euclid(bucket_ms);
                let bucket = self.buckets.entry((*window, start_ms)).or_insert(0);
                *bucket = bucket.saturating_add(amount);
            }
        }
        Ok(())
    }

    /// Takes a spending back as the ledger does: out of the oldest buckets that count, and not at all
    /// when some of it may have left them.
    fn take_back(
        &mut self,
        by: ReservationId,
        window: WindowId,
        bucket_ms: i64,
        mut rest: i64,
    ) -> Result<(), StoreError> {
        const LIVE: &str =
            "SELECT start_ms, spent FROM window_buckets WHERE window = ?1 AND start_ms >= ?2";
        let from_ms = first_live_ms(self.time_ms, bucket_ms);
        if self.touched.created_ms(self.conn, by)?.is_none_or(|since_ms| since_ms < from_ms) {
            return Ok(());
        }
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let mut live: BTreeMap<i64, i64> = self
            .conn
            .prepare_cached(LIVE)
            .and_then(|mut live| live.query_map(params![window, from_ms], read)?.collect())
            .doing("read what was spent of late")?;
        for ((_, start_ms), spent) in self.buckets.range((window, from_ms)..=(window, i64::MAX)) {
            let before = live.entry(*start_ms).or_insert(0);
            *before = before.saturating_add(*spent);
        }
        for (start_ms, spent) in live {
            let part = rest.min(spent);
            if part > 0 {
                *self.buckets.entry((window, start_ms)).or_insert(0) -= part;
                rest -= part;
            }
        }
        Ok(())
    }

    fn cross(&mut self, window: WindowId, permille: u16) -> Result<(), StoreError> {
        let note = "INSERT OR REPLACE INTO crossings VALUES (?1, ?2, ?3)";
        self.execute(note, params![window, permille, self.time_ms])?;
        let Some(Window { account, unit, .. }) = self.known.window(self.conn, window)?.copied()
        else {
            return Ok(());
        };
        let about = about_account(account);
        self.rows.push(EntryKind::Crossing, about, Some(unit), i64::from(permille))
    }

    /// Writes what was gathered, each row once.
    fn flush(mut self, applied: u64) -> Result<(), StoreError> {
        for id in std::mem::take(&mut self.spent) {
            let spent = self.known.window(self.conn, id)?.map(|window| window.spent);
            self.execute("UPDATE windows SET spent = ?2 WHERE id = ?1", params![id, spent])?;
        }
        let mut rolled = BTreeSet::new();
        for ((window, start_ms), amount) in std::mem::take(&mut self.buckets) {
            let add = "INSERT INTO window_buckets VALUES (?1, ?2, ?3)
                ON CONFLICT DO UPDATE SET spent = spent + excluded.spent";
            self.execute(add, params![window, start_ms, amount])?;
            rolled.insert(window);
        }
        for window in rolled {
            let bucket_ms =
                self.known.window(self.conn, window)?.map_or(1, |known| known.bucket_ms);
            let left = "DELETE FROM window_buckets WHERE window = ?1 AND start_ms < ?2";
            self.execute(left, params![window, first_live_ms(self.time_ms, bucket_ms)])?;
        }
        for (chain, last_ms) in std::mem::take(&mut self.chains) {
            let name = "UPDATE chains SET last_ms = ?2 WHERE id = ?1";
            self.execute(name, params![chain, last_ms])?;
        }
        std::mem::take(&mut self.touched).flush(self.conn)?;
        let HighIds { sequence, window, chain, budget, account } = self.high;
        let advance = "UPDATE meta SET applied_seq = ?1, ledger_time_ms = ?2, max_account = ?3,
            max_budget = ?4, max_window = ?5, max_chain = ?6, max_reservation = ?7";
        let row = params![applied, self.time_ms, account, budget, window, chain, sequence];
        self.execute(advance, row)
    }
}

/// The start of the oldest bucket that still counts.
pub(crate) fn first_live_ms(now_ms: i64, bucket_ms: i64) -> i64 {
    (now_ms.div_euclid(bucket_ms) - BUCKETS).saturating_mul(bucket_ms)
}

fn about_account(account: AccountId) -> About {
    About { account, reservation: None, chain: None }
}
