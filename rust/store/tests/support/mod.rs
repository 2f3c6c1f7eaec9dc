//! Facts to fill stores with, and a folder that goes away.
#![allow(dead_code, reason = "each test uses a part")]

use std::path::{Path, PathBuf};

use bursar_ledger::fact::{Fact, Record, Reserved, Settled, SliceFact};
use bursar_ledger::{
    Advice, Amounts, Period, PeriodKind, ReservationId, State, Threshold, Unit, Verdict,
};
use bursar_store::{Durability, EntryFilter, EntryRow, Recovery, Store, StoreConfig, StoreError};
use tempfile::TempDir;

/// The time at which everything starts: 2026-01-01.
pub(crate) const T0: i64 = 1_767_225_600_000;

/// How many ids a start passes over where the store was not closed.
pub(crate) const PASSED_OVER: u64 = 1 << 24;

/// A folder in memory where there is one: these tests sync a lot.
pub(crate) fn folder() -> TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { TempDir::new_in(shm) } else { TempDir::new() }.expect("a temporary folder")
}

pub(crate) fn config(folder: &TempDir) -> StoreConfig {
    StoreConfig::new(folder.path().join("ledger.db"))
}

pub(crate) fn config_with(folder: &TempDir, durability: Durability) -> StoreConfig {
    StoreConfig { durability, ..config(folder) }
}

/// Opens and collects what the ledger is told.
pub(crate) fn open_all(config: &StoreConfig) -> Result<(Store, Recovery, Vec<Record>), StoreError> {
    let mut told = Vec::new();
    let (store, recovery) = Store::open(config.clone(), T0, &mut |record| {
        told.push(record.clone());
        Ok(())
    })?;
    Ok((store, recovery, told))
}

pub(crate) fn open(config: &StoreConfig) -> Store {
    open_all(config).expect("it opens").0
}

pub(crate) fn log_folder(config: &StoreConfig) -> PathBuf {
    PathBuf::from(format!("{}-log", config.path.display()))
}

