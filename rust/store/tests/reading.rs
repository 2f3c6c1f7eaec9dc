//! The reader: filters and pages against the whole list, sifted by hand.

mod support;

use std::collections::BTreeMap;

use bursar_ledger::fact::{Fact, SliceFact};
use bursar_ledger::{Amounts, State, Unit};
use bursar_store::EntryKind::{Carve, Hold, Overdraft, Return, Spend};
use bursar_store::{Apart, EntryFilter, EntryKind, EntryRow, Reader, Store};
use proptest::prelude::*;
use support::*;
use tempfile::TempDir;

/// 60 reservations over three accounts, some nested, committed in turn, with freezes between.
fn filled(folder: &TempDir) -> Store {
    let store = open(&config(folder));
    add(&store, &world());
    let third = Fact::AccountOpened { account: 3, path: "acme/ab".into(), automatic: true };
    let chain = |chain, base| Fact::ChainOpened { chain, account: 3, windows: vec![1], base };
    let nested = vec![third, chain(2, None), chain(3, Some((1, 1)))];
    add(&store, &at(T0 + 1, nested));
    for sequence in 1..=60 {
        let mut reserved = reserved(sequence, 10);
        if sequence % 3 == 0 {
            reserved.account = 3;
            reserved.parent = (sequence % 2 == 0).then(|| id(sequence - 1));
            reserved.slices[0].chain = if sequence % 2 == 0 { 3 } else { 2 };
        }
        let time_ms = T0 + 100 * i64::try_from(sequence).expect("small");
        let mut facts = vec![Fact::Reserved(reserved.clone())];
        if sequence % 4 == 0 {
            let frozen = sequence % 8 == 0;
            facts.push(Fact::Frozen { account: 1, frozen, reason: "why".into() });
        }
        add(&store, &at(time_ms, facts));
        if sequence % 2 == 1 {
            let mut settled = settled(sequence, 10, 7);
            settled.account = reserved.account;
            settled.slices[0].chain = reserved.slices[0].chain;
            settled.overdraft = Amounts::of(Unit::Tokens, 1);
            add(&store, &at(time_ms + 50, vec![Fact::Settled(settled)]));
        }
    }
    add(&store, &at(T0 + 7_000, vec![Fact::Crossed { window: 1, permille: 500 }]));
    store
}

fn all(reader: &Reader, filter: &EntryFilter, page: usize) -> Vec<EntryRow> {
    let mut rows: Vec<EntryRow> = Vec::new();
    loop {
        let after = rows.last().map(EntryRow::cursor);
        let next = reader.entries(filter, after, page).expect("a page");
        assert!(next.len() <= page);
        if next.is_empty() {
            return rows;
        }
        rows.extend(next);
    }
}

fn passes(filter: &EntryFilter, row: &EntryRow) -> bool {
    let within =
        |path: &String| row.account == *path || row.account.starts_with(&format!("{path}/"));
    filter.account.as_ref().is_none_or(within)
        && filter.reservation.is_none_or(|r| row.reservation.is_some_and(|id| id.sequence == r))
        && filter.unit.is_none_or(|unit| row.unit == Some(unit))
        && (filter.kinds.is_empty() || filter.kinds.contains(&row.kind))
        && filter.start_ms.is_none_or(|start| row.time_ms >= start)
        && filter.end_ms.is_none_or(|end| row.time_ms < end)
}

fn filters() -> impl Strategy<Value = EntryFilter> {
    let account = prop_oneof![
        Just(None),
        proptest::sample::select(vec!["acme", "acme/a", "acme/ab", "acm", "x"])
            .prop_map(|path| Some(path.to_owned())),
    ];
    let reservation = proptest::option::of(0..70_u64);
    let unit = proptest::option::of(proptest::sample::select(Unit::ALL.to_vec()));
    let kinds = proptest::collection::vec(proptest::sample::select(EntryKind::ALL.to_vec()), 0..3);
    let time = || proptest::option::of(T0 - 100..T0 + 7_100);
    (account, reservation, unit, kinds, time(), time(), proptest::bool::ANY).prop_map(
        |(account, reservation, unit, kinds, start_ms, end_ms, newest_first)| EntryFilter {
            account,
            reservation,
            unit,
            kinds,
            start_ms,
            end_ms,
            newest_first,
        },
    )
}

#[test]
fn filters_and_pages_agree_with_the_whole_list() {
    let folder = folder();
    let store = filled(&folder);
    let whole = entries(&store);
    assert!(whole.len() > 200);
    let reader = store.reader().expect("a reader");
    proptest!(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) },
        |(filter in filters(), page in 1..40_usize)| {
            let mut expected: Vec<_> = whole.iter().filter(|row| passes(&filter, row)).collect();
            if filter.newest_first {
                expected.reverse();
            }
            let read = all(&reader, &filter, page);
            prop_assert_eq!(read.iter().collect::<Vec<_>>(), expected);
        }
    );
}

