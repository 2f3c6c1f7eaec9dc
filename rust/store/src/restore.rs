//! Tells the ledger where things stood: the database, read back as facts.
//!
//! The order is one that the ledger can follow: accounts (parents first), budgets, windows and what
//! was spent in them, chains (bases first), reservations that hold something, what they have used, and
//! last those that have ended and are still remembered. A record carries the time at which an account
//! or a reservation came to be; what restores a standing carries the latest time of all.
//!
//! Only what the ledger can still meet is told: accounts in use, each budget's newest window, and what
//! reservations name. A reservation may name an account that has retired; then the account of that
//! path that is in use stands in for it, or it comes back.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bursar_ledger::fact::{AccountId, BudgetId, ChainId, Fact, Record, WindowId};
use bursar_ledger::path::parent;
use bursar_ledger::rolling::bucket_ms;
use bursar_ledger::{Amounts, Period, Threshold, Unit};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::error::{Doing, StoreError};
use crate::import::first_live_ms;
use crate::known::parse_period;
use crate::reservations::{self, Body, Stored};

/// The time of what is told between the accounts and the reservations. The ledger's time only rises:
/// a later one would make the reservations seem younger than they are.
const NO_TIME_MS: i64 = 0;

/// Takes the records.
pub(crate) type Apply<'a> = &'a mut dyn FnMut(&Record) -> Result<(), String>;

