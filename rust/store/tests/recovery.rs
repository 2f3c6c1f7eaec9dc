//! Each row of the recovery table, with real files.

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bursar_store::{Case, Durability, StoreConfig, StoreError, diagnose};
use support::*;
use tempfile::TempDir;

/// A store that holds `records` records in its log and nothing in its database, as after a crash.
fn crashed(folder: &TempDir, durability: Durability, records: u64) -> StoreConfig {
    let config = crashing(folder, durability);
    let store = open(&config);
    let before = Database::save(&config);
    let _idle = hold_import(&config);
    add(&store, &world());
    for sequence in 1..records {
        add(&store, &reserve(sequence, 1));
    }
    if durability != Durability::Memory {
        store.wait_synced(records).expect("synced");
    }
    drop(store);
    before.restore(&config);
    config
}

fn crashing(folder: &TempDir, durability: Durability) -> StoreConfig {
    StoreConfig { sync_interval_ms: 3_600_000, ..config_with(folder, durability) }
}

fn case_of(config: &StoreConfig) -> Case {
    let diagnosis = diagnose(&config.path).expect("it can be looked at");
    match open_all(config) {
        Ok((store, recovery, _)) => {
            assert_eq!(diagnosis.refusal, None);
            assert_eq!(diagnosis.case, recovery.case, "the doctor says the same");
            drop(store);
            recovery.case
        }
        Err(StoreError::Refused { case, why, .. }) => {
            assert_eq!(diagnosis.refusal, Some(why));
            assert_eq!(diagnosis.case, case, "the doctor says the same");
            case
        }
        Err(other) => panic!("{other}"),
    }
}

fn copy_log(from: &StoreConfig, to: &Path) {
    fs::create_dir_all(to).expect("folder");
    for segment in segments(from) {
        fs::copy(&segment, to.join(segment.file_name().expect("name"))).expect("copied");
    }
}

fn replace_log(config: &StoreConfig, with: &Path) {
    for segment in segments(config) {
        fs::remove_file(segment).expect("removed");
    }
    for file in with.read_dir().expect("folder") {
        let path = file.expect("file").path();
        let name: PathBuf = path.file_name().expect("name").into();
        fs::copy(&path, log_folder(config).join(name)).expect("copied");
    }
}

#[test]
fn fresh_clean_start_and_clean_end() {
    let folder = folder();
    let config = config(&folder);
    assert_eq!(diagnose(&config.path).expect("nothing there").case, Case::Fresh);
    let (store, recovery, _) = open_all(&config).expect("made");
    assert_eq!(recovery.case, Case::Fresh);
    add(&store, &world());
    store.close().expect("closed");
    drop(store);
    assert_eq!(case_of(&config), Case::CleanStart);
    assert_eq!(case_of(&config), Case::CleanEnd, "the one before was dropped");
}

#[test]
fn a_creation_that_was_cut_short_is_begun_anew() {
    let folder = folder();
    let config = config(&folder);
    fs::create_dir(log_folder(&config)).expect("folder");
    fs::write(&config.path, "").expect("file");
    assert_eq!(case_of(&config), Case::Fresh);
}

#[test]
fn a_log_without_its_database_is_refused() {
    let folder = folder();
    let config = crashed(&folder, Durability::Process, 2);
    Database::remove(&config);
    assert_eq!(case_of(&config), Case::DatabaseMissing);
    assert!(!config.path.exists(), "nothing is changed");
}

#[test]
fn a_database_that_is_none_is_refused() {
    for content in [
        "garbage, and not a little of it: more than a header's worth of bytes".repeat(9),
        String::new(),
    ] {
        let folder = folder();
        let config = crashed(&folder, Durability::Process, 2);
        Database::remove(&config);
        if content.is_empty() {
            let other = rusqlite::Connection::open(&config.path).expect("made");
            other.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").expect("made");
        } else {
            fs::write(&config.path, content).expect("written");
        }
        assert_eq!(case_of(&config), Case::DatabaseUnreadable);
    }
}

#[test]
fn a_later_database_is_refused() {
    let folder = folder();
    let config = crashed(&folder, Durability::Process, 2);
    let conn = rusqlite::Connection::open(&config.path).expect("opened");
    conn.pragma_update(None, "user_version", 99).expect("set");
    drop(conn);
    assert_eq!(case_of(&config), Case::DatabaseNewer);
}

#[test]
fn a_missing_log_is_refused_unless_the_store_was_closed() {
    let folder = folder();
    let config = crashed(&folder, Durability::Process, 2);
    fs::remove_dir_all(log_folder(&config)).expect("removed");
    assert_eq!(case_of(&config), Case::LogMissing);
}