/// Goal: more accounts than are looked at one by one give the same pages. Method: 300 below a path,
/// others whose names only begin like it, and one of those below it that is the path's own.
#[test]
fn filters_and_pages_agree_where_there_are_many_accounts() {
    let folder = folder();
    let store = open(&config(&folder));
    add(&store, &world());
    for number in 0..300_u32 {
        let path = match number % 60 {
            0 => format!("acme/a0/{number}"),
            1 => format!("acme/a-{number}"),
            _ => format!("acme/a/{number}"),
        };
        let (account, chain) = (number + 10, u64::from(number) + 10);
        let mut reserved = reserved(chain, 1);
        (reserved.account, reserved.slices[0].chain) = (account, chain);
        let facts = vec![
            Fact::AccountOpened { account, path, automatic: true },
            Fact::ChainOpened { chain, account, windows: vec![1], base: None },
            Fact::Reserved(reserved),
        ];
        add(&store, &at(T0 + i64::from(number), facts));
    }
    let whole = entries(&store);
    let reader = store.reader().expect("a reader");
    for account in ["acme", "acme/a", "acme/a0", "acme/a/7", "acme/a-1", "acm"] {
        for newest_first in [false, true] {
            for start_ms in [None, Some(T0 + 200)] {
                let account = Some(account.to_owned());
                let filter =
                    EntryFilter { account, newest_first, start_ms, ..EntryFilter::default() };
                let mut expected: Vec<_> =
                    whole.iter().filter(|row| passes(&filter, row)).collect();
                if newest_first {
                    expected.reverse();
                }
                let read = all(&reader, &filter, 70);
                assert_eq!(read.iter().collect::<Vec<_>>(), expected, "{filter:?}");
            }
        }
    }
}

#[test]
fn a_stretch_of_time_begins_and_ends_with_the_entries_of_its_bounds() {
    let folder = folder();
    let store = open(&config(&folder));
    let frozen = || Fact::Frozen { account: 1, frozen: true, reason: String::new() };
    add(&store, &world());
    // The limits are set at T0, and the last record has two entries.
    let times = [0, 0, 0, 1, 1, 2, 5, 5];
    for after_ms in &times[3..6] {
        add(&store, &at(T0 + after_ms, vec![frozen()]));
    }
    add(&store, &at(T0 + 5, vec![frozen(), frozen()]));
    store.import_through(store.written()).expect("imported");
    let reader = store.reader().expect("a reader");
    for start in 0..8 {
        for end in 0..8 {
            let (start_ms, end_ms) = (Some(T0 + start), Some(T0 + end));
            let filter = EntryFilter { start_ms, end_ms, ..EntryFilter::default() };
            let read = reader.entries(&filter, None, 100).expect("a page");
            let read: Vec<_> = read.iter().map(|row| row.time_ms - T0).collect();
            let expected: Vec<_> =
                times.into_iter().filter(|time| (start..end).contains(time)).collect();
            assert_eq!(read, expected, "{start}..{end}");
        }
    }
}

#[test]
fn an_account_is_known_by_its_id() {
    let folder = folder();
    let store = open(&config(&folder));
    add(&store, &world());
    store.import_through(store.written()).expect("imported");
    let reader = store.reader().expect("a reader");
    assert_eq!(reader.account(2).expect("read").as_deref(), Some("acme/a"));
    assert_eq!(reader.account(9).expect("read"), None);
}

#[test]
fn sums_are_those_of_the_entries_that_they_sum() {
    let folder = folder();
    let store = filled(&folder);
    let whole = entries(&store);
    let reader = store.reader().expect("a reader");
    for account in ["", "acme", "acme/a", "acm"] {
        for (start_ms, end_ms) in [(0, i64::MAX), (T0 + 1_000, T0 + 3_050), (T0 + 500, T0)] {
            for apart in [Apart::Account, Apart::Model] {
                let filter = EntryFilter {
                    account: (!account.is_empty()).then(|| account.to_owned()),
                    unit: Some(Unit::Tokens),
                    kinds: vec![Spend],
                    start_ms: Some(start_ms),
                    end_ms: Some(end_ms),
                    ..EntryFilter::default()
                };
                let mut expected = BTreeMap::new();
                for row in whole.iter().filter(|row| passes(&filter, row)) {
                    let name = match apart {
                        Apart::Account => row.account.clone(),
                        Apart::Model => row.model.clone().unwrap_or_default(),
                    };
                    *expected.entry(name).or_insert(0) += row.amount;
                }
                let stretch = (start_ms, end_ms);
                let sums = reader.spent(account, Unit::Tokens, stretch, apart).expect("sums");
                assert_eq!(sums.into_iter().collect::<BTreeMap<_, _>>(), expected, "{account}");
            }
        }
    }
}

