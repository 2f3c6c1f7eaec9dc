//! Copies of a store: of one that is in use, for a backup, and of one as it was before an upgrade.
//!
//! A backup of a store that is in use takes nothing from its writers. First the segments of the log
//! are opened as they are at that moment: an open file outlives its deletion, and what has been
//! answered is written. Then SQLite copies the database as it is at a later moment, so it has
//! everything that the segments have not. What only the segments have is imported into the copy, as
//! recovery would. The result is a database that was closed cleanly and needs no log.
//!
//! Writes beside the store or to a new file only; where a copy gets its final name is not decided
//! here.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bursar_ledger::fact::Record;
use rusqlite::Connection;
use serde::Serialize;

use crate::check::check;
use crate::database::{Looked, Meta, look};
use crate::error::{At, Doing, StoreError};
use crate::files::{FILES, Lock, log_folder, parent, segment_path, segments};
use crate::frame::{HEADER_BYTES, Header, HeaderIs, read_header};
use crate::import::Importer;
use crate::migrations::{SCHEMA_VERSION, migrate};
use crate::older::ReadRecord;
use crate::open::{GROUP_RECORDS, find};
use crate::recovery::Decision;
use crate::scan::{FrameReader, Next, read_at, records_of};

/// How often the log may lose a segment while it is opened; the import deletes one in seconds.
const TRIES: usize = 100;
/// So many reservations are passed over when a copy goes on as a store: more than are made in 100
/// days at 100,000 a second. What was given out after the copy was made is not given out again.
const SKIPPED: i64 = 1 << 40;

/// What a copy holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// Names the store for good.
    pub store_id: u32,
    /// The version of its tables.
    pub schema_version: i64,
    /// The last record of the log that is in it.
    pub sequence: u64,
    /// The latest time that was recorded.
    pub last_time_ms: i64,
}

/// Copies the store at `store`, in use or not, to the new file `copy`, and verifies it. On an error
/// the file may be there, and is of no use.
pub fn copy_store(store: &Path, copy: &Path) -> Result<Copied, StoreError> {
    let folder = log_folder(store);
    if Lock::held_by(&folder).is_none() {
        let found = find(store, &folder)?;
        if found.decision == Decision::Refuse {
            let (store, case, why) = (store.to_owned(), found.case, found.why());
            return Err(StoreError::Refused { store, case, why });
        }
    }
    let tail = open_tail(&folder)?;
    let (from, meta) = present(store, look(store, false)?)?;
    if let Some(foreign) = tail.iter().find(|part| part.header.store_id != meta.store_id) {
        return Err(StoreError::malformed(show(&foreign.path), "it belongs to another store"));
    }
    snapshot(&from, copy)?;
    drop(from);
    let (conn, meta) = present(copy, look(copy, true)?)?;
    for pragma in ["journal_mode", "synchronous"] {
        conn.pragma_update(None, pragma, "off").doing("set the copy up")?;
    }
    if meta.version < SCHEMA_VERSION {
        migrate(&conn, meta.version)?;
    }
    let mut importer = Importer::new(conn, &meta);
    for part in tail {
        import(&mut importer, part)?;
    }
    let done = finish(&importer.conn, copy)?;
    drop(importer);
    File::open(copy).and_then(|file| file.sync_all()).at("sync", copy)?;
    Ok(done)
}

/// Has a copy go on as a store of its own time: ids that were given out after it was made are passed
/// over. Call it once, before the copy is opened.
pub fn adopt_copy(copy: &Path) -> Result<(), StoreError> {
    let (conn, _) = present(copy, look(copy, true)?)?;
    let skip = "UPDATE meta SET max_reservation = max_reservation + ?1";
    conn.execute(skip, [SKIPPED]).doing("pass over ids")?;
    conn.close().map_err(|(_, error)| StoreError::database("close the copy", &error))?;
    File::open(copy).and_then(|file| file.sync_all()).at("sync", copy)
}

/// Puts a copy of a store that nobody has open beside it, as it is: what to go back to with the
/// release that wrote it. Replaces an earlier one.
pub(crate) fn keep_old(conn: &Connection, store: &Path, version: i64) -> Result<(), StoreError> {
    let named = |end: &str| {
        let mut name = store.as_os_str().to_owned();
        name.push(end);
        PathBuf::from(name)
    };
    let (kept, new) = (named(&format!(".version-{version}")), named(".copying"));
    let base = store.file_name().unwrap_or_default();
    remove_folder(&new)?;
    let log = log_folder(&new.join(base));
    DirBuilder::new().recursive(true).mode(0o700).create(&log).at("create the folder", &log)?;
    snapshot(conn, &new.join(base))?;
    File::open(new.join(base)).and_then(|file| file.sync_all()).at("sync", &new)?;
    for (first, path) in segments(&log_folder(store))? {
        let copy = segment_path(&log, first);
        std::fs::copy(&path, &copy).at("copy the segment", &path)?;
        File::open(&copy).and_then(|file| file.sync_all()).at("sync", &copy)?;
    }
    FILES.sync_folder(&log)?;
    FILES.sync_folder(&new)?;
    remove_folder(&kept)?;
    std::fs::rename(&new, &kept).at("name", &kept)?;
    FILES.sync_folder(parent(store))
}