/// Reads the database and passes on what the ledger needs. Writes only that an account came back.
pub(crate) fn restore(
    conn: &Connection,
    (time_ms, remember_from_ms): (i64, i64),
    apply: Apply<'_>,
) -> Result<(), StoreError> {
    let mut restore = Restore {
        conn,
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
    time_ms: i64,
    apply: Apply<'a>,
    /// The accounts that are told of.
    in_use: HashSet<AccountId>,
    /// Retired accounts, and who stands in for them.
    stand_ins: HashMap<AccountId, AccountId>,
    budgets: HashMap<BudgetId, Budget>,
}

struct Budget {
    unit: Unit,
    /// Of a rolling period; else 0.
    length_ms: i64,
    /// (share in thousandths, amount from which it is crossed)
    marks: Vec<(u16, i64)>,
}

struct Account {
    id: AccountId,
    path: String,
    automatic: bool,
    frozen: bool,
    /// Why it is frozen, or no longer is.
    reason: String,
    created_ms: i64,
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

    fn accounts(
        &mut self,
        holding: &[Stored],
        remembered: &Remembered,
        chains: &BTreeMap<ChainId, Chain>,
    ) -> Result<(), StoreError> {
        const IN_USE: &str = "SELECT id, path, automatic, frozen, freeze_reason, created_ms
            FROM accounts WHERE retired_ms IS NULL ORDER BY id";
        let mut told = self.select(IN_USE, (), read_account)?;
        let mut paths: HashMap<String, AccountId> =
            told.iter().map(|account| (account.path.clone(), account.id)).collect();
        self.in_use = told.iter().map(|account| account.id).collect();
        let query = "SELECT DISTINCT account FROM reservations WHERE ended_ms > ?1";
        let mut named: BTreeSet<AccountId> =
            self.select(query, [remembered.from_ms], |row| row.get(0))?.into_iter().collect();
        for sequence in &remembered.parents {
            let stored = reservations::find(self.conn, *sequence)?;
            named.extend(stored.map(|stored| stored.body.reserved.account));
        }
        named.extend(holding.iter().map(|stored| stored.body.reserved.account));
        named.extend(chains.values().map(|chain| chain.account));
        let mut back = Vec::new();
        for id in named.difference(&self.in_use.iter().copied().collect()) {
            let query = "SELECT path FROM accounts WHERE id = ?1";
            let Some(path) = self.select(query, [id], |row| row.get::<_, String>(0))?.pop() else {
                continue;
            };
            for path in std::iter::successors(Some(path.as_str()), |path| parent(path)) {
                if !paths.contains_key(path) {
                    let account = self.bring_back(path)?;
                    paths.insert(account.path.clone(), account.id);
                    back.push(account);
                }
            }
            self.stand_ins.insert(*id, paths[&path]);
        }
        back.sort_by_key(|account| account.path.matches('/').count());
        self.in_use.extend(back.iter().map(|account| account.id));
        told.extend(back);
        for Account { id, path, automatic, frozen, reason, created_ms } in told {
            let mut facts = vec![Fact::AccountOpened { account: id, path, automatic }];
            if frozen || !reason.is_empty() {
                facts.push(Fact::Frozen { account: id, frozen, reason });
            }
            self.tell(created_ms, facts)?;
        }
        Ok(())
    }

    fn bring_back(&self, path: &str) -> Result<Account, StoreError> {
        const NEWEST: &str = "SELECT id, path, automatic, frozen, freeze_reason, created_ms
            FROM accounts WHERE path = ?1 ORDER BY id DESC LIMIT 1";
        let newest = self.select(NEWEST, [path], read_account)?.pop();
        let account = newest.ok_or_else(|| StoreError::malformed("an account", path))?;
        let back = "UPDATE accounts SET retired_ms = NULL WHERE id = ?1";
        self.conn.execute(back, [account.id]).doing("bring an account back")?;
        Ok(account)
    }

    /// The account that is in use for one that may have retired.
    fn in_use(&self, account: AccountId) -> AccountId {
        self.stand_ins.get(&account).copied().unwrap_or(account)
    }

    fn tell_budgets(&mut self) -> Result<(), StoreError> {
        const QUERY: &str = "SELECT b.id, b.account, b.unit, b.period, b.time_zone, b.length_ms,
            b.limit_amount, b.thresholds, b.manual
            FROM accounts a JOIN budgets b ON b.account = a.id
            WHERE a.retired_ms IS NULL ORDER BY b.id";
        for (budget, fact) in self.select(QUERY, (), |row| Ok((row.get(0)?, read_budget(row)?)))? {
            let fact = fact.map_err(|reason| {
                StoreError::malformed(format!("budget {budget}"), reason)
            })?;
            if let Fact::BudgetSet { unit, ref period, limit, ref thresholds, .. } = fact {
                let marks = thresholds.iter().map(|t| (t.permille, t.mark(limit))).collect();
                let length_ms = period.length_ms;
                self.budgets.insert(budget, Budget { unit, length_ms, marks });
            }
            self.tell(NO_TIME_MS, vec![fact])?;
        }
        Ok(())
    }

    fn tell_windows(
        &mut self,
        holding: &[Stored],
        chains: &BTreeMap<ChainId, Chain>,
    ) -> Result<(), StoreError> {
        const ONE: &str = "SELECT id, budget, start_ms, end_ms, spent FROM windows WHERE id = ?1";
        const NEWEST: &str = "SELECT id FROM windows WHERE budget = ?1 ORDER BY id DESC LIMIT 1";
        let read = |row: &Row<'_>| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
        };
        let mut ids: BTreeSet<WindowId> = BTreeSet::new();
        for budget in self.budgets.keys() {
            ids.extend(self.select(NEWEST, [budget], |row| row.get::<_, WindowId>(0))?);
        }
        ids.extend(chains.values().flat_map(|chain| &chain.counted));
        let used = used_at_most(holding, chains);
        for id in ids {
            let rows: Vec<(WindowId, BudgetId, i64, i64, i64)> = self.select(ONE, [id], read)?;
            for (window, budget, start_ms, end_ms, spent) in rows {
                if self.budgets.contains_key(&budget) {
                    let opened = Fact::WindowOpened { window, budget, start_ms, end_ms };
                    let stood = self.stood(window, budget, spent, used.get(&window))?;
                    self.tell(NO_TIME_MS, vec![opened, stood])?;
                }
            }
        }
        Ok(())
    }

    fn stood(
        &self,
        window: WindowId,
        budget: BudgetId,
        ever: i64,
        used: Option<&Amounts>,
    ) -> Result<Fact, StoreError> {
        let Budget { unit, length_ms, marks } = &self.budgets[&budget];
        let fired = "SELECT permille FROM crossings WHERE window = ?1 ORDER BY permille";
        let mut fired: Vec<u16> = self.select(fired, [window], |row| row.get(0))?;
        if *length_ms == 0 {
            return Ok(Fact::WindowStood { window, spent: ever, fired, buckets: Vec::new() });
        }
        let live = "SELECT start_ms, spent FROM window_buckets
            WHERE window = ?1 AND start_ms >= ?2 ORDER BY start_ms";
        let from_ms = first_live_ms(self.time_ms, bucket_ms(*length_ms));
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let buckets: Vec<(i64, i64)> = self.select(live, params![window, from_ms], read)?;
        let spent = buckets.iter().fold(0_i64, |sum, (_, spent)| sum.saturating_add(*spent));
        // What has fallen below its mark since will be crossed anew.
        let at_most = spent.saturating_add(used.map_or(0, |used| used.get(*unit)));
        fired.retain(|share| marks.iter().any(|(of, mark)| of == share && *mark <= at_most));
        Ok(Fact::WindowStood { window, spent, fired, buckets })
    }

    fn tell_chains(&mut self, chains: &BTreeMap<ChainId, Chain>) -> Result<(), StoreError> {
        for (id, chain) in chains {
            // A window is missing only when its account has retired, and then nothing is held in it.
            let query = "SELECT budget FROM windows WHERE id = ?1";
            let mut windows = Vec::with_capacity(chain.windows.len());
            for window in &chain.windows {
                let budget = self.select(query, [window], |row| row.get::<_, BudgetId>(0))?;
                if budget.first().is_some_and(|budget| self.budgets.contains_key(budget)) {
                    windows.push(*window);
                }
            }
            let account = self.in_use(chain.account);
            let opened = Fact::ChainOpened { chain: *id, account, windows, base: chain.base };
            self.tell(NO_TIME_MS, vec![opened])?;
        }
        Ok(())
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
                settled.slices.clone_from(&reserved.slices);
                ended.push(Fact::Settled(settled));
            }
            self.tell(stored.created_ms, vec![Fact::Reserved(reserved)])?;
        }
        for fact in ended {
            self.tell(self.time_ms, vec![fact])?;
        }
        if used.is_empty() { Ok(()) } else { self.tell(self.time_ms, vec![Fact::Used(used)]) }
    }

    fn tell_remembered(
        &mut self,
        holding: &[Stored],
        remembered: &Remembered,
    ) -> Result<(), StoreError> {
        let slots: HashSet<u32> = holding.iter().map(|r| r.body.reserved.id.slot).collect();
        let first = "SELECT min(sequence) FROM reservations WHERE ended_ms > ?1";
        let first: Option<Option<u64>> =
            self.conn.query_row(first, [remembered.from_ms], |r| r.get(0)).optional().doing("restore")?;
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
            let Body { mut reserved, settled } = reservations::read(row).doing("restore")??.body;
            let Some(mut settled) = settled else { continue };
            // A slot that is taken again: the ledger had forgotten this one.
            let account = self.in_use(reserved.account);
            if slots.contains(&reserved.id.slot) || !self.in_use.contains(&account) {
                continue;
            }
            (reserved.account, settled.account) = (account, account);
            let (reserved, settled) = (Box::new(reserved), Box::new(settled));
            let fact = Fact::Remembered { reserved, settled, ended_ms };
            let record = Record { time_ms: self.time_ms, facts: vec![fact] };
            (self.apply)(&record).map_err(StoreError::Apply)?;
        }
        Ok(())
    }
}

