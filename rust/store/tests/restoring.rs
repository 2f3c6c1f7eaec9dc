//! What the ledger is told, fact by fact, where a whole ledger would hide it.

mod support;

use bursar_ledger::fact::{AccountId, Fact, Record, Reserved, Settled, SliceFact};
use bursar_ledger::{Amounts, State, Unit};
use bursar_store::EntryKind;
use support::*;

const MINUTE_MS: i64 = 60_000;

fn spend_at(sequence: u64, time_ms: i64, tokens: i64) -> Record {
    let mut record = reserve(sequence, tokens);
    record.facts.push(Fact::Settled(settled(sequence, tokens, tokens)));
    Record { time_ms, ..record }
}

fn told_after(records: &[Record]) -> Vec<Record> {
    let folder = folder();
    let config = config(&folder);
    let store = open(&config);
    for record in records {
        add(&store, record);
    }
    drop(store);
    let (store, _, told) = open_all(&config).expect("it opens");
    drop(store);
    // Telling is no change: it is told the same again.
    let (_store, _, again) = open_all(&config).expect("it opens");
    assert_eq!(told, again);
    told
}

fn stood(told: &[Record], id: u64) -> (i64, Vec<u16>, Vec<(i64, i64)>) {
    let facts = told.iter().flat_map(|record| &record.facts);
    let mut stood = facts.filter_map(|fact| match fact {
        Fact::WindowStood { window, spent, fired, buckets } if *window == id => {
            Some((*spent, fired.clone(), buckets.clone()))
        }
        _ => None,
    });
    stood.next().expect("the window is told of")
}

#[test]
fn a_rolling_window_keeps_what_is_still_in_it() {
    let crossed = Fact::Crossed { window: 3, permille: 500 };
    let mut records = vec![world(), spend_at(1, T0, 60_000)];
    records.push(at(T0, vec![crossed]));
    records.push(spend_at(2, T0 + 30 * MINUTE_MS, 500));
    let bucket = |time_ms: i64| time_ms - time_ms % 56_250;
    let both = vec![(bucket(T0), 60_000), (bucket(T0 + 30 * MINUTE_MS), 500)];
    assert_eq!(stood(&told_after(&records), 3), (60_500, vec![500], both));
    // The first has left: the half is no longer crossed, and may be crossed again.
    records.push(spend_at(3, T0 + 63 * MINUTE_MS, 40_000));
    let left = vec![(bucket(T0 + 30 * MINUTE_MS), 500), (bucket(T0 + 63 * MINUTE_MS), 40_000)];
    assert_eq!(stood(&told_after(&records), 3), (40_500, vec![], left));
    assert_eq!(stood(&told_after(&records), 1).0, 100_500, "the total keeps all");
}

#[test]
fn a_crossing_by_what_is_used_but_not_settled_is_kept() {
    let used = Fact::Used(vec![(id(1), Amounts::of(Unit::Tokens, 50_000))]);
    let records = [
        world(),
        reserve(1, 60_000),
        at(T0 + 5, vec![used.clone(), Fact::Crossed { window: 3, permille: 500 }]),
    ];
    let told = told_after(&records);
    assert_eq!(stood(&told, 3), (0, vec![500], vec![]));
    assert!(told.iter().any(|record| record.facts == [used.clone()] && record.time_ms == T0 + 5));
}

#[test]
fn floors_only_rise_and_end_with_the_reservation() {
    let used = |sequence, tokens| {
        let amounts = Amounts::of(Unit::Tokens, tokens);
        at(T0 + 100, vec![Fact::Used(vec![(id(sequence), amounts)])])
    };
    let records = [
        world(),
        reserve(1, 10),
        reserve(2, 10),
        used(1, 5),
        used(1, 3),
        used(2, 5),
        settle(2, 10, 9),
    ];
    let told = told_after(&records);
    let floors: Vec<_> = told
        .iter()
        .flat_map(|record| &record.facts)
        .filter(|fact| matches!(fact, Fact::Used(_)))
        .collect();
    assert_eq!(floors, [&Fact::Used(vec![(id(1), Amounts::of(Unit::Tokens, 5))])]);
}

