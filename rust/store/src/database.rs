//! The SQLite file: creation, version, and the one row about the store itself.
//!
//! Says what a file is without changing it (`look`), makes a new one (`create`), and sets a
//! connection up. What the tables mean is written in `schema.sql`.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::time::Duration;

use bursar_ledger::HighIds;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params,
};

use crate::config::Durability;
use crate::error::{Doing, StoreError};
use crate::migrations::{SCHEMA_VERSION, VIEWS, add_names};
use crate::recovery::Database;

/// The schema, with its documentation.
const SCHEMA: &str = include_str!("schema.sql");
/// Tells a store from other SQLite files: "BRSR".
const APPLICATION_ID: i64 = 0x4252_5352;
/// How long to wait for somebody else's lock on the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// The WAL is brought into the file once it has this many pages of 4 KiB.
const CHECKPOINT_PAGES: i64 = 4_000;

/// What the database knows about the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Of the tables: not a later one than this code's.
    pub(crate) version: i64,
    pub(crate) store_id: u32,
    /// The last log record that is in the database.
    pub(crate) applied: u64,
    /// The latest time that was recorded.
    pub(crate) time_ms: i64,
    pub(crate) clean: bool,
    /// Of the last session.
    pub(crate) memory: bool,
    /// The highest ids ever given out.
    pub(crate) high: HighIds,
}

/// What a database file is.
#[derive(Debug)]
pub(crate) enum Looked {
    /// None, or an empty one, open if there is a file.
    Absent,
    /// Why it is not a store.
    Unreadable(String),
    /// Its schema version.
    Newer(i64),
    /// A store.
    Present(Connection, Meta),
}

impl Looked {
    /// The same as the recovery table sees it.
    pub(crate) fn kind(&self) -> Database {
        match self {
            Looked::Absent => Database::Absent,
            Looked::Unreadable(_) => Database::Unreadable,
            Looked::Newer(_) => Database::Newer,
            Looked::Present(..) => Database::Present,
        }
    }
}

/// Opens the file and says what it is.
pub(crate) fn look(path: &Path, write: bool) -> Result<Looked, StoreError> {
    if !path.exists() {
        return Ok(Looked::Absent);
    }
    // Not to write at first: what is refused stays as it is, to the byte.
    let looked = connect(path, false).and_then(|conn| look_inside(conn, path));
    let looked = looked.and_then(|looked| match looked {
        Looked::Present(_, meta) if write => Ok(Looked::Present(connect(path, true)?, meta)),
        looked => Ok(looked),
    });
    looked.or_else(|error| match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::CannotOpen) => {
            Err(StoreError::database("open", &error))
        }
        _ => Ok(Looked::Unreadable(error.to_string())),
    })
}

/// Has SQLite undo what a crash left half done, where it cannot read the file before that.
pub(crate) fn undo_unfinished(path: &Path) -> Result<(), StoreError> {
    let read =
        |conn: Connection| conn.query_row("SELECT count(*) FROM sqlite_schema", (), |_| Ok(()));
    let readable = path.exists().then(|| connect(path, false).and_then(read));
    match readable.and_then(Result::err).and_then(|error| error.sqlite_error_code()) {
        Some(ErrorCode::ReadOnly) => connect(path, true).and_then(read).doing("undo a transaction"),
        _ => Ok(()),
    }
}

fn look_inside(conn: Connection, path: &Path) -> rusqlite::Result<Looked> {
    let pragma = |name| conn.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (application, version) = (pragma("application_id")?, pragma("user_version")?);
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", (), |r| r.get(0))?;
    if (application, version, tables) == (0, 0, 0) {
        return Ok(Looked::Absent);
    }
    if application != APPLICATION_ID {
        let reason = format!("{} is an SQLite file, but not of a store", path.display());
        return Ok(Looked::Unreadable(reason));
    }
    if version > SCHEMA_VERSION {
        return Ok(Looked::Newer(version));
    }
    match read_meta(&conn, version)? {
        Some(meta) => Ok(Looked::Present(conn, meta)),
        None => Ok(Looked::Unreadable("its row about the store is missing".into())),
    }
}

