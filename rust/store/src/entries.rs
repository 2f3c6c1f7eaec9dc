//! Entries: the rows that facts turn into.
//!
//! Owns the kinds of movements and the numbering of rows. A row's id is its record's sequence and
//! its place in the record, so ids rise with time and rows of one record stay together.

use bursar_ledger::Unit;
use bursar_ledger::fact::{AccountId, ChainId};
use rusqlite::Connection;

use crate::error::{Doing, StoreError};

/// Of entries `e`: how much they come to, in halves that [`total`] puts together. SQLite's own sum
/// fails beyond 64 bits, which two entries may reach.
pub(crate) const TOTAL: &str = "sum(e.amount >> 32), sum(e.amount & 4294967295)";

/// The sum of which these are the halves; the nearest number of 64 bits where it is none.
pub(crate) fn total(high: i64, low: i64) -> i64 {
    let sum = (i128::from(high) << 32) + i128::from(low);
    i64::try_from(sum).unwrap_or(if sum < 0 { i64::MIN } else { i64::MAX })
}
/// The bits of an entry's id that number the rows of one record.
pub(crate) const ROW_BITS: u32 = 16;
const MAX_ROWS: u64 = 1 << ROW_BITS;

/// What moved. The discriminant is stored: append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[repr(u8)]
pub enum EntryKind {
    /// Held.
    Hold = 1,
    /// Given back from a hold.
    Return = 2,
    /// Spent for good; negative where a correction takes it back.
    Spend = 3,
    /// The part of a spend that passed the limit; counted in the spend as well.
    Overdraft = 4,
    /// A limit was set to the amount.
    Limit = 5,
    /// An account was frozen.
    Freeze = 6,
    /// A freeze was ended.
    Unfreeze = 7,
    /// A threshold was crossed, or all of the limit spent; the amount is the share in thousandths.
    Crossing = 8,
    /// Moved from a parent reservation's hold to a nested one's.
    Carve = 9,
    /// An account was found to have run away; the amount is the figure, the detail says the rest.
    Runaway = 10,
    /// A Commit said that the work of its reservation succeeded.
    Success = 11,
    /// A Commit said that the work of its reservation failed.
    Failure = 12,
    /// An operator changed something; the detail says who, and what.
    Operated = 13,
}

impl EntryKind {
    /// Every kind.
    pub const ALL: [EntryKind; 13] = [
        EntryKind::Hold,
        EntryKind::Return,
        EntryKind::Spend,
        EntryKind::Overdraft,
        EntryKind::Limit,
        EntryKind::Freeze,
        EntryKind::Unfreeze,
        EntryKind::Crossing,
        EntryKind::Carve,
        EntryKind::Runaway,
        EntryKind::Success,
        EntryKind::Failure,
        EntryKind::Operated,
    ];

    /// The name in the database.
    pub fn name(self) -> &'static str {
        match self {
            EntryKind::Hold => "hold",
            EntryKind::Return => "return",
            EntryKind::Spend => "spend",
            EntryKind::Overdraft => "overdraft",
            EntryKind::Limit => "limit",
            EntryKind::Freeze => "freeze",
            EntryKind::Unfreeze => "unfreeze",
            EntryKind::Crossing => "crossing",
            EntryKind::Carve => "carve",
            EntryKind::Runaway => "runaway",
            EntryKind::Success => "success",
            EntryKind::Failure => "failure",
            EntryKind::Operated => "operated",
        }
    }

    /// The kind of that name.
    pub fn parse(name: &str) -> Option<EntryKind> {
        EntryKind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    pub(crate) fn of(stored: u8) -> Option<EntryKind> {
        EntryKind::ALL.into_iter().find(|kind| *kind as u8 == stored)
    }
}

/// What a row is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About {
    pub(crate) account: AccountId,
    pub(crate) reservation: Option<u64>,
    pub(crate) chain: Option<ChainId>,
}

/// Writes the rows of one record.
pub(crate) struct Rows<'a> {
    conn: &'a Connection,
    insert: rusqlite::CachedStatement<'a>,
    seq: u64,
    time_ms: i64,
    next: u64,
}

impl<'a> Rows<'a> {
    pub(crate) fn new(conn: &'a Connection) -> Result<Rows<'a>, StoreError> {
        let insert = "INSERT INTO entry VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        let insert = conn.prepare_cached(insert).doing("prepare entries")?;
        Ok(Rows { conn, insert, seq: 0, time_ms: 0, next: 0 })
    }

    /// Goes on to the next record.
    pub(crate) fn begin(&mut self, seq: u64, time_ms: i64) {
        (self.seq, self.time_ms, self.next) = (seq, time_ms, 0);
    }

    pub(crate) fn push(
        &mut self,
        kind: EntryKind,
        about: About,
        unit: Option<Unit>,
        amount: i64,
    ) -> Result<(), StoreError> {
        if self.next == MAX_ROWS {
            let what = format!("log record {}", self.seq);
            return Err(StoreError::malformed(what, "it has more movements than a record can"));
        }
        let id = self.seq << ROW_BITS | self.next;
        self.next += 1;
        let About { account, reservation, chain } = about;
        let unit = unit.map(Unit::index);
        let kind = kind as u8;
        self.insert
            .execute((id, self.time_ms, account, reservation, chain, unit, kind, amount))
            .doing("add an entry")
            .map(|_| ())
    }

    /// Says more of the row before.
    pub(crate) fn detail(&self, text: &str) -> Result<(), StoreError> {
        let id = self.seq << ROW_BITS | self.next.saturating_sub(1);
        let insert = self.conn.prepare_cached("INSERT INTO details VALUES (?1, ?2)");
        insert.and_then(|mut insert| insert.execute((id, text))).doing("add a detail").map(|_| ())
    }
}
