//! Tests: in which order opening and syncing change the log's folder.
//!
//! Goal: whenever the power goes, what is on the disk says where the log goes on. Method: a store
//! without threads on files that tell each step before they do it; the steps are held against those
//! that recovery counts on. What a power cut makes of them is played elsewhere (`power_cut`, and the
//! simulation).

use std::cell::{Cell, RefCell};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bursar_ledger::fact::{Fact, Record};
use tempfile::TempDir;

use crate::config::{Durability, StoreConfig};
use crate::error::StoreError;
use crate::files::{FILES, Files, LogFile, log_folder, segment_path};
use crate::frame::{HEADER_BYTES, HeaderIs, SLOT_OFFSET, Synced, read_header};
use crate::open::{Recovery, open};
use crate::recovery::Case;
use crate::shared::{Alive, Shared};
use crate::store::Store;

thread_local! {
    static STEPS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// What deleting and syncing fail with.
    static NO_REMOVE: Cell<Option<io::ErrorKind>> = const { Cell::new(None) };
    static NO_SYNC: Cell<bool> = const { Cell::new(false) };
}

fn told(step: String) {
    STEPS.with_borrow_mut(|steps| steps.push(step));
}

/// What was done since.
fn steps() -> Vec<String> {
    STEPS.take()
}

/// A segment, by the sequence that it begins with.
fn number(path: &Path) -> u64 {
    path.file_stem().expect("a name").to_str().expect("ASCII").parse().expect("a sequence")
}

struct Telling(Box<dyn LogFile>, u64);

impl LogFile for Telling {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let what = if offset == SLOT_OFFSET { "note" } else { "write" };
        told(format!("{what} {}", self.1));
        self.0.write_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        told(format!("cut {} to {len}", self.1));
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        told(format!("sync {}", self.1));
        if NO_SYNC.get() { Err(io::ErrorKind::Other.into()) } else { self.0.sync_data() }
    }
}

const TELLING: Files = Files {
    create: |path| {
        told(format!("create {}", number(path)));
        Ok(Box::new(Telling((FILES.create)(path)?, number(path))))
    },
    open: |path| Ok(Box::new(Telling((FILES.open)(path)?, number(path)))),
    remove: |path| {
        told(format!("remove {}", number(path)));
        NO_REMOVE.get().map_or_else(|| (FILES.remove)(path), |kind| Err(kind.into()))
    },
    sync_folder: |folder| {
        if folder.to_str().is_some_and(|path| path.ends_with("-log")) {
            told("sync names".into());
        }
        (FILES.sync_folder)(folder)
    },
    named: true,
};

fn folder() -> (TempDir, StoreConfig) {
    let folder = TempDir::new().expect("a temporary folder");
    let config = StoreConfig::new(folder.path().join("ledger.db"));
    (folder, config)
}

fn try_open(config: &StoreConfig) -> Result<(Store, Recovery), StoreError> {
    Store::open_stepped(config.clone(), 0, TELLING, &mut |_| Ok(()))
}

fn opened(config: &StoreConfig) -> Store {
    try_open(config).expect("it opens").0
}

fn frozen(time_ms: i64) -> Record {
    let fact = Fact::Frozen { account: 1, frozen: true, reason: "r".repeat(40) };
    Record { time_ms, facts: vec![fact] }
}

fn write(store: &Store, count: i64) {
    for time_ms in 1..=count {
        store.append(&frozen(time_ms));
        store.write().expect("written");
    }
}

/// Up to where the segment that begins with a sequence says that it is synced.
fn noted(config: &StoreConfig, first: u64) -> Synced {
    let bytes = fs::read(segment_path(&log_folder(&config.path), first)).expect("it is there");
    let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk().expect("a header");
    let HeaderIs::Good(header) = read_header(bytes) else { panic!("a bad header") };
    header.read_slot(bytes).expect("a good slot")
}

#[test]
fn what_is_imported_is_synced_and_what_follows_is_there_before_it_goes() {
    let (_folder, config) = folder();
    let store = opened(&config);
    write(&store, 3);
    drop(store);
    steps();
    let store = opened(&config);
    let made = ["create 4", "write 4", "sync 4", "note 4", "sync names"];
    let expected = [&["sync 1", "sync names"][..], &made, &["remove 1", "sync names"]].concat();
    assert_eq!(steps(), expected);
    assert_eq!(noted(&config, 4), Synced { offset: HEADER_BYTES as u64, seq: 3 });
    // Nothing was written: the same segment is made anew, and not deleted.
    drop(store);
    drop(opened(&config));
    let expected = [&["sync 4", "sync names"][..], &made].concat();
    assert_eq!(steps(), expected);
}

