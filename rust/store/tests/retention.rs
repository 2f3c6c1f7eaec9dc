//! Retention: what is over goes, what counts stays, and sums can still be checked.

mod support;

use std::time::Duration;

use bursar_ledger::fact::{Fact, Record, Settled, SliceFact};
use bursar_ledger::runaway::{Action, Finding, Rule};
use bursar_ledger::{Amounts, Period, PeriodKind, Unit};
use bursar_store::{Apart, EntryFilter, EntryKind, Store, StoreConfig, check_store};
use support::*;

const DAY_MS: i64 = 86_400_000;

/// Waits until the oldest entry is at least of this time.
fn wait_for_oldest(store: &Store, time_ms: i64) {
    let reader = store.reader().expect("a reader");
    for _ in 0..500 {
        let oldest = reader.entries(&EntryFilter::default(), None, 1).expect("entries");
        if oldest.first().is_none_or(|row| row.time_ms >= time_ms) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("old entries are still there");
}

fn count(config: &StoreConfig, table: &str) -> i64 {
    let conn = rusqlite::Connection::open(&config.path).expect("opened");
    conn.query_row(&format!("SELECT count(*) FROM {table}"), (), |row| row.get(0)).expect("counted")
}

#[test]
fn what_is_over_goes_and_what_counts_stays() {
    let folder = folder();
    let config =
        StoreConfig { entry_retention_ms: DAY_MS, key_retention_ms: DAY_MS, ..config(&folder) };
    let store = open(&config);
    add(&store, &world());
    // One that stays open all the time, on the first chain.
    add(&store, &reserve(1, 5));
    let mut sequence = 1;
    for day in 0..10_u64 {
        let start_ms = T0 + i64::try_from(day).expect("small") * DAY_MS;
        let (chain, window) = (10 + day, 10 + day);
        let windows = vec![1, window, 3];
        add(
            &store,
            &at(
                start_ms,
                vec![
                    Fact::WindowOpened { window, budget: 2, start_ms, end_ms: start_ms + DAY_MS },
                    Fact::ChainOpened { chain, account: 2, windows, base: None },
                ],
            ),
        );
        for n in 0..600 {
            sequence += 1;
            let mut reserved = reserved(sequence, 10);
            let mut settled = settled(sequence, 10, 7);
            (reserved.slices[0].chain, settled.slices[0].chain) = (chain, chain);
            add(&store, &at(start_ms + n, vec![Fact::Reserved(reserved), Fact::Settled(settled)]));
        }
    }
    let last_ms = T0 + 9 * DAY_MS + 599;
    store.import_through(store.written()).expect("imported");
    // An hour more than was asked for.
    wait_for_oldest(&store, last_ms - DAY_MS - 3_600_000);
    assert_eq!(check_store(&config.path).expect("checked"), []);
    for _ in 0..500 {
        if count(&config, "windows") <= 6 && count(&config, "chains") <= 4 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(count(&config, "reservations") <= 1 + 2 * 600, "ended ones go");
    // The open one's, the newest, yesterday's, and one that was replaced at that very millisecond.
    assert!(count(&config, "chains") <= 4, "chains that nobody names go");
    assert!(count(&config, "windows") <= 6, "windows that nobody names go");
    drop(store);
    let (store, recovery, told) = open_all(&config).expect("it opens");
    assert_eq!((recovery.max_sequence, recovery.max_chain), (sequence + PASSED_OVER, 19));
    let facts: Vec<&Fact> = told.iter().flat_map(|record| &record.facts).collect();
    assert!(facts.contains(&&Fact::Reserved(reserved(1, 5))), "the open one is there");
    assert!(facts.iter().any(|fact| matches!(fact, Fact::ChainOpened { chain: 1, .. })));
    let stood: i64 = facts
        .iter()
        .find_map(|fact| match fact {
            Fact::WindowStood { window: 1, spent, .. } => Some(*spent),
            _ => None,
        })
        .expect("the total");
    assert_eq!(stood, 10 * 600 * 7, "the total counts what is deleted");
    assert_eq!(check_store(&config.path).expect("checked"), []);
    store.close().expect("closed");
}

#[test]
fn accounts_that_retired_go_with_their_history() {
    let folder = folder();
    let config = StoreConfig { entry_retention_ms: 0, key_retention_ms: 0, ..config(&folder) };
    let store = open(&config);
    add(&store, &world());
    let period = Period::calendar(PeriodKind::Hour, "UTC");
    let many = (100..400_u32).flat_map(|account| {
        let (window, chain) = (u64::from(account), u64::from(account));
        [
            Fact::AccountOpened { account, path: format!("acme/run-{account}"), automatic: true },
            Fact::BudgetSet {
                budget: account,
                account,
                unit: Unit::Tokens,
                period: period.clone(),
                limit: 5,
                thresholds: vec![],
                manual: false,
            },
            Fact::WindowOpened { window, budget: account, start_ms: T0, end_ms: T0 + 3_600_000 },
            Fact::ChainOpened { chain, account, windows: vec![1, window], base: None },
            Fact::Crossed { window, permille: 500 },
            Fact::AccountRetired { account },
        ]
    });
    add(&store, &at(T0, many.collect()));
    store.import_through(store.written()).expect("imported");
    // What an earlier release left of windows that it deleted.
    let conn = rusqlite::Connection::open(&config.path).expect("opened");
    conn.busy_timeout(Duration::from_secs(10)).expect("set");
    conn.execute_batch("INSERT INTO crossings VALUES (9999, 500, 0)").expect("added");
    conn.execute_batch("INSERT INTO window_buckets VALUES (9999, 0, 7)").expect("added");
    drop(conn);
    add(&store, &Record { time_ms: T0 + DAY_MS, facts: vec![] });
    store.import_through(store.written()).expect("imported");
    for _ in 0..500 {
        if count(&config, "accounts") == 2 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let tables = ["accounts", "budgets", "windows", "chains", "crossings", "window_buckets"];
    assert_eq!(tables.map(|table| count(&config, table)), [2, 3, 3, 1, 0, 0]);
}

/// Goal: no amount that a caller may name stops the clean-up, the check or the history. Method: two
/// that have no sum in 64 bits, of a unit that only a rolling window counts; after a day they are over.
#[test]
fn amounts_without_a_sum_stop_nothing() {
    let folder = folder();
    let config = StoreConfig { entry_retention_ms: 0, key_retention_ms: 0, ..config(&folder) };
    let store = open(&config);
    add(&store, &world());
    let unit = Unit::EnergyMj;
    let rolling = vec![
        Fact::BudgetSet {
            budget: 9,
            account: 2,
            unit,
            period: Period::rolling(1_000),
            limit: 5,
            thresholds: vec![],
            manual: true,
        },
        Fact::WindowOpened { window: 9, budget: 9, start_ms: T0, end_ms: i64::MAX },
        Fact::ChainOpened { chain: 9, account: 2, windows: vec![9], base: None },
    ];
    add(&store, &at(T0, rolling));
    for sequence in 1..=2 {
        let spent = amounts(&[(unit, 6_000_000_000_000_000_000)]);
        let slices = vec![SliceFact { chain: 9, held: spent, spent }];
        let fact = Settled { slices, spent, returned: Amounts::ZERO, ..settled(sequence, 0, 0) };
        let time_ms = T0 + 5_000 * i64::try_from(sequence).expect("small");
        add(&store, &at(time_ms, vec![Fact::Settled(fact)]));
    }
    store.import_through(store.written()).expect("imported");
    assert_eq!(check_store(&config.path).expect("checked"), []);
    let reader = store.reader().expect("a reader");
    let sums = reader.spent("acme", unit, (0, i64::MAX), Apart::Account).expect("summed");
    assert_eq!(sums, [("acme/a".to_owned(), i64::MAX)]);
    add(&store, &finding(T0 + DAY_MS, 17));
    wait_for_oldest(&store, T0 + DAY_MS);
    assert_eq!(store.failure(), None);
    assert_eq!(check_store(&config.path).expect("checked"), []);
}

/// A finding of account 1 at a time.
fn finding(time_ms: i64, figure: i64) -> Record {
    let (rule, action) = (Rule::Depth, Action::Stop);
    let finding = Finding { rule, figure, most: 16, unit: None, until_ms: None };
    at(time_ms, vec![Fact::Runaway { account: 1, finding, action }])
}

#[test]
fn a_finding_reads_back_in_words_and_goes_with_its_entry() {
    let folder = folder();
    let config = StoreConfig { entry_retention_ms: DAY_MS, ..config(&folder) };
    let store = open(&config);
    add(&store, &world());
    add(&store, &finding(T0 + 1, 17));
    store.import_through(store.written()).expect("imported");
    let filter = EntryFilter { kinds: vec![EntryKind::Runaway], ..EntryFilter::default() };
    let rows = store.reader().expect("a reader").entries(&filter, None, 9).expect("entries");
    let words = "stop: depth: 17 reservations nested in each other, 16 allowed";
    assert_eq!((rows[0].amount, rows[0].detail.as_deref()), (17, Some(words)));
    add(&store, &finding(T0 + 3 * DAY_MS, 18));
    wait_for_oldest(&store, T0 + 3 * DAY_MS);
    store.close().expect("closed");
    assert_eq!(count(&config, "details"), 1);
}

#[test]
fn a_store_that_was_made_before_there_were_findings_takes_them() {
    let folder = folder();
    let config = config(&folder);
    open(&config).close().expect("closed");
    let conn = rusqlite::Connection::open(&config.path).expect("opened");
    let before = "DROP VIEW entries; DROP TABLE details; DELETE FROM kinds WHERE name = 'runaway';
        PRAGMA user_version = 1";
    conn.execute_batch(before).expect("as it was");
    drop(conn);
    let store = open(&config);
    add(&store, &world());
    add(&store, &finding(T0 + 1, 17));
    store.close().expect("closed");
    let kinds = i64::try_from(EntryKind::ALL.len()).expect("few");
    assert_eq!((count(&config, "details"), count(&config, "kinds")), (1, kinds));
}

#[test]
fn a_store_that_was_made_before_work_was_judged_takes_it() {
    let folder = folder();
    let config = config(&folder);
    let store = open(&config);
    add(&store, &world());
    add(&store, &reserve(1, 10));
    add(&store, &reserve(2, 10));
    store.close().expect("closed");
    drop(store);
    let conn = rusqlite::Connection::open(&config.path).expect("opened");
    conn.execute("DELETE FROM kinds WHERE name IN ('success', 'failure')", ()).expect("as it was");
    drop(conn);
    let store = open(&config);
    for (sequence, success) in [(1, true), (2, false)] {
        let mut ended = settle(sequence, 10, 7);
        ended.facts.push(Fact::Judged { id: id(sequence), account: 2, success });
        add(&store, &ended);
    }
    store.import_through(store.written()).expect("imported");
    let kinds = vec![EntryKind::Success, EntryKind::Failure];
    let filter = EntryFilter { account: Some("acme".into()), kinds, ..EntryFilter::default() };
    let rows = store.reader().expect("a reader").entries(&filter, None, 9).expect("entries");
    let said: Vec<_> = rows.iter().map(|row| (row.kind, row.reservation, row.unit)).collect();
    let (one, two) = (Some(id(1)), Some(id(2)));
    assert_eq!(said, [(EntryKind::Success, one, None), (EntryKind::Failure, two, None)]);
    assert!(rows.iter().all(|row| row.account == "acme/a" && row.amount == 0));
    store.close().expect("closed");
    assert_eq!(check_store(&config.path).expect("checked"), []);
    assert_eq!(count(&config, "entries WHERE kind IN ('success', 'failure')"), 2);
}
