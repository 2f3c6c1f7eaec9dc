//! Opens a store: looks at what is there, lets the recovery table decide, and does what it says.
//!
//! What the log has and the database has not is imported before anything is told to the ledger, so
//! there is one way back only: out of the database. Then a new, durable segment is begun before the
//! old ones are deleted: at any moment the files say where the log goes on.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::Ordering;

use bursar_ledger::fact::Record;
use bursar_ledger::{HighIds, canary};
use rusqlite::Connection;

use crate::config::StoreConfig;
use crate::copy::keep_old;
use crate::database::{Looked, Meta, begin_session, connect, create, look, undo_unfinished};
use crate::error::{At, Doing, StoreError};
use crate::files::{Files, Lock, create_file, create_folder, log_folder, parent};
use crate::frame::{HEADER_BYTES, Header, Synced};
use crate::guard::refuse_planted;
use crate::import::Importer;
use crate::log::{LogWriter, Segment};
use crate::migrations::{SCHEMA_VERSION, migrate};
use crate::recovery::{Case, Decision, Join, Observed, decide};
use crate::restore::{Apply, restore};
use crate::scan::{FrameReader, Next, Scan, SegmentFound, Spot, records_of, scan};

/// So many records go into one transaction.
pub(crate) const GROUP_RECORDS: usize = 4096;

/// How many sequences of reservations are passed over where the store was not closed: a power cut may
/// have taken facts of reservations whose names clients still hold. More than there are between two
/// syncs.
const PASSED_OVER: u64 = 1 << 24;

/// How opening went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// The row of the recovery table.
    pub case: Case,
    /// The version that it was brought up to date from, if it was.
    pub upgraded_from: Option<i64>,
    /// How many records were in the log only.
    pub imported: u64,
    /// Where the log was cut, if it was.
    pub dropped: Option<Spot>,
    /// The highest reservation sequence ever given out.
    pub max_sequence: u64,
    /// The highest window id ever given out.
    pub max_window: u64,
    /// The highest chain id ever given out.
    pub max_chain: u64,
    /// The highest budget id ever given out.
    pub max_budget: u32,
    /// The highest account id ever given out.
    pub max_account: u32,
    /// The latest time that was recorded.
    pub last_time_ms: i64,
}

impl Recovery {
    /// The ids that may not be given out again.
    pub fn high_ids(&self) -> HighIds {
        HighIds {
            sequence: self.max_sequence,
            window: self.max_window,
            chain: self.max_chain,
            budget: self.max_budget,
            account: self.max_account,
        }
    }
}

/// A store that is ready to take records; its threads are not started.
pub(crate) struct Opened {
    pub(crate) lock: Lock,
    pub(crate) importer: Importer,
    pub(crate) log: LogWriter,
    pub(crate) store_id: u32,
    pub(crate) recovery: Recovery,
}

/// What was found of a store, and what to do.
pub(crate) struct Found {
    pub(crate) looked: Looked,
    pub(crate) scan: Scan,
    pub(crate) observed: Observed,
    pub(crate) case: Case,
    pub(crate) decision: Decision,
}

/// Looks at database and log; changes nothing.
pub(crate) fn find(store: &Path, folder: &Path) -> Result<Found, StoreError> {
    let looked = look(store, false)?;
    let meta = match &looked {
        Looked::Present(_, meta) => Some(*meta),
        _ => None,
    };
    let scan = scan(folder, meta.map(|meta| meta.store_id))?;
    let applied = meta.map_or(0, |meta| meta.applied);
    let join = match (scan.first(), scan.last()) {
        (Some(first), Some(_)) if first > applied + 1 => Join::Gap,
        (Some(_), Some(last)) if last < applied => Join::Behind,
        _ => Join::Follows,
    };
    let observed = Observed {
        database: looked.kind(),
        log: scan.log,
        join,
        clean: meta.is_some_and(|meta| meta.clean),
        memory: meta.is_some_and(|meta| meta.memory),
    };
    let (case, decision) = decide(observed);
    Ok(Found { looked, scan, observed, case, decision })
}

