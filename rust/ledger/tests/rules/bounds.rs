//! R15: everything is bounded, and a bound that is reached is named and recovered from.

use bursar_ledger::{Amounts, LedgerError, MAX_BUDGETS, Period, PeriodKind, Settings, Unit};

use crate::common::{
    DAY, HOUR, RETENTION, TTL, World, ask, exactly, pattern, settings, spec, tokens, totals,
};

#[test]
fn r15_reservations_are_bounded_and_come_back() {
    let mut settings =
        settings(vec![pattern("a", vec![spec(Unit::Tokens, Period::total(), 1_000)])]);
    settings.max_reservations = 3;
    let world = World::with(settings);
    let ids: Vec<_> = (0..3).map(|_| world.held("a", 10)).collect();
    let full = LedgerError::ReservationLimit { max: 3 };
    let refused = world.reserve(crate::common::ask("a", crate::common::exactly(tokens(1))));
    assert_eq!(refused.unwrap_err(), full);
    assert_eq!(world.record("a", tokens(1)).unwrap_err(), full);
    assert_eq!(world.tokens_of("a"), (30, 0), "nothing was held or spent");
    // An ended one is remembered until its retention is over.
    world.release(ids[0]);
    assert_eq!(world.record("a", tokens(1)).unwrap_err(), full);
    for id in &ids[1..] {
        world
            .ledger
            .extend(*id, Some(&totals(tokens(0), tokens(0))), false, Some(1 << 40), world.now())
            .unwrap();
    }
    world.wait(RETENTION);
    assert_eq!(world.ledger.tick(world.now()).forgotten, 1);
    let anew = world.held("a", 10);
    assert_eq!(anew.slot, ids[0].slot);
    assert_ne!(anew.sequence, ids[0].sequence);
    let old = world.ledger.debit(ids[0], &tokens(1), world.now()).unwrap_err();
    assert_eq!(old, LedgerError::ReservationNotFound, "the old name is not the new reservation's");
}

#[test]
fn r15_who_has_most_reservations_leaves_room_to_others() {
    let mut settings = settings(vec![pattern("a/**", vec![]), pattern("a", vec![])]);
    settings.max_reservations = 20;
    let world = World::with(settings);
    let one_more = |path| {
        let asked = world.reserve(crate::common::ask(path, crate::common::exactly(tokens(1))));
        world.ledger.look_for_crowd();
        asked.map(|_| ())
    };
    let full = LedgerError::ReservationLimit { max: 10 };
    for number in 0..11 {
        one_more(["a/x/1", "a/x/2"][number % 2]).unwrap();
    }
    assert_eq!(one_more("a/x/3").unwrap_err(), full, "it is that of all below it");
    assert_eq!(world.record("a/x", tokens(1)).unwrap_err(), full);
    for path in ["a", "a/y", "a/xx"] {
        one_more(path).unwrap();
    }
    // What is over is forgotten, and room for its account again.
    world.wait(TTL + RETENTION);
    world.ledger.tick(world.now());
    world.wait(RETENTION);
    world.ledger.tick(world.now());
    world.ledger.look_for_crowd();
    one_more("a/x/3").unwrap();
}

#[test]
fn r15_accounts_are_bounded_in_all_and_below_each_parent() {
    let mut settings = settings(["a", "a/*", "a/*/*"].map(|text| pattern(text, vec![])).into());
    (settings.max_accounts, settings.max_children) = (5, 3);
    let world = World::with(settings);
    let open = |path: &str| world.open(path);
    for path in ["a/1", "a/2", "a/3"] {
        open(path).unwrap();
    }
    let (what, max) = ("the accounts below one parent", 3);
    assert_eq!(open("a/4").unwrap_err(), LedgerError::AccountLimit { what, max });
    assert_eq!(
        open("a/4/1").unwrap_err(),
        LedgerError::AccountLimit { what: "the number of accounts", max: 5 }
    );
    open("a/1/1").unwrap();
    let (what, max) = ("the number of accounts", 5);
    assert_eq!(open("a/2/1").unwrap_err(), LedgerError::AccountLimit { what, max });
    let not_allowed = LedgerError::AccountNotFound { path: "b".into() };
    assert_eq!(open("b").unwrap_err(), not_allowed);
    assert!(matches!(open("a/ü"), Err(LedgerError::InvalidAccount { .. })));
    assert_eq!(world.ledger.account_count(), 5);
    // Idle ones make room.
    world.wait(HOUR);
    let retired = world.ledger.retire_idle(world.now());
    let retired: Vec<_> = retired.iter().map(|path| &**path).collect();
    assert_eq!(retired, ["a/3", "a/2", "a/1/1", "a/1", "a"]);
    open("a/4/1").unwrap();
}

