//! The versions of the tables, and the steps from one to the next.
//!
//! A store of an earlier version is brought up to date when it is opened, in one transaction, after
//! a copy of it as it was is on the disk beside it (`copy::keep_old`). A store of a later version is
//! refused. Steps are never changed: what they make of a store is what later steps begin with.
//!
//! | version | what came, and why |
//! |---|---|
//! | 1 | the first; later builds of it added to it, and to the bytes of reservations, untold |
//! | 2 | `details` of entries, `reservations_parent` (finding children took a scan), one layout |

use bursar_ledger::Unit;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use crate::entries::EntryKind;
use crate::error::{Doing, StoreError};
use crate::older::read_body;

/// The steps: the first leads from version 1 to 2, and so on.
const STEPS: [Step; 1] = [to_2];
/// The version of the tables that this code writes, and the newest that it reads.
pub(crate) const SCHEMA_VERSION: i64 = 2;
/// How people read a store.
pub(crate) const VIEWS: &str = include_str!("views.sql");

type Step = fn(&Transaction<'_>) -> Result<(), StoreError>;

/// Brings a store of an earlier version up to date, or leaves it as it is.
pub(crate) fn migrate(conn: &Connection, version: i64) -> Result<(), StoreError> {
    let tx = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)
        .doing("begin the upgrade")?;
    for (step, from) in STEPS.iter().zip(1..) {
        if from >= version {
            step(&tx)?;
        }
    }
    tx.execute_batch(VIEWS).doing("make the views")?;
    add_names(&tx).doing("name units and kinds")?;
    tx.pragma_update(None, "user_version", SCHEMA_VERSION).doing("note the version")?;
    tx.commit().doing("end the upgrade")
}

/// Names the units and the kinds of entries; a store of an earlier build lacks the newest.
pub(crate) fn add_names(conn: &Connection) -> rusqlite::Result<()> {
    let mut add = conn.prepare("INSERT OR IGNORE INTO units VALUES (?1, ?2)")?;
    for unit in Unit::ALL {
        add.execute((unit.index(), unit.name()))?;
    }
    let mut add = conn.prepare("INSERT OR IGNORE INTO kinds VALUES (?1, ?2)")?;
    EntryKind::ALL.into_iter().try_for_each(|kind| add.execute((kind as u8, kind.name())).map(drop))
}

fn to_2(tx: &Transaction<'_>) -> Result<(), StoreError> {
    tx.execute_batch(
        "CREATE TABLE IF NOT EXISTS details (entry INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT;
        CREATE INDEX IF NOT EXISTS reservations_parent
            ON reservations (parent) WHERE holds = 1 AND parent IS NOT NULL;",
    )
    .doing("make the tables of version 2")?;
    let mut select = tx
        .prepare("SELECT sequence, body FROM reservations WHERE sequence > ?1 ORDER BY sequence")
        .doing("read reservations")?;
    let mut rows = select.query([-1]).doing("read reservations")?;
    let mut update = tx
        .prepare("UPDATE reservations SET body = ?2 WHERE sequence = ?1")
        .doing("write reservations")?;
    while let Some(row) = rows.next().doing("read reservations")? {
        let read = || Ok((row.get::<_, i64>(0)?, row.get_ref(1)?.as_blob()?));
        let (sequence, old) = read().doing("read reservations")?;
        let bad = |reason: &str| StoreError::malformed(format!("reservation {sequence}"), reason);
        let body = read_body(old).ok_or_else(|| bad("no layout of version 1 fits it"))?;
        let new = postcard::to_allocvec(&body).map_err(|error| bad(&error.to_string()))?;
        if new != old {
            update.execute(params![sequence, new]).doing("write reservations")?;
        }
    }
    Ok(())
}
