//! The import: exactly once, whoever looks at the database meanwhile, however far behind it is.

mod support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bursar_ledger::fact::{Fact, Settled};
use bursar_ledger::{Amounts, Unit};
use bursar_store::{Case, Durability, StoreConfig, check_store, diagnose};
use rustix::thread::{CpuSet, sched_setaffinity};
use support::*;

#[test]
fn what_is_imported_and_still_in_the_log_is_not_imported_again() {
    let folder = folder();
    let config = config(&folder);
    let store = open(&config);
    let idle = hold_import(&config);
    add(&store, &world());
    for sequence in 1..50 {
        add(&store, &reserve(sequence, 10));
        add(&store, &settle(sequence, 10, 7));
    }
    store.wait_synced(store.written()).expect("synced");
    let segment = segments(&config).pop().expect("one");
    let log = fs::read(&segment).expect("read");
    drop(idle);
    let before = entries(&store);
    drop(store);
    // As if the process had died between the import's transaction and the end of the segment.
    for segment in segments(&config) {
        fs::remove_file(segment).expect("removed");
    }
    fs::write(&segment, log).expect("written");
    let (store, recovery, _) = open_all(&config).expect("it opens");
    assert_eq!((recovery.case, recovery.imported), (Case::CleanEnd, 0));
    assert_eq!(entries(&store), before);
    assert_eq!(check_store(&config.path).expect("checked"), []);
}

/// Goal: what the log says that was used at least never falls. Method: a lower floor, of a moment
/// before, comes in a later group.
#[test]
fn a_floor_never_falls_also_from_one_group_to_the_next() {
    let folder = folder();
    let config = config(&folder);
    let store = open(&config);
    add(&store, &world());
    add(&store, &reserve(1, 100));
    for used in [50, 80, 60] {
        let used = amounts(&[(Unit::Tokens, used)]);
        add(&store, &at(T0 + 5, vec![Fact::Used(vec![(id(1), used), (id(2), used)])]));
        store.import_through(store.written()).expect("imported");
    }
    drop(store);
    let (_store, _, told) = open_all(&config).expect("it opens");
    let mut facts = told.iter().flat_map(|record| &record.facts);
    let floors = facts.find_map(|fact| match fact {
        Fact::Used(floors) => Some(floors.clone()),
        _ => None,
    });
    assert_eq!(floors, Some(vec![(id(1), amounts(&[(Unit::Tokens, 80)]))]));
}

/// Goal: a late correction gives nothing back after a restart that the ledger has not given back
/// before, and takes nothing of others'. Method: 7, or 4 and 3 others, are taken back before or after
/// they have left the rolling hour; 5 are spent meanwhile.
#[test]
fn a_correction_in_a_rolling_window_takes_back_what_has_not_left_it() {
    const MINUTE: i64 = 60_000;
    // The first moment of one of the hour's 64 buckets, and the last one at which that counts.
    let bucket_ms = 60 * MINUTE / 64;
    let first_ms = bucket_ms - T0.rem_euclid(bucket_ms);
    let last_ms = first_ms + 65 * bucket_ms - 1;
    for (first, spent_ms, (corrected, corrected_ms), stood) in [
        (7, 0, (1, 50 * MINUTE), 5),
        (7, 0, (9, 50 * MINUTE), 12), // of one that is forgotten
        (4, 0, (1, 50 * MINUTE), 2),
        (7, 0, (1, 80 * MINUTE), 5),
        (7, 0, (1, 150 * MINUTE), 0),
        (7, first_ms, (1, last_ms), 5),
        (7, first_ms, (1, last_ms + 1), 5),
    ] {
        let folder = folder();
        let config = config(&folder);
        let store = open(&config);
        add(&store, &world());
        let spend = |sequence, after_ms, spent| {
            let fact = Settled { returned: Amounts::ZERO, ..settled(sequence, spent, spent) };
            add(&store, &at(T0 + after_ms, vec![Fact::Settled(fact)]));
        };
        spend(1, spent_ms, first);
        store.import_through(store.written()).expect("imported");
        spend(2, 40 * MINUTE, 5);
        let beyond = Some((1, amounts(&[(Unit::Tokens, -7)])));
        let zero = Amounts::ZERO;
        let correction =
            Settled { beyond, slices: vec![], spent: zero, ..settled(corrected, 0, 0) };
        add(&store, &at(T0 + corrected_ms, vec![Fact::Settled(correction)]));
        store.import_through(store.written()).expect("imported");
        assert_eq!(check_store(&config.path).expect("checked"), []);
        drop(store);
        let (_store, _, told) = open_all(&config).expect("it opens");
        let mut facts = told.iter().flat_map(|record| &record.facts);
        let found = facts.find_map(|fact| match fact {
            Fact::WindowStood { window: 3, spent, buckets, .. } => {
                assert!(buckets.iter().all(|(_, spent)| *spent >= 0), "{buckets:?}");
                Some(*spent)
            }
            _ => None,
        });
        assert_eq!(found, Some(stood), "corrected after {corrected_ms} ms");
    }
}

