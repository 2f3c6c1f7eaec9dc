//! R13: what the journal hears is all that a ledger needs to stand where it stood: each settlement to
//! the exact amount, the ids that were given out, and the keys.

use bursar_ledger::fact::{Fact, Record, Settled};
use bursar_ledger::{
    Admission, Amounts, Ask, BudgetSpec, HighIds, LedgerError, Period, PeriodKind, Replay,
    ReplayError, ReservationId, Settings, Spending, State, Unit, Verdict,
};

use crate::common::*;

const VRAM: Unit = Unit::VramBytes;

/// Tokens end with the hour; vram is capacity.
fn hourly(limit: i64) -> World {
    let world = World::new();
    world.limit("a", Unit::Tokens, Period::calendar(PeriodKind::Hour, "UTC"), limit);
    world.limit("a", VRAM, Period::total(), 100);
    world
}

fn settlements(world: &World) -> Vec<Settled> {
    let settled = |fact| match fact {
        Fact::Settled(settled) => Some(settled),
        _ => None,
    };
    world.tape.facts().into_iter().filter_map(settled).collect()
}

fn again(world: &World) -> World {
    world.replayed(World::plain(), &world.tape.records())
}

fn keyed(world: &World, key: u128, amount: i64) -> Result<ReservationId, LedgerError> {
    let payload = u128::try_from(amount).unwrap();
    match world.reserve(Ask { key, payload, ..ask("a", exactly(tokens(amount))) })? {
        Admission::Granted(granted) => Ok(granted.view.id),
        Admission::Refused(refusal, _) => panic!("{refusal:?}"),
    }
}

#[test]
fn r13_a_late_commit_tells_what_it_gave_back_and_where() {
    let world = hourly(100);
    let id = world.hold("a", of(&[(Unit::Tokens, 10), (VRAM, 30)])).unwrap().view.id;
    world.debit(id, 8);
    world.wait(TTL);
    world.ledger.tick(world.now());
    let expired = settlements(&world).pop().unwrap();
    assert_eq!((expired.state, expired.returned), (State::Expired, tokens(2)));
    assert_eq!(expired.kept, Amounts::of(VRAM, 30));
    let view = world.commit(id, 3).view;
    let told = settlements(&world).split_off(1);
    let [part, last] = told.as_slice() else { panic!("{told:?}") };
    let chain = expired.slices[0].chain;
    assert_eq!((part.state, part.spent), (State::Expired, tokens(3)));
    assert_eq!(part.beyond, Some((chain, of(&[(Unit::Tokens, -5)]))));
    assert_eq!((last.state, last.spent), (State::Committed, tokens(3)));
    assert_eq!((last.beyond.is_none(), last.overdraft), (true, Amounts::ZERO));
    assert_eq!((last.returned, last.kept), (Amounts::of(VRAM, 30), Amounts::ZERO));
    let again = again(&world);
    assert_eq!(again.view(id).returned, view.returned);
    for unit in [Unit::Tokens, VRAM] {
        assert_eq!(again.standing("a", unit), world.standing("a", unit));
    }
}

#[test]
fn r13_a_late_commit_tells_what_passed_the_limit() {
    let world = hourly(20);
    let id = world.held("a", 10);
    world.release(id);
    let other = world.held("a", 15);
    let view = world.commit(id, 12).view;
    let last = settlements(&world).pop().unwrap();
    assert_eq!(last.beyond.map(|(_, amounts)| amounts), Some(tokens(12)));
    assert_eq!((last.overdraft, last.returned), (tokens(7), Amounts::ZERO));
    let again = again(&world);
    assert_eq!(again.standing("a", Unit::Tokens), world.standing("a", Unit::Tokens));
    assert_eq!((again.view(id).overdraft, view.overdraft), (tokens(7), tokens(7)));
    assert_eq!(again.view(other).granted, tokens(15));
}

