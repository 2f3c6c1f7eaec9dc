//! R7 and R9: ends tell the truth, and holds end.

use bursar_ledger::fact::{Fact, State};
use bursar_ledger::{Amounts, Ending, LedgerError, Period, RefusalReason, Unit, Verdict};

use crate::common::{RETENTION, TTL, World, commit, of, tokens, totals};

#[test]
fn r07_commit_below_at_and_above_the_hold_counts_what_it_says() {
    for (actual, returned, overdraft) in
        [(0, 60, 0), (20, 40, 0), (60, 0, 0), (90, 0, 0), (130, 0, 30)]
    {
        let world = World::tokens(&[("a", 100), ("a/b", 1_000)]);
        let id = world.held("a/b", 60);
        world.debit(id, 30);
        let ended = world.commit(id, actual);
        assert_eq!(ended.view.state, State::Committed);
        assert_eq!(ended.view.spent, tokens(actual));
        assert_eq!(ended.view.returned, tokens(returned));
        assert_eq!(ended.view.overdraft, tokens(overdraft));
        assert_eq!(ended.verdict == Verdict::Stop, overdraft > 0);
        assert_eq!(world.standing("a", Unit::Tokens), (100, 0, actual, 100 - actual));
        assert_eq!(world.tokens_of("a/b"), (0, actual));
    }
}

#[test]
fn r07_a_commit_counts_units_that_it_does_not_name_as_debited() {
    let world = World::tokens(&[("a", 100)]);
    world.limit("a", Unit::UsdNanos, Period::total(), 100);
    world.limit("a", Unit::Calls, Period::total(), 100);
    let amounts = of(&[(Unit::Tokens, 50), (Unit::UsdNanos, 50), (Unit::Calls, 1)]);
    let id = world.hold("a", amounts).unwrap().view.id;
    let used = of(&[(Unit::Tokens, 10), (Unit::UsdNanos, 20)]);
    world.ledger.debit(id, &used, world.now()).unwrap();
    let ended = world.end(id, commit(&[(Unit::Tokens, 0)])).unwrap();
    assert_eq!(ended.view.spent, of(&[(Unit::UsdNanos, 20), (Unit::Calls, 1)]));
    assert_eq!(world.standing("a", Unit::UsdNanos), (100, 0, 20, 80));
    assert_eq!(world.standing("a", Unit::Calls), (100, 0, 1, 99));
}

#[test]
fn r07_release_ends_at_what_was_debited() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 60);
    world.debit(id, 25);
    let ended = world.release(id);
    assert_eq!((ended.view.state, ended.view.spent), (State::Released, tokens(25)));
    assert_eq!(ended.view.returned, tokens(35));
    assert_eq!(world.standing("a", Unit::Tokens), (100, 0, 25, 75));
    let debited = world.ledger.debit(id, &tokens(26), world.now()).unwrap_err();
    assert_eq!(debited, LedgerError::ReservationEnded(State::Released));
}

#[test]
fn r07_release_after_commit_is_a_no_op() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 60);
    world.commit(id, 33);
    let ended = world.release(id);
    assert_eq!((ended.view.state, ended.view.spent), (State::Committed, tokens(33)));
    assert_eq!(world.tokens_of("a"), (0, 33));
}

#[test]
fn r07_a_late_commit_counts_after_release_and_after_expiry() {
    for (debited, actual) in [(10, 40), (10, 5), (10, 10), (0, 90), (50, 0)] {
        for expire in [false, true] {
            let world = World::tokens(&[("a", 100), ("a/b", 100)]);
            let id = world.held("a/b", 50);
            world.debit(id, debited);
            if expire {
                world.wait(TTL);
                assert_eq!(world.ledger.tick(world.now()).expired, 1);
            } else {
                world.release(id);
            }
            assert_eq!(world.tokens_of("a"), (0, debited));
            let ended = world.commit(id, actual);
            assert_eq!((ended.view.state, ended.view.spent), (State::Committed, tokens(actual)));
            assert_eq!(world.standing("a", Unit::Tokens), (100, 0, actual, 100 - actual));
            assert_eq!(world.tokens_of("a/b"), (0, actual));
            world.commit(id, actual);
            let other = world.end(id, commit(&[(Unit::Tokens, actual + 1)]));
            assert_eq!(other.unwrap_err(), LedgerError::IdempotencyMismatch("commit"));
            assert_eq!(world.tokens_of("a"), (0, actual));
        }
    }
}

