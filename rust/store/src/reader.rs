//! Reads the history on a connection of its own, while the import goes on.
//!
//! A page is found by the narrowest way there is: a reservation's entries, an account's, or a
//! stretch of all of them. Sees what is imported; a caller who wants more asks
//! `Store::import_through` first.

use std::path::Path;

use bursar_ledger::fact::{AccountId, Reserved, Settled};
use bursar_ledger::{ReservationId, Unit};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params_from_iter};

use crate::database::connect;
use crate::entries::{EntryKind, ROW_BITS};
use crate::error::{Doing, StoreError};
use crate::reservations::{self, Body};

/// With more accounts than this below one, all entries are walked instead of each account's.
const ACCOUNTS_MAX: usize = 256;
/// The accounts of a path and below it: '0' is the character behind '/'.
const BELOW: &str = "path = ? OR (path > ? || '/' AND path < ? || '0')";

/// Which entries; what is `None` or empty lets everything through.
#[derive(Debug, Clone, Default)]
pub struct EntryFilter {
    /// Only this account's and of those below it, by path.
    pub account: Option<String>,
    /// Only this reservation's.
    pub reservation: Option<u64>,
    /// Only of this unit.
    pub unit: Option<Unit>,
    /// Only of these kinds.
    pub kinds: Vec<EntryKind>,
    /// Only from this time on (Unix ms).
    pub start_ms: Option<i64>,
    /// Only before this time (Unix ms).
    pub end_ms: Option<i64>,
    /// The newest first, and behind a cursor those that are older.
    pub newest_first: bool,
}

/// A place between entries: behind one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// Its sequence.
    pub sequence: u64,
    /// Its row within the sequence.
    pub row: u32,
}

/// One movement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryRow {
    /// The record that it belongs to.
    pub sequence: u64,
    /// Its place in the record.
    pub row: u32,
    /// When it happened.
    pub time_ms: i64,
    /// The account's path.
    pub account: String,
    /// The reservation, if any.
    pub reservation: Option<ReservationId>,
    /// The unit; none for freezing.
    pub unit: Option<Unit>,
    /// What moved.
    pub kind: EntryKind,
    /// How much.
    pub amount: i64,
    /// When the windows that it counts in became the account's current ones.
    pub admit_ms: i64,
    /// The model, if any.
    pub model: Option<String>,
    /// What there is to say of it in words, if anything.
    pub detail: Option<String>,
}

impl EntryRow {
    /// The place behind this entry.
    pub fn cursor(&self) -> Cursor {
        Cursor { sequence: self.sequence, row: self.row }
    }
}

/// A reader of the history.
#[derive(Debug)]
pub struct Reader {
    pub(crate) conn: Connection,
}

impl Reader {
    pub(crate) fn open(path: &Path) -> Result<Reader, StoreError> {
        connect(path, false).map(|conn| Reader { conn }).doing("open for reading")
    }

    /// The entries behind a cursor that pass the filter, in the order in which they happened, or
    /// the newest first.
    pub fn entries(
        &self,
        filter: &EntryFilter,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Vec<EntryRow>, StoreError> {
        let mut page = Page::new(&self.conn, filter, after, limit)?;
        let Some(account) = &filter.account else { return page.read(None) };
        let accounts = self.below(account)?;
        if accounts.len() > ACCOUNTS_MAX || filter.reservation.is_some() {
            // Asked of each entry: to gather the accounts first takes longer the more there are.
            page.also(&format!("(SELECT {BELOW} FROM accounts WHERE id = e.account)"));
            page.values.extend([(); 3].map(|()| Value::Text(account.clone())));
            return page.read(None);
        }
        let mut rows = Vec::new();
        for account in accounts {
            rows.extend(page.read(Some(account))?);
            rows.sort_unstable_by_key(EntryRow::cursor);
            if filter.newest_first {
                rows.reverse();
            }
            rows.truncate(limit);
            // A full page: what lies behind its last need not be looked at.
            if let Some(last) = rows.get(limit.wrapping_sub(1)) {
                let end = if filter.newest_first { &mut page.after } else { &mut page.before };
                *end = id_of(last.cursor());
            }
        }
        Ok(rows)
    }

    /// The accounts of a path and below it, retired ones included; one more than the most, if so
    /// many.
    fn below(&self, path: &str) -> Result<Vec<i64>, StoreError> {
        let most = ACCOUNTS_MAX + 1;
        let query = format!("SELECT id FROM accounts WHERE {BELOW} LIMIT {most}");
        let query = self.conn.prepare_cached(&query);
        let ids = query.and_then(|mut q| q.query_map([path; 3], |row| row.get(0))?.collect());
        ids.doing("read accounts")
    }

    /// An ended reservation that is not in memory any more: as it was reserved (without slices),
    /// what its settlements come to, and when it began.
    pub fn reservation(
        &self,
        sequence: u64,
    ) -> Result<Option<(Reserved, Settled, i64)>, StoreError> {
        let Some(stored) = reservations::find(&self.conn, sequence)? else { return Ok(None) };
        let created_ms = stored.created_ms;
        let Body { mut reserved, settled } = stored.body;
        reserved.slices.clear();
        Ok(settled.map(|settled| (reserved, settled, created_ms)))
    }

    /// The path of an account, retired ones included.
    pub fn account(&self, id: AccountId) -> Result<Option<String>, StoreError> {
        let query = self.conn.prepare_cached("SELECT path FROM accounts WHERE id = ?1");
        let path = query.and_then(|mut q| q.query_row([id], |row| row.get(0)).optional());
        path.doing("read an account")
    }
}

fn id_of(cursor: Cursor) -> i64 {
    let id = cursor.sequence.checked_mul(1 << ROW_BITS);
    let id = id.and_then(|id| id.checked_add(u64::from(cursor.row)));
    id.and_then(|id| i64::try_from(id).ok()).unwrap_or(i64::MAX)
}

/// One query for a page.
struct Page<'a> {
    conn: &'a Connection,
    conditions: String,
    values: Vec<Value>,
    after: i64,
    before: i64,
    order: &'static str,
    limit: i64,
}