/// Goal: a power cut in a transaction before the file is in WAL mode does not keep the store from
/// opening. Method: the file and its rollback journal are copied in the middle of one.
#[test]
fn what_a_crash_left_half_done_in_the_database_is_undone() {
    let (folder, other) = (folder(), folder());
    let config = config(&folder);
    open(&config).close().expect("closed");
    let conn = rusqlite::Connection::open(&config.path).expect("opened");
    let begin = "PRAGMA journal_mode = delete; PRAGMA cache_size = 5; BEGIN;
        CREATE TABLE junk AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 500)
        SELECT randomblob(4000) FROM n";
    conn.execute_batch(begin).expect("begun");
    let cut = StoreConfig::new(other.path().join("ledger.db"));
    for end in ["", "-journal"] {
        let from = format!("{}{end}", config.path.display());
        fs::copy(from, format!("{}{end}", cut.path.display())).expect("copied");
    }
    assert_eq!(open_all(&cut).expect("it opens").1.case, Case::CleanStart);
}

#[test]
fn a_later_log_is_refused() {
    let folder = folder();
    let config = crashed(&folder, Durability::Process, 2);
    let segment = segments(&config).pop().expect("one");
    rewrite_version(&segment, bursar_store::FORMAT_VERSION + 1);
    assert_eq!(case_of(&config), Case::LogNewer);
}

#[test]
fn another_stores_log_is_refused() {
    let (folder, other) = (folder(), folder());
    let config = crashed(&folder, Durability::Process, 2);
    let other = crashed(&other, Durability::Process, 2);
    let kept = folder.path().join("kept");
    copy_log(&other, &kept);
    replace_log(&config, &kept);
    assert_eq!(case_of(&config), Case::LogForeign);
}

#[test]
fn a_database_that_is_older_than_the_log_is_refused() {
    let folder = folder();
    let config = StoreConfig { segment_bytes: 512, ..config(&folder) };
    let store = open(&config);
    let before = Database::save(&config);
    add(&store, &world());
    for sequence in 1..100 {
        add(&store, &reserve(sequence, 1));
    }
    store.import_through(100).expect("imported");
    add(&store, &reserve(100, 1));
    store.import_through(101).expect("imported");
    drop(store);
    before.restore(&config);
    assert_eq!(case_of(&config), Case::LogGap);
}

#[test]
fn a_log_that_is_older_than_the_database_is_refused_or_dropped_in_memory() {
    for (durability, case) in [
        (Durability::Process, Case::LogBehind),
        (Durability::Power, Case::LogBehind),
        (Durability::Memory, Case::LogBehindInMemory),
    ] {
        let folder = folder();
        let config = config_with(&folder, durability);
        let store = open(&config);
        add(&store, &world());
        store.import_through(1).expect("imported");
        let kept = folder.path().join("kept");
        copy_log(&config, &kept);
        for sequence in 1..10 {
            add(&store, &reserve(sequence, 1));
        }
        store.import_through(10).expect("imported");
        drop(store);
        replace_log(&config, &kept);
        assert_eq!(case_of(&config), case);
        if case == Case::LogBehindInMemory {
            let store = open(&config);
            assert_eq!(add(&store, &reserve(10, 1)), 11, "it goes on behind the database");
            assert_eq!(entries(&store).len(), 3 + 20);
        }
    }
}

#[test]
fn a_torn_tail_is_cut_off() {
    let folder = folder();
    let config = crashed(&folder, Durability::Process, 3);
    let segment = segments(&config).pop().expect("one");
    let mut bytes = fs::read(&segment).expect("read");
    bytes.extend_from_slice(&[7; 40]);
    fs::write(&segment, bytes).expect("written");
    assert_eq!(case_of(&config), Case::TornTail);
    let store = open(&config);
    assert_eq!(entries(&store).len(), 3 + 4);
    assert_eq!(store.written(), 3);
}

/// Segments of two or three records each; nothing synced but what `synced` says.
fn rotated(folder: &TempDir, synced: u64) -> (StoreConfig, Vec<PathBuf>) {
    let config = StoreConfig { segment_bytes: 300, ..crashing(folder, Durability::Process) };
    let store = open(&config);
    let before = Database::save(&config);
    let _idle = hold_import(&config);
    add(&store, &world());
    for sequence in 1..20 {
        add(&store, &reserve(sequence, 1));
        if sequence + 1 == synced {
            store.wait_synced(synced).expect("synced");
        }
    }
    drop(store);
    before.restore(&config);
    let segments = segments(&config);
    assert!(segments.len() > 4);
    (config, segments)
}

fn flip_last_byte(path: &Path) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("opened");
    let last = file.metadata().expect("length").len() - 1;
    let mut byte = [0];
    file.read_exact_at(&mut byte, last).expect("read");
    file.write_all_at(&[!byte[0]], last).expect("written");
}