#[test]
fn r15_who_has_most_accounts_leaves_room_to_others() {
    let mut settings = settings(vec![pattern("a/**", vec![]), pattern("a", vec![])]);
    settings.max_accounts = 20;
    let world = World::with(settings);
    for number in 0..9 {
        world.open(&format!("a/x/{number}")).unwrap();
    }
    world.open("a/x/8/deeper").unwrap();
    let what = "the number of accounts below one account below a root";
    let full = LedgerError::AccountLimit { what, max: 10 };
    for path in ["a/x/more", "a/x/1/2/3"] {
        assert_eq!(world.open(path).unwrap_err(), full, "{path}");
    }
    world.open("a/x/1").unwrap();
    world.limit("a/x/set", Unit::Tokens, Period::total(), 5);
    for path in ["a/y/1", "a/xx"] {
        world.open(path).unwrap();
    }
    world.wait(HOUR);
    world.ledger.retire_idle(world.now());
    world.open("a/x/more").unwrap();
}

#[test]
fn r15_a_store_that_is_nearly_full_ends_holds_and_begins_none() {
    let world = World::new();
    world.limit("a", Unit::Tokens, Period::total(), 100);
    let held = [world.held("a", 10), world.held("a", 10), world.held("a", 10)];
    world.ledger.set_store_full(true);
    let full = LedgerError::StoreNearlyFull;
    let ask = || crate::common::ask("a", crate::common::exactly(tokens(1)));
    assert_eq!(world.reserve(ask()).unwrap_err(), full);
    assert_eq!(world.record("a", tokens(1)).unwrap_err(), full);
    let one = crate::common::exactly(tokens(1));
    assert_eq!(world.ledger.check("a", &one, world.now()).unwrap_err(), full);
    let wish = crate::common::exactly(tokens(11));
    let raised = world.ledger.extend(held[0], Some(&wish), false, None, world.now());
    assert_eq!(raised.unwrap_err(), full);
    world.ledger.extend(held[0], None, false, Some(TTL), world.now()).unwrap();
    world.ledger.debit(held[0], &tokens(5), world.now()).unwrap();
    world.commit(held[0], 7);
    world.release(held[1]);
    world.limit("a", Unit::Tokens, Period::total(), 50);
    world.freeze("a", true);
    world.freeze("a", false);
    assert_eq!(world.standing("a", Unit::Tokens), (50, 10, 7, 33));
    world.ledger.set_store_full(false);
    world.reserve(ask()).unwrap();
}

#[test]
fn r15_budgets_of_one_account_are_bounded() {
    let world = World::new();
    for length in 1..=MAX_BUDGETS as i64 {
        world.limit("a", Unit::Tokens, Period::rolling(length * 1_000), 5);
    }
    let failed = world.set("a", spec(Unit::Tokens, Period::total(), 5)).unwrap_err();
    let (what, max) = ("the budgets of one account", MAX_BUDGETS);
    assert_eq!(failed, LedgerError::AccountLimit { what, max });
    world.limit("a", Unit::Tokens, Period::rolling(1_000), 6);
    assert_eq!(world.standing("a", Unit::Tokens).0, 6);
}

#[test]
fn r15_a_pattern_with_too_many_budgets_makes_no_account() {
    let open = |count: i64| {
        let budget = |length| spec(Unit::Tokens, Period::rolling(length * 1_000), 5);
        let budgets = (1..=count).map(budget).collect();
        let world = World::with(settings(vec![pattern("a/*", budgets)]));
        (world.open("a/b").is_ok(), world.ledger.account_count(), world.tape.len() > 0)
    };
    assert_eq!(open(MAX_BUDGETS as i64 + 1), (false, 0, false));
    assert_eq!(open(MAX_BUDGETS as i64), (true, 2, true));
}