#[test]
fn r13_a_commit_tells_what_it_returned_and_what_passed_the_limit() {
    let world = hourly(20);
    let (less, more) = (world.held("a", 10), world.held("a", 10));
    world.commit(less, 4);
    let told = settlements(&world).pop().unwrap();
    assert_eq!((told.returned, told.overdraft), (tokens(6), Amounts::ZERO));
    assert_eq!(told.granted(), tokens(10));
    world.commit(more, 19);
    let told = settlements(&world).pop().unwrap();
    assert_eq!((told.returned, told.overdraft), (Amounts::ZERO, tokens(3)));
    assert_eq!(told.granted(), tokens(10));
    let again = again(&world);
    for id in [less, more] {
        let (was, is) = (world.view(id), again.view(id));
        assert_eq!((is.returned, is.overdraft), (was.returned, was.overdraft));
    }
}

#[test]
fn r13_recorded_spending_tells_its_amount_its_overdraft_its_model_and_its_request() {
    let world = hourly(20);
    let label = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let labels = vec![label("team", "t"), label("model", "m-1")];
    let spending = Spending { account: "a", amounts: tokens(25), key: 1, payload: 9, labels };
    let view = world.ledger.record(spending, world.now()).unwrap().view;
    assert_eq!((view.model.as_deref(), view.overdraft), (Some("m-1"), tokens(5)));
    let told = settlements(&world).pop().unwrap();
    assert_eq!(told.beyond.map(|(_, amounts)| amounts), Some(tokens(25)));
    assert_eq!((told.overdraft, told.payload), (tokens(5), 9));
    assert_eq!(told.model.as_deref(), Some("m-1"));
    let again = again(&world);
    assert_eq!(again.standing("a", Unit::Tokens), (20, 0, 25, -5));
    assert_eq!(again.view(view.id).model.as_deref(), Some("m-1"));
    assert_eq!(world.view(world.held("b", 1)).model, None);
}

#[test]
fn r13_ids_that_were_given_out_are_not_given_out_again() {
    let world = World::tokens(&[("a", 100)]);
    let high = HighIds { sequence: 100, window: 200, chain: 300, budget: 400, account: 500 };
    let mut replay = Replay::new(World::plain(), Tape::default(), world.now());
    world.tape.records().iter().for_each(|record| replay.apply(record).unwrap());
    let ledger = replay.finish(high);
    let terms = terms(10);
    let spec = BudgetSpec { unit: Unit::Tokens, period: Period::total(), terms };
    ledger.set_budget("b", spec, world.now()).unwrap();
    let wish = exactly(tokens(1));
    let Ok(Admission::Granted(granted)) = ledger.reserve(ask("b", wish), world.now()) else {
        panic!("it fits")
    };
    assert_eq!(granted.view.id.sequence, 101);
    let first = |id: &dyn Fn(&Fact) -> Option<u64>| ledger.journal().facts().iter().find_map(id);
    let account = first(&|fact| match fact {
        Fact::AccountOpened { account, .. } => Some(u64::from(*account)),
        _ => None,
    });
    let budget = first(&|fact| match fact {
        Fact::BudgetSet { budget, .. } => Some(u64::from(*budget)),
        _ => None,
    });
    let window = first(&|fact| match fact {
        Fact::WindowOpened { window, .. } => Some(*window),
        _ => None,
    });
    let chain = first(&|fact| match fact {
        Fact::ChainOpened { chain, .. } => Some(*chain),
        _ => None,
    });
    assert_eq!([window, chain, budget, account], [201, 301, 401, 501].map(Some));
}

#[test]
fn r13_a_key_that_was_used_again_names_the_later_reservation() {
    let world = World::tokens(&[("a", 100)]);
    let first = keyed(&world, 1, 5).unwrap();
    let other = world.held("a", 1);
    world.release(first);
    world.release(other);
    world.wait(RETENTION);
    world.ledger.tick(world.now());
    let later = keyed(&world, 1, 6).unwrap();
    assert_ne!(first.slot, later.slot, "the first is still in its slot after a replay");
    assert_eq!(keyed(&again(&world), 1, 6), Ok(later));
}