#[test]
fn what_follows_a_torn_segment_is_dropped_if_it_was_never_synced() {
    let folder = folder();
    let (config, segments) = rotated(&folder, 0);
    flip_last_byte(&segments[1]);
    assert_eq!(case_of(&config), Case::TornTail);
    let store = open(&config);
    assert_eq!(store.written(), first_of(&segments[2]) - 2, "all before the torn record");
    assert_eq!(support::segments(&config).len(), 1, "the later ones are gone");
}

#[test]
fn what_is_torn_before_a_synced_segment_is_damage() {
    let folder = folder();
    let (config, segments) = rotated(&folder, 20);
    // As if the mark of the second had not reached the disk, and its last record neither.
    let store_id: [u8; 4] = fs::read(&segments[1]).expect("read")[12..16].try_into().expect("four");
    let first = first_of(&segments[1]);
    let mut bytes = fs::read(&segments[1]).expect("read");
    let mut half = bytes[..32].to_vec();
    assert_eq!(half[12..16], store_id);
    let mut slot = 64_u64.to_le_bytes().to_vec();
    slot.extend_from_slice(&(first - 1).to_le_bytes());
    half.extend_from_slice(&slot);
    let crc = crc32c::crc32c(&half);
    bytes[32..48].copy_from_slice(&slot);
    bytes[48..52].copy_from_slice(&crc.to_le_bytes());
    fs::write(&segments[1], bytes).expect("written");
    assert_eq!(diagnose(&config.path).expect("looked").case, Case::CleanEnd, "the mark is valid");
    flip_last_byte(&segments[1]);
    assert_eq!(case_of(&config), Case::LogDamaged);
}

#[test]
fn a_missing_segment_is_damage_if_what_follows_was_synced() {
    for (synced, case) in [(20, Case::LogDamaged), (0, Case::TornTail)] {
        let folder = folder();
        let (config, segments) = rotated(&folder, synced);
        fs::remove_file(&segments[2]).expect("removed");
        assert_eq!(case_of(&config), case);
    }
}

#[test]
fn a_refusal_names_the_place_and_the_way_out() {
    let folder = folder();
    let config = crashed(&folder, Durability::Process, 3);
    let segment = segments(&config).pop().expect("one");
    flip_last_byte(&segment);
    let error = open_all(&config).expect_err("damaged").to_string();
    for part in ["damaged", "sequence 3", "byte ", segment.to_str().expect("text"), "bursar doctor"]
    {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
}

/// The header of a segment of version `version`, its checksum right.
fn rewrite_version(path: &Path, version: u32) {
    let mut bytes = fs::read(path).expect("read");
    bytes[8..12].copy_from_slice(&version.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..24]);
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    fs::write(path, bytes).expect("written");
}

fn first_of(segment: &Path) -> u64 {
    segment.file_stem().expect("name").to_str().expect("text").parse().expect("a number")
}

#[test]
fn a_later_segment_behind_a_torn_one_or_a_hole_is_not_dropped() {
    for hole in [false, true] {
        let folder = folder();
        let (config, segments) = rotated(&folder, 0);
        rewrite_version(&segments[3], bursar_store::FORMAT_VERSION + 1);
        if hole {
            fs::remove_file(&segments[2]).expect("removed");
        } else {
            flip_last_byte(&segments[1]);
        }
        assert_eq!(case_of(&config), Case::LogNewer, "a hole: {hole}");
    }
}

#[test]
fn a_hole_ends_the_log_where_it_begins_even_before_a_torn_segment() {
    let folder = folder();
    let (config, segments) = rotated(&folder, 0);
    fs::remove_file(&segments[2]).expect("removed");
    flip_last_byte(&segments[3]);
    let (store, recovery, _) = open_all(&config).expect("it opens");
    let dropped = recovery.dropped.expect("what follows");
    assert_eq!((&dropped.file, dropped.offset), (&segments[3], 0));
    assert_eq!(dropped.sequence, first_of(&segments[2]));
    assert_eq!(store.written(), dropped.sequence - 1);
}

#[test]
fn a_segment_whose_header_did_not_reach_the_disk_whole_is_dropped() {
    for written in [0, 20] {
        let folder = folder();
        let (config, segments) = rotated(&folder, 0);
        let last = segments.last().expect("several");
        let mut bytes = fs::read(last).expect("read");
        bytes[written..64].fill(0);
        fs::write(last, &bytes[..64]).expect("written");
        assert_eq!(case_of(&config), Case::TornTail, "{written} bytes of it");
    }
    let folder = folder();
    let (config, segments) = rotated(&folder, 0);
    let last = segments.last().expect("several");
    let mut bytes = fs::read(last).expect("read");
    bytes[17] ^= 0xff;
    fs::write(last, bytes).expect("written");
    assert_eq!(case_of(&config), Case::LogDamaged, "other bytes than were written");
}