/// The most that pending reservations have used in each window.
fn used_at_most(
    holding: &[Stored],
    chains: &BTreeMap<ChainId, Chain>,
) -> HashMap<WindowId, Amounts> {
    let mut used: HashMap<WindowId, Amounts> = HashMap::new();
    for stored in holding {
        let Some(floor) = stored.used else { continue };
        let slices = stored.body.reserved.slices.iter();
        let windows: BTreeSet<WindowId> = slices
            .filter_map(|slice| chains.get(&slice.chain))
            .flat_map(|chain| chain.counted.iter().copied())
            .collect();
        for window in windows {
            let sum = used.entry(window).or_default();
            *sum = sum.checked_add(&floor).unwrap_or(*sum);
        }
    }
    used
}

fn read_account(row: &Row<'_>) -> rusqlite::Result<Account> {
    Ok(Account {
        id: row.get(0)?,
        path: row.get(1)?,
        automatic: row.get(2)?,
        frozen: row.get(3)?,
        reason: row.get(4)?,
        created_ms: row.get(5)?,
    })
}

fn read_budget(row: &Row<'_>) -> rusqlite::Result<Result<Fact, String>> {
    let (unit, kind): (String, String) = (row.get(2)?, row.get(3)?);
    let thresholds: String = row.get(7)?;
    let thresholds: Result<Vec<Threshold>, _> = serde_json::from_str(&thresholds);
    let (Some(unit), Some(kind)) = (Unit::parse(&unit), parse_period(&kind)) else {
        return Ok(Err(format!("unit {unit:?}, period {kind:?}")));
    };
    let thresholds = match thresholds {
        Ok(thresholds) => thresholds,
        Err(error) => return Ok(Err(error.to_string())),
    };
    Ok(Ok(Fact::BudgetSet {
        budget: row.get(0)?,
        account: row.get(1)?,
        unit,
        period: Period { kind, time_zone: row.get(4)?, length_ms: row.get(5)? },
        limit: row.get(6)?,
        thresholds,
        manual: row.get(8)?,
    }))
}