fn read_meta(conn: &Connection, version: i64) -> rusqlite::Result<Option<Meta>> {
    conn.query_row("SELECT * FROM meta", (), |row| {
        Ok(Meta {
            version,
            store_id: row.get("store_id")?,
            applied: row.get("applied_seq")?,
            time_ms: row.get("ledger_time_ms")?,
            clean: row.get("clean_shutdown")?,
            memory: row.get::<_, String>("durability")? == Durability::Memory.name(),
            high: HighIds {
                sequence: row.get("max_reservation")?,
                window: row.get("max_window")?,
                chain: row.get("max_chain")?,
                budget: row.get("max_budget")?,
                account: row.get("max_account")?,
            },
        })
    })
    .optional()
}

/// A connection that is set up. A reader's sees only what is committed and changes nothing.
pub(crate) fn connect(path: &Path, write: bool) -> rusqlite::Result<Connection> {
    let mode =
        if write { OpenFlags::SQLITE_OPEN_READ_WRITE } else { OpenFlags::SQLITE_OPEN_READ_ONLY };
    let conn = Connection::open_with_flags(path, mode | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.set_prepared_statement_cache_capacity(64);
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.pragma_update(None, "foreign_keys", false)?;
    conn.pragma_update(None, "cache_size", -16_384)?;
    Ok(conn)
}

/// Makes the schema in the (empty) file at `path`. The store counts as cleanly shut: its log
/// follows.
pub(crate) fn create(path: &Path, now_ms: i64) -> Result<(Connection, Meta), StoreError> {
    let make = || -> rusqlite::Result<(Connection, Meta)> {
        let mut conn = connect(path, true)?;
        conn.pragma_update(None, "journal_mode", "wal")?;
        conn.pragma_update(None, "synchronous", "full")?;
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute_batch(SCHEMA)?;
        tx.execute_batch(VIEWS)?;
        add_names(&tx)?;
        let high = HighIds::default();
        let store_id = random_id();
        let version = SCHEMA_VERSION;
        let (applied, time_ms, clean, memory) = (0, now_ms, true, false);
        let meta = Meta { version, store_id, applied, time_ms, clean, memory, high };
        tx.execute(
            "INSERT INTO meta VALUES (1, ?1, 0, ?2, 1, ?3, 0, 0, 0, 0, 0)",
            params![store_id, now_ms, Durability::Process.name()],
        )?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        tx.commit()?;
        Ok((conn, meta))
    };
    make().doing("create the tables")
}

/// Random enough to tell a handful of stores apart. Zero is never used.
fn random_id() -> u32 {
    let random = RandomState::new().build_hasher().finish();
    u32::try_from(random >> 32).expect("32 bits are left").max(1)
}

/// Sets the connection up to write in a session of that durability, and notes that one has begun.
pub(crate) fn begin_session(
    conn: &Connection,
    durability: Durability,
    max_reservation: u64,
) -> Result<(), StoreError> {
    let begin = || -> rusqlite::Result<()> {
        conn.pragma_update(None, "journal_mode", "wal")?;
        conn.pragma_update(None, "journal_size_limit", 64 << 20)?;
        conn.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        conn.pragma_update(None, "synchronous", "full")?;
        add_names(conn)?;
        // Twice: an update that changes nothing writes nothing, and then nothing is synced. What is
        // read here may be what a killed process left in the system's memory, and the log that has
        // it, too, is about to go.
        let tx = Transaction::new_unchecked(conn, TransactionBehavior::Immediate)?;
        tx.execute("UPDATE meta SET clean_shutdown = 1 - clean_shutdown", ())?;
        let begun = "UPDATE meta SET clean_shutdown = 0, durability = ?1, max_reservation = ?2";
        tx.execute(begun, params![durability.name(), max_reservation])?;
        tx.commit()?;
        if durability == Durability::Memory {
            conn.pragma_update(None, "synchronous", "off")?;
        }
        Ok(())
    };
    begin().doing("begin a session")
}

/// Notes that everything is in the database, and brings it all into the one file.
pub(crate) fn end_session(conn: &Connection) -> Result<(), StoreError> {
    let end = || -> rusqlite::Result<()> {
        conn.pragma_update(None, "synchronous", "full")?;
        conn.execute("UPDATE meta SET clean_shutdown = 1", ())?;
        // Readers may keep part of the WAL in use: it stays then, and is as good as the file.
        conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |_| Ok(()))
    };
    end().doing("end the session")
}
