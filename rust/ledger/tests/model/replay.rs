//! Replay equivalence: the facts, from scratch, give the ledger that told them.

use std::collections::BTreeMap;

use bursar_ledger::fact::{Fact, Record, State};
use bursar_ledger::{
    Admission, Amounts, Ending, HighIds, Ledger, MAX_SLICES, Now, Period, PeriodKind, Replay,
    ReservationId, Unit,
};
use proptest::prelude::*;

use crate::common::{HOUR, Tape, World, ask, exactly, settings, spec};
use crate::steps::{PATHS, Step, step};
use crate::{Pair, config};

/// (window, limit, held, spent)
type Row = (u64, i64, i64, i64);

/// All that a caller can see.
#[derive(Debug, Clone, PartialEq)]
struct Picture {
    /// By account: its windows, whether it is frozen, its pending reservations.
    accounts: Vec<(Vec<Row>, bool, i64)>,
    /// (state, granted, used, spent, returned, overdraft) of all that are remembered.
    reservations: BTreeMap<ReservationId, (State, [Amounts; 5])>,
}

fn picture(ledger: &Ledger<Tape>, ids: &[ReservationId], now: Now) -> Picture {
    let account = |path: &&str| {
        let view = ledger.account(path, now).unwrap();
        let row = |b: &bursar_ledger::Balance| {
            (b.window.id, b.standing.limit, b.standing.held, b.standing.spent)
        };
        (view.balances.iter().map(row).collect(), view.frozen, view.open_reservations)
    };
    let reservation = |id: &ReservationId| {
        let view = ledger.reservation(*id, now).ok()?;
        let amounts = [view.granted, view.used, view.spent, view.returned, view.overdraft];
        Some((*id, (view.state, amounts)))
    };
    Picture {
        accounts: PATHS.iter().map(account).collect(),
        reservations: ids.iter().filter_map(reservation).collect(),
    }
}

fn replayed<'a>(records: impl IntoIterator<Item = &'a Record>, now: Now) -> Ledger<Tape> {
    let any = ["a", "a/**"].map(|text| crate::common::pattern(text, Vec::new()));
    let mut replay = Replay::new(settings(any.into()), Tape::default(), now);
    for record in records {
        replay.apply(record).unwrap();
    }
    replay.finish(HighIds::default())
}

/// The ledger after replay looks as `live` did; it may remember more than the live one, which has
/// forgotten something without a fact.
fn assert_alike(ledger: &Ledger<Tape>, live: &Picture, ids: &[ReservationId], now: Now) {
    let mut found = picture(ledger, ids, now);
    found.reservations.retain(|id, _| live.reservations.contains_key(id));
    assert_eq!(&found, live);
}

/// Releases all that is pending: every piece goes back to the same windows.
fn release_all(ledger: &Ledger<Tape>, ids: &[ReservationId], now: Now) {
    for id in ids {
        if ledger.reservation(*id, now).is_ok_and(|view| view.state == State::Pending) {
            ledger.end(*id, Ending::Release, now).unwrap();
        }
    }
}

fn keys(pair: &Pair) -> Vec<(u128, u128, ReservationId)> {
    let known = pair.ids.iter().zip(&pair.plain.reservations);
    let keyed = known.filter(|(_, r)| r.key != 0 && !r.forgotten);
    keyed.map(|(id, r)| (r.key, r.asked, *id)).collect()
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn replay_gives_the_live_ledger_at_every_cut(
        steps in prop::collection::vec((step(), any::<bool>()), 1..40),
        again in any::<prop::sample::Index>(),
    ) {
        let mut pair = Pair::new();
        let mut cuts = Vec::new();
        let last = steps.len() - 1;
        for (at, (step, cut)) in steps.iter().enumerate() {
            // Debits reach the journal now and then, by `log_used`, and at the latest before time goes
            // on: when they were is not told, and matters to a rolling window. One that commits less
            // later than the window's length leaves there what it had debited, if that was told.
            if matches!(step, Step::Wait { .. } | Step::Wall { .. } | Step::Commit { .. }) {
                pair.world.ledger.log_used(pair.world.now());
            }
            pair.step(step);
            if *cut || at == last {
                // The latest time that the ledger saw: replay knows no other than that of the facts.
                let now = Now { wall_ms: pair.plain.wall, ..pair.world.now() };
                pair.world.ledger.log_used(now);
                let picture = picture(&pair.world.ledger, &pair.ids, now);
                cuts.push((pair.world.tape.len(), picture, pair.ids.len(), now));
            }
        }
        let records = pair.world.tape.records();
        for (len, live, known, now) in &cuts {
            assert_alike(&replayed(&records[..*len], *now), live, &pair.ids[..*known], *now);
        }
        // A cut within an operation is a ledger too: nothing is held that nobody holds.
        let now = cuts.last().unwrap().3;
        for len in 0..records.len() {
            let ledger = replayed(&records[..len], now);
            release_all(&ledger, &pair.ids, now);
            for path in PATHS {
                if let Ok(view) = ledger.account(path, now) {
                    let capacity = |b: &&bursar_ledger::Balance| b.window.budget.unit.is_capacity();
                    let consumable = view.balances.iter().filter(|b| !capacity(b));
                    prop_assert!(consumable.into_iter().all(|b| b.standing.held == 0));
                }
            }
        }
        // A second time changes nothing: record by record, and from any record on.
        let (_, live, _, now) = cuts.last().unwrap();
        let twice = replayed(records.iter().flat_map(|record| [record, record]), *now);
        assert_alike(&twice, live, &pair.ids, *now);
        let from = again.index(records.len());
        let ledger = replayed(records.iter().chain(&records[from..]), *now);
        assert_alike(&ledger, live, &pair.ids, *now);
        // Keys still name their reservations, and what is pending ends alike.
        let ledger = replayed(&records, *now);
        for (key, payload, id) in keys(&pair) {
            let mut ask = ask("a", exactly(Amounts::ZERO));
            (ask.key, ask.payload) = (key, payload);
            let Ok(Admission::Granted(granted)) = ledger.reserve(ask, *now) else { panic!("{key}") };
            prop_assert_eq!(granted.view.id, id);
        }
        release_all(&ledger, &pair.ids, *now);
        release_all(&pair.world.ledger, &pair.ids, *now);
        let live = picture(&pair.world.ledger, &pair.ids, *now);
        assert_alike(&ledger, &live, &pair.ids, *now);
    }
}