#[test]
fn r06_a_commit_says_once_whether_the_work_succeeded_also_when_it_is_late() {
    for late in [false, true] {
        let world = World::tokens(&[("a", 100)]);
        let id = world.held("a", 50);
        world.debit(id, 20);
        if late {
            world.wait(TTL);
            assert_eq!(world.ledger.tick(world.now()).expired, 1);
        }
        let judged = |payload, success| Ending::Commit {
            actual: tokens(10),
            named: 1,
            payload,
            success: Some(success),
        };
        let first = world.end(id, judged(1, false)).unwrap();
        let again = world.end(id, judged(1, false)).unwrap();
        assert_eq!(again.view.spent, first.view.spent);
        let other = world.end(id, judged(2, true)).unwrap_err();
        assert_eq!(other, LedgerError::IdempotencyMismatch("commit"));
        let said: Vec<_> = world.tape.facts().into_iter().filter(is_judged).collect();
        assert!(matches!(said[..], [Fact::Judged { id: on, success: false, .. }] if on == id));
        // In the record of the settlement: never one without the other.
        let records = world.tape.records();
        let with = records.iter().find(|record| record.facts.iter().any(is_judged)).unwrap();
        let is_end = |fact: &Fact| matches!(fact, Fact::Settled(end) if end.id == id);
        assert!(with.facts.iter().any(is_end), "{with:?}");
    }
}

#[test]
fn ends_that_nobody_judged_say_nothing_of_the_work() {
    let world = World::tokens(&[("a", 100)]);
    world.commit(world.held("a", 10), 3);
    world.release(world.held("a", 10));
    world.held("a", 10);
    world.wait(TTL);
    assert_eq!(world.ledger.tick(world.now()).expired, 1);
    assert!(!world.tape.facts().iter().any(is_judged));
}

fn is_judged(fact: &Fact) -> bool {
    matches!(fact, Fact::Judged { .. })
}

#[test]
fn r07_a_late_commit_may_overdraw_what_others_hold_by_now() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 60);
    world.release(id);
    let other = world.held("a", 100);
    let ended = world.commit(id, 60);
    assert_eq!((ended.view.overdraft, ended.verdict), (tokens(60), Verdict::Stop));
    assert_eq!(world.standing("a", Unit::Tokens), (100, 100, 60, -60));
    // Nobody has spent more than the limit yet, so who holds may go on.
    assert_eq!(world.debit(other, 40).verdict, Verdict::Ok);
    assert_eq!(world.debit(other, 41).verdict, Verdict::Stop);
}

#[test]
fn r07_spending_without_a_reservation_is_never_refused() {
    let world = World::tokens(&[("a", 100), ("a/b", 10)]);
    let ended = world.record("a/b", tokens(104)).unwrap();
    assert_eq!((ended.view.state, ended.view.spent), (State::Committed, tokens(104)));
    assert_eq!((ended.view.overdraft, ended.verdict), (tokens(94), Verdict::Stop));
    assert_eq!(world.tokens_of("a"), (0, 104));
    assert_eq!(world.tokens_of("a/b"), (0, 104));
}

#[test]
fn r07_a_smaller_commit_takes_the_verdict_back() {
    let world = World::new();
    world.set("a", crate::common::stepped(100)).unwrap();
    let id = world.held("a", 100);
    assert_eq!(world.debit(id, 95).verdict, Verdict::Degrade);
    assert_eq!(world.commit(id, 10).verdict, Verdict::Ok);
    let id = world.held("a", 90);
    world.debit(id, 75);
    world.release(id);
    assert_eq!(world.commit(id, 0).verdict, Verdict::Ok);
    assert_eq!(world.tape.crossings(), [500, 800, 900]);
}

#[test]
fn r07_the_hold_ends_debits_at_the_exact_token() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 60);
    assert_eq!(world.debit(id, 60).verdict, Verdict::Ok);
    let debited = world.debit(id, 63);
    let refusal = debited.refusal.unwrap();
    assert_eq!((refusal.reason, refusal.shortfall), (RefusalReason::HoldExhausted, 3));
    assert_eq!((debited.verdict, debited.remaining), (Verdict::Stop, Amounts::ZERO));
    assert_eq!(world.tokens_of("a"), (0, 60));
    assert_eq!(world.extend(id, 63).verdict, Verdict::Ok);
    assert_eq!(world.debit(id, 63).verdict, Verdict::Ok);
    assert_eq!(world.tokens_of("a"), (0, 63));
}

