//! Tests: disks that are full, write a little at a time, or fail to sync.
//!
//! A file here obeys the plan of its folder. What matters is what the next opening finds.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use bursar_ledger::fact::{Fact, Record};
use tempfile::TempDir;

use crate::files::{FILES, Files, LogFile, log_folder};
use crate::{Durability, EntryFilter, Recovery, Store, StoreConfig, StoreError};

static PLANS: LazyLock<Mutex<HashMap<PathBuf, Arc<Plan>>>> = LazyLock::new(Mutex::default);

/// How the files of one folder behave.
#[derive(Default)]
struct Plan {
    /// The most that one call writes; 0: all.
    at_once: AtomicU64,
    /// Whether the disk is full after `room` more bytes.
    full: AtomicBool,
    room: AtomicU64,
    no_sync: AtomicBool,
    no_cut: AtomicBool,
    /// Whether the next write is interrupted.
    interrupted: AtomicBool,
    no_new_file: AtomicBool,
}

struct Faulty(File, Arc<Plan>);

fn fault() -> io::Error {
    io::Error::from_raw_os_error(28)
}

impl LogFile for Faulty {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let Faulty(file, plan) = self;
        if plan.interrupted.swap(false, Ordering::SeqCst) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let mut len = bytes.len() as u64;
        let at_once = plan.at_once.load(Ordering::SeqCst);
        if at_once != 0 {
            len = len.min(at_once);
        }
        if plan.full.load(Ordering::SeqCst) {
            len = len.min(plan.room.load(Ordering::SeqCst));
            if len == 0 {
                return Err(fault());
            }
            plan.room.fetch_sub(len, Ordering::SeqCst);
        }
        let len = usize::try_from(len).expect("no longer than the slice");
        LogFile::write_at(file, &bytes[..len], offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.1.no_cut.load(Ordering::SeqCst) { Err(fault()) } else { self.0.set_len(len) }
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.1.no_sync.load(Ordering::SeqCst) { Err(fault()) } else { self.0.sync_data() }
    }
}

fn open_faulty(path: &Path) -> io::Result<Box<dyn LogFile>> {
    let folder = path.parent().expect("a folder").to_owned();
    let plan = Arc::clone(PLANS.lock().expect("no panic").entry(folder).or_default());
    if plan.no_new_file.load(Ordering::SeqCst) {
        return Err(fault());
    }
    drop((FILES.create)(path)?);
    let file = File::options().read(true).write(true).open(path)?;
    Ok(Box::new(Faulty(file, plan)))
}

struct Subject {
    _folder: TempDir,
    config: StoreConfig,
    plan: Arc<Plan>,
}

fn subject() -> Subject {
    let shm = Path::new("/dev/shm");
    let folder = if shm.is_dir() { TempDir::new_in(shm) } else { TempDir::new() };
    let folder = folder.expect("a temporary folder");
    let config = StoreConfig {
        durability: Durability::Power,
        ..StoreConfig::new(folder.path().join("ledger.db"))
    };
    let mut plans = PLANS.lock().expect("no panic");
    let plan = Arc::clone(plans.entry(log_folder(&config.path)).or_default());
    Subject { _folder: folder, config, plan }
}

impl Subject {
    fn open(&self) -> (Store, Recovery) {
        Store::open_with(
            self.config.clone(),
            0,
            Files { create: open_faulty, ..FILES },
            &mut |_| Ok(()),
        )
        .expect("it opens")
    }

    /// The numbers that are there after the store has gone and come back, on a sound disk.
    fn numbers(&self) -> Vec<i64> {
        let (store, _) =
            Store::open(self.config.clone(), 0, &mut |_| Ok(())).expect("it opens again");
        store.import_through(store.written()).expect("imported");
        let reader = store.reader().expect("a reader");
        let rows = reader.entries(&EntryFilter::default(), None, usize::MAX).expect("entries");
        rows.iter().map(|row| row.time_ms).collect()
    }
}

/// A record with one entry, told by its time.
fn numbered(number: i64) -> Record {
    let fact = Fact::Frozen { account: 1, frozen: true, reason: "r".repeat(50) };
    Record { time_ms: number, facts: vec![fact] }
}

#[test]
fn short_and_interrupted_writes_are_completed() {
    let subject = subject();
    let (store, _) = subject.open();
    subject.plan.at_once.store(7, Ordering::SeqCst);
    for number in 1..=20 {
        subject.plan.interrupted.store(true, Ordering::SeqCst);
        store.append(&numbered(number));
        store.write().expect("written");
    }
    store.wait_synced(20).expect("synced");
    drop(store);
    assert_eq!(subject.numbers(), (1..=20).collect::<Vec<_>>());
}

