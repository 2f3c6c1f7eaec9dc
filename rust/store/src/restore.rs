//! Tells the ledger where things stood: the database, read back as facts.
//!
//! The order is one that the ledger can follow: accounts (parents first), budgets, windows and what
//! was spent in them, chains (bases first), reservations that hold something, what they have used,
//! and last those that have ended and are still remembered. A record carries the time at which an
//! account or a reservation came to be; what restores a standing carries the latest time of all.
//!
//! Only what the ledger can still meet is told: accounts in use, each budget's newest window, and
//! what reservations name. A reservation may name an account that has retired; then the account of
//! that path that is in use stands in for it, or one is opened anew.

mod accounts;
mod windows;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bursar_ledger::canary;
use bursar_ledger::fact::{AccountId, BudgetId, ChainId, Fact, Record, WindowId};
use rusqlite::{Connection, OptionalExtension, Row};

use crate::error::{Doing, StoreError};
use crate::reservations::{self, Body, Stored};
use windows::Budget;

/// The time of what is told between the accounts and the reservations. The ledger's time only
/// rises: a later one would make the reservations seem younger than they are.
const NO_TIME_MS: i64 = 0;

/// Takes the records.
pub(crate) type Apply<'a> = &'a mut dyn FnMut(&Record) -> Result<(), String>;

/// Reads the database and passes on what the ledger needs. Writes only which accounts are opened anew
/// and whose chains they have, and raises `max_account` for them.
pub(crate) fn restore(
    conn: &Connection,
    max_account: &mut AccountId,
    (time_ms, remember_from_ms): (i64, i64),
    apply: Apply<'_>,
) -> Result<(), StoreError> {
    let mut restore = Restore {
        conn,
        max_account,
        time_ms,
        apply,
        in_use: HashSet::new(),
        stand_ins: HashMap::new(),
        budgets: HashMap::new(),
    };
    let holding = restore.holding()?;
    let remembered = restore.remembered(&holding, remember_from_ms)?;
    let chains = restore.chains(&holding)?;
    restore.accounts(&holding, &remembered, &chains)?;
    restore.tell_budgets()?;
    restore.tell_windows(&holding, &chains)?;
    restore.tell_chains(&chains)?;
    restore.tell_holding(&holding)?;
    restore.tell_remembered(&holding, &remembered)?;
    restore.tell(time_ms, Vec::new())
}

struct Restore<'a> {
    conn: &'a Connection,
    max_account: &'a mut AccountId,
    time_ms: i64,
    apply: Apply<'a>,
    /// The accounts that are told of.
    in_use: HashSet<AccountId>,
    /// Retired accounts, and who stands in for them.
    stand_ins: HashMap<AccountId, AccountId>,
    budgets: HashMap<BudgetId, Budget>,
}

struct Chain {
    account: AccountId,
    base: Option<(ChainId, u8)>,
    /// Its own, in the order of charging.
    windows: Vec<WindowId>,
    /// Those and the base's.
    counted: Vec<WindowId>,
}

/// Which ended reservations are told of.
struct Remembered {
    /// Those that ended after this,
    from_ms: i64,
    /// and these.
    parents: BTreeSet<u64>,
}

