//! What a check finds in a store that somebody has changed, and what an open store does when its
//! files are taken away.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bursar_store::{
    Durability, EntryKind, Mismatch, StoreConfig, StoreError, check_store, diagnose,
};
use support::*;

fn change(path: &Path, sql: &str) {
    let conn = rusqlite::Connection::open(path).expect("opened");
    assert_eq!(conn.execute(sql, ()).expect("changed"), 1, "{sql}");
}

/// Reservation 1 is committed at 3 of 5 tokens; 2 holds 5.
fn closed(config: &StoreConfig) {
    let store = open(config);
    for record in [world(), reserve(1, 5), reserve(2, 5), settle(1, 5, 3)] {
        add(&store, &record);
    }
    store.close().expect("closed");
}

#[test]
fn a_check_finds_what_windows_and_reservations_say_otherwise_than_their_entries() {
    let folder = folder();
    let config = config(&folder);
    closed(&config);
    let odd = || {
        let diagnosis = diagnose(&config.path).expect("looked at");
        diagnosis.database.expect("there").odd_reservations
    };
    assert_eq!((check_store(&config.path).expect("checked"), odd()), (vec![], vec![]));
    change(&config.path, "UPDATE windows SET spent = 4 WHERE id = 1");
    let found = Mismatch { window: 1, spent: 4, entries: 3 };
    assert_eq!(found.to_string(), "window 1 says that 4 was spent, its entries say 3");
    assert_eq!(check_store(&config.path).expect("checked"), [found]);
    change(&config.path, "UPDATE windows SET spent = 3 WHERE id = 1");
    change(&config.path, "UPDATE entry SET amount = 6 WHERE reservation = 2 AND unit = 0");
    assert_eq!(odd(), ["reservation 2 holds other amounts than its entries say"]);
}

#[test]
fn a_store_whose_files_are_taken_away_says_so() {
    type Take = fn(&StoreConfig);
    let takes: [(&str, Take); 5] = [
        ("the database is gone", |config| fs::remove_file(&config.path).expect("gone")),
        ("another is in its place", |config| {
            fs::copy(&config.path, config.path.with_extension("other")).expect("copied");
            fs::rename(config.path.with_extension("other"), &config.path).expect("put there");
        }),
        ("it is cut", |config| {
            fs::File::options()
                .write(true)
                .open(&config.path)
                .expect("open")
                .set_len(0)
                .expect("cut");
        }),
        ("the log is gone", |config| {
            fs::remove_file(segments(config).last().expect("one")).expect("gone");
        }),
        ("the log is cut", |config| {
            let last = segments(config).pop().expect("one");
            fs::File::options().write(true).open(last).expect("open").set_len(70).expect("cut");
        }),
    ];
    for (what, take) in takes {
        let folder = folder();
        let config = config_with(&folder, Durability::Process);
        let store = open(&config);
        add(&store, &world());
        store.import_through(1).expect("imported");
        assert_eq!(store.failure(), None);
        take(&config);
        for _ in 0..1_000 {
            if store.failure().is_some() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let failure = store.failure();
        assert!(matches!(failure, Some(StoreError::Gone { .. })), "{what}: {failure:?}");
    }
}

#[test]
fn a_store_is_not_opened_where_others_may_have_planted_it() {
    let folder = folder();
    let config = config(&folder);
    closed(&config);
    let other = |name: &str| folder.path().join(name);
    let opens = || match open_all(&config) {
        Ok(_) => None,
        Err(StoreError::Planted { path, what }) => Some((path, what)),
        Err(error) => panic!("{error}"),
    };
    fs::hard_link(&config.path, other("kept.db")).expect("linked");
    assert_eq!(opens(), None, "the folder is ours");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("set");
    let named = Some((config.path.clone(), "has another name as well".to_owned()));
    assert_eq!(opens(), named);
    fs::remove_file(other("kept.db")).expect("gone");
    assert_eq!(opens(), None);
    std::os::unix::fs::symlink(other("elsewhere"), other("ledger.db-x")).expect("linked");
    assert_eq!(opens(), Some((other("ledger.db-x"), "is a link".to_owned())));
    fs::remove_file(other("ledger.db-x")).expect("gone");
    std::os::unix::fs::symlink(other("elsewhere"), other("another.db")).expect("linked");
    assert_eq!(opens(), None, "that is not the store's");
}

#[test]
fn names_are_read_back_as_what_they_name() {
    for durability in [Durability::Process, Durability::Power, Durability::Memory] {
        assert_eq!(Durability::parse(durability.name()), Some(durability));
    }
    for kind in [EntryKind::Hold, EntryKind::Spend, EntryKind::Return, EntryKind::Operated] {
        assert_eq!(EntryKind::parse(kind.name()), Some(kind));
    }
    assert_eq!((Durability::parse("disk"), EntryKind::parse("disk")), (None, None));
}
