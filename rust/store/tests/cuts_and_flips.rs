//! The log cut at every byte, and flipped at every byte: it recovers or is refused exactly as the
//! table says, and what was written before survives.

mod support;

use std::fs;
use std::path::PathBuf;

use bursar_store::{Case, Durability, StoreConfig, diagnose};
use support::*;
use tempfile::TempDir;

const HEADER: usize = 64;
const RECORDS: usize = 7;
const SYNCED: usize = 4;

struct Subject {
    _folder: TempDir,
    config: StoreConfig,
    database: Database,
    segment: PathBuf,
    bytes: Vec<u8>,
    /// Where each frame begins; and the end of the last.
    frames: Vec<usize>,
}

/// Seven records in the log, four of them synced; the database has none.
fn subject() -> Subject {
    let folder = folder();
    let config =
        StoreConfig { sync_interval_ms: 3_600_000, ..config_with(&folder, Durability::Process) };
    let store = open(&config);
    let database = Database::save(&config);
    let _idle = hold_import(&config);
    let segment = segments(&config).pop().expect("one");
    let mut frames = vec![HEADER];
    for n in 0..RECORDS as u64 {
        let record = if n == 0 { world() } else { reserve(n, 1) };
        add(&store, &record);
        let length = segment.metadata().expect("length").len();
        frames.push(usize::try_from(length).expect("small"));
        if n + 1 == SYNCED as u64 {
            store.wait_synced(n + 1).expect("synced");
        }
    }
    drop(store);
    let bytes = fs::read(&segment).expect("read");
    Subject { _folder: folder, config, database, segment, bytes, frames }
}

impl Subject {
    /// What recovery does with these bytes: `None`: refuses; else how many records are there after
    /// it.
    fn recovers(&self, bytes: &[u8]) -> Option<u64> {
        self.database.restore(&self.config);
        for segment in segments(&self.config) {
            fs::remove_file(segment).expect("removed");
        }
        fs::write(&self.segment, bytes).expect("written");
        let diagnosis = diagnose(&self.config.path).expect("looked at");
        let Ok((store, recovery, _)) = open_all(&self.config) else {
            assert_eq!(diagnosis.case, Case::LogDamaged);
            return None;
        };
        assert_eq!(diagnosis.case, recovery.case);
        let records = store.written();
        let rows = entries(&store);
        assert_eq!(rows.last().map_or(0, |row| row.sequence), records);
        // What is appended now comes right behind.
        assert_eq!(add(&store, &reserve(99, 1)), records + 1);
        Some(records)
    }

    fn synced(&self) -> usize {
        self.frames[SYNCED]
    }
}

#[test]
fn the_log_cut_at_every_byte() {
    let subject = subject();
    for cut in 0..=subject.bytes.len() {
        let whole = subject.frames.iter().filter(|end| **end <= cut).count().saturating_sub(1);
        let expected = match cut {
            // Cut before the mark of what was synced, it cannot be told from one that was never
            // written to, or not to the end of its header.
            cut if cut <= 32 => Some(0),
            cut if cut < subject.synced() => None,
            _ => Some(whole as u64),
        };
        assert_eq!(subject.recovers(&subject.bytes[..cut]), expected, "cut at {cut}");
    }
}

#[test]
fn the_log_flipped_at_every_byte() {
    let subject = subject();
    let patterns: &[u8] = if std::env::var_os("BURSAR_LONG").is_some() {
        &[1, 2, 16, 0x80, 0xff]
    } else {
        &[4, 0xff]
    };
    for at in 0..subject.bytes.len() {
        let frame = subject.frames.iter().filter(|start| **start <= at).count().saturating_sub(1);
        let expected = match at {
            // Of the header: who it belongs to. Then the mark, which is missed only when needed.
            at if at < 32 => None,
            at if at < HEADER => Some(RECORDS as u64),
            at if at < subject.synced() => None,
            _ => Some(frame as u64),
        };
        for pattern in patterns {
            let mut bytes = subject.bytes.clone();
            bytes[at] ^= pattern;
            assert_eq!(subject.recovers(&bytes), expected, "byte {at} ^ {pattern:#x}");
        }
    }
}

#[test]
fn a_torn_record_behind_a_damaged_mark_is_refused() {
    let subject = subject();
    let mut bytes = subject.bytes.clone();
    bytes[40] ^= 1;
    assert_eq!(subject.recovers(&bytes[..bytes.len() - 1]), None);
}

#[test]
fn zeroes_behind_the_last_record_are_cut_off() {
    let subject = subject();
    let mut bytes = subject.bytes.clone();
    bytes.resize(bytes.len() + 5000, 0);
    assert_eq!(subject.recovers(&bytes), Some(RECORDS as u64));
}

#[test]
fn a_length_out_of_nowhere_allocates_nothing() {
    let subject = subject();
    let mut bytes = subject.bytes.clone();
    let last = subject.frames[RECORDS - 1];
    for len in [u32::MAX, 16 << 20, (16 << 20) + 1, 0] {
        bytes[last..last + 4].copy_from_slice(&len.to_le_bytes());
        assert_eq!(subject.recovers(&bytes), Some(RECORDS as u64 - 1), "length {len}");
    }
}
