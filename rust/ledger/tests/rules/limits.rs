//! R10, R12 and R17: limits change live, nothing wraps, crossings fire once.

use bursar_ledger::{
    Admission, Amounts, LedgerError, Period, PeriodKind, RefusalReason, Threshold, Unit, Verdict,
};

use crate::common::{HOUR, World, ask, commit, exactly, of, spec, stepped, tokens, totals};

#[test]
fn r10_a_limit_may_be_raised_and_lowered_under_holds() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 60);
    world.debit(id, 20);
    let limit = |limit| world.limit("a", Unit::Tokens, Period::total(), limit);
    for (to, left) in [(200, 140), (60, 0), (30, -30), (10, -50), (0, -60), (100, 40)] {
        limit(to);
        assert_eq!(world.standing("a", Unit::Tokens), (to, 40, 20, left));
        let one_more = world.hold("a", tokens(1));
        assert_eq!(one_more.is_ok(), left > 0, "limit {to}");
        if let Ok(granted) = one_more {
            world.release(granted.view.id);
        }
    }
}

#[test]
fn r10_below_what_is_held_the_holds_stay_and_top_ups_are_refused() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 60);
    world.limit("a", Unit::Tokens, Period::total(), 50);
    assert_eq!(world.extend(id, 61).refusal.unwrap().shortfall, 11);
    assert_eq!(world.debit(id, 50).verdict, Verdict::Ok);
    let debited = world.debit(id, 51);
    assert_eq!(debited.verdict, Verdict::Stop, "more is spent than the limit allows");
    assert_eq!(debited.refusal.unwrap().shortfall, 1);
    assert_eq!(world.standing("a", Unit::Tokens), (50, 9, 51, -10));
    world.limit("a", Unit::Tokens, Period::total(), 51);
    assert_eq!(world.debit(id, 51).verdict, Verdict::Ok);
}

#[test]
fn r10_a_frozen_level_stops_what_is_below_and_keeps_counting() {
    for level in ["a", "a/b", "a/b/c"] {
        let world = World::tokens(&[("a", 100)]);
        let (id, beside) = (world.held("a/b/c", 10), world.held("b", 10));
        world.freeze(level, true);
        let debited = world.debit(id, 4);
        assert_eq!(debited.verdict, Verdict::Stop);
        let refusal = debited.refusal.unwrap();
        assert_eq!(
            (refusal.reason, refusal.account.as_str()),
            (RefusalReason::AccountFrozen, level)
        );
        assert_eq!(world.tokens_of("a"), (6, 4), "what was used still counts");
        assert_eq!(
            world.hold("a/b/c", tokens(1)).unwrap_err().reason,
            RefusalReason::AccountFrozen
        );
        assert_eq!(world.hold("a/b/c/d", tokens(1)).unwrap_err().account, level);
        let told = world.ledger.check("a/b/c", &exactly(tokens(1)), world.now()).unwrap();
        assert!(
            matches!(told, Admission::Refused(r, _) if r.reason == RefusalReason::AccountFrozen)
        );
        assert_eq!(world.extend(id, 20).refusal.unwrap().reason, RefusalReason::AccountFrozen);
        // A top-up of the budget does not clear it.
        world.limit("a", Unit::Tokens, Period::total(), 1_000);
        assert_eq!(world.debit(id, 5).verdict, Verdict::Stop);
        assert_eq!(world.debit(beside, 5).verdict, Verdict::Ok);
        world.freeze(level, false);
        assert_eq!(world.debit(id, 6).verdict, Verdict::Ok);
        assert_eq!(world.extend(id, 20).verdict, Verdict::Ok);
        world.freeze(level, true);
        assert_eq!(world.commit(id, 7).view.spent, tokens(7));
        assert_eq!(world.tokens_of("a"), (0, 7));
    }
}

#[test]
fn r10_each_freeze_is_lifted_by_itself() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a/b", 10);
    world.freeze("a", true);
    world.freeze("a/b", true);
    world.freeze("a", true);
    world.freeze("a", false);
    assert_eq!(world.debit(id, 1).refusal.unwrap().account, "a/b");
    let view = world.ledger.account("a/b", world.now()).unwrap();
    assert!(view.frozen && view.stopped && view.verdict == Verdict::Stop);
    world.freeze("a/b", false);
    assert_eq!(world.debit(id, 1).verdict, Verdict::Ok);
}