#[test]
fn r10_of_two_patterns_the_first_says_what_a_unit_and_period_has() {
    let of = |period: Period, limit| spec(Unit::Tokens, period, limit);
    let hour = Period::rolling(HOUR);
    let world = World::with(settings(vec![
        pattern("a/x", vec![of(hour.clone(), 5), of(Period::total(), 6)]),
        pattern("a/*", vec![of(hour, 7), of(Period::rolling(DAY), 8)]),
    ]));
    world.open("a/x").unwrap();
    let view = world.ledger.account("a/x", world.now()).unwrap();
    let limits: Vec<_> = view.balances.iter().map(|balance| balance.standing.limit).collect();
    assert_eq!(limits, [5, 6, 8]);
}

#[test]
fn r15_an_account_that_found_no_room_to_come_back_comes_back_later() {
    let world = World::with(Settings {
        max_accounts: 2,
        key_retention_ms: 10 * HOUR,
        ..settings(vec![pattern("a", vec![]), pattern("a/*", vec![])])
    });
    let id = world.held("a/x", 10);
    world.release(id);
    world.wait(HOUR);
    assert_eq!(world.ledger.retire_idle(world.now()).len(), 2);
    world.open("a/y").unwrap();
    assert_eq!(world.commit(id, 4).view.spent, tokens(4), "it still counts");
    assert!(world.open("a/x").is_err(), "there is no room");
    world.wait(HOUR);
    assert_eq!(world.ledger.retire_idle(world.now()).len(), 2);
    world.held("a/x", 1);
}

fn retiring_settings() -> Settings {
    let mut budget = spec(Unit::Tokens, Period::total(), 100);
    budget.terms.manual = false;
    settings(vec![pattern("a", vec![]), pattern("a/**", vec![budget])])
}

fn retiring() -> World {
    World::with(retiring_settings())
}

#[test]
fn r15_an_idle_account_retires_and_comes_to_be_again() {
    let world = retiring();
    let id = world.held("a/b", 10);
    world.wait(2 * HOUR);
    assert!(world.ledger.retire_idle(world.now()).is_empty(), "it holds something");
    world.release(id);
    assert!(world.ledger.retire_idle(world.now()).is_empty(), "it was used just now");
    world.wait(HOUR);
    let retired = world.ledger.retire_idle(world.now());
    assert_eq!(retired.iter().map(|path| &**path).collect::<Vec<_>>(), ["a/b", "a"]);
    assert_eq!(world.hold("a/b", tokens(101)).unwrap_err().shortfall, 1, "with its budget again");
    // A late Commit on the old one counts on the new one.
    world.commit(id, 30);
    assert_eq!(world.tokens_of("a/b"), (0, 30));
    world.wait(10 * HOUR);
    assert!(world.ledger.retire_idle(world.now()).is_empty(), "its spending has to be known");
}

#[test]
fn r15_an_account_that_a_late_commit_brings_back_may_retire_again() {
    let world = retiring();
    let id = world.held("a/b", 10);
    world.release(id);
    world.wait(HOUR);
    assert_eq!(world.ledger.retire_idle(world.now()).len(), 2);
    world.commit(id, 0);
    assert_eq!(world.ledger.account_count(), 2);
    world.wait(HOUR);
    assert_eq!(world.ledger.retire_idle(world.now()).len(), 2);
}

#[test]
fn r15_accounts_with_something_to_know_of_stay() {
    let world = retiring();
    world.set("a/manual", spec(Unit::Calls, Period::total(), 5)).unwrap();
    world.freeze("a/frozen", true);
    world.record("a/spent", tokens(1)).unwrap();
    world.open("a/idle/below").unwrap();
    world.held("a/pending", 1);
    world.wait(TTL.max(3 * HOUR));
    let retired = world.ledger.retire_idle(world.now());
    assert_eq!(retired.iter().map(|path| &**path).collect::<Vec<_>>(), ["a/idle/below", "a/idle"]);
    world.freeze("a/frozen", false);
    let retired = world.ledger.retire_idle(world.now());
    assert_eq!(retired.iter().map(|path| &**path).collect::<Vec<_>>(), ["a/frozen"]);
}

#[test]
fn r15_an_account_that_is_used_by_short_calls_is_not_idle() {
    let world = retiring();
    for _ in 0..5 {
        world.wait(HOUR - 1);
        let id = world.held("a/b", 10);
        world.release(id);
        assert!(world.ledger.retire_idle(world.now()).is_empty());
    }
}

