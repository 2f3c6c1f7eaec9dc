//! R6: a reservation has one debit channel at a time; and what those who watch one hear.

use std::sync::{Arc, Mutex};

use bursar_ledger::{
    Channel, Debited, Ending, LedgerError, Observer, Period, PeriodKind, ReservationId, State,
    Verdict,
};

use crate::common::{HOUR, TTL, World, stepped, tokens};

const ONE: Channel = Channel::Meter(1);
const TWO: Channel = Channel::Meter(2);

fn through(
    world: &World,
    channel: Channel,
    id: ReservationId,
    used: i64,
) -> Result<Debited, LedgerError> {
    world.ledger.debit_through(channel, id, &tokens(used), world.now())
}

fn plainly(world: &World, id: ReservationId, used: i64) -> Result<Debited, LedgerError> {
    world.ledger.debit(id, &tokens(used), world.now())
}

/// How a claimed reservation ended.
type End = (Channel, ReservationId, State);

/// What an observer heard: how often verdicts changed, and the ends.
#[derive(Debug, Default)]
struct Heard(Mutex<(u64, Vec<End>)>);

impl Observer for Heard {
    fn verdicts_changed(&self) {
        self.0.lock().unwrap().0 += 1;
    }

    fn ended(&self, channel: Channel, id: ReservationId, state: State) {
        self.0.lock().unwrap().1.push((channel, id, state));
    }
}

#[test]
fn r06_the_first_channel_that_debits_a_reservation_is_its_only_one() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 50);
    plainly(&world, id, 5).unwrap();
    assert_eq!(through(&world, ONE, id, 10).unwrap().remaining, tokens(40));
    for used in [0, 5, 20] {
        assert_eq!(plainly(&world, id, used).unwrap_err(), LedgerError::ReservationLeased);
        assert_eq!(through(&world, TWO, id, used).unwrap_err(), LedgerError::ReservationLeased);
    }
    assert_eq!(world.ledger.claim(id, TWO), Err(LedgerError::ReservationLeased));
    assert_eq!(world.tokens_of("a"), (40, 10), "a refused debit counts nothing");
    // Repeats and reorderings within the channel change nothing.
    for (used, left) in [(30, 20), (10, 20), (30, 20)] {
        assert_eq!(through(&world, ONE, id, used).unwrap().remaining, tokens(left));
    }
    assert_eq!(world.ledger.claim(id, ONE), Ok(()));
}

#[test]
fn r06_a_channel_that_has_ended_leaves_the_reservation_to_others() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 50);
    world.ledger.claim(id, ONE).unwrap();
    world.ledger.unclaim(id, TWO);
    assert_eq!(plainly(&world, id, 1).unwrap_err(), LedgerError::ReservationLeased);
    through(&world, ONE, id, 7).unwrap();
    world.ledger.unclaim(id, ONE);
    assert_eq!(plainly(&world, id, 5).unwrap().remaining, tokens(43), "counts stay");
    assert_eq!(through(&world, TWO, id, 8).unwrap().remaining, tokens(42));
}

#[test]
fn r06_a_claim_ends_with_its_reservation_and_stops_nobody_from_ending_it() {
    let world = World::tokens(&[("a", 100)]);
    let (committed, released, expired) =
        (world.held("a", 10), world.held("a", 10), world.held("a", 10));
    let heard = Arc::<Heard>::default();
    world.ledger.observe(Arc::clone(&heard) as Arc<dyn Observer>);
    for id in [committed, released, expired] {
        through(&world, ONE, id, 4).unwrap();
    }
    assert_eq!(world.commit(committed, 12).view.spent, tokens(12));
    assert_eq!(world.end(released, Ending::Release).unwrap().view.spent, tokens(4));
    world.wait(TTL);
    assert_eq!(world.ledger.tick(world.now()).expired, 1);
    let ends =
        [(committed, State::Committed), (released, State::Released), (expired, State::Expired)];
    let told = ends.map(|(id, state)| (ONE, id, state));
    assert_eq!(heard.0.lock().unwrap().1, told);
    for (id, state) in ends {
        assert_eq!(through(&world, ONE, id, 5).unwrap_err(), LedgerError::ReservationEnded(state));
        assert_eq!(world.ledger.claim(id, TWO), Err(LedgerError::ReservationEnded(state)));
        world.ledger.unclaim(id, ONE);
    }
    assert_eq!(world.tokens_of("a"), (0, 20));
}

