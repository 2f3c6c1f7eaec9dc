//! Whether the database agrees with itself: every window against the entries that count in it, and
//! every pending reservation against its own.

use std::fmt;
use std::path::Path;

use bursar_ledger::fact::WindowId;
use bursar_ledger::{Amounts, Unit};
use rusqlite::Connection;
use serde::Serialize;

use crate::database::connect;
use crate::entries::{EntryKind, total};
use crate::error::{Doing, StoreError};
use crate::reservations::{COLUMNS, Stored, read};

/// A window that does not agree with its entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mismatch {
    /// The window.
    pub window: WindowId,
    /// What it says was spent, without what retention has deleted.
    pub spent: i64,
    /// What its entries say.
    pub entries: i64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch { window, spent, entries } = self;
        write!(f, "window {window} says that {spent} was spent, its entries say {entries}")
    }
}

/// Compares every window of the store at `path` with its entries. Changes nothing; the store may be
/// open meanwhile. Empty: all is well.
pub fn check_store(path: &Path) -> Result<Vec<Mismatch>, StoreError> {
    check(&connect(path, false).doing("open for checking")?)
}

/// One statement, so it sees one moment. A rolling window whose sum of all time has no room left says
/// nothing.
pub(crate) fn check(conn: &Connection) -> Result<Vec<Mismatch>, StoreError> {
    let sql = format!(
        "WITH counted AS (
            SELECT w.id, sum(e.high) AS high, sum(e.low) AS low
            FROM (SELECT chain, unit, sum(amount >> 32) AS high, sum(amount & 4294967295) AS low
                    FROM entry WHERE kind = {} GROUP BY chain, unit) e
            JOIN chain_windows c ON c.chain = e.chain
            JOIN windows w ON w.id = c.window
            JOIN budgets b ON b.id = w.budget
            JOIN units u ON u.name = b.unit AND u.id = e.unit
            GROUP BY w.id)
        SELECT w.id, w.spent, w.pruned, coalesce(c.high, 0), coalesce(c.low, 0)
        FROM windows w LEFT JOIN counted c ON c.id = w.id
        WHERE w.spent < {} ORDER BY w.id",
        EntryKind::Spend as u8,
        i64::MAX
    );
    let read = |row: &rusqlite::Row<'_>| {
        let (spent, pruned): (i64, i64) = (row.get(1)?, row.get(2)?);
        let entries = total(row.get(3)?, row.get(4)?);
        Ok(Mismatch { window: row.get(0)?, spent: spent.saturating_sub(pruned), entries })
    };
    let rows = conn.prepare(&sql).and_then(|mut rows| {
        let windows = rows.query_map((), read)?;
        windows.filter(|row| !row.as_ref().is_ok_and(|one| one.spent == one.entries)).collect()
    });
    rows.doing("compare windows with entries")
}

/// Compares every pending reservation with its entries, in words. Left out are those whose entries
/// do not say all: nested ones and their parents, which carve from each other, and those that are
/// older than what retention has left.
pub(crate) fn check_reservations(conn: &Connection) -> Result<Vec<String>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS}, (SELECT json_group_array(json_array(unit, total)) FROM
            (SELECT e.unit, sum(CASE e.kind WHEN {} THEN -e.amount ELSE e.amount END) AS total
                FROM entry e WHERE e.reservation = r.sequence AND e.kind IN ({}, {}) GROUP BY 1))
        FROM reservations r
        WHERE holds = 1 AND state = 'pending' AND parent IS NULL
            AND created_ms > (SELECT time_ms FROM entry ORDER BY id LIMIT 1)
            AND sequence NOT IN (SELECT parent FROM reservations WHERE parent IS NOT NULL)",
        EntryKind::Return as u8,
        EntryKind::Hold as u8,
        EntryKind::Return as u8,
    );
    let mut rows = conn.prepare(&sql).doing("compare reservations")?;
    let mut rows = rows.query(()).doing("compare reservations")?;
    let mut odd = Vec::new();
    while let Some(row) = rows.next().doing("compare reservations")? {
        let entries: String = row.get(5).doing("compare reservations")?;
        let Stored { body, .. } = match read(row).doing("compare reservations")? {
            Ok(stored) => stored,
            Err(error) => {
                odd.push(error.to_string());
                continue;
            }
        };
        let entries: Vec<(usize, i64)> = serde_json::from_str(&entries)
            .map_err(|error| StoreError::malformed("the sums of entries", &error))?;
        let units =
            entries.into_iter().filter_map(|(unit, sum)| Some((*Unit::ALL.get(unit)?, sum)));
        let (entries, sequence) = (units.collect::<Amounts>(), body.reserved.id.sequence);
        let mut slices = body.reserved.slices.iter();
        let held = slices.try_fold(Amounts::ZERO, |sum, slice| sum.checked_add(&slice.held));
        if held != Some(entries) {
            odd.push(format!("reservation {sequence} holds other amounts than its entries say"));
        }
    }
    Ok(odd)
}
