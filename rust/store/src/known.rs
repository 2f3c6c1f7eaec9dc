//! Chains and windows that the import has read and keeps.
//!
//! A cache: what is in it is in the database, except what windows of the group at hand have spent,
//! which the group writes at its end. Forgotten whole when an import fails or retention has
//! deleted.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use bursar_ledger::fact::{AccountId, ChainId, WindowId};
use bursar_ledger::rolling::bucket_ms;
use bursar_ledger::{PeriodKind, Unit};
use rusqlite::{Connection, OptionalExtension, Row};

use crate::error::{Doing, StoreError};

/// More chains or windows than this are not kept.
const KNOWN_MAX: usize = 100_000;

/// What is known.
#[derive(Default)]
pub(crate) struct Known {
    chains: HashMap<ChainId, Arc<Chain>>,
    windows: HashMap<WindowId, Window>,
}

/// Where a charge counts.
pub(crate) struct Chain {
    /// Every window that a spending counts in, those of the base included.
    pub(crate) windows: Vec<(WindowId, Unit)>,
    /// The units that the base covers, one bit per unit index.
    pub(crate) base_units: u8,
}

/// What the import has to know of a window.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    pub(crate) account: AccountId,
    pub(crate) unit: Unit,
    /// The length of a rolling window's bucket; 0 for other windows.
    pub(crate) bucket_ms: i64,
    pub(crate) spent: i64,
}

impl Known {
    /// Forgets all when it is too much. Not within a group.
    pub(crate) fn bound(&mut self) {
        if self.chains.len().max(self.windows.len()) > KNOWN_MAX {
            *self = Known::default();
        }
    }

    /// A chain. One that retention has deleted counts nowhere.
    pub(crate) fn chain(
        &mut self,
        conn: &Connection,
        id: ChainId,
    ) -> Result<Arc<Chain>, StoreError> {
        if let Some(chain) = self.chains.get(&id) {
            return Ok(Arc::clone(chain));
        }
        let units = "SELECT base_units FROM chains WHERE id = ?1";
        let units: Option<Option<u8>> = conn
            .prepare_cached(units)
            .and_then(|mut query| query.query_row([id], |row| row.get(0)).optional())
            .doing("read a chain")?;
        let ids: Vec<WindowId> = conn
            .prepare_cached("SELECT window FROM chain_windows WHERE chain = ?1")
            .and_then(|mut query| query.query_map([id], |row| row.get(0))?.collect())
            .doing("read a chain's windows")?;
        let mut windows = Vec::with_capacity(ids.len());
        for window in ids {
            if let Some(Window { unit, .. }) = self.window(conn, window)? {
                windows.push((window, *unit));
            }
        }
        let chain = Arc::new(Chain { windows, base_units: units.flatten().unwrap_or(0) });
        self.chains.insert(id, Arc::clone(&chain));
        Ok(chain)
    }

    /// A window, unless retention has deleted it.
    pub(crate) fn window(
        &mut self,
        conn: &Connection,
        id: WindowId,
    ) -> Result<Option<&mut Window>, StoreError> {
        const QUERY: &str = "SELECT b.account, b.unit, b.period, b.length_ms, w.spent
            FROM windows w JOIN budgets b ON b.id = w.budget WHERE w.id = ?1";
        let vacant = match self.windows.entry(id) {
            Entry::Occupied(known) => return Ok(Some(known.into_mut())),
            Entry::Vacant(vacant) => vacant,
        };
        let found = conn.prepare_cached(QUERY);
        let found = found.and_then(|mut query| query.query_row([id], read).optional());
        let Some((window, unit)) = found.doing("read a window")? else { return Ok(None) };
        let unit = unit.ok_or_else(|| StoreError::malformed("a budget", "unknown unit"))?;
        Ok(Some(vacant.insert(Window { unit, ..window })))
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<(Window, Option<Unit>)> {
    let rolling = row.get_ref(2)?.as_str()? == period_name(PeriodKind::Rolling);
    let window = Window {
        account: row.get(0)?,
        unit: Unit::Tokens,
        bucket_ms: if rolling { bucket_ms(row.get(3)?) } else { 0 },
        spent: row.get(4)?,
    };
    Ok((window, Unit::parse(row.get_ref(1)?.as_str()?)))
}

/// The name of a kind of period in the database.
pub(crate) fn period_name(kind: PeriodKind) -> &'static str {
    match kind {
        PeriodKind::Total => "total",
        PeriodKind::Hour => "hour",
        PeriodKind::Day => "day",
        PeriodKind::Week => "week",
        PeriodKind::Month => "month",
        PeriodKind::Rolling => "rolling",
    }
}

/// The kind of period of that name.
pub(crate) fn parse_period(name: &str) -> Option<PeriodKind> {
    use PeriodKind::{Day, Hour, Month, Rolling, Total, Week};
    [Total, Hour, Day, Week, Month, Rolling].into_iter().find(|kind| period_name(*kind) == name)
}