#[test]
fn r06_a_claim_does_not_outlive_its_slot() {
    let world = World::tokens(&[("a", 100)]);
    let old = world.held("a", 10);
    through(&world, ONE, old, 4).unwrap();
    world.commit(old, 4);
    world.wait(2 * HOUR);
    world.ledger.tick(world.now());
    let new = world.held("a", 10);
    assert_eq!(new.slot, old.slot);
    world.ledger.claim(new, TWO).unwrap();
    world.ledger.unclaim(old, ONE);
    world.ledger.unclaim(old, TWO);
    assert_eq!(world.ledger.claim(old, ONE), Err(LedgerError::ReservationNotFound));
    assert_eq!(world.ledger.claim(new, ONE), Err(LedgerError::ReservationLeased));
}

#[test]
fn changes_are_counted_when_verdict_or_advice_may_differ_and_only_then() {
    let world = World::new();
    world.set("a", stepped(100)).unwrap();
    let heard = Arc::<Heard>::default();
    world.ledger.observe(Arc::clone(&heard) as Arc<dyn Observer>);
    let mut before = world.ledger.changes();
    let mut changed = || {
        let (count, was) = (world.ledger.changes(), before);
        before = count;
        count != was
    };
    let id = world.held("a/b", 100);
    let other = world.held("a/c", 0);
    for used in 1..100 {
        world.debit(id, used);
        assert_eq!(changed(), [50, 80, 90].contains(&used), "at {used}");
    }
    world.freeze("a", true);
    assert!(changed());
    world.freeze("a", true);
    assert!(!changed(), "a repeat");
    world.freeze("a", false);
    assert!(changed());
    world.release(other);
    assert!(!changed(), "nobody had claimed it");
    world.set("a", stepped(1_000)).unwrap();
    assert!(changed());
    world.commit(id, 3);
    assert!(!changed(), "far below every threshold, before and after");
    assert_eq!(heard.0.lock().unwrap().1, []);
    assert!(heard.0.lock().unwrap().0 >= 6);
}

#[test]
fn a_commit_of_less_than_was_debited_takes_a_warning_back_and_is_heard_of() {
    let world = World::new();
    world.set("a", stepped(100)).unwrap();
    let (id, watched) = (world.held("a", 60), world.held("a", 1));
    world.debit(id, 60);
    assert_eq!(through(&world, ONE, watched, 0).unwrap().verdict, Verdict::Warn);
    let before = world.ledger.changes();
    world.commit(id, 10);
    assert_ne!(world.ledger.changes(), before);
    assert_eq!(through(&world, ONE, watched, 0).unwrap().verdict, Verdict::Ok);
}

#[test]
fn a_rolling_window_says_that_time_alone_may_change_it() {
    let world = World::new();
    let mut budget = stepped(100);
    budget.period = Period::rolling(HOUR);
    world.set("a", budget).unwrap();
    let (first, second) = (world.held("a", 60), world.held("a", 1));
    world.debit(first, 60);
    let debited = through(&world, ONE, second, 1).unwrap();
    assert!(debited.verdict == Verdict::Warn && debited.scope.rolls());
    let mut fixed = stepped(1_000);
    fixed.period = Period::calendar(PeriodKind::Hour, "UTC");
    world.set("b", fixed).unwrap();
    let third = world.held("b", 600);
    let debited = through(&world, ONE, third, 600).unwrap();
    assert!(debited.verdict == Verdict::Warn && !debited.scope.rolls());
}
