//! What was spent, stretch by stretch: the history as sums.
//!
//! One query sums one stretch of time, so that a caller may stop between two: a stretch reads every
//! entry in it, and a busy store has millions of them an hour.

use bursar_ledger::Unit;
use rusqlite::Row;

use crate::entries::{EntryKind, TOTAL, total};
use crate::error::{Doing, StoreError};
use crate::reader::{Reader, first_entry_at};

/// What sums are apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apart {
    /// The account that spent, by path.
    Account,
    /// The model that it spent on; empty where none was named.
    Model,
}

impl Reader {
    /// What an account and those below it (empty: all) have spent of a unit from one time on until
    /// before another, by account or model; in no order. What was taken back counts as less.
    pub fn spent(
        &self,
        account: &str,
        unit: Unit,
        (start_ms, end_ms): (i64, i64),
        apart: Apart,
    ) -> Result<Vec<(String, i64)>, StoreError> {
        let first = first_entry_at(&self.conn, start_ms)?;
        let behind = first_entry_at(&self.conn, end_ms)?;
        let (name, join) = match apart {
            Apart::Account => ("a.path", ""),
            Apart::Model => ("r.model", "LEFT JOIN reservations r ON r.sequence = e.reservation"),
        };
        let only = "path = ?3 OR (path > ?3 || '/' AND path < ?3 || '0')"; // as in `reader`
        let only = if account.is_empty() { "?3 = ''" } else { only };
        let sql = format!(
            "SELECT coalesce({name}, ''), {TOTAL} FROM entry e
            JOIN (SELECT id, path FROM accounts WHERE {only}) a ON a.id = e.account {join}
            WHERE e.id >= ?1 AND e.id < ?2 AND +e.unit = {} AND +e.kind = {} GROUP BY 1",
            unit.index(),
            EntryKind::Spend as u8
        );
        let read = |row: &Row<'_>| Ok((row.get(0)?, total(row.get(1)?, row.get(2)?)));
        let query = self.conn.prepare_cached(&sql);
        let sums =
            query.and_then(|mut query| query.query_map((first, behind, account), read)?.collect());
        sums.doing("sum entries")
    }
}
