//! Tests: the power goes at some moment.
//!
//! Goal: what was synced is there afterwards, once; what was not is there up to some record, or not
//! at all; and no power cut is taken for damage. Method: files remember what they held at their
//! last fdatasync. At the cut every sector of a segment is, by chance, as it was then or as it is
//! now, and its length is what one of them had, or sectors between. Segments whose name was never
//! synced may be missing. SQLite looks after its own files: they are copied as they are, at a
//! moment between transactions.

use std::collections::HashMap;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use bursar_ledger::fact::{Fact, Record};
use tempfile::TempDir;

use crate::files::{FILES, Files, LogFile, log_folder, segments};
use crate::{Case, Durability, EntryFilter, Store, StoreConfig, check_store};

const SECTOR: usize = 512;

/// What the disk holds for certain, by segment.
static DURABLE: LazyLock<Mutex<Durable>> = LazyLock::new(Mutex::default);

type Durable = HashMap<PathBuf, Vec<u8>>;

struct Remembering(File, PathBuf);

impl LogFile for Remembering {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        LogFile::write_at(&self.0, bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        // What is written while it syncs may be in or not; here it is what was there before.
        let content = fs::read(&self.1)?;
        self.0.sync_data()?;
        DURABLE.lock().expect("no panic").insert(self.1.clone(), content);
        Ok(())
    }
}

fn open_remembering(path: &Path) -> io::Result<Box<dyn LogFile>> {
    drop((FILES.create)(path)?);
    let file = File::options().read(true).write(true).open(path)?;
    Ok(Box::new(Remembering(file, path.to_owned())))
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn index(&mut self, end: usize) -> usize {
        usize::try_from(self.below(end as u64)).expect("below a usize")
    }
}

/// What the disk may hold of a segment after the cut; `None`: not even its name.
fn after_the_cut(path: &Path, durable: &Durable, random: &mut Random) -> Option<Vec<u8>> {
    let now = fs::read(path).expect("read");
    let durable = durable.get(path).cloned();
    if durable.is_none() && random.below(2) == 0 {
        return None;
    }
    let then = durable.unwrap_or_default();
    let len = length(then.len(), now.len(), random);
    let mut left = vec![0; len];
    for start in (0..len).step_by(SECTOR) {
        let end = (start + SECTOR).min(len);
        let from = if random.below(2) == 0 { &then } else { &now };
        let end_there = end.min(from.len()).max(start);
        if start < from.len() {
            left[start..end_there].copy_from_slice(&from[start..end_there]);
        }
    }
    Some(left)
}

/// Files grow by whole writes and whole sectors.
fn length(then: usize, now: usize, random: &mut Random) -> usize {
    let between = then + random.index(now - then + 1);
    match random.below(3) {
        0 => then,
        1 => now,
        _ => (between - between % SECTOR).max(then),
    }
}

fn numbered(number: i64) -> Record {
    let fact = Fact::Frozen { account: 1, frozen: true, reason: "r".repeat(40) };
    Record { time_ms: number, facts: vec![fact] }
}

fn cut(durability: Durability, random: &mut Random) -> Case {
    let shm = Path::new("/dev/shm");
    let folder = if shm.is_dir() { TempDir::new_in(shm) } else { TempDir::new() };
    let folder = folder.expect("a temporary folder");
    let config = StoreConfig {
        durability,
        segment_bytes: 400 + random.below(3_000),
        sync_interval_ms: 1 + random.below(30),
        ..StoreConfig::new(folder.path().join("ledger.db"))
    };
    let (store, _) = Store::open_with(
        config.clone(),
        0,
        Files { create: open_remembering, ..FILES },
        &mut |_| Ok(()),
    )
    .expect("it opens");
    for number in 1..=i64::try_from(random.below(120)).expect("small") {
        store.append(&numbered(number));
        match random.below(6) {
            0 => store.wait_synced(store.written() + 1).expect("synced"),
            1 => store.import_through(store.written() + 1).expect("imported"),
            2 => std::thread::sleep(Duration::from_millis(random.below(3))),
            _ => store.write().expect("written"),
        }
    }
    // Between two transactions, with the last one's segments deleted.
    let idle = rusqlite::Connection::open(&config.path).expect("opened");
    idle.busy_timeout(Duration::from_secs(5)).expect("set");
    idle.execute_batch("BEGIN IMMEDIATE").expect("locked");
    std::thread::sleep(Duration::from_millis(3));
    let synced = store.synced();
    let cut_path = folder.path().join("cut.db");
    let log = log_folder(&cut_path);
    fs::create_dir(&log).expect("made");
    // All segments at one moment: no sync ends while this is locked.
    let durable = DURABLE.lock().expect("no panic");
    for (_, segment) in segments(&log_folder(&config.path)).expect("listed") {
        if let Some(left) = after_the_cut(&segment, &durable, random) {
            fs::write(log.join(segment.file_name().expect("named")), left).expect("written");
        }
    }
    drop(durable);
    for end in ["", "-wal"] {
        let from = format!("{}{end}", config.path.display());
        fs::copy(from, format!("{}{end}", cut_path.display())).expect("copied");
    }
    drop(idle);
    drop(store);
    let config = StoreConfig { path: cut_path, ..config };
    let (store, recovery) =
        Store::open(config.clone(), 0, &mut |_| Ok(())).expect("a power cut is no damage");
    let last = store.written();
    assert!(last >= synced, "{synced} was synced, {last} is there");
    store.import_through(last).expect("imported");
    let reader = store.reader().expect("a reader");
    let rows = reader.entries(&EntryFilter::default(), None, usize::MAX).expect("entries");
    let numbers: Vec<_> = rows.iter().map(|row| row.time_ms).collect();
    assert_eq!(numbers, (1..=i64::try_from(last).expect("small")).collect::<Vec<_>>());
    assert_eq!(check_store(&config.path).expect("checked"), []);
    recovery.case
}

#[test]
fn a_power_cut_takes_only_what_was_not_synced() {
    let rounds = if std::env::var_os("BURSAR_LONG").is_some() { 3_000 } else { 60 };
    let seed = RandomState::new().hash_one("seed") | 1;
    let mut random = Random(seed);
    let mut torn = 0;
    for round in 0..rounds {
        let durability = if round % 2 == 0 { Durability::Process } else { Durability::Power };
        let before = random.0;
        let case = std::panic::catch_unwind(|| cut(durability, &mut Random(before)));
        let case = case.unwrap_or_else(|_| panic!("round {round} of seed {seed}: {before}"));
        random.below(u64::MAX);
        torn += usize::from(case == Case::TornTail);
    }
    assert!(torn > 0, "some cuts tear");
}