#[test]
fn what_is_torn_off_is_cut_before_the_sync_and_what_is_whole_is_not() {
    let (_folder, config) = folder();
    let store = opened(&config);
    write(&store, 1);
    drop(store);
    let path = segment_path(&log_folder(&config.path), 1);
    let whole = fs::metadata(&path).expect("it is there").len();
    let file = OpenOptions::new().write(true).open(&path).expect("writable");
    file.write_all_at(b"torn", whole).expect("written");
    steps();
    let (store, recovery) = try_open(&config).expect("it opens");
    assert_eq!(steps()[..3], [&format!("cut 1 to {whole}"), "sync 1", "sync names"]);
    assert_eq!(recovery.dropped.expect("a spot").offset, whole);
    assert_eq!(recovery.imported, 1);
    drop(store);
}

#[test]
fn a_segment_that_cannot_be_deleted_fails_the_opening_and_one_that_is_gone_does_not() {
    for (kind, is_fine) in
        [(io::ErrorKind::NotFound, true), (io::ErrorKind::PermissionDenied, false)]
    {
        let (_folder, config) = folder();
        let store = opened(&config);
        write(&store, 1);
        drop(store);
        steps();
        NO_REMOVE.set(Some(kind));
        let opened = try_open(&config).map(drop);
        NO_REMOVE.set(None);
        let steps = steps();
        let end: Vec<_> =
            steps.iter().map(String::as_str).skip_while(|step| *step != "remove 1").collect();
        if is_fine {
            assert_eq!((opened, end), (Ok(()), vec!["remove 1", "sync names"]));
        } else {
            let failure = opened.expect_err("it was not deleted");
            assert!(failure.to_string().contains("delete"), "{failure}");
            assert_eq!(end, ["remove 1"]);
        }
    }
}

/// Goal: a store whose log is behind its database in memory opens, however often that is cut off.
/// Method: the log loses its records; the first opening, with another durability, cannot delete it.
#[test]
fn a_log_that_counts_for_nothing_goes_before_the_session_that_says_so() {
    let (_folder, config) = folder();
    let config = StoreConfig { durability: Durability::Memory, ..config };
    let store = opened(&config);
    write(&store, 3);
    store.step_import();
    drop(store);
    let path = segment_path(&log_folder(&config.path), 1);
    let file = OpenOptions::new().write(true).open(&path).expect("writable");
    file.set_len(HEADER_BYTES as u64).expect("cut");
    let config = StoreConfig { durability: Durability::Process, ..config };
    NO_REMOVE.set(Some(io::ErrorKind::PermissionDenied));
    let cut_off = try_open(&config).map(drop);
    NO_REMOVE.set(None);
    assert!(cut_off.is_err());
    let (store, recovery) = try_open(&config).expect("it opens");
    assert_eq!(recovery.case, Case::LogBehindInMemory);
    drop(store);
}

#[test]
fn segments_are_noted_as_synced_when_all_of_them_and_their_names_are() {
    let (_folder, config) = folder();
    // Each batch fills a segment.
    let store = opened(&StoreConfig { segment_bytes: 1, ..config.clone() });
    assert_eq!(store.synced(), 0);
    steps();
    write(&store, 3);
    assert_eq!(
        steps(),
        ["write 1", "create 2", "write 2", "write 2", "create 3", "write 3", "write 3"]
    );
    store.step_sync();
    let expected = ["sync 1", "sync 2", "sync 3", "sync names", "note 1", "note 2", "note 3"];
    assert_eq!(steps(), expected);
    assert_eq!(store.synced(), 3);
    for first in 1..=3 {
        let path = segment_path(&log_folder(&config.path), first);
        let offset = fs::metadata(path).expect("it is there").len();
        assert_eq!(noted(&config, first), Synced { offset, seq: first });
    }
    store.step_sync();
    assert_eq!(steps(), [""; 0], "there is nothing new");
    write(&store, 1);
    steps();
    store.step_sync();
    assert_eq!(steps(), ["sync 4", "sync names", "note 4"]);
}

