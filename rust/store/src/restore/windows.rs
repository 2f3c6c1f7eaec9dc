//! Restoring budgets, windows and chains: what limits, what was spent, where charges count.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bursar_ledger::fact::{BudgetId, ChainId, Fact, WindowId};
use bursar_ledger::rolling::bucket_ms;
use bursar_ledger::{Amounts, Period, Threshold, Unit, marks};
use rusqlite::{Row, params};

use super::{Chain, NO_TIME_MS, Restore};
use crate::error::{Doing, StoreError};
use crate::import::first_live_ms;
use crate::known::parse_period;
use crate::reservations::Stored;

/// What the standing of a budget's windows depends on.
pub(super) struct Budget {
    unit: Unit,
    /// Of a rolling period; else 0.
    length_ms: i64,
    /// (share in thousandths, amount from which it is crossed)
    marks: Vec<(u16, i64)>,
}

impl Restore<'_> {
    pub(super) fn tell_budgets(&mut self) -> Result<(), StoreError> {
        const QUERY: &str = "SELECT b.id, b.account, b.unit, b.period, b.time_zone, b.length_ms,
            b.limit_amount, b.thresholds, b.manual
            FROM accounts a JOIN budgets b ON b.account = a.id
            WHERE a.retired_ms IS NULL ORDER BY b.id";
        for (budget, fact) in self.select(QUERY, (), |row| Ok((row.get(0)?, read_budget(row)?)))? {
            let fact =
                fact.map_err(|reason| StoreError::malformed(format!("budget {budget}"), &reason))?;
            if let Fact::BudgetSet { unit, ref period, limit, ref thresholds, .. } = fact {
                let marks =
                    marks(thresholds, limit).map(|(share, mark, _)| (share, mark)).collect();
                let length_ms = period.length_ms;
                self.budgets.insert(budget, Budget { unit, length_ms, marks });
            }
            self.tell(NO_TIME_MS, vec![fact])?;
        }
        Ok(())
    }

    pub(super) fn tell_windows(
        &mut self,
        holding: &[Stored],
        chains: &BTreeMap<ChainId, Chain>,
    ) -> Result<(), StoreError> {
        const ONE: &str = "SELECT id, budget, start_ms, end_ms, spent FROM windows WHERE id = ?1";
        const NEWEST: &str = "SELECT id FROM windows WHERE budget = ?1 ORDER BY id DESC LIMIT 1";
        let read =
            |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?));
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
            WHERE window = ?1 AND start_ms >= ?2 AND spent > 0 ORDER BY start_ms";
        let from_ms = first_live_ms(self.time_ms, bucket_ms(*length_ms));
        let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
        let buckets: Vec<(i64, i64)> = self.select(live, params![window, from_ms], read)?;
        let spent = buckets.iter().fold(0_i64, |sum, (_, spent)| sum.saturating_add(*spent));
        // What has fallen below its mark since will be told anew: whether it had fallen as far as
        // the ledger asks for is not known, and once too often is better than never.
        let at_most = spent.saturating_add(used.map_or(0, |used| used.get(*unit)));
        fired.retain(|share| marks.iter().any(|(of, mark)| of == share && *mark <= at_most));
        Ok(Fact::WindowStood { window, spent, fired, buckets })
    }

    pub(super) fn tell_chains(
        &mut self,
        chains: &BTreeMap<ChainId, Chain>,
    ) -> Result<(), StoreError> {
        for (id, chain) in chains {
            // A window is missing only when its account has retired, and then nothing is held in
            // it.
            let query = "SELECT budget FROM windows WHERE id = ?1";
            let mut windows = Vec::with_capacity(chain.windows.len());
            for window in &chain.windows {
                let budget = self.select(query, [window], |row| row.get::<_, BudgetId>(0))?;
                if budget.first().is_some_and(|budget| self.budgets.contains_key(budget)) {
                    windows.push(*window);
                }
            }
            let account = self.in_use(chain.account);
            if account != chain.account {
                // It goes on to charge by this chain, which must not be over with the other.
                let passed_on = "UPDATE chains SET account = ?2 WHERE id = ?1";
                self.conn.execute(passed_on, params![id, account]).doing("pass a chain on")?;
            }
            let opened = Fact::ChainOpened { chain: *id, account, windows, base: chain.base };
            self.tell(NO_TIME_MS, vec![opened])?;
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