fn remove_folder(folder: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("delete", folder, &error))
        }
        _ => Ok(()),
    }
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

fn present(path: &Path, looked: Looked) -> Result<(Connection, Meta), StoreError> {
    match looked {
        Looked::Present(conn, meta) => Ok((conn, meta)),
        Looked::Absent => Err(StoreError::malformed(show(path), "there is no store")),
        Looked::Unreadable(reason) => Err(StoreError::malformed(show(path), &reason)),
        Looked::Newer(version) => {
            let reason = format!("it has version {version}: use the release that wrote it");
            Err(StoreError::malformed(show(path), &reason))
        }
    }
}

/// The database as it is at this moment, in a new file that is the owner's only.
fn snapshot(conn: &Connection, copy: &Path) -> Result<(), StoreError> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(copy).at("create", copy)?;
    let name = copy.to_str().ok_or_else(|| StoreError::malformed(show(copy), "it is no UTF-8"))?;
    conn.execute("VACUUM INTO ?1", [name]).doing("copy itself").map(drop)
}

/// A segment as it was when it was opened.
struct Part {
    path: PathBuf,
    header: Header,
    read: ReadRecord,
    reader: FrameReader,
    /// Up to here it must be readable.
    synced: u64,
}

fn open_tail(folder: &Path) -> Result<Vec<Part>, StoreError> {
    for _ in 0..TRIES {
        let found = segments(folder)?;
        let parts = found.into_iter().map(|(_, path)| open_part(path)).collect();
        match parts {
            Err(StoreError::Io { kind: io::ErrorKind::NotFound, .. }) => {}
            parts => return parts.map(|parts: Vec<_>| parts.into_iter().flatten().collect()),
        }
    }
    Err(StoreError::malformed("the log", "its segments change too fast"))
}

/// A segment whose header is not written yet has nothing that was answered.
fn open_part(path: PathBuf) -> Result<Option<Part>, StoreError> {
    let mut bytes = [0; HEADER_BYTES];
    let file = File::open(&path).at("open", &path)?;
    let got = read_at(&file, &mut bytes, 0).at("read", &path)?;
    let bad = |reason: &str| Err(StoreError::malformed(show(&path), reason));
    let header = match read_header(&bytes[..got]) {
        HeaderIs::Good(header) => header,
        HeaderIs::Blank => return Ok(None),
        HeaderIs::Newer(version) => {
            return bad(&format!("it has format version {version}: use the release that wrote it"));
        }
        HeaderIs::Bad => return bad("the header is damaged"),
    };
    let synced = header.read_slot(&bytes).map_or(0, |synced| synced.offset);
    let read = records_of(&file, header.version, header.first).at("read", &path)?;
    let reader = FrameReader::of(file, HEADER_BYTES as u64).at("read", &path)?;
    Ok(Some(Part { path, header, read, reader, synced }))
}

/// Imports what the copy has not. Behind what is synced, the log ends with the first record that is
/// not whole: somebody is writing it, or was when the power failed.
fn import(importer: &mut Importer, mut part: Part) -> Result<(), StoreError> {
    let path = part.path;
    let bad = |reason: &str| StoreError::malformed(show(&path), reason);
    if part.header.first > importer.applied + 1 {
        return Err(bad("the records before it are missing"));
    }
    let mut group: Vec<(u64, Record)> = Vec::new();
    for seq in part.header.first.. {
        let synced = part.reader.offset < part.synced;
        let payload = match part.reader.next(seq).at("read", &path)? {
            Next::Frame(payload) => payload,
            Next::End => break,
            Next::Bad(_) if !synced => break,
            Next::Bad(reason) => return Err(bad(reason)),
        };
        if seq > importer.applied {
            group.push((seq, (part.read)(payload).map_err(|reason| bad(&reason))?));
        }
        if group.len() == GROUP_RECORDS {
            importer.import(&group)?;
            group.clear();
        }
    }
    importer.import(&group)
}

/// Closes the copy as if its session had ended, and looks at all of it.
fn finish(conn: &Connection, copy: &Path) -> Result<Copied, StoreError> {
    conn.execute("UPDATE meta SET clean_shutdown = 1", ()).doing("close the copy")?;
    let damage: String = conn
        .query_row("PRAGMA integrity_check(1)", (), |row| row.get(0))
        .doing("check the copy")?;
    if damage != "ok" {
        return Err(StoreError::malformed(show(copy), &damage));
    }
    if let Some(first) = check(conn)?.first() {
        let reason = format!("the store disagrees with itself: {first}");
        return Err(StoreError::malformed(show(copy), &reason));
    }
    let (_, meta) = present(copy, look(copy, false)?)?;
    Ok(Copied {
        store_id: meta.store_id,
        schema_version: meta.version,
        sequence: meta.applied,
        last_time_ms: meta.time_ms,
    })
}