#[test]
fn a_full_disk_loses_the_failed_batch_and_nothing_else() {
    for room in (0..200).step_by(3) {
        let subject = subject();
        let (store, _) = subject.open();
        store.append(&numbered(1));
        store.write().expect("written");
        store.wait_synced(1).expect("synced");
        subject.plan.room.store(room, Ordering::SeqCst);
        subject.plan.full.store(true, Ordering::SeqCst);
        // A batch of two: both or none.
        store.append(&numbered(2));
        store.append(&numbered(3));
        let wrote = store.write();
        let mut expected = vec![1];
        if wrote.is_ok() {
            expected.extend([2, 3]);
        } else {
            assert!(matches!(wrote, Err(StoreError::Append { .. })), "{wrote:?}");
            assert_eq!(store.failure(), wrote.err());
            assert_eq!(store.written(), 1);
            // The disk has room again; the store stays as it is.
            subject.plan.full.store(false, Ordering::SeqCst);
            store.append(&numbered(4));
            assert!(store.write().is_err());
            assert!(store.close().is_err());
        }
        subject.plan.full.store(false, Ordering::SeqCst);
        drop(store);
        assert_eq!(subject.numbers(), expected, "room for {room} bytes");
    }
}

#[test]
fn a_full_disk_at_a_new_segment_is_no_different() {
    let mut subject = subject();
    subject.config.segment_bytes = 300;
    let (store, _) = subject.open();
    subject.plan.no_new_file.store(true, Ordering::SeqCst);
    let mut written = 0;
    for number in 1..=20 {
        store.append(&numbered(number));
        if store.write().is_err() {
            break;
        }
        written = number;
    }
    assert!(written > 0 && written < 20);
    drop(store);
    assert_eq!(subject.numbers(), (1..=written).collect::<Vec<_>>());
}

#[test]
fn a_failed_sync_is_final() {
    let subject = subject();
    let (store, _) = subject.open();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = Arc::clone(&heard);
    store.on_synced(Box::new(move |seq| ear.lock().expect("no panic").push(seq)));
    let hear = |count| {
        for _ in 0..500 {
            if heard.lock().expect("no panic").len() >= count {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    };
    store.append(&numbered(1));
    store.wait_synced(1).expect("synced");
    hear(1);
    subject.plan.no_sync.store(true, Ordering::SeqCst);
    store.append(&numbered(2));
    let waited = store.wait_synced(2);
    assert!(matches!(waited, Err(StoreError::Sync { .. })), "{waited:?}");
    subject.plan.no_sync.store(false, Ordering::SeqCst);
    assert_eq!(store.wait_synced(1), waited, "it is not tried again");
    assert_eq!((store.synced(), store.failure()), (1, waited.err()));
    hear(2);
    store.request_sync();
    drop(store);
    assert_eq!(*heard.lock().expect("no panic"), [1, 1], "told once more, with the old number");
    // This disk kept it after all.
    assert_eq!(subject.numbers(), [1, 2]);
}

#[test]
fn a_record_over_the_limit_fails_the_store() {
    let subject = subject();
    let (store, _) = subject.open();
    let reason = "r".repeat(crate::MAX_RECORD_BYTES + 1);
    let fact = Fact::Frozen { account: 1, frozen: true, reason };
    store.append(&Record { time_ms: 1, facts: vec![fact] });
    assert!(matches!(store.write(), Err(StoreError::TooLarge { .. })));
    assert!(matches!(store.failure(), Some(StoreError::TooLarge { .. })));
}

const ABORTS: &str = "BURSAR_TEST_ABORTS";

/// Goal: a torn record that cannot be cut away must never be appended to. Method: in a process of
/// its own the disk is full and cannot cut; that process must abort, and the next one finds a torn
/// tail.
#[test]
fn a_batch_that_cannot_be_cut_away_ends_the_process() {
    if let Ok(path) = std::env::var(ABORTS) {
        let config = StoreConfig::new(path);
        let plan = {
            let mut plans = PLANS.lock().expect("no panic");
            Arc::clone(plans.entry(log_folder(&config.path)).or_default())
        };
        let (store, _) =
            Store::open_with(config, 0, Files { create: open_faulty, ..FILES }, &mut |_| Ok(()))
                .expect("it opens");
        store.append(&numbered(1));
        store.wait_synced(1).expect("synced");
        plan.room.store(30, Ordering::SeqCst);
        plan.full.store(true, Ordering::SeqCst);
        plan.no_cut.store(true, Ordering::SeqCst);
        store.append(&numbered(2));
        drop(store.write());
        return;
    }
    let subject = subject();
    let name = "faults::a_batch_that_cannot_be_cut_away_ends_the_process";
    let ended = std::process::Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", name, "--test-threads=1"])
        .env(ABORTS, &subject.config.path)
        .output()
        .expect("it runs");
    let signal = std::os::unix::process::ExitStatusExt::signal(&ended.status);
    assert_eq!(signal, Some(6), "it aborts: {ended:?}");
    assert_eq!(subject.numbers(), [1]);
}