/// Where every core is busy, a thread of the lowest priority alone would take minutes.
#[test]
#[expect(clippy::disallowed_methods, reason = "it measures how long a reader waits")]
fn who_waits_for_the_import_is_served_on_a_busy_core() {
    let mut core = CpuSet::new();
    core.set(0);
    sched_setaffinity(None, &core).expect("this thread, and those that it starts");
    let folder = folder();
    let store = open(&config(&folder));
    let is_over = Arc::new(AtomicBool::new(false));
    let busy: Vec<_> = (0..8)
        .map(|_| {
            let is_over = Arc::clone(&is_over);
            std::thread::spawn(move || while !is_over.load(Ordering::Relaxed) {})
        })
        .collect();
    store.append(&world());
    for sequence in 1..=20_000 {
        store.append(&reserve(sequence, 1));
        store.append(&settle(sequence, 1, 1));
    }
    store.write().expect("written");
    let start = Instant::now();
    store.import_through(store.written()).expect("imported");
    let took = start.elapsed();
    is_over.store(true, Ordering::Relaxed);
    for one in busy {
        one.join().expect("it ends");
    }
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "it measures how long a writer is held up")]
fn a_locked_database_holds_writers_up_and_loses_nothing() {
    let folder = folder();
    let config = StoreConfig { max_backlog_bytes: 2_000, ..config(&folder) };
    let store = open(&config);
    let idle = hold_import(&config);
    add(&store, &world());
    let mut longest = Duration::ZERO;
    for sequence in 1..=60 {
        let start = Instant::now();
        add(&store, &reserve(sequence, 1));
        longest = longest.max(start.elapsed());
    }
    assert!(longest >= Duration::from_millis(15), "{longest:?}: nobody was held up");
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    assert_eq!(store.failure(), None);
    drop(idle);
    assert_eq!(entries(&store).len(), 3 + 2 * 60);
}

#[test]
fn readers_see_what_was_written_before_they_asked() {
    for durability in [Durability::Process, Durability::Power, Durability::Memory] {
        let folder = folder();
        let store = open(&config_with(&folder, durability));
        add(&store, &world());
        for sequence in 1..=30 {
            store.append(&reserve(sequence, 1));
            store.write().expect("written");
            assert_eq!(entries(&store).len(), 3 + 2 * usize::try_from(sequence).expect("small"));
        }
    }
}

#[test]
fn records_come_in_order_from_many_threads() {
    let folder = folder();
    let config = StoreConfig { segment_bytes: 10_000, ..config(&folder) };
    let store = open(&config);
    add(&store, &world());
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let store = &store;
            scope.spawn(move || {
                for n in 0..500 {
                    let seq = store.append(&reserve(1 + thread * 500 + n, 1));
                    store.write().expect("written");
                    assert!(store.written() >= seq);
                }
            });
        }
    });
    let rows = entries(&store);
    assert_eq!(rows.len(), 3 + 2 * 2000);
    let mut holds: Vec<u64> = rows.iter().filter_map(|r| Some(r.reservation?.sequence)).collect();
    holds.sort_unstable();
    holds.dedup();
    assert_eq!(holds, (1..=2000).collect::<Vec<_>>());
    store.close().expect("closed");
    drop(store);
    let (store, ..) = open_all(&config).expect("it opens");
    assert_eq!(entries(&store), rows);
}

#[test]
fn the_doctor_finds_a_window_that_does_not_add_up() {
    let folder = folder();
    let config = config(&folder);
    let store = open(&config);
    add(&store, &world());
    add(&store, &reserve(1, 10));
    add(&store, &settle(1, 10, 7));
    assert!(entries(&store).len() > 3);
    let diagnosis = diagnose(&config.path).expect("looked at");
    assert_eq!(diagnosis.in_use_by, Some(std::process::id().to_string()));
    assert!(diagnosis.is_well());
    store.close().expect("closed");
    drop(store);
    let conn = rusqlite::Connection::open(&config.path).expect("opened");
    conn.execute("UPDATE windows SET spent = spent + 1 WHERE id = 2", ()).expect("changed");
    drop(conn);
    let diagnosis = diagnose(&config.path).expect("looked at");
    assert!(!diagnosis.is_well());
    let json = serde_json::to_value(&diagnosis).expect("it is JSON");
    let found = &json["database"]["mismatches"][0];
    assert_eq!(
        (&found["window"], &found["spent"], &found["entries"]),
        (&2.into(), &71.into(), &70.into())
    );
}
