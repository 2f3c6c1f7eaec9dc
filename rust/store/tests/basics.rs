//! Appending, reading back, and the small promises around it.

mod support;

use bursar_ledger::fact::Fact;
use bursar_store::EntryKind::{Hold, Limit, Return, Spend};
use bursar_store::{Case, Durability, StoreConfig, StoreError, diagnose};
use support::*;

#[test]
fn what_is_written_is_there_after_closing_and_after_dropping() {
    for close in [true, false] {
        let folder = folder();
        let config = config(&folder);
        let (store, recovery, told) = open_all(&config).expect("it opens");
        assert_eq!(recovery.case, Case::Fresh);
        assert_eq!(told.iter().map(|record| record.facts.len()).sum::<usize>(), 0);
        add(&store, &world());
        add(&store, &reserve(1, 100));
        add(&store, &reserve(2, 50));
        add(&store, &settle(1, 100, 70));
        if close {
            store.close().expect("it closes");
            assert!(segments(&config).is_empty(), "the log is empty");
        }
        drop(store);
        let (store, recovery, told) = open_all(&config).expect("it opens again");
        let (case, last) =
            if close { (Case::CleanStart, 2) } else { (Case::CleanEnd, 2 + PASSED_OVER) };
        assert_eq!((recovery.case, recovery.max_sequence, recovery.max_chain), (case, last, 1));
        assert_eq!(recovery.last_time_ms, T0 + 2);
        let facts: Vec<&Fact> = told.iter().flat_map(|record| &record.facts).collect();
        let open: Vec<_> = facts.iter().filter(|f| matches!(f, Fact::Reserved(_))).collect();
        assert_eq!(open, [&&Fact::Reserved(reserved(2, 50))]);
        let stood = facts.iter().find_map(|fact| match fact {
            Fact::WindowStood { window: 1, spent, .. } => Some(*spent),
            _ => None,
        });
        assert_eq!(stood, Some(70));
        let ended = facts.iter().filter(|fact| matches!(fact, Fact::Remembered { .. })).count();
        assert_eq!(ended, 1);
        let kinds: Vec<_> =
            entries(&store).iter().map(|e| (e.sequence, e.kind, e.amount)).collect();
        assert_eq!(
            kinds,
            [
                (1, Limit, 1_000_000_000),
                (1, Limit, 1_000_000_000),
                (1, Limit, 100_000),
                (2, Hold, 100),
                (2, Hold, 1000),
                (3, Hold, 50),
                (3, Hold, 500),
                (4, Spend, 70),
                (4, Spend, 700),
                (4, Return, 30),
                (4, Return, 300),
            ]
        );
    }
}

#[test]
fn a_second_opener_is_told_who_has_it() {
    let folder = folder();
    let config = config(&folder);
    let store = open(&config);
    let error = open_all(&config).expect_err("it is in use");
    let pid = std::process::id().to_string();
    assert_eq!(error, StoreError::InUse { store: config.path.clone(), pid });
    drop(store);
    open(&config);
}