impl Restore<'_> {
    fn tell(&mut self, time_ms: i64, facts: Vec<Fact>) -> Result<(), StoreError> {
        (self.apply)(&Record { time_ms, facts }).map_err(StoreError::Apply)
    }

    fn select<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let rows = self.conn.prepare_cached(sql);
        rows.and_then(|mut rows| rows.query_map(params, read)?.collect()).doing("restore")
    }

    fn holding(&self) -> Result<Vec<Stored>, StoreError> {
        let query = format!(
            "SELECT {} FROM reservations WHERE holds = 1 ORDER BY sequence",
            reservations::COLUMNS
        );
        self.select(&query, (), reservations::read)?.into_iter().collect()
    }

    /// Parents that have ended are needed too: what a child gives back passes through them.
    fn remembered(&self, holding: &[Stored], from_ms: i64) -> Result<Remembered, StoreError> {
        let own: HashSet<u64> = holding.iter().map(|r| r.body.reserved.id.sequence).collect();
        let parents = holding.iter().filter_map(|r| r.body.reserved.parent);
        let mut open: Vec<u64> =
            parents.map(|p| p.sequence).filter(|sequence| !own.contains(sequence)).collect();
        let mut parents = BTreeSet::new();
        while let Some(sequence) = open.pop() {
            let Some(stored) = reservations::find(self.conn, sequence)? else { continue };
            if parents.insert(sequence) {
                let above = stored.body.reserved.parent.map(|parent| parent.sequence);
                open.extend(above.filter(|sequence| !own.contains(sequence)));
            }
        }
        Ok(Remembered { from_ms, parents })
    }

    /// The chains that holding reservations name, and their bases.
    fn chains(&self, holding: &[Stored]) -> Result<BTreeMap<ChainId, Chain>, StoreError> {
        let named = holding.iter().flat_map(|stored| &stored.body.reserved.slices);
        let mut open: Vec<ChainId> = named.map(|slice| slice.chain).collect();
        let mut chains = BTreeMap::new();
        while let Some(id) = open.pop() {
            if chains.contains_key(&id) {
                continue;
            }
            let query = "SELECT account, base, base_units FROM chains WHERE id = ?1";
            let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            let found: Vec<(AccountId, Option<ChainId>, Option<u8>)> =
                self.select(query, [id], read)?;
            let Some((account, base, units)) = found.into_iter().next() else {
                let reason = "a reservation names it, and it is gone";
                return Err(StoreError::malformed(format!("chain {id}"), reason));
            };
            let query =
                "SELECT window, position FROM chain_windows WHERE chain = ?1 ORDER BY position";
            let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
            let rows: Vec<(WindowId, Option<i64>)> = self.select(query, [id], read)?;
            let own = rows.iter().filter(|(_, position)| position.is_some());
            let windows = own.map(|(window, _)| *window).collect();
            let counted = rows.iter().map(|(window, _)| *window).collect();
            let base = base.zip(units);
            open.extend(base.map(|(base, _)| base));
            chains.insert(id, Chain { account, base, windows, counted });
        }
        Ok(chains)
    }

    fn tell_holding(&mut self, holding: &[Stored]) -> Result<(), StoreError> {
        let (mut used, mut ended) = (Vec::new(), Vec::new());
        for stored in holding {
            let mut reserved = stored.body.reserved.clone();
            reserved.account = self.in_use(reserved.account);
            used.extend(stored.used.map(|used| (reserved.id, used)));
            if let Some(settled) = &stored.body.settled {
                // Capacity that outlived its reservation: held again, then ended again.
                let mut settled = settled.clone();
                settled.account = reserved.account;
                settled.beyond = None; // its windows stand with it
                settled.slices.clone_from(&reserved.slices);
                ended.push(Fact::Settled(settled));
            }
            self.tell(stored.created_ms, vec![Fact::Reserved(reserved)])?;
        }
        for fact in ended {
            self.tell(self.time_ms, vec![fact])?;
        }
        if used.is_empty() || canary::sings("lost-floor") {
            Ok(())
        } else {
            self.tell(self.time_ms, vec![Fact::Used(used)])
        }
    }

    fn tell_remembered(
        &mut self,
        holding: &[Stored],
        remembered: &Remembered,
    ) -> Result<(), StoreError> {
        let slots: HashSet<u32> = holding.iter().map(|r| r.body.reserved.id.slot).collect();
        let first = "SELECT min(sequence) FROM reservations WHERE ended_ms > ?1";
        let first: Option<Option<u64>> = self
            .conn
            .query_row(first, [remembered.from_ms], |r| r.get(0))
            .optional()
            .doing("restore")?;
        let above = remembered.parents.first().copied();
        let Some(first) = first.flatten().into_iter().chain(above).min() else { return Ok(()) };
        // In the order of the table: no sorting, however many there are.
        let query = format!(
            "SELECT {} FROM reservations NOT INDEXED
                WHERE sequence >= ?1 AND holds = 0 ORDER BY sequence",
            reservations::COLUMNS
        );
        let mut query = self.conn.prepare_cached(&query).doing("restore")?;
        let mut rows = query.query([first]).doing("restore")?;
        while let Some(row) = rows.next().doing("restore")? {
            let (ended_ms, sequence): (i64, u64) =
                (row.get(1).doing("restore")?, row.get(4).doing("restore")?);
            if ended_ms <= remembered.from_ms && !remembered.parents.contains(&sequence) {
                continue;
            }
            let Stored { body, created_ms, .. } = reservations::read(row).doing("restore")??;
            let Body { mut reserved, settled } = body;
            let Some(mut settled) = settled else { continue };
            // A slot that is taken again: the ledger had forgotten this one.
            let account = self.in_use(reserved.account);
            if slots.contains(&reserved.id.slot) || !self.in_use.contains(&account) {
                continue;
            }
            (reserved.account, settled.account) = (account, account);
            let (reserved, settled) = (Box::new(reserved), Box::new(settled));
            let fact = Fact::Remembered { reserved, settled, created_ms, ended_ms };
            let record = Record { time_ms: self.time_ms, facts: vec![fact] };
            (self.apply)(&record).map_err(StoreError::Apply)?;
        }
        Ok(())
    }
}