#[test]
fn ids_go_on_after_those_that_were_given_out() {
    let world = World::tokens(&[("a", 100)]);
    let before = world.held("a", 10);
    let high = HighIds { sequence: 77, window: 78, chain: 79, budget: 80, account: 81 };
    let mut replay = Replay::new(settings(vec![]), Tape::default(), world.now());
    for record in world.tape.records() {
        replay.apply(&record).unwrap();
    }
    let ledger = replay.finish(high);
    let calls = spec(Unit::Calls, Period::total(), 5); // the windows of a new chain
    ledger.set_budget("a", calls, world.now()).unwrap();
    let granted = ledger.reserve(ask("a", exactly(Amounts::ZERO)), world.now()).unwrap();
    let Admission::Granted(granted) = granted else { panic!("refused") };
    assert_eq!((before.sequence, granted.view.id.sequence), (1, 78));
    let facts = ledger.journal().facts();
    assert!(facts.iter().any(|fact| matches!(fact, Fact::BudgetSet { budget: 81, .. })));
    assert!(facts.iter().any(|fact| matches!(fact, Fact::ChainOpened { chain: 80, .. })));
}

/// Whatever the order in which they are told of, the newest window is the one that counts.
#[test]
fn an_older_window_that_is_told_of_later_is_not_the_current_one() {
    let world = World::new();
    world.limit("a", Unit::Tokens, Period::calendar(PeriodKind::Hour, "UTC"), 100);
    world.held("a", 10);
    world.wait(HOUR);
    world.held("a", 10);
    let facts = world.tape.facts();
    let windows = facts.iter().filter(|fact| matches!(fact, Fact::WindowOpened { .. }));
    let above = |fact: &&Fact| matches!(fact, Fact::AccountOpened { .. } | Fact::BudgetSet { .. });
    let told: Vec<_> = facts.iter().filter(above).chain(windows.clone().rev()).cloned().collect();
    assert_eq!(windows.count(), 2);
    let recovered = world.replayed(settings(vec![]), &[Record { time_ms: 0, facts: told }]);
    recovered.held("a", 10);
    let opened = recovered.tape.facts();
    assert!(!opened.iter().any(|fact| matches!(fact, Fact::WindowOpened { .. })), "{opened:?}");
}

/// Recovery begins no period: what is topped up after it goes on in the slice that there is.
#[test]
fn the_same_windows_are_the_same_chain_after_recovery() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 1);
    let mut records = world.tape.records();
    for total in 2..3 * MAX_SLICES as i64 {
        let recovered = world.replayed(settings(vec![]), &records);
        recovered.extend(id, total);
        records.extend(recovered.tape.records());
    }
    let opened = records.iter().flat_map(|record| &record.facts);
    let opened = opened.filter(|fact| matches!(fact, Fact::ChainOpened { .. }));
    assert_eq!(opened.count(), 1);
}

#[test]
fn a_fact_about_something_unknown_is_an_error() {
    let world = World::tokens(&[("a", 100)]);
    world.held("a", 10);
    let records = world.tape.records();
    for skipped in 0..records.len() - 1 {
        let mut replay = Replay::new(settings(vec![]), Tape::default(), world.now());
        let others = records.iter().enumerate().filter(|(at, _)| *at != skipped);
        let result = others.into_iter().try_for_each(|(_, record)| replay.apply(record));
        assert!(result.is_err(), "without {:?}", records[skipped]);
    }
}