#[test]
fn files_are_for_their_owner_only() {
    use std::os::unix::fs::MetadataExt;
    let folder = folder();
    let config = config(&folder);
    let store = open(&config);
    add(&store, &world());
    store.import_through(1).expect("imported");
    let mode = |path: &std::path::Path| path.metadata().expect("it is there").mode() & 0o777;
    assert_eq!(mode(&log_folder(&config)), 0o700);
    for file in folder
        .path()
        .read_dir()
        .expect("folder")
        .chain(log_folder(&config).read_dir().expect("folder"))
    {
        let path = file.expect("file").path();
        if path.is_file() {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }
}

#[test]
fn nothing_is_taken_after_closing() {
    let folder = folder();
    let store = open(&config(&folder));
    store.close().expect("it closes");
    store.close().expect("and again");
    store.append(&world());
    assert_eq!(store.write(), Err(StoreError::Closed));
    assert_eq!(store.failure(), Some(StoreError::Closed));
}

#[test]
fn segments_follow_each_other_and_are_deleted_once_imported() {
    for durability in [Durability::Process, Durability::Power, Durability::Memory] {
        let folder = folder();
        let mut config = config_with(&folder, durability);
        config.segment_bytes = 4096;
        let store = open(&config);
        add(&store, &world());
        for sequence in 1..=500 {
            add(&store, &reserve(sequence, 1));
        }
        assert!(segments(&config).len() > 3, "it rotates");
        store.import_through(501).expect("imported");
        // The last one stays, and the one before it until the last is durable.
        add(&store, &reserve(501, 1));
        store.import_through(502).expect("imported");
        assert!(segments(&config).len() <= 2, "{:?}", segments(&config));
        assert_eq!(entries(&store).len(), 3 + 2 * 501);
        drop(store);
        let (store, recovery, _) = open_all(&config).expect("it opens");
        assert_eq!(recovery.max_sequence, 501 + PASSED_OVER);
        assert_eq!(entries(&store).len(), 3 + 2 * 501);
    }
}

#[test]
fn waiters_learn_that_it_is_synced() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    let folder = folder();
    let config = config_with(&folder, Durability::Power);
    let store = open(&config);
    let heard = Arc::new(AtomicU64::new(0));
    let ear = Arc::clone(&heard);
    store.on_synced(Box::new(move |seq| ear.store(seq, Ordering::SeqCst)));
    let seq = add(&store, &world());
    store.wait_synced(seq).expect("it is synced");
    assert_eq!(store.synced(), seq);
    for _ in 0..1000 {
        if heard.load(Ordering::SeqCst) == seq {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("the listener was not called");
}

#[test]
fn segments_are_filled_and_each_says_how_far_it_is_synced() {
    let folder = folder();
    let config = StoreConfig { segment_bytes: 4096, ..config_with(&folder, Durability::Power) };
    let store = open(&config);
    let idle = hold_import(&config);
    add(&store, &world());
    let mut record_bytes = 0;
    for sequence in 1..=200 {
        let before = store.figures().written_bytes;
        add(&store, &reserve(sequence, 1));
        record_bytes = record_bytes.max(store.figures().written_bytes - before);
    }
    store.wait_synced(201).expect("synced");
    let lengths: Vec<u64> =
        segments(&config).iter().map(|path| path.metadata().expect("length").len()).collect();
    let (last, full) = lengths.split_last().expect("several");
    assert!(full.len() > 1 && *last <= 4096, "{lengths:?}");
    for length in full {
        assert!((4096 - record_bytes + 1..=4096).contains(length), "{lengths:?}");
    }
    let bytes: u64 = lengths.iter().map(|length| length - 64).sum();
    let figures = store.figures();
    assert_eq!((figures.written_bytes, figures.backlog_bytes), (bytes, bytes));
    assert_eq!(figures.backlog_records, 201);
    let header = std::fs::read(&segments(&config)[0]).expect("read");
    assert_eq!(header[12..16], store.store_id().to_le_bytes());
    let scan = diagnose(&config.path).expect("looked at while it is open").log;
    for segment in &scan.segments {
        assert_eq!(segment.synced, Some(segment.last), "{scan:?}");
    }
    drop(idle);
    store.import_through(201).expect("imported");
    assert_eq!((store.figures().backlog_bytes, store.figures().written_bytes), (0, bytes));
}

#[test]
fn a_log_that_cannot_be_looked_at_is_an_error_and_not_taken_for_absent() {
    let folder = folder();
    let config = config(&folder);
    open(&config).close().expect("closed");
    std::fs::remove_dir_all(log_folder(&config)).expect("gone");
    std::fs::write(log_folder(&config), "in its place").expect("written");
    let error = diagnose(&config.path).expect_err("no log can be there");
    assert!(matches!(error, StoreError::Io { .. }), "{error:?}");
}