#[test]
fn r13_the_key_of_a_reservation_whose_slot_was_used_again_is_free() {
    let world = World::tokens(&[("a", 100)]);
    let first = keyed(&world, 1, 5).unwrap();
    world.release(first);
    world.wait(RETENTION);
    world.ledger.tick(world.now());
    let second = keyed(&world, 2, 6).unwrap();
    assert_eq!(first.slot, second.slot);
    let again = again(&world);
    let fresh = keyed(&again, 1, 7).unwrap();
    assert!(fresh != first && fresh != second);
    assert_eq!(keyed(&again, 2, 6), Ok(second), "its own is kept");
}

#[test]
fn r13_a_recovered_reservation_has_its_time_to_live_before_it_and_a_slot_of_nobody_is_free() {
    let world = World::tokens(&[("a", 100)]);
    let (gone, held) = (world.held("a", 5), world.held("a", 7));
    world.wait(TTL / 2);
    let of_gone = |fact: &Fact| matches!(fact, Fact::Reserved(reserved) if reserved.id == gone);
    let mut records = world.tape.records();
    for record in &mut records {
        record.facts.retain(|fact| !of_gone(fact));
    }
    let settings = Settings { max_reservations: 2, ..World::plain() };
    let again = world.replayed(settings, &records);
    assert_eq!(again.view(held).expires_in_ms, TTL);
    assert_eq!(again.held("a", 1).slot, gone.slot);
    assert!(again.reserve(ask("a", exactly(tokens(1)))).is_err(), "two are the maximum");
}

#[test]
fn r13_a_recovered_window_has_its_verdict_and_reports_each_threshold_once() {
    let world = World::new();
    world.set("a", stepped(100)).unwrap();
    let id = world.held("a", 90);
    assert_eq!(world.debit(id, 60).verdict, Verdict::Warn);
    world.ledger.log_used(world.now());
    let again = again(&world);
    assert_eq!(again.debit(id, 60).verdict, Verdict::Warn, "before anything is spent");
    again.debit(id, 61);
    assert!(again.tape.crossings().is_empty());
    again.debit(id, 80);
    assert_eq!(again.tape.crossings(), [800]);
    // The process ended before it could tell.
    let mut records = world.tape.records();
    let told = |fact: &Fact| matches!(fact, Fact::Crossed { .. });
    for record in &mut records {
        record.facts.retain(|fact| !told(fact));
    }
    let again = world.replayed(World::plain(), &records);
    again.debit(id, 61);
    assert_eq!(again.tape.crossings(), [500]);
}

/// The records, and the first `Resliced` of the reservation once more.
fn resliced_again(world: &World, id: ReservationId) -> World {
    let mut records = world.tape.records();
    let of = |fact: &Fact| matches!(fact, Fact::Resliced { id: of, .. } if *of == id);
    let old = records.iter().find(|record| record.facts.iter().any(of)).cloned();
    records.push(old.expect("it was resliced"));
    world.replayed(World::plain(), &records)
}

#[test]
fn r13_a_hold_that_is_told_again_is_not_shrunk_below_what_was_spent_of_it_since() {
    let world = hourly(100);
    let parent = world.held("a", 10);
    let child = world.nest("a", parent, tokens(5)).unwrap().id;
    world.release(child);
    world.debit(parent, 8);
    world.ledger.log_used(world.now());
    let again = resliced_again(&world, parent);
    assert_eq!(again.standing("a", Unit::Tokens), (100, 2, 8, 90));
    assert_eq!(again.view(parent).granted, tokens(10));
}

#[test]
fn r13_a_hold_that_is_told_again_does_not_lose_a_window_in_which_it_was_spent_since() {
    let world = hourly(100);
    let id = world.held("a", 5);
    world.extend(id, 6);
    world.wait(HOUR);
    world.extend(id, 10);
    world.debit(id, 8);
    world.ledger.log_used(world.now());
    let again = resliced_again(&world, id);
    assert_eq!(again.standing("a", Unit::Tokens), (100, 2, 2, 96));
    assert_eq!(again.view(id).granted, tokens(10));
}