fn in_use(world: &World, path: &str) -> &'static str {
    match world.ledger.retire(path, world.now()) {
        Err(LedgerError::AccountInUse { why, .. }) => why,
        other => panic!("{path}: {other:?}"),
    }
}

#[test]
fn r15_an_account_retires_by_name_with_budgets_spending_and_freeze() {
    let world = retiring();
    world.limit("a", Unit::Tokens, Period::total(), 1_000);
    world.limit("a/b", Unit::Tokens, Period::total(), 7);
    let id = world.held("a/b", 7);
    assert!(in_use(&world, "a/b").contains("pending"));
    assert!(in_use(&world, "a").contains("below"));
    world.commit(id, 7);
    world.freeze("a/b", true);
    let ticket = world.ledger.retire("a/b", world.now()).unwrap();
    assert_ne!(ticket, u64::MAX);
    assert_eq!(world.ledger.retire("a/b", world.now()), Ok(u64::MAX), "a repeat is safe");
    assert_eq!(world.ledger.retire("a/never", world.now()), Ok(u64::MAX));
    assert_eq!(world.tokens_of("a"), (0, 7), "what it spent stays spent above it");
    // Opened anew, it has what the pattern gives it, after a restart as well.
    let replayed = world.replayed(retiring_settings(), &world.tape.records());
    for world in [&world, &replayed] {
        assert_eq!(world.ledger.account_count(), 1);
        assert_eq!(world.hold("a/b", tokens(101)).unwrap_err().shortfall, 1);
        assert_eq!(world.tokens_of("a/b"), (0, 0));
        assert_eq!(world.tokens_of("a"), (0, 7));
    }
}

#[test]
fn r15_a_late_commit_on_a_retired_account_counts_above_it() {
    let world = World::tokens(&[("a", 100), ("a/b", 10)]);
    let id = world.held("a/b", 10);
    world.release(id);
    world.ledger.retire("a/b", world.now()).unwrap();
    world.commit(id, 30);
    assert_eq!(world.tokens_of("a"), (0, 30));
}

#[test]
fn r15_an_account_whose_owner_may_hold_capacity_does_not_retire() {
    let world = World::new();
    world.limit("a", Unit::VramBytes, Period::total(), 10);
    let id = world.hold("a/b", Amounts::of(Unit::VramBytes, 4)).unwrap().view.id;
    world.wait(TTL);
    assert_eq!(world.ledger.tick(world.now()).expired, 1);
    assert!(in_use(&world, "a/b").contains("capacity"));
    world.ledger.owner_gone(id, world.now()).unwrap();
    world.ledger.retire("a/b", world.now()).unwrap();
    assert_eq!(world.standing("a", Unit::VramBytes), (10, 0, 0, 10));
}

#[test]
fn r15_an_account_retires_once_it_is_idle_for_long_and_its_window_is_over() {
    let period = Period::calendar(PeriodKind::Hour, "UTC");
    let mut budget = spec(Unit::Tokens, period, 100);
    budget.terms.manual = false;
    let world = World::with(settings(vec![pattern("a", vec![]), pattern("b", vec![budget])]));
    let retired = || {
        let retired = world.ledger.retire_idle(world.now());
        retired.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    world.open("a").unwrap();
    world.wait(HOUR - 1);
    assert_eq!(retired(), [""; 0]);
    world.wait(1);
    assert_eq!(retired(), ["a"]);
    world.record("b", tokens(5)).unwrap();
    world.wait(HOUR - 1);
    assert_eq!(retired(), [""; 0]);
    world.wait(1);
    assert_eq!(retired(), ["b"], "to the millisecond");
}

#[test]
fn r15_an_account_with_half_of_all_reservations_is_no_crowd_and_with_one_more_it_is() {
    let world = World::with(Settings { max_reservations: 10, ..World::plain() });
    let _held: Vec<_> = (0..5).map(|_| world.held("a/x", 1)).collect();
    let _other = world.held("b/x", 1);
    world.ledger.look_for_crowd();
    let _sixth = world.held("a/x", 1);
    world.ledger.look_for_crowd();
    assert!(world.reserve(ask("a/x", exactly(tokens(1)))).is_err());
    world.held("b/x", 1);
}