/// Goal: capacity that outlives its reservation is held again, and nothing else of it. Method: it
/// expires with kept capacity; then its owner is gone.
#[test]
fn kept_capacity_is_held_again_until_the_owner_is_gone() {
    let held = amounts(&[(Unit::Tokens, 100), (Unit::VramBytes, 8)]);
    let spent = Amounts::of(Unit::Tokens, 30);
    let kept = Amounts::of(Unit::VramBytes, 8);
    let mut reserved = reserved(1, 100);
    reserved.slices[0].held = held;
    let expired = Settled {
        state: State::Expired,
        payload: 0,
        slices: vec![SliceFact { chain: 1, held, spent }],
        spent,
        returned: Amounts::of(Unit::Tokens, 70),
        kept,
        ..settled(1, 100, 30)
    };
    let gone = Settled { slices: vec![], returned: kept, kept: Amounts::ZERO, ..expired.clone() };
    let mut records = vec![
        world(),
        at(T0 + 1, vec![Fact::Reserved(reserved.clone())]),
        at(T0 + 9, vec![Fact::Settled(expired.clone())]),
    ];
    let told = told_after(&records);
    let facts: Vec<&Fact> = told.iter().flat_map(|record| &record.facts).collect();
    let slice = SliceFact { chain: 1, held: kept, spent: Amounts::ZERO };
    reserved.slices = vec![slice];
    assert!(facts.contains(&&Fact::Reserved(reserved.clone())));
    assert!(facts.contains(&&Fact::Settled(Settled { slices: vec![slice], ..expired })));
    assert_eq!(stood(&told, 1).0, 30);
    records.push(at(T0 + 20, vec![Fact::Settled(gone)]));
    let told = told_after(&records);
    let ended = told.iter().flat_map(|record| &record.facts).find_map(|fact| match fact {
        Fact::Remembered { reserved, settled, created_ms, ended_ms } => {
            Some((reserved, settled, [*created_ms, *ended_ms]))
        }
        _ => None,
    });
    let (reserved, settled, times_ms) = ended.expect("it is remembered");
    assert_eq!((reserved.slices.len(), times_ms), (0, [T0 + 1, T0 + 20]));
    assert_eq!(settled.returned, amounts(&[(Unit::Tokens, 70), (Unit::VramBytes, 8)]));
    assert_eq!((settled.spent, settled.kept), (spent, Amounts::ZERO));
}

#[test]
fn a_late_correction_adds_to_what_was_settled() {
    let expired = Settled { state: State::Expired, payload: 0, ..settled(1, 10, 4) };
    let late = Settled {
        state: State::Committed,
        slices: vec![],
        beyond: Some((1, Amounts::of(Unit::Tokens, 2))),
        returned: Amounts::ZERO,
        overdraft: Amounts::of(Unit::Tokens, 1),
        spent: amounts(&[(Unit::Tokens, 6), (Unit::UsdNanos, 40)]),
        ..settled(1, 10, 4)
    };
    let records =
        [world(), reserve(1, 10), at(T0 + 5, vec![Fact::Settled(expired), Fact::Settled(late)])];
    let told = told_after(&records);
    assert_eq!(stood(&told, 1).0, 6);
    let settled = told.iter().flat_map(|record| &record.facts).find_map(|fact| match fact {
        Fact::Remembered { settled, .. } => Some(settled),
        _ => None,
    });
    let settled = settled.expect("it is remembered");
    assert_eq!((settled.state, settled.payload), (State::Committed, 12));
    assert_eq!(settled.overdraft, Amounts::of(Unit::Tokens, 1));
    assert_eq!(settled.returned, amounts(&[(Unit::Tokens, 6), (Unit::UsdNanos, 60)]));
    assert_eq!(settled.spent.get(Unit::Tokens), 6);
}