/// What is spent in `a` after replay without some of the facts.
fn spent_without(world: &World, dropped: impl Fn(&Fact) -> bool) -> Result<i64, ReplayError> {
    let mut replay = Replay::new(World::plain(), Tape::default(), world.now());
    let facts = |record: &Record| record.facts.iter().filter(|f| !dropped(f)).cloned().collect();
    let records = world.tape.records();
    let mut records = records.iter().map(|r| Record { facts: facts(r), ..r.clone() });
    records.try_for_each(|record| replay.apply(&record)).map(|()| {
        let ledger = replay.finish(HighIds::default());
        ledger.account("a", world.now()).unwrap().balances[0].standing.spent
    })
}

fn is_reserved(fact: &Fact) -> bool {
    matches!(fact, Fact::Reserved(_))
}

fn is_end_of_hold(fact: &Fact) -> bool {
    matches!(fact, Fact::Settled(settled) if !settled.slices.is_empty())
}

#[test]
fn r13_a_late_commit_of_a_forgotten_reservation_counts_and_its_hold_must_be_known() {
    let world = hourly(20);
    let id = world.held("a", 10);
    world.release(id);
    world.commit(id, 12);
    assert_eq!(spent_without(&world, |_| false), Ok(12));
    assert_eq!(spent_without(&world, |fact| is_reserved(fact) || is_end_of_hold(fact)), Ok(12));
    spent_without(&world, is_reserved).expect_err("an end of a hold that nobody knows");
}

/// Where it is not known since when it had spent, its spending may have left the window.
#[test]
fn r13_a_correction_of_a_forgotten_reservation_takes_nothing_from_others() {
    let world = World::new();
    world.limit("a", Unit::Tokens, Period::rolling(HOUR), 100);
    let id = world.held("a", 30);
    world.debit(id, 30);
    world.release(id);
    world.record("a", tokens(40)).unwrap();
    world.commit(id, 10);
    assert_eq!(spent_without(&world, |_| false), Ok(50));
    let of_others = |fact: &Fact| {
        let is_its = matches!(fact, Fact::Reserved(reserved) if reserved.id == id);
        is_its || is_end_of_hold(fact) || matches!(fact, Fact::Used(_))
    };
    assert_eq!(spent_without(&world, of_others), Ok(40));
}

#[test]
fn r13_a_window_that_is_told_of_late_takes_no_newer_ones_place() {
    let world = hourly(100);
    world.record("a", tokens(5)).unwrap();
    world.wait(HOUR);
    world.record("a", tokens(7)).unwrap();
    let mut records = world.tape.records();
    let opened =
        |fact: &Fact| matches!(fact, Fact::WindowOpened { end_ms, .. } if *end_ms < i64::MAX);
    let old = records.iter().find(|record| record.facts.iter().any(opened)).cloned().unwrap();
    records.push(Record { facts: old.facts.into_iter().filter(opened).collect(), ..old });
    let again = world.replayed(World::plain(), &records);
    assert_eq!(again.standing("a", Unit::Tokens), (100, 0, 7, 93));
}

#[test]
fn r13_what_happens_after_recovery_goes_to_the_journal_that_is_set_then() {
    let mut world = World::new();
    let after = Tape::default();
    world.held("a/x", 1);
    let before = world.tape.records().len();
    world.ledger.set_journal(after.clone());
    world.held("a/x", 1);
    assert_eq!((world.tape.records().len(), after.records().len()), (before, 1));
}

#[test]
fn r13_floors_of_many_reservations_go_into_records_of_bounded_size() {
    let world = World::tokens(&[("a", 1_000_000)]);
    let settings = Settings { max_reservations: 20_000, ..World::plain() };
    let world = world.replayed(settings, &world.tape.records());
    let ids: Vec<_> = (0..10_001).map(|_| world.held("a", 1)).collect();
    for id in ids {
        world.debit(id, 1);
    }
    let before = world.tape.records().len();
    let ticket = world.ledger.log_used(world.now());
    let told: Vec<_> = world.tape.records().split_off(before);
    let counts = told.iter().map(|record| match record.facts.as_slice() {
        [Fact::Used(floors)] => floors.len(),
        other => panic!("{other:?}"),
    });
    assert_eq!(counts.collect::<Vec<_>>(), [10_000, 1]);
    assert_eq!(ticket, u64::try_from(before + 2).unwrap());
    assert_eq!(world.ledger.log_used(world.now()), 0);
}
