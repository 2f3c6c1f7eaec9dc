//! What `bursar doctor` tells of a store: everything that recovery looks at, and changes nothing.

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use serde::Serialize;

use crate::check::{Mismatch, check, check_reservations};
use crate::database::{Looked, Meta};
use crate::error::{Doing, StoreError};
use crate::files::{Lock, log_folder};
use crate::migrations::SCHEMA_VERSION;
use crate::open::{Found, find};
use crate::recovery::{Case, Decision, Observed};
use crate::scan::Scan;

/// How often a store in use is looked at until it is well.
const TRIES: usize = 20;

/// The state of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// The store.
    pub path: PathBuf,
    /// The process that has it open. Then the log may grow while it is read, and the recovery row
    /// is that of a crash at this moment.
    pub in_use_by: Option<String>,
    /// The row of the recovery table.
    pub case: Case,
    /// What opening it would do.
    pub decision: Decision,
    /// Why it would be refused; absent when it would not.
    pub refusal: Option<String>,
    /// What the decision rests on.
    pub observed: Observed,
    /// The log.
    pub log: Scan,
    /// The database; absent when it cannot be read.
    pub database: Option<DatabaseReport>,
}

/// The state of the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatabaseReport {
    /// The version of its tables; an older one is brought up to date when it is opened.
    pub version: i64,
    /// The newest version that this release knows.
    pub newest_version: i64,
    /// Names the store for good.
    pub store_id: u32,
    /// The last log record that is in the database.
    pub applied: u64,
    /// The latest time that was recorded.
    pub last_time_ms: i64,
    /// Whether the last session closed it.
    pub clean: bool,
    /// Rows.
    pub entries: u64,
    /// Reservations that hold something.
    pub holding: u64,
    /// What SQLite finds wrong with the file; empty: nothing.
    pub damage: Vec<String>,
    /// Windows that do not agree with their entries; empty: all do.
    pub mismatches: Vec<Mismatch>,
    /// Reservations that do not agree with their entries, in words; empty: all do.
    pub odd_reservations: Vec<String>,
}

impl Diagnosis {
    /// Whether the store opens and agrees with itself.
    pub fn is_well(&self) -> bool {
        self.refusal.is_none()
            && self.database.as_ref().is_none_or(|found| {
                found.damage.is_empty()
                    && found.mismatches.is_empty()
                    && found.odd_reservations.is_empty()
            })
    }
}

/// Looks at the store at `path`.
pub fn diagnose(path: &Path) -> Result<Diagnosis, StoreError> {
    let folder = log_folder(path);
    let in_use_by = Lock::held_by(&folder);
    let found =
        if in_use_by.is_some() { find_in_use(path, &folder)? } else { find(path, &folder)? };
    let refusal = (found.decision == Decision::Refuse).then(|| found.why());
    let database = match found.looked {
        Looked::Present(conn, meta) => Some(report(&conn, &meta)?),
        _ => None,
    };
    Ok(Diagnosis {
        path: path.to_owned(),
        in_use_by,
        case: found.case,
        decision: found.decision,
        refusal,
        observed: found.observed,
        log: found.scan,
        database,
    })
}

/// Database and log are looked at one after the other, and the import may delete a segment between:
/// what is well once is well.
fn find_in_use(path: &Path, folder: &Path) -> Result<Found, StoreError> {
    let mut found = find(path, folder);
    for _ in 0..TRIES {
        if found.as_ref().is_ok_and(|found| found.decision != Decision::Refuse) {
            break;
        }
        found = find(path, folder);
    }
    found
}

fn report(conn: &Connection, meta: &Meta) -> Result<DatabaseReport, StoreError> {
    // Of one moment, however long it takes.
    let _moment = conn.unchecked_transaction().doing("begin to read")?;
    let count = |sql| conn.query_row(sql, (), |row| row.get(0)).doing("count rows");
    let damage: Vec<String> = conn
        .prepare("PRAGMA integrity_check")
        .and_then(|mut rows| rows.query_map((), |row| row.get(0))?.collect())
        .doing("check the file")?;
    let damage: Vec<String> = damage.into_iter().filter(|line| line != "ok").collect();
    let well = damage.is_empty();
    Ok(DatabaseReport {
        version: meta.version,
        newest_version: SCHEMA_VERSION,
        store_id: meta.store_id,
        applied: meta.applied,
        last_time_ms: meta.time_ms,
        clean: meta.clean,
        entries: if well { count("SELECT count(*) FROM entry")? } else { 0 },
        holding: if well { count("SELECT count(*) FROM reservations WHERE holds = 1")? } else { 0 },
        mismatches: if well { check(conn)? } else { Vec::new() },
        odd_reservations: if well { check_reservations(conn)? } else { Vec::new() },
        damage,
    })
}