#[test]
fn a_settlement_of_a_reservation_that_is_gone_is_remembered_all_the_same() {
    let late = Settled {
        slices: vec![],
        beyond: Some((1, Amounts::of(Unit::Tokens, 2))),
        returned: Amounts::ZERO,
        ..settled(7, 0, 2)
    };
    let told = told_after(&[world(), at(T0 + 5, vec![Fact::Settled(late.clone())])]);
    let remembered = told.iter().flat_map(|record| &record.facts).find_map(|fact| match fact {
        Fact::Remembered { reserved, settled, .. } => Some((reserved, settled)),
        _ => None,
    });
    let (reserved, settled) = remembered.expect("it is remembered");
    assert_eq!((reserved.id, reserved.key, settled.spent), (id(7), 0, late.spent));
    assert_eq!(stood(&told, 1).0, 2);
}

#[test]
fn a_retired_account_is_not_told_of_unless_a_reservation_names_it() {
    let retired = at(T0 + 10, vec![Fact::AccountRetired { account: 2 }]);
    let paths = |told: &[Record]| -> Vec<String> {
        let facts = told.iter().flat_map(|record| &record.facts);
        let path = |fact: &Fact| match fact {
            Fact::AccountOpened { path, .. } => Some(path.clone()),
            _ => None,
        };
        facts.filter_map(path).collect()
    };
    assert_eq!(paths(&told_after(&[world(), retired.clone()])), ["acme"]);
    let ended = [world(), reserve(1, 5), settle(1, 5, 5), retired.clone()];
    assert_eq!(paths(&told_after(&ended)), ["acme", "acme/a"], "its key is remembered");
    // Opened anew: the new one stands in for it.
    let anew = Fact::AccountOpened { account: 3, path: "acme/a".into(), automatic: true };
    let told = told_after(&[&ended[..], &[at(T0 + 20, vec![anew])]].concat());
    assert_eq!(paths(&told), ["acme", "acme/a"]);
    let remembered = told.iter().flat_map(|record| &record.facts).find_map(|fact| match fact {
        Fact::Remembered { reserved, .. } => Some(reserved.account),
        _ => None,
    });
    assert_eq!(remembered, Some(3));
}

/// Goal: a chain by which somebody still charges is not over. Method: the account of a hold has
/// retired; the chain is then that of the one which stands in for it.
#[test]
fn a_chain_goes_to_the_account_that_stands_in_for_a_retired_one() {
    let folder = folder();
    let config = config(&folder);
    let store = open(&config);
    let retired = at(T0 + 10, vec![Fact::AccountRetired { account: 2 }]);
    for record in [world(), reserve(1, 5), retired] {
        add(&store, &record);
    }
    drop(store);
    let whose = || -> AccountId {
        let conn = rusqlite::Connection::open(&config.path).expect("a database");
        conn.query_row("SELECT account FROM chains WHERE id = 1", (), |row| row.get(0)).expect("it")
    };
    drop(open(&config));
    let stands_in = whose();
    assert!(stands_in > 2, "{stands_in}");
    drop(open(&config));
    assert_eq!(whose(), stands_in);
}

/// Goal: a store opens whatever retention has deleted. Method: of the account of a hold that has
/// retired, the one above it is gone, as nothing names it any more.
#[test]
fn an_account_above_a_hold_that_is_forgotten_is_opened_anew() {
    let folder = folder();
    let config = config(&folder);
    let store = open(&config);
    let retired = [2, 1].map(|account| Fact::AccountRetired { account });
    for record in [world(), reserve(1, 5), at(T0 + 10, retired.into())] {
        add(&store, &record);
    }
    store.import_through(store.written()).expect("imported");
    drop(store);
    let conn = rusqlite::Connection::open(&config.path).expect("a database");
    conn.execute("DELETE FROM accounts WHERE id = 1", ()).expect("deleted");
    drop(conn);
    let (_store, _, told) = open_all(&config).expect("it opens");
    let opened = |record: &Record| match &record.facts[..] {
        [Fact::AccountOpened { path, .. }] => Some((path.clone(), record.time_ms)),
        _ => None,
    };
    let opened: Vec<_> = told.iter().filter_map(opened).collect();
    assert_eq!(opened, [("acme".into(), 0), ("acme/a".into(), T0)], "nothing seems younger");
}