impl Found {
    /// Why the store is refused, in words.
    pub(crate) fn why(&self) -> String {
        let applied = match &self.looked {
            Looked::Present(_, meta) => meta.applied,
            _ => 0,
        };
        let first = self.scan.first().unwrap_or(0);
        let last = self.scan.last().unwrap_or(0);
        let spot = self.scan.spot.as_ref().map_or_else(String::new, |spot| {
            let Spot { file, offset, sequence, reason } = spot;
            format!("{reason} ({}, byte {offset}, sequence {sequence})", file.display())
        });
        match (self.case, &self.looked) {
            (Case::DatabaseMissing, _) => {
                "its log is there and its database is not: put the database back".into()
            }
            (Case::DatabaseUnreadable, Looked::Unreadable(reason)) => {
                format!("its database cannot be read: {reason}")
            }
            (Case::DatabaseNewer, Looked::Newer(version)) => {
                format!("its database has version {version}: use the release that wrote it")
            }
            (Case::LogMissing, _) => {
                "its log is missing and it was not closed: put the log's folder back".into()
            }
            (Case::LogNewer, _) => {
                format!("its log is of a later release: {spot}: use the release that wrote it")
            }
            (Case::LogForeign, _) => format!("its log belongs to another store: {spot}"),
            (Case::LogDamaged, _) => format!("its log is damaged where it was synced: {spot}"),
            (Case::LogGap, _) => format!(
                "its database ends with sequence {applied} and its log begins with {first}: one of \
                 them is not the latest"
            ),
            (Case::LogBehind, _) => format!(
                "its log ends with sequence {last} and its database has {applied}: one of them is \
                 not the latest"
            ),
            (case, _) => format!("it is {case:?}"),
        }
    }
}

/// Opens the store up to where its threads are started.
pub(crate) fn open(
    config: &StoreConfig,
    now_ms: i64,
    files: Files,
    apply: Apply<'_>,
) -> Result<Opened, StoreError> {
    let store = config.path.as_path();
    let folder = log_folder(store);
    refuse_planted(store)?;
    create_folder(&folder)?;
    let lock = Lock::take(store, &folder)?;
    undo_unfinished(store)?;
    // Not to write: what is refused stays as it is, to the byte.
    let found = find(store, &folder)?;
    if found.decision == Decision::Refuse {
        let (store, case, why) = (store.to_owned(), found.case, found.why());
        return Err(StoreError::Refused { store, case, why });
    }
    let old = found.scan.segments.clone();
    let (case, cut) = (found.case, found.scan.spot.clone());
    let (conn, meta): (Connection, Meta) = match (found.decision, found.looked) {
        (Decision::Create, _) => {
            create_file(store)?;
            let made = create(store, now_ms)?;
            files.sync_folder(parent(store))?;
            made
        }
        (_, Looked::Present(looked, meta)) => {
            drop(looked);
            (connect_to(store, &meta)?, meta)
        }
        (_, _) => return Err(StoreError::malformed("the store", "it has no database")),
    };
    let mut importer = Importer::new(conn, &meta);
    let (mut new_records, mut dropped) = (0, None);
    if matches!(found.decision, Decision::Import | Decision::CutThenImport) {
        let readable = &old[..found.scan.readable];
        if found.decision == Decision::CutThenImport {
            dropped = cut;
        }
        settle_log(readable, &folder, &files)?;
        new_records = import_log(&mut importer, readable)?;
    }
    // A clock that was set back does not make anything younger.
    let time_ms = now_ms.max(importer.time_ms);
    let remember_from_ms = time_ms.saturating_sub(config.key_retention_ms);
    let max_account = &mut importer.high.account;
    restore(&importer.conn, max_account, (time_ms, remember_from_ms), apply)?;
    let segment = begin_segment(&importer, &meta, &folder, &files)?;
    if !meta.clean && !canary::sings("reused-id") {
        importer.high.sequence += PASSED_OVER;
    }
    let old = || old.iter().map(|old| old.file.as_path()).filter(|old| *old != segment.path);
    if found.decision == Decision::KeepDatabase {
        // What the database was kept without counts for nothing, also where the next opening finds
        // that this session has begun.
        files.remove_in_order(&folder, old())?;
    }
    begin_session(&importer.conn, config.durability, importer.high.sequence)?;
    files.remove_in_order(&folder, old())?;
    let log = LogWriter::new(segment, &folder, config.segment_bytes, files);
    let HighIds { sequence, window, chain, budget, account } = importer.high;
    let recovery = Recovery {
        case,
        upgraded_from: Some(meta.version).filter(|version| *version < SCHEMA_VERSION),
        imported: new_records,
        dropped,
        max_sequence: sequence,
        max_window: window,
        max_chain: chain,
        max_budget: budget,
        max_account: account,
        last_time_ms: importer.time_ms,
    };
    Ok(Opened { lock, importer, log, store_id: meta.store_id, recovery })
}

