//! Whether the database agrees with itself: every window against the entries that count in it.

use std::path::Path;

use bursar_ledger::fact::WindowId;
use rusqlite::Connection;
use serde::Serialize;

use crate::database::connect;
use crate::entries::EntryKind;
use crate::error::{Doing, StoreError};

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

/// Compares every window of the store at `path` with its entries. Changes nothing; the store may be
/// open meanwhile. Empty: all is well.
pub fn check_store(path: &Path) -> Result<Vec<Mismatch>, StoreError> {
    check(&connect(path, false).doing("open for checking")?)
}

/// One statement, so it sees one moment.
pub(crate) fn check(conn: &Connection) -> Result<Vec<Mismatch>, StoreError> {
    let sql = format!(
        "WITH counted AS (
            SELECT w.id, sum(e.amount) AS amount
            FROM (SELECT chain, unit, sum(amount) AS amount FROM entry
                    WHERE kind = {} GROUP BY chain, unit) e
            JOIN chain_windows c ON c.chain = e.chain
            JOIN windows w ON w.id = c.window
            JOIN budgets b ON b.id = w.budget
            JOIN units u ON u.name = b.unit AND u.id = e.unit
            GROUP BY w.id)
        SELECT w.id, w.spent - w.pruned, coalesce(c.amount, 0)
        FROM windows w LEFT JOIN counted c ON c.id = w.id
        WHERE w.spent - w.pruned <> coalesce(c.amount, 0) ORDER BY w.id",
        EntryKind::Spend as u8
    );
    let read = |row: &rusqlite::Row<'_>| {
        Ok(Mismatch { window: row.get(0)?, spent: row.get(1)?, entries: row.get(2)? })
    };
    let rows = conn.prepare(&sql).and_then(|mut rows| rows.query_map((), read)?.collect());
    rows.doing("compare windows with entries")
}