#[test]
fn a_segment_whose_name_is_on_the_disk_is_synced_alone() {
    let (_folder, config) = folder();
    let store = opened(&config);
    steps();
    for _ in 0..2 {
        write(&store, 1);
        store.step_sync();
        assert_eq!(steps(), ["write 1", "sync 1", "note 1"]);
    }
}

#[test]
fn a_sync_that_failed_is_told_of_once() {
    let (_folder, config) = folder();
    let store = opened(&config);
    let heard = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&heard);
    store.on_synced(Box::new(move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    }));
    write(&store, 1);
    NO_SYNC.set(true);
    store.step_sync();
    assert_eq!(heard.load(Ordering::Relaxed), 1);
    store.step_sync();
    NO_SYNC.set(false);
    assert_eq!(heard.load(Ordering::Relaxed), 1);
    assert!(matches!(store.failure(), Some(StoreError::Sync { .. })));
}

#[test]
fn what_is_taken_into_the_batch_is_written_when_the_store_is_dropped() {
    let (_folder, config) = folder();
    let store = opened(&config);
    store.append(&frozen(1));
    drop(store);
    assert_eq!(try_open(&config).expect("it opens").1.imported, 1);
}

#[test]
fn in_memory_durability_what_is_written_is_imported_unsynced() {
    let (_folder, config) = folder();
    let store = opened(&StoreConfig { durability: Durability::Memory, ..config });
    write(&store, 1);
    steps();
    store.step_sync();
    assert_eq!(steps(), [""; 0]);
    store.step_import();
    assert_eq!((store.synced(), store.figures().backlog_records), (1, 0));
}

#[test]
fn a_session_notes_its_durability_and_that_it_is_not_closed() {
    for durability in [Durability::Process, Durability::Power, Durability::Memory] {
        let (_folder, config) = folder();
        let config = StoreConfig { durability, ..config };
        drop(opened(&config));
        let opened = open(&config, 0, TELLING, &mut |_| Ok(())).expect("it opens");
        let (clean, name): (bool, String) = opened
            .importer
            .conn
            .query_row("SELECT clean_shutdown, durability FROM meta", (), |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .expect("its row");
        assert_eq!((clean, name.as_str()), (false, durability.name()));
        let synchronous: i64 = opened
            .importer
            .conn
            .pragma_query_value(None, "synchronous", |row| row.get(0))
            .expect("a pragma");
        // https://sqlite.org/pragma.html#pragma_synchronous: 0 is off, 2 full.
        assert_eq!(synchronous, if durability == Durability::Memory { 0 } else { 2 });
        assert!(opened.importer.high.sequence > 0, "passed over: nobody has closed it");
        assert_eq!(opened.recovery.high_ids(), opened.importer.high);
    }
}

#[test]
fn a_thread_that_panics_fails_the_store_and_one_that_ends_does_not() {
    let (_folder, config) = folder();
    let opened = open(&config, 0, TELLING, &mut |_| Ok(())).expect("it opens");
    let shared = Arc::new(Shared::new(config, opened.store_id, opened.log));
    drop(Alive::new(&shared, "sync"));
    assert!(shared.log.failure().is_none());
    let alive = Alive::new(&shared, "sync");
    let thread = std::thread::spawn(move || {
        let _alive = alive;
        // Not a panic that the test's output shows.
        std::panic::resume_unwind(Box::new(()));
    });
    thread.join().expect_err("it panicked");
    assert!(matches!(shared.log.failure(), Some(StoreError::Died { thread: "sync" })));
}

#[test]
fn the_real_files_are_cut_and_tell_when_they_cannot_be_synced() {
    let (folder, _) = folder();
    let path = folder.path().join("segment");
    let file = (FILES.create)(&path).expect("made");
    assert_eq!(file.write_at(b"12345", 0).expect("written"), 5);
    (FILES.open)(&path).expect("there").set_len(2).expect("cut");
    assert_eq!(fs::read(&path).expect("read"), b"12");
    file.sync_data().expect("a file is");
    // fdatasync(2): EINVAL for what does not support it.
    (FILES.open)(Path::new("/dev/null")).expect("there").sync_data().expect_err("a device is not");
}
