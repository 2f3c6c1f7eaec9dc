//! R8: windows own what they admitted.

use bursar_ledger::{LedgerError, MAX_SLICES, Period, PeriodKind, Unit, Verdict};

use crate::common::{HOUR, START_MS, World, tokens, totals};

/// `a` has 100 tokens an hour; the clock stands at the full hour.
fn hourly() -> World {
    let world = World::new();
    world.limit("a", Unit::Tokens, Period::calendar(PeriodKind::Hour, "UTC"), 100);
    world
}

fn forever(world: &World, id: bursar_ledger::ReservationId) {
    let zero = tokens(0);
    world.ledger.extend(id, Some(&totals(zero, zero)), false, Some(1 << 50), world.now()).unwrap();
}

#[test]
fn r08_a_hold_settles_in_the_window_that_admitted_it() {
    let world = hourly();
    let id = world.held("a/b", 80);
    forever(&world, id);
    world.debit(id, 10);
    let old = world.ledger.account("a", world.now()).unwrap().balances[0].clone();
    world.wait(HOUR);
    assert_eq!(world.standing("a", Unit::Tokens), (100, 0, 0, 100), "a new window is empty");
    world.debit(id, 30);
    world.commit(id, 50);
    assert_eq!(world.tokens_of("a"), (0, 0));
    let standing = old.window.standing();
    assert_eq!((standing.held, standing.spent, standing.remaining), (0, 50, 50));
}

#[test]
fn r08_top_ups_and_excess_are_charged_to_the_window_current_then() {
    let world = hourly();
    let id = world.held("a", 80);
    forever(&world, id);
    world.debit(id, 60);
    world.wait(HOUR);
    assert_eq!(world.extend(id, 110).verdict, Verdict::Ok);
    assert_eq!(world.tokens_of("a"), (30, 0));
    // Oldest first: 20 are left in the old window.
    world.debit(id, 90);
    assert_eq!(world.tokens_of("a"), (20, 10));
    world.wait(HOUR);
    assert_eq!(world.tokens_of("a"), (0, 0));
    let ended = world.commit(id, 115);
    assert_eq!(ended.view.overdraft, tokens(0));
    assert_eq!(world.tokens_of("a"), (0, 5));
}

#[test]
fn r08_nobody_lives_on_yesterdays_budget() {
    let world = hourly();
    let id = world.held("a", 80);
    forever(&world, id);
    world.wait(HOUR);
    let other = world.held("a", 95);
    assert_eq!(world.extend(id, 86).refusal.unwrap().shortfall, 1);
    world.release(id);
    assert_eq!(world.tokens_of("a"), (95, 0), "what returns goes to the old window");
    world.release(other);
}

#[test]
fn r08_the_list_of_slices_is_bounded_and_the_bound_is_named() {
    let world = hourly();
    let id = world.held("a", 1);
    forever(&world, id);
    for total in 2..=MAX_SLICES as i64 {
        world.wait(HOUR);
        world.extend(id, total);
    }
    world.wait(HOUR);
    let all = tokens(MAX_SLICES as i64 + 1);
    let failed =
        world.ledger.extend(id, Some(&totals(all, all)), false, None, world.now()).unwrap_err();
    assert_eq!(failed, LedgerError::SliceLimit { max: MAX_SLICES });
    assert_eq!(world.tokens_of("a"), (0, 0), "nothing was charged");
    assert_eq!(world.commit(id, 3).view.spent, tokens(3));
}

#[test]
fn r08_budgets_added_elsewhere_cost_no_slices() {
    let world = hourly();
    let id = world.held("a", 1);
    for total in 2..=3 * MAX_SLICES as i64 {
        world.limit("b", Unit::Calls, Period::rolling(total * 1_000), 5 + total);
        assert_eq!(world.extend(id, total).verdict, Verdict::Ok);
        if total > 16 {
            break;
        }
    }
    assert_eq!(world.tokens_of("a").1, 0);
}

#[test]
fn r08_a_late_commit_gives_back_where_it_was_spent() {
    let world = hourly();
    let id = world.held("a", 80);
    world.debit(id, 60);
    world.release(id);
    let old = world.ledger.account("a", world.now()).unwrap().balances[0].clone();
    world.wait(HOUR);
    world.commit(id, 10);
    assert_eq!((old.window.standing().spent, old.window.standing().held), (10, 0));
    assert_eq!(world.tokens_of("a"), (0, 0));
    assert_eq!(old.window.start_ms, START_MS);
}
