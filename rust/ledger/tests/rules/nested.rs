//! R16: children only narrow, and holds are carved from their parents.

use bursar_ledger::fact::State;
use bursar_ledger::{Admission, Ask, LedgerError, Period, PeriodKind, RefusalReason, Unit, Wish};

use crate::common::{HOUR, RETENTION, TTL, World, ask, exactly, of, tokens, totals};

#[test]
fn r16_a_sub_budget_cannot_pass_what_its_parent_has_left() {
    let world = World::tokens(&[("a", 100), ("a/b", 1_000)]);
    world.held("a", 70);
    let refusal = world.hold("a/b", tokens(31)).unwrap_err();
    assert_eq!((refusal.account.as_str(), refusal.shortfall), ("a", 1));
    assert!(world.hold("a/b", tokens(30)).is_ok());
}

#[test]
fn r16_a_nested_hold_is_carved_and_charges_only_what_is_not_covered() {
    let world = World::tokens(&[("a", 100), ("a/b", 80), ("a/b/c", 50)]);
    let parent = world.held("a/b", 60);
    let child = world.nest("a/b/c", parent, tokens(40)).unwrap().id;
    assert_eq!(world.tokens_of("a"), (60, 0));
    assert_eq!(world.tokens_of("a/b"), (60, 0));
    assert_eq!(world.tokens_of("a/b/c"), (40, 0));
    assert_eq!(world.view(parent).granted, tokens(20));
    let refusal = world.nest("a/b", parent, tokens(21)).unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::ParentHoldExhausted);
    assert_eq!((refusal.account.as_str(), refusal.shortfall), ("a/b", 1));
    let refusal = world.nest("a/b/c", parent, tokens(11)).unwrap_err();
    assert_eq!((refusal.reason, refusal.shortfall), (RefusalReason::BudgetExhausted, 1));
    // What the child spends counts in every window above it.
    world.debit(child, 10);
    for path in ["a", "a/b"] {
        assert_eq!(world.tokens_of(path), (50, 10));
    }
    assert_eq!(world.tokens_of("a/b/c"), (30, 10));
    // The parent may spend what it has left, and no more.
    assert_eq!(world.debit(parent, 25).remaining, tokens(0));
    assert_eq!(world.tokens_of("a"), (30, 30));
    world.commit(child, 15);
    assert_eq!(world.tokens_of("a"), (25, 35));
    assert_eq!(world.tokens_of("a/b/c"), (0, 15));
    assert_eq!(world.view(parent).granted, tokens(45), "25 came back to the parent");
    world.debit(parent, 45);
    world.release(parent);
    assert_eq!(world.standing("a", Unit::Tokens), (100, 0, 60, 40));
    assert_eq!(world.standing("a/b", Unit::Tokens), (80, 0, 60, 20));
}

#[test]
fn r16_after_the_parents_end_a_hold_goes_back_to_the_windows() {
    for parent_first in [false, true] {
        let world = World::tokens(&[("a", 100), ("a/b", 100)]);
        let parent = world.held("a", 60);
        let child = world.nest("a/b", parent, tokens(40)).unwrap().id;
        world.debit(child, 5);
        if parent_first {
            world.release(parent);
            assert_eq!(world.tokens_of("a"), (35, 5), "the piece stays held");
        }
        world.release(child);
        if !parent_first {
            assert_eq!(world.tokens_of("a"), (55, 5));
            world.release(parent);
        }
        assert_eq!(world.standing("a", Unit::Tokens), (100, 0, 5, 95));
        assert_eq!(world.standing("a/b", Unit::Tokens), (100, 0, 5, 95));
    }
}

#[test]
fn r16_nested_in_nested_goes_back_level_by_level() {
    let paths = ["a", "a/b", "a/b/c"];
    // Who ends in which order does not matter to the windows in the end.
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        for forget in [false, true] {
            let world = World::tokens(&[("a", 100), ("a/b", 100), ("a/b/c", 100)]);
            let first = world.held("a", 60);
            let second = world.nest("a/b", first, tokens(50)).unwrap().id;
            let third = world.nest("a/b/c", second, tokens(40)).unwrap().id;
            let ids = [first, second, third];
            for (used, id) in [(1, first), (2, second), (3, third)] {
                world.debit(id, used);
            }
            assert_eq!(paths.map(|path| world.tokens_of(path)), [(54, 6), (45, 5), (37, 3)]);
            for index in order {
                world.release(ids[index]);
                if forget {
                    world.wait(RETENTION);
                    for id in ids {
                        let zero = tokens(0);
                        let _ended = world.ledger.extend(
                            id,
                            Some(&totals(zero, zero)),
                            false,
                            None,
                            world.now(),
                        );
                    }
                    world.ledger.tick(world.now());
                }
            }
            assert_eq!(
                paths.map(|path| world.tokens_of(path)),
                [(0, 6), (0, 5), (0, 3)],
                "{order:?}"
            );
        }
    }
}

