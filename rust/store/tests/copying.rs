//! Copies of a store that is written to meanwhile: nothing that was written before is missing.

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use bursar_store::{Case, Durability, StoreConfig, adopt_copy, check_store, copy_store, diagnose};
use support::*;

/// How many copies are made beside the writer.
const COPIES: u32 = 30;

/// Small segments, so that the import deletes some while a copy is made.
fn small(folder: &tempfile::TempDir, durability: Durability) -> StoreConfig {
    StoreConfig { segment_bytes: 4096, ..config_with(folder, durability) }
}

#[test]
fn what_was_written_before_a_copy_began_is_in_it_while_segments_come_and_go() {
    for durability in [Durability::Process, Durability::Power] {
        let folder = folder();
        let config = small(&folder, durability);
        let store = open(&config);
        add(&store, &world());
        let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                for sequence in 1.. {
                    let _reserved = add(&store, &reserve(sequence, 5));
                    written.store(add(&store, &settle(sequence, 5, 3)), Ordering::Release);
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    if sequence % 64 == 0 {
                        // Each segment is an open file here, and a copy takes as long as the store
                        // is large: one that grew without a pause would never be copied in the end.
                        store.import_through(store.written()).expect("imported");
                        thread::sleep(Duration::from_millis(5));
                    }
                }
            });
            for n in 0..COPIES {
                let before = written.load(Ordering::Acquire);
                let copy = folder.path().join(format!("copy-{n}.db"));
                let copied = copy_store(&config.path, &copy);
                let well = copied.as_ref().is_ok_and(|copied| copied.sequence >= before);
                if !well || n == COPIES - 1 {
                    stop.store(true, Ordering::Relaxed);
                }
                assert!(well, "{copied:?}, and {before} was written before");
                assert_eq!(check_store(&copy).expect("checked"), []);
                std::fs::remove_file(copy).expect("removed");
            }
        });
        let diagnosis = diagnose(&config.path).expect("looked at while it is open");
        assert_eq!(diagnosis.refusal, None);
    }
}

#[test]
fn a_copy_opens_as_a_store_that_was_closed_and_passes_over_ids() {
    let folder = folder();
    let config = small(&folder, Durability::Process);
    let store = open(&config);
    add(&store, &world());
    let _idle = hold_import(&config);
    for sequence in 1..=50 {
        add(&store, &reserve(sequence, 5));
    }
    let copy = StoreConfig { path: folder.path().join("copy.db"), ..config.clone() };
    let copied = copy_store(&config.path, &copy.path).expect("copied");
    assert_eq!(copied.sequence, 51, "also what SQLite has not");
    adopt_copy(&copy.path).expect("adopted");
    let (again, recovery, told) = open_all(&copy).expect("it opens");
    assert_eq!((recovery.case, recovery.imported), (Case::CleanStart, 0));
    assert_eq!(recovery.max_sequence, 50 + (1 << 40));
    assert_eq!(entries(&again).len(), 103, "two limits and more, two rows for each hold");
    assert!(!told.is_empty());
}

#[test]
fn a_copy_that_lacks_a_segment_is_none() {
    let folder = folder();
    let config = small(&folder, Durability::Process);
    let store = open(&config);
    add(&store, &world());
    let idle = hold_import(&config);
    for sequence in 1..=200 {
        add(&store, &reserve(sequence, 5));
    }
    let gone = segments(&config).swap_remove(1);
    std::fs::rename(&gone, gone.with_extension("away")).expect("moved");
    let error = copy_store(&config.path, &folder.path().join("copy.db")).expect_err("a hole");
    assert!(error.to_string().contains("the records before it are missing"), "{error}");
    std::fs::rename(gone.with_extension("away"), &gone).expect("moved back");
    drop(idle);
}