#[test]
fn r12_limits_and_amounts_near_the_end_of_i64_do_not_wrap() {
    let world = World::tokens(&[("a", i64::MAX), ("a/b", i64::MAX - 1)]);
    let id = world.held("a/b", i64::MAX - 1);
    assert_eq!(world.hold("a", tokens(2)).unwrap_err().shortfall, 1);
    assert_eq!(world.hold("a", tokens(i64::MAX)).unwrap_err().shortfall, i64::MAX - 1);
    for limit in [0, 1, i64::MAX] {
        world.limit("a", Unit::Tokens, Period::total(), limit);
        let remaining = limit - (i64::MAX - 1);
        assert_eq!(world.standing("a", Unit::Tokens), (limit, i64::MAX - 1, 0, remaining));
    }
    // One more than an i64 can count: an error that changes nothing.
    assert_eq!(
        world.end(id, commit(&[(Unit::Tokens, i64::MAX)])).unwrap().view.spent,
        tokens(i64::MAX)
    );
    let before = (world.standing("a", Unit::Tokens), world.standing("a/b", Unit::Tokens));
    assert_eq!(world.record("a/b", tokens(1)).unwrap_err(), LedgerError::Overflow);
    let both = of(&[(Unit::Tokens, 1), (Unit::UsdNanos, 1)]);
    assert_eq!(world.record("a/b", both).unwrap_err(), LedgerError::Overflow);
    assert_eq!(before, (world.standing("a", Unit::Tokens), world.standing("a/b", Unit::Tokens)));
    assert_eq!(world.ledger.reservation_count(), 1);
    world.limit("a", Unit::Tokens, Period::total(), 0);
    assert_eq!(world.standing("a", Unit::Tokens), (0, 0, i64::MAX, -i64::MAX));
    assert_eq!(world.record("a", tokens(1)).unwrap_err(), LedgerError::Overflow);
}

#[test]
fn r12_an_overflow_at_one_level_gives_back_the_others() {
    let world = World::tokens(&[("a", 10), ("a/b", 10)]);
    let id = world.held("a/b", 10);
    world.record("a", tokens(i64::MAX - 20)).unwrap();
    let late = world.end(id, commit(&[(Unit::Tokens, 100)]));
    assert_eq!(late.unwrap_err(), LedgerError::Overflow);
    assert_eq!(world.tokens_of("a/b"), (10, 0));
    assert_eq!(world.tokens_of("a"), (10, i64::MAX - 20));
    assert_eq!(world.release(id).view.returned, tokens(10));
}

#[test]
fn r12_negative_limits_and_commits_are_errors() {
    let world = World::tokens(&[("a", 10)]);
    for limit in [-1, i64::MIN] {
        let set = world.set("a", spec(Unit::Tokens, Period::total(), limit));
        assert!(matches!(set, Err(LedgerError::InvalidAmount { .. })));
    }
    let id = world.held("a", 5);
    let negative = world.end(id, commit(&[(Unit::Tokens, -3)]));
    assert!(matches!(negative, Err(LedgerError::InvalidAmount { .. })));
    let minus = tokens(-1);
    assert!(
        world.ledger.extend(id, Some(&totals(minus, minus)), false, None, world.now()).is_err()
    );
    assert_eq!(world.standing("a", Unit::Tokens), (10, 5, 0, 5));
}

#[test]
fn r12_a_capacity_has_no_period() {
    let world = World::new();
    let hour = Period::calendar(PeriodKind::Hour, "UTC");
    for unit in [Unit::VramBytes, Unit::Concurrency] {
        let set = world.set("a", spec(unit, hour.clone(), 5));
        assert!(matches!(set, Err(LedgerError::InvalidAmount { .. })));
    }
    assert_eq!(world.ledger.account_count(), 0);
}

#[test]
fn r12_a_returned_piece_never_overflows_its_parent() {
    let world = World::new();
    let energy = |amount| Amounts::of(Unit::EnergyMj, amount);
    let parent = world.hold("a", energy(i64::MAX)).unwrap().view.id;
    let child = world.nest("a/b", parent, energy(5)).unwrap().id;
    let all = energy(i64::MAX);
    world.ledger.extend(parent, Some(&totals(all, all)), false, None, world.now()).unwrap();
    assert_eq!(world.view(parent).granted, all);
    world.release(child);
    assert_eq!(world.view(parent).granted, all);
}

#[test]
fn r17_each_threshold_is_reported_once_by_the_debit_that_crosses_it() {
    let world = World::new();
    world.set("a", stepped(100)).unwrap();
    let id = world.held("a/b", 100);
    let mut seen = Vec::new();
    for used in 1..=100 {
        let debited = world.debit(id, used);
        let expected = match used {
            0..50 => Verdict::Ok,
            50..90 => Verdict::Warn,
            _ => Verdict::Degrade,
        };
        assert_eq!(debited.verdict, expected, "at {used}");
        assert_eq!(debited.ticket != 0, [50, 80, 90, 100].contains(&used), "at {used}");
        if debited.ticket != 0 {
            seen.push(debited.scope.advice().unwrap().max_new_tokens.unwrap());
        }
    }
    assert_eq!(world.tape.crossings(), [500, 800, 900, 1_000]);
    assert_eq!(seen, [500, 800, 900, 900]);
}