#[test]
fn r16_units_that_the_parent_does_not_hold_are_charged_in_full() {
    let world = World::tokens(&[("a", 100), ("a/b", 100)]);
    for path in ["a", "a/b"] {
        world.limit(path, Unit::UsdNanos, Period::total(), 50);
    }
    world.limit("a", Unit::Concurrency, Period::total(), 2);
    let parent = world.held("a", 60);
    let both = of(&[(Unit::Tokens, 10), (Unit::UsdNanos, 20)]);
    let child = world.nest("a/b", parent, both).unwrap();
    assert_eq!(child.granted.get(Unit::Concurrency), 1);
    for path in ["a", "a/b"] {
        assert_eq!(world.standing(path, Unit::UsdNanos), (50, 20, 0, 30));
    }
    assert_eq!(world.tokens_of("a"), (60, 0));
    assert_eq!(world.standing("a", Unit::Concurrency), (2, 2, 0, 0));
    assert!(world.nest("a/b", parent, tokens(1)).is_err(), "a third is one too many");
    assert_eq!(world.tokens_of("a/b"), (10, 0), "and holds nothing");
    world.release(child.id);
    assert_eq!(world.standing("a", Unit::UsdNanos), (50, 0, 0, 50));
    assert_eq!(world.standing("a", Unit::Concurrency), (2, 1, 0, 1));
    assert_eq!(world.view(parent).granted.get(Unit::UsdNanos), 0);
    assert_eq!(world.view(parent).granted.get(Unit::Tokens), 60);
    // A child of nothing but uncovered units.
    let child = world.nest("a/b", parent, of(&[(Unit::UsdNanos, 50)])).unwrap();
    assert_eq!(world.standing("a/b", Unit::UsdNanos), (50, 50, 0, 0));
    world.end(child.id, crate::common::commit(&[(Unit::UsdNanos, 7)])).unwrap();
    assert_eq!(world.standing("a", Unit::UsdNanos), (50, 0, 7, 43));
}

#[test]
fn r16_a_partial_nested_grant_fits_the_parent_and_the_sub_budget() {
    let world = World::tokens(&[("a", 100), ("a/b", 30)]);
    let parent = world.held("a", 60);
    let nest = |most, least| {
        let wish = Wish::Amounts { most: tokens(most), least: tokens(least) };
        let ask = Ask { parent: Some(parent), ..ask("a/b", wish) };
        match world.reserve(ask).unwrap() {
            Admission::Granted(granted) => Some(granted.view.granted.get(Unit::Tokens)),
            Admission::Refused(..) => None,
        }
    };
    assert_eq!(nest(50, 31), None);
    assert_eq!(nest(50, 30), Some(30));
    assert_eq!(nest(50, 1), None);
    assert_eq!(world.tokens_of("a"), (60, 0));
}

#[test]
fn r16_sub_budget_windows_and_old_parents_meet() {
    let world = World::tokens(&[("a", 1_000)]);
    let hourly = Period::calendar(PeriodKind::Hour, "UTC");
    world.limit("a", Unit::Tokens, hourly.clone(), 100);
    world.limit("a/b", Unit::Tokens, hourly, 50);
    let parent = world.held("a", 60);
    let zero = tokens(0);
    world
        .ledger
        .extend(parent, Some(&totals(zero, zero)), false, Some(1 << 50), world.now())
        .unwrap();
    world.wait(HOUR);
    world.extend(parent, 80);
    // Carved newest first: 20 of this hour, 15 of the last.
    let child = world.nest("a/b", parent, tokens(35)).unwrap().id;
    let present = |path: &str| {
        let view = world.ledger.account(path, world.now()).unwrap();
        let mut hours = view.balances.iter().filter(|b| b.window.end_ms != i64::MAX);
        let standing = hours.next().unwrap().standing;
        (standing.held, standing.spent)
    };
    assert_eq!((present("a"), present("a/b")), ((20, 0), (35, 0)));
    world.debit(child, 35);
    assert_eq!((present("a"), present("a/b")), ((0, 20), (0, 35)));
    world.commit(child, 10);
    assert_eq!(world.tokens_of("a"), (70, 10), "the total counts both hours");
    world.commit(parent, 70);
    assert_eq!(world.tokens_of("a"), (0, 80));
}

#[test]
fn r16_parents_that_cannot_carve_are_named() {
    let world = World::tokens(&[("a", 100), ("b", 100)]);
    let parent = world.held("a/b", 60);
    let nest = |account| {
        let ask = Ask { parent: Some(parent), ..ask(account, exactly(tokens(1))) };
        world.reserve(ask).err()
    };
    for elsewhere in ["a", "b", "a/bc"] {
        let (parent, child) = ("a/b".into(), elsewhere.into());
        assert_eq!(nest(elsewhere), Some(LedgerError::ParentElsewhere { parent, child }));
    }
    world.release(parent);
    assert_eq!(nest("a/b/c"), Some(LedgerError::ReservationEnded(State::Released)));
    world.wait(RETENTION);
    world.ledger.tick(world.now());
    assert_eq!(nest("a/b/c"), Some(LedgerError::ReservationNotFound));
    assert_eq!(world.ledger.reservation_count(), 0);
    assert_eq!(world.ledger.account("a", world.now()).unwrap().open_reservations, 0);
}

#[test]
fn r16_an_expired_child_gives_back_to_its_parent() {
    let world = World::tokens(&[("a", 100)]);
    let parent = world.held("a", 60);
    let child = world.nest("a", parent, tokens(40)).unwrap().id;
    world.wait(TTL - 1);
    let zero = tokens(0);
    world.ledger.extend(parent, Some(&totals(zero, zero)), false, None, world.now()).unwrap();
    world.debit(child, 4);
    world.wait(1);
    assert_eq!(world.ledger.tick(world.now()).expired, 1);
    assert_eq!(world.view(parent).granted, tokens(56));
    assert_eq!(world.tokens_of("a"), (56, 4));
}