#[test]
fn rows_say_what_moved_where() {
    let folder = folder();
    let store = filled(&folder);
    let rows = entries(&store);
    let of = |sequence: u64| -> Vec<&EntryRow> {
        rows.iter().filter(|r| r.reservation == Some(id(sequence))).collect()
    };
    let brief = |sequence| -> Vec<(EntryKind, Option<Unit>, i64)> {
        of(sequence).iter().map(|row| (row.kind, row.unit, row.amount)).collect()
    };
    let (tokens, usd) = (Some(Unit::Tokens), Some(Unit::UsdNanos));
    // Nested: tokens come out of the parent's hold, money does not.
    assert_eq!(brief(6), [(Carve, tokens, 10), (Hold, usd, 100)]);
    assert_eq!(
        brief(1),
        [
            (Hold, tokens, 10),
            (Hold, usd, 100),
            (Spend, tokens, 7),
            (Spend, usd, 70),
            (Return, tokens, 3),
            (Return, usd, 30),
            (Overdraft, tokens, 1),
        ]
    );
    let first = of(1)[0];
    assert_eq!((first.account.as_str(), first.model.as_deref()), ("acme/a", Some("m-1")));
    assert_eq!((first.time_ms, first.admit_ms), (T0 + 100, T0), "admitted when its chain began");
    let freeze = rows.iter().find(|row| row.kind == EntryKind::Freeze).expect("one");
    assert_eq!((freeze.account.as_str(), freeze.unit, freeze.amount), ("acme", None, 0));
    let crossing = rows.last().expect("some");
    assert_eq!((crossing.kind, crossing.amount), (EntryKind::Crossing, 500));
    assert_eq!((crossing.account.as_str(), crossing.unit), ("acme", tokens));
}

#[test]
fn an_ended_reservation_can_be_read_back() {
    let folder = folder();
    let store = filled(&folder);
    store.import_through(store.written()).expect("imported");
    let reader = store.reader().expect("a reader");
    let (reserved, settled, created_ms) = reader.reservation(1).expect("read").expect("it ended");
    assert_eq!((reserved.id, reserved.slices.len()), (id(1), 0));
    assert_eq!((settled.state, settled.payload, created_ms), (State::Committed, 12, T0 + 100));
    assert_eq!(reader.reservation(2).expect("read"), None, "it is pending");
    assert_eq!(reader.reservation(1000).expect("read"), None);
}

/// Goal: an entry says since when the windows that it counts in have been the account's. Method: a hold
/// is topped up and settled after the account has a second chain.
#[test]
fn what_is_added_counts_where_the_hold_has_grown_and_what_returns_where_it_was() {
    let folder = folder();
    let store = open(&config(&folder));
    let held = |chain, tokens| SliceFact {
        chain,
        held: Amounts::of(Unit::Tokens, tokens),
        spent: Amounts::ZERO,
    };
    let tokens = |sequence| {
        let mut one = reserved(sequence, 10);
        one.slices = vec![held(1, 10)];
        one
    };
    let second = Fact::ChainOpened { chain: 2, account: 2, windows: vec![1, 2], base: None };
    let topped_up = Fact::Resliced {
        id: id(1),
        account: 2,
        slices: vec![held(1, 10), held(2, 7)],
        ttl_ms: 60_000,
        added: Amounts::of(Unit::Tokens, 7),
    };
    let back = Amounts::of(Unit::Tokens, 10);
    let mut returned = settled(2, 10, 0);
    (returned.slices, returned.returned) = (vec![held(1, 10)], back);
    let begun = vec![Fact::Reserved(tokens(1)), Fact::Reserved(tokens(2))];
    let ended = vec![topped_up, Fact::Settled(returned)];
    add(&store, &world());
    for (time_ms, facts) in [(T0, begun), (T0 + 10, vec![second]), (T0 + 20, ended)] {
        add(&store, &at(time_ms, facts));
    }
    let late = entries(&store).into_iter().filter(|entry| entry.time_ms == T0 + 20);
    let late: Vec<_> = late.map(|entry| (entry.kind, entry.amount, entry.admit_ms)).collect();
    assert_eq!(late, [(Hold, 7, T0 + 10), (Return, 10, T0)]);
}