/// A third account and its chain, 2, of holds in which money is carved from one of `acme/a`'s.
fn sibling() -> Record {
    let account = Fact::AccountOpened { account: 3, path: "acme/b".into(), automatic: true };
    let base = Some((1, 1 << Unit::UsdNanos.index()));
    at(T0, vec![account, Fact::ChainOpened { chain: 2, account: 3, windows: vec![1], base }])
}

fn nested(sequence: u64, tokens: i64, parent: u64) -> Reserved {
    let mut nested =
        Reserved { account: 3, parent: Some(id(parent)), ..reserved(sequence, tokens) };
    nested.slices[0].chain = 2;
    nested
}

#[test]
fn what_is_carved_counts_where_its_parent_does_and_the_rest_where_it_stands() {
    let mut spent = Settled { account: 3, ..settled(2, 5, 5) };
    spent.slices[0].chain = 2;
    let records = [
        world(),
        sibling(),
        reserve(1, 10),
        at(T0 + 2, vec![Fact::Reserved(nested(2, 5, 1))]),
        at(T0 + 3, vec![Fact::Settled(spent)]),
    ];
    let told = told_after(&records);
    assert_eq!([1, 2, 3].map(|window| stood(&told, window).0), [5, 50, 0]);
    let folder = folder();
    let store = open(&config(&folder));
    for record in &records {
        add(&store, record);
    }
    let held: Vec<_> = entries(&store)
        .into_iter()
        .filter(|entry| entry.reservation == Some(id(2)))
        .filter(|entry| matches!(entry.kind, EntryKind::Hold | EntryKind::Carve))
        .map(|entry| (entry.kind, entry.unit, entry.amount))
        .collect();
    let tokens = (EntryKind::Hold, Some(Unit::Tokens), 5);
    assert_eq!(held, [tokens, (EntryKind::Carve, Some(Unit::UsdNanos), 50)]);
}

#[test]
fn parents_that_ended_long_ago_are_told_of_while_a_nested_one_holds() {
    let ended = |sequence: u64, settled: Settled| {
        at(
            T0 + 9,
            vec![Fact::Settled(Settled { account: if sequence == 2 { 3 } else { 2 }, ..settled })],
        )
    };
    let records = [
        world(),
        sibling(),
        reserve(1, 10),
        at(T0 + 2, vec![Fact::Reserved(nested(2, 5, 1))]),
        at(T0 + 3, vec![Fact::Reserved(nested(3, 2, 2))]),
        reserve(4, 10),
        ended(1, settled(1, 5, 5)),
        ended(2, Settled { slices: vec![], ..settled(2, 0, 0) }),
        ended(4, settled(4, 10, 10)),
        at(T0 + 100 * 24 * 60 * MINUTE_MS, vec![]),
    ];
    let told = told_after(&records);
    let remembered = told.iter().flat_map(|record| &record.facts).filter_map(|fact| match fact {
        Fact::Remembered { reserved, settled, .. } => {
            assert_eq!(settled.slices, [], "what it held is over");
            Some(reserved.id.sequence)
        }
        _ => None,
    });
    assert_eq!(remembered.collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn what_is_told_of_use_after_the_end_is_no_floor() {
    let kept = Amounts::of(Unit::VramBytes, 8);
    let mut reserved = reserved(1, 10);
    reserved.slices[0].held = amounts(&[(Unit::Tokens, 10), (Unit::VramBytes, 8)]);
    let slices = vec![SliceFact { spent: Amounts::of(Unit::Tokens, 4), ..reserved.slices[0] }];
    let expired = Settled { state: State::Expired, slices, kept, ..settled(1, 10, 4) };
    let late = Fact::Used(vec![(id(1), Amounts::of(Unit::Tokens, 4))]);
    let records = [
        world(),
        at(T0 + 1, vec![Fact::Reserved(reserved)]),
        at(T0 + 2, vec![Fact::Settled(expired), late]),
    ];
    let told = told_after(&records);
    assert!(!told.iter().flat_map(|record| &record.facts).any(|f| matches!(f, Fact::Used(_))));
}