impl<'a> Page<'a> {
    fn new(
        conn: &'a Connection,
        filter: &EntryFilter,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Page<'a>, StoreError> {
        let (newer, older) = if filter.newest_first { (None, after) } else { (after, None) };
        let mut page = Page {
            conn,
            conditions: String::new(),
            values: Vec::new(),
            after: newer.map_or(-1, id_of),
            before: older.map_or(i64::MAX, id_of),
            order: if filter.newest_first { "DESC" } else { "ASC" },
            limit: i64::try_from(limit).unwrap_or(i64::MAX),
        };
        if let Some(start_ms) = filter.start_ms {
            page.after = page.after.max(first_entry_at(conn, start_ms)? - 1);
        }
        if let Some(end_ms) = filter.end_ms {
            page.before = page.before.min(first_entry_at(conn, end_ms)?);
        }
        if let Some(reservation) = filter.reservation {
            page.also("e.reservation = ?");
            page.values.push(Value::Integer(i64::try_from(reservation).unwrap_or(-1)));
        }
        if let Some(unit) = filter.unit {
            page.also(&format!("+e.unit = {}", unit.index()));
        }
        if !filter.kinds.is_empty() {
            let kinds = filter.kinds.iter().map(|kind| (*kind as u8).to_string());
            page.also(&format!("+e.kind IN ({})", kinds.collect::<Vec<_>>().join(",")));
        }
        Ok(page)
    }

    fn also(&mut self, condition: &str) {
        self.conditions.push_str(" AND ");
        self.conditions.push_str(condition);
    }

    fn read(&self, account: Option<i64>) -> Result<Vec<EntryRow>, StoreError> {
        let only = if account.is_some() { " AND e.account = ?" } else { "" };
        let sql = format!(
            "SELECT e.id, e.time_ms, a.path, e.reservation, r.slot, e.unit, e.kind, e.amount,
                coalesce(c.time_ms, e.time_ms), r.model, d.text
            FROM entry e
            LEFT JOIN accounts a ON a.id = e.account
            LEFT JOIN chains c ON c.id = e.chain
            LEFT JOIN reservations r ON r.sequence = e.reservation
            LEFT JOIN details d ON d.entry = e.id
            WHERE e.id > ? AND e.id < ?{}{only} ORDER BY e.id {} LIMIT ?",
            self.conditions, self.order
        );
        let bounds = [Value::Integer(self.after), Value::Integer(self.before)];
        let account = account.map(Value::Integer);
        let values = bounds.into_iter().chain(self.values.iter().cloned()).chain(account);
        let values = values.chain([Value::Integer(self.limit)]);
        let mut query = self.conn.prepare_cached(&sql).doing("prepare entries")?;
        let mut rows = query.query(params_from_iter(values)).doing("read entries")?;
        let mut page = Vec::new();
        while let Some(row) = rows.next().doing("read entries")? {
            page.push(read_entry(row).doing("read entries")?);
        }
        Ok(page)
    }
}

fn read_entry(row: &Row<'_>) -> rusqlite::Result<EntryRow> {
    let id: u64 = row.get(0)?;
    let sequence: Option<u64> = row.get(3)?;
    let slot: Option<u32> = row.get(4)?;
    let unit: Option<usize> = row.get(5)?;
    let kind: u8 = row.get(6)?;
    Ok(EntryRow {
        sequence: id >> ROW_BITS,
        row: u32::try_from(id & ((1 << ROW_BITS) - 1)).expect("16 bits"),
        time_ms: row.get(1)?,
        account: row.get::<_, Option<String>>(2)?.unwrap_or_default(),
        reservation: sequence
            .map(|sequence| ReservationId { sequence, slot: slot.unwrap_or_default() }),
        unit: unit.and_then(|unit| Unit::ALL.get(unit).copied()),
        kind: EntryKind::of(kind)
            .ok_or(rusqlite::Error::IntegralValueOutOfRange(6, kind.into()))?,
        amount: row.get(7)?,
        admit_ms: row.get(8)?,
        model: row.get(9)?,
        detail: row.get(10)?,
    })
}

/// The id of the first entry at or after a time, found by bisection: times never fall.
pub(crate) fn first_entry_at(conn: &Connection, time_ms: i64) -> Result<i64, StoreError> {
    let find = || -> rusqlite::Result<i64> {
        let mut at = conn
            .prepare_cached("SELECT id, time_ms FROM entry WHERE id >= ?1 ORDER BY id LIMIT 1")?;
        let last: Option<i64> = conn.query_row("SELECT max(id) FROM entry", (), |r| r.get(0))?;
        let (mut low, mut high) = (0, last.map_or(0, |last| last + 1));
        while low < high {
            let middle = low + (high - low) / 2;
            let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
            let found: Option<(i64, i64)> = at.query_row([middle], read).optional()?;
            match found {
                Some((id, found_ms)) if found_ms < time_ms => low = id + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    };
    find().doing("find a time")
}