#[test]
fn r09_a_hold_ends_by_its_time_to_live_at_what_was_debited() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 60);
    world.debit(id, 15);
    world.wait(TTL - 1);
    assert_eq!(world.ledger.tick(world.now()).expired, 0);
    assert_eq!(world.view(id).expires_in_ms, 1);
    world.wait(1);
    assert_eq!(world.ledger.tick(world.now()).expired, 1);
    assert_eq!(world.standing("a", Unit::Tokens), (100, 0, 15, 85));
    let view = world.view(id);
    assert_eq!((view.state, view.spent, view.expires_in_ms), (State::Expired, tokens(15), 0));
    let debited = world.ledger.debit(id, &tokens(16), world.now()).unwrap_err();
    assert_eq!(debited, LedgerError::ReservationEnded(State::Expired));
    assert_eq!(world.release(id).view.state, State::Expired);
}

#[test]
fn r09_extend_renews_the_time_to_live_even_when_it_is_refused_more() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 60);
    world.wait(TTL - 1);
    let extended = world.extend(id, 101);
    assert_eq!((extended.verdict, extended.view.granted), (Verdict::Stop, tokens(60)));
    assert_eq!(extended.refusal.unwrap().shortfall, 1);
    world.wait(TTL - 1);
    assert_eq!(world.ledger.tick(world.now()).expired, 0);
    let zero = Amounts::ZERO;
    world.ledger.extend(id, Some(&totals(zero, zero)), false, Some(5), world.now()).unwrap();
    world.wait(5);
    assert_eq!(world.ledger.tick(world.now()).expired, 1);
}

#[test]
fn r13_an_extend_is_one_record_whatever_it_changes() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 10);
    let before = world.tape.len();
    world.ledger.extend(id, None, false, Some(TTL * 2), world.now()).unwrap();
    assert_eq!(world.tape.len(), before + 1, "a new time to live outlives a restart");
    world.extend(id, 20);
    assert_eq!(world.tape.len(), before + 2);
}

#[test]
fn r09_the_wall_clock_does_not_expire_holds() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 60);
    world.set_wall(world.now().wall_ms + 10 * TTL);
    assert_eq!(world.ledger.tick(world.now()).expired, 0);
    assert_eq!(world.view(id).state, State::Pending);
}

fn capacity_world() -> World {
    let world = World::tokens(&[("a", 100)]);
    world.limit("a", Unit::VramBytes, Period::total(), 80);
    world.limit("a", Unit::Concurrency, Period::total(), 2);
    world
}

#[test]
fn r09_capacity_stays_held_after_expiry_until_its_owner_is_gone() {
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Way {
        OwnerGone,
        Release,
        Commit,
    }
    for way in [Way::OwnerGone, Way::Release, Way::Commit] {
        let world = capacity_world();
        let amounts = of(&[(Unit::Tokens, 50), (Unit::VramBytes, 60)]);
        let id = world.hold("a", amounts).unwrap().view.id;
        world.debit(id, 20);
        world.wait(TTL);
        world.ledger.tick(world.now());
        assert_eq!(world.tokens_of("a"), (0, 20));
        assert_eq!(world.standing("a", Unit::VramBytes), (80, 60, 0, 20), "{way:?}");
        assert_eq!(world.standing("a", Unit::Concurrency), (2, 1, 0, 1));
        // However long it takes.
        world.wait(10 * RETENTION);
        assert_eq!(world.ledger.tick(world.now()).forgotten, 0);
        assert_eq!(world.ledger.kept().len(), 1);
        let spent = match way {
            Way::OwnerGone => {
                assert_ne!(world.ledger.owner_gone(id, world.now()).unwrap(), 0);
                assert_eq!(world.ledger.owner_gone(id, world.now()).unwrap(), 0);
                20
            }
            Way::Release => {
                assert_eq!(world.release(id).view.state, State::Expired);
                20
            }
            Way::Commit => {
                world.commit(id, 30);
                30
            }
        };
        assert_eq!(world.standing("a", Unit::VramBytes), (80, 0, 0, 80), "{way:?}");
        assert_eq!(world.standing("a", Unit::Concurrency), (2, 0, 0, 2));
        assert_eq!(world.tokens_of("a"), (0, spent), "{way:?}");
        assert!(world.ledger.kept().is_empty());
        world.wait(RETENTION);
        assert_eq!(world.ledger.tick(world.now()).forgotten, 1);
    }
}