/// The database of this schema, to write.
fn connect_to(store: &Path, meta: &Meta) -> Result<Connection, StoreError> {
    if meta.memory {
        // Who wrote it may have synced nothing. Closing the file ends SQLite's locks on it, so this
        // comes before there are any.
        File::open(store).and_then(|file| file.sync_all()).at("sync", store)?;
    }
    let conn = connect(store, true).doing("open for writing")?;
    if meta.version < SCHEMA_VERSION {
        keep_old(&conn, store, meta.version)?;
        migrate(&conn, meta.version)?;
    }
    Ok(conn)
}

/// What is about to be imported has to be on the disk first: the database may not know more than
/// the log. Also cuts what is not readable off.
fn settle_log(readable: &[SegmentFound], folder: &Path, files: &Files) -> Result<(), StoreError> {
    for segment in readable {
        let path = &segment.file;
        let file = (files.open)(path).at("open", path)?;
        if segment.readable_bytes < segment.file_bytes {
            file.set_len(segment.readable_bytes).at("cut", path)?;
        }
        file.sync_data().at("sync", path)?;
    }
    // The newest one's name may be in memory only.
    files.sync_folder(folder)
}

fn import_log(importer: &mut Importer, readable: &[SegmentFound]) -> Result<u64, StoreError> {
    let before = importer.applied;
    let mut group: Vec<(u64, Record)> = Vec::new();
    for segment in readable.iter().filter(|segment| segment.last > before) {
        let path = &segment.file;
        let file = File::open(path).at("read", path)?;
        let read = records_of(&file, segment.version, segment.first).at("read", path)?;
        let mut reader = FrameReader::of(file, HEADER_BYTES as u64).at("read", path)?;
        for seq in segment.first..=segment.last {
            let bad = |reason: &str| StoreError::malformed(format!("log record {seq}"), reason);
            let payload = match reader.next(seq).at("read", path)? {
                Next::Frame(payload) => payload,
                Next::End => return Err(bad("it was there a moment ago")),
                Next::Bad(reason) => return Err(bad(reason)),
            };
            if seq > before {
                group.push((seq, read(payload).map_err(|reason| bad(&reason))?));
            }
            if group.len() == GROUP_RECORDS {
                importer.import(&group)?;
                group.clear();
            }
        }
    }
    importer.import(&group)?;
    Ok(importer.applied - before)
}

/// A new segment behind the database, on the disk before anything else is deleted.
fn begin_segment(
    importer: &Importer,
    meta: &Meta,
    folder: &Path,
    files: &Files,
) -> Result<Segment, StoreError> {
    let first = importer.applied + 1;
    let header = Header::new(meta.store_id, first);
    let segment = Segment::create(folder, header, files)?;
    segment.sync(Synced { offset: HEADER_BYTES as u64, seq: first - 1 })?;
    files.sync_folder(folder)?;
    segment.durable.store(true, Ordering::Release);
    Ok(segment)
}