pub(crate) fn segments(config: &StoreConfig) -> Vec<PathBuf> {
    let entries = log_folder(config).read_dir().expect("the log's folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut paths: Vec<_> = paths.filter(|p| p.extension().is_some_and(|e| e == "log")).collect();
    paths.sort();
    paths
}

pub(crate) fn at(time_ms: i64, facts: Vec<Fact>) -> Record {
    Record { time_ms, facts }
}

pub(crate) fn id(sequence: u64) -> ReservationId {
    ReservationId { sequence, slot: u32::try_from(sequence % 1000).expect("small") }
}

pub(crate) fn amounts(pairs: &[(Unit, i64)]) -> Amounts {
    pairs.iter().copied().collect()
}

/// Two accounts, `acme` and `acme/a`; on the first a total of tokens, on the second money by the
/// day and tokens by the rolling hour. Chain 1 is `acme/a`'s.
pub(crate) fn world() -> Record {
    let budget = |budget, account, unit, period, limit| Fact::BudgetSet {
        budget,
        account,
        unit,
        period,
        limit,
        thresholds: vec![Threshold {
            permille: 500,
            verdict: Verdict::Warn,
            advice: Advice::default(),
        }],
        manual: budget == 2,
    };
    let window =
        |window, budget, end_ms| Fact::WindowOpened { window, budget, start_ms: T0, end_ms };
    let account = |account, path: &str| Fact::AccountOpened {
        account,
        path: path.into(),
        automatic: account == 2,
    };
    let facts = vec![
        account(1, "acme"),
        account(2, "acme/a"),
        budget(1, 1, Unit::Tokens, Period::total(), 1_000_000_000),
        budget(2, 2, Unit::UsdNanos, Period::calendar(PeriodKind::Day, "UTC"), 1_000_000_000),
        budget(3, 2, Unit::Tokens, Period::rolling(3_600_000), 100_000),
        window(1, 1, i64::MAX),
        window(2, 2, T0 + 86_400_000),
        window(3, 3, i64::MAX),
        Fact::ChainOpened { chain: 1, account: 2, windows: vec![1, 2, 3], base: None },
    ];
    at(T0, facts)
}

pub(crate) fn reserved(sequence: u64, tokens: i64) -> Reserved {
    let held = amounts(&[(Unit::Tokens, tokens), (Unit::UsdNanos, 10 * tokens)]);
    Reserved {
        id: id(sequence),
        account: 2,
        key: u128::from(sequence) << 64 | 7,
        payload: 11,
        slices: vec![SliceFact { chain: 1, held, spent: Amounts::ZERO }],
        max_output_tokens: 0,
        ttl_ms: 60_000,
        parent: None,
        rate: None,
        labels: vec![("model".into(), "m-1".into())],
        owner: None,
    }
}

pub(crate) fn reserve(sequence: u64, tokens: i64) -> Record {
    let time_ms = T0 + i64::try_from(sequence).expect("small");
    at(time_ms, vec![Fact::Reserved(reserved(sequence, tokens))])
}

/// Commits so many of the tokens held.
pub(crate) fn settled(sequence: u64, held: i64, spent: i64) -> Settled {
    let both = |tokens: i64| amounts(&[(Unit::Tokens, tokens), (Unit::UsdNanos, 10 * tokens)]);
    Settled {
        id: id(sequence),
        account: 2,
        state: State::Committed,
        payload: 12,
        slices: vec![SliceFact { chain: 1, held: both(held), spent: both(spent) }],
        beyond: None,
        overdraft: Amounts::ZERO,
        spent: both(spent),
        returned: both(held - spent),
        kept: Amounts::ZERO,
        model: Some("m-1".into()),
    }
}

pub(crate) fn settle(sequence: u64, held: i64, spent: i64) -> Record {
    let time_ms = T0 + i64::try_from(sequence).expect("small");
    at(time_ms, vec![Fact::Settled(settled(sequence, held, spent))])
}

pub(crate) fn add(store: &Store, record: &Record) -> u64 {
    let seq = store.append(record);
    store.write().expect("it is written");
    seq
}

/// Everything that can be read, after everything written is imported.
pub(crate) fn entries(store: &Store) -> Vec<EntryRow> {
    store.import_through(store.written()).expect("it is imported");
    let reader = store.reader().expect("a reader");
    reader.entries(&EntryFilter::default(), None, usize::MAX).expect("entries")
}

/// The database's files at one moment.
#[derive(Debug)]
pub(crate) struct Database(Vec<(PathBuf, Vec<u8>)>);

impl Database {
    fn files(config: &StoreConfig) -> [PathBuf; 3] {
        ["", "-wal", "-shm"].map(|end| PathBuf::from(format!("{}{end}", config.path.display())))
    }

    /// While nobody writes.
    pub(crate) fn save(config: &StoreConfig) -> Database {
        let files = Database::files(config).into_iter();
        Database(files.filter_map(|p| std::fs::read(&p).ok().map(|bytes| (p, bytes))).collect())
    }

    /// Deletes the files.
    pub(crate) fn remove(config: &StoreConfig) {
        for path in Database::files(config) {
            let _gone = std::fs::remove_file(path);
        }
    }

    /// Puts the files back as they were.
    pub(crate) fn restore(&self, config: &StoreConfig) {
        Database::remove(config);
        for (path, bytes) in self.0.iter().filter(|(path, _)| !path.ends_with("-shm")) {
            std::fs::write(path, bytes).expect("written");
        }
    }
}

/// Keeps the import from writing while it lives: the log stays what it is.
pub(crate) fn hold_import(config: &StoreConfig) -> rusqlite::Connection {
    let conn = rusqlite::Connection::open(&config.path).expect("opened");
    conn.busy_timeout(std::time::Duration::from_secs(10)).expect("set");
    conn.execute_batch("BEGIN IMMEDIATE").expect("locked");
    conn
}