#[test]
fn r09_capacity_comes_back_at_once_with_commit_and_release() {
    for ending in [Ending::Release, commit(&[(Unit::Tokens, 1), (Unit::VramBytes, 60)])] {
        let world = capacity_world();
        let amounts = of(&[(Unit::Tokens, 50), (Unit::VramBytes, 60)]);
        let id = world.hold("a", amounts).unwrap().view.id;
        assert!(world.hold("a", of(&[(Unit::VramBytes, 21)])).is_err());
        let ended = world.end(id, ending).unwrap();
        assert_eq!(ended.view.spent.get(Unit::VramBytes), 0, "capacity is never spent");
        assert_eq!(world.standing("a", Unit::VramBytes), (80, 0, 0, 80));
    }
}

#[test]
fn r09_every_reservation_counts_as_one_of_concurrency() {
    let world = capacity_world();
    let first = world.held("a/x", 1);
    let _second = world.held("a/y", 1);
    let refusal = world.hold("a/z", tokens(1)).unwrap_err();
    assert_eq!((refusal.unit, refusal.shortfall), (Some(Unit::Concurrency), 1));
    let told = world.ledger.check("a/z", &crate::common::exactly(tokens(1)), world.now());
    assert!(matches!(told, Ok(bursar_ledger::Admission::Refused(..))), "Check says so too");
    world.extend(first, 2);
    assert_eq!(world.standing("a", Unit::Concurrency), (2, 2, 0, 0), "a top-up is no new one");
    world.release(first);
    assert!(world.hold("a/z", tokens(1)).is_ok());
}

#[test]
fn r07_a_commit_may_say_that_no_call_was_made() {
    let world = World::tokens(&[("a", 100)]);
    world.limit("a", Unit::Calls, Period::total(), 100);
    let amounts = of(&[(Unit::Tokens, 10), (Unit::Calls, 1)]);
    for (named, calls) in [(vec![(Unit::Calls, 0)], 0), (vec![(Unit::Calls, 3)], 3), (vec![], 1)] {
        let id = world.hold("a", amounts).unwrap().view.id;
        let ended = world.end(id, commit(&named)).unwrap();
        assert_eq!(ended.view.spent.get(Unit::Calls), calls, "{named:?}");
    }
}

#[test]
fn r07_spending_to_the_exact_limit_overdraws_nothing() {
    let world = World::tokens(&[("a", 100)]);
    assert_eq!(world.commit(world.held("a", 60), 60).verdict, Verdict::Ok);
    assert_eq!(world.record("a", tokens(40)).unwrap().verdict, Verdict::Ok);
    assert_eq!(world.record("a", tokens(1)).unwrap().verdict, Verdict::Stop);
}

#[test]
fn r07_a_release_after_another_end_tells_the_journal_nothing() {
    let world = World::tokens(&[("a", 100)]);
    let (released, expired) = (world.held("a", 10), world.held("a", 10));
    world.release(released);
    world.wait(TTL);
    world.ledger.tick(world.now());
    let records = world.tape.len();
    for (id, state) in [(released, State::Released), (expired, State::Expired)] {
        let ended = world.release(id);
        assert_eq!((ended.view.state, ended.ticket), (state, u64::MAX));
    }
    assert_eq!(world.tape.len(), records);
}

#[test]
fn r01_a_hold_that_could_not_be_made_durable_is_taken_back_once() {
    let world = World::tokens(&[("a", 100)]);
    let (lost, kept) = (world.held("a", 30), world.held("a", 20));
    world.ledger.undo(lost, world.now());
    assert_eq!(world.tokens_of("a"), (20, 0));
    world.ledger.undo(lost, world.now());
    assert_eq!(world.tokens_of("a"), (20, 0));
    assert_eq!(world.view(kept).state, State::Pending);
}