#[test]
fn r17_a_spent_budget_is_reported_whatever_its_thresholds() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 100);
    world.debit(id, 99);
    assert!(world.tape.crossings().is_empty());
    assert_eq!(world.debit(id, 100).verdict, Verdict::Ok, "the limit may be spent");
    assert_eq!(world.tape.crossings(), [1_000]);
    world.commit(id, 130);
    assert_eq!(world.tape.crossings(), [1_000], "what passes it is an overdraft");
    let world = World::new();
    let mut named = stepped(100);
    let whole = Threshold { permille: 1_000, ..named.terms.thresholds[2].clone() };
    named.terms.thresholds = named.terms.thresholds.iter().cloned().chain([whole]).collect();
    world.set("a", named).unwrap();
    world.record("a", tokens(100)).unwrap();
    assert_eq!(world.tape.crossings(), [500, 800, 900, 1_000], "once, where one is named");
}

#[test]
fn r17_one_debit_may_cross_several_and_holds_cross_none() {
    let world = World::new();
    world.set("a", stepped(100)).unwrap();
    let id = world.held("a", 100);
    assert!(world.tape.crossings().is_empty(), "a hold is not spent");
    world.debit(id, 85);
    assert_eq!(world.tape.crossings(), [500, 800]);
    world.commit(id, 95);
    assert_eq!(world.tape.crossings(), [500, 800, 900]);
}

#[test]
fn r17_limit_changes_cross_but_never_repeat() {
    let world = World::new();
    world.set("a", stepped(0)).unwrap();
    assert!(world.tape.crossings().is_empty(), "nothing spent, nothing crossed");
    assert_eq!(world.ledger.account("a", world.now()).unwrap().verdict, Verdict::Ok);
    world.set("a", stepped(1_000)).unwrap();
    let id = world.held("a", 400);
    world.debit(id, 400);
    assert!(world.tape.crossings().is_empty());
    world.set("a", stepped(800)).unwrap();
    assert_eq!(world.tape.crossings(), [500], "the change crosses it");
    world.set("a", stepped(2_000)).unwrap();
    assert_eq!(world.ledger.account("a", world.now()).unwrap().verdict, Verdict::Ok);
    world.set("a", stepped(800)).unwrap();
    assert_eq!(world.ledger.account("a", world.now()).unwrap().verdict, Verdict::Warn);
    world.set("a", stepped(0)).unwrap();
    assert_eq!(world.tape.crossings(), [500, 800, 900, 1_000]);
}

#[test]
fn r17_a_new_window_crosses_anew() {
    let world = World::new();
    let mut budget = stepped(100);
    budget.period = Period::calendar(PeriodKind::Hour, "UTC");
    world.set("a", budget).unwrap();
    for _ in 0..3 {
        world.record("a", tokens(55)).unwrap();
        world.record("a", tokens(5)).unwrap();
        world.wait(HOUR);
    }
    assert_eq!(world.tape.crossings(), [500, 500, 500]);
}

#[test]
fn r17_a_limit_change_after_rollover_changes_the_new_window() {
    let world = World::new();
    let mut budget = stepped(100);
    budget.period = Period::calendar(PeriodKind::Hour, "UTC");
    world.set("a", budget.clone()).unwrap();
    world.record("a", tokens(45)).unwrap();
    world.wait(HOUR);
    budget.terms.limit = 50;
    world.set("a", budget).unwrap();
    assert!(world.tape.crossings().is_empty(), "last hour's spending is no matter any more");
    assert!(matches!(world.reserve(ask("a", exactly(tokens(50)))), Ok(Admission::Granted(_))));
}

#[test]
fn r10_a_hold_that_stands_is_not_told_to_stop_for_a_unit_that_it_does_not_hold() {
    let world = World::tokens(&[("a", 100)]);
    world.limit("a", Unit::Calls, Period::total(), 1);
    world.record("a", Amounts::of(Unit::Calls, 2)).unwrap();
    assert_eq!(world.ledger.account("a", world.now()).unwrap().verdict, Verdict::Stop);
    assert_eq!(world.hold("a", tokens(1)).unwrap().verdict, Verdict::Degrade);
    assert!(world.hold("a", Amounts::of(Unit::Calls, 1)).is_err());
}