#[test]
fn a_store_that_would_be_refused_is_not_copied() {
    let folder = folder();
    let config = small(&folder, Durability::Process);
    add(&open(&config), &world());
    std::fs::remove_dir_all(log_folder(&config)).expect("removed");
    let error = copy_store(&config.path, &folder.path().join("copy.db")).expect_err("no log");
    assert!(error.to_string().contains("its log is missing"), "{error}");
    let missing = folder.path().join("missing.db");
    assert!(copy_store(&missing, &folder.path().join("other.db")).is_err());
    assert!(!missing.exists());
}

#[test]
fn what_is_synced_must_be_readable_and_what_is_being_written_ends_the_copy() {
    let folder = folder();
    let store = open(&small(&folder, Durability::Power));
    let config = small(&folder, Durability::Power);
    add(&store, &world());
    let _idle = hold_import(&config);
    add(&store, &reserve(1, 5));
    store.wait_synced(2).expect("synced");
    let segment = segments(&config).pop().expect("one");
    let whole = std::fs::read(&segment).expect("read");
    let copied = |name: &str, bytes: &[u8]| {
        std::fs::write(&segment, bytes).expect("written");
        copy_store(&config.path, &folder.path().join(name))
    };
    let begun = copied("begun.db", &[whole.as_slice(), &[7; 5]].concat());
    assert_eq!(begun.expect("copied").sequence, 2);
    let mut damaged = whole.clone();
    *damaged.last_mut().expect("a record") ^= 1;
    let error = copied("damaged.db", &damaged).expect_err("a promise is gone").to_string();
    assert!(error.contains("the record's checksum is wrong"), "{error}");
    std::fs::write(&segment, whole).expect("put back");
}

/// The tables of version 2 without what it brought; the bytes of the records are alike.
fn make_version_1(config: &StoreConfig) {
    let conn = rusqlite::Connection::open(&config.path).expect("opened");
    let older = "DROP TABLE details; DROP INDEX reservations_parent; PRAGMA user_version = 1;";
    conn.execute_batch(older).expect("made older");
}

fn version(path: &Path) -> i64 {
    let conn = rusqlite::Connection::open(path).expect("opened");
    conn.query_row("PRAGMA user_version", [], |row| row.get(0)).expect("a version")
}

#[test]
fn an_upgrade_keeps_the_store_as_it_was_whatever_an_earlier_one_left() {
    let folder = folder();
    let config = small(&folder, Durability::Process);
    let store = open(&config);
    add(&store, &world());
    let idle = hold_import(&config);
    for sequence in 1..=200 {
        add(&store, &reserve(sequence, 5));
    }
    drop(store);
    drop(idle);
    make_version_1(&config);
    let log: Vec<_> = segments(&config).iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(log.len() > 1, "several segments");
    let beside = |end: &str| folder.path().join(format!("ledger.db{end}"));
    // An upgrade that was cut off, and one that was taken back.
    for earlier in [".copying", ".version-1"].map(beside) {
        std::fs::create_dir_all(earlier.join("ledger.db-log")).expect("made");
        std::fs::write(earlier.join("ledger.db"), "an earlier one").expect("written");
    }
    let (store, recovery, _) = open_all(&config).expect("it opens");
    assert_eq!((recovery.upgraded_from, recovery.imported), (Some(1), 201));
    assert_eq!(version(&config.path), 2);
    let kept = StoreConfig { path: beside(".version-1").join("ledger.db"), ..config.clone() };
    assert_eq!(version(&kept.path), 1);
    let found: Vec<_> = segments(&kept).iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert_eq!(found, log, "its log as it was");
    assert!(!beside(".copying").exists());
    drop(store);
    let (_store, recovery, _) = open_all(&config).expect("it opens again");
    assert_eq!(recovery.upgraded_from, None);
    assert!(!beside(".version-2").exists(), "there was nothing to upgrade");
}

#[test]
fn a_copy_of_a_store_of_an_earlier_version_is_up_to_date() {
    let folder = folder();
    let config = small(&folder, Durability::Process);
    add(&open(&config), &world());
    make_version_1(&config);
    let copy = folder.path().join("copy.db");
    assert_eq!(copy_store(&config.path, &copy).expect("copied").schema_version, 2);
    assert_eq!((version(&copy), version(&config.path)), (2, 1));
}
