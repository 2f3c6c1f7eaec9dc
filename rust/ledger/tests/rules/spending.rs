//! Spending at once on several accounts: all of it or nothing.

use std::sync::atomic::{AtomicI64, Ordering};

use bursar_ledger::fact::Fact;
use bursar_ledger::{
    Admission, Amounts, Ended, LedgerError, Period, Refusal, RefusalReason, Spending, Unit, Verdict,
};

use crate::common::{SECOND, World, of, settings, tokens};

fn spend(world: &World, spendings: &[(&str, Amounts)]) -> Result<Vec<Ended>, Refusal> {
    match world.ledger.spend(listed(spendings), world.now()).unwrap() {
        Admission::Granted(ended) => Ok(ended),
        Admission::Refused(refusal, _) => Err(refusal),
    }
}

fn listed<'a>(spendings: &[(&'a str, Amounts)]) -> Vec<Spending<'a>> {
    let one = |&(account, amounts): &(&'a str, Amounts)| Spending {
        account,
        amounts,
        key: 0,
        payload: 0,
        labels: Vec::new(),
    };
    spendings.iter().map(one).collect()
}

#[test]
fn r01_spending_is_of_all_accounts_or_of_none() {
    let world = World::tokens(&[("a", 100), ("a/x", 50), ("b", 10)]);
    world.limit("b", Unit::Calls, Period::total(), 5);
    let spent =
        spend(&world, &[("a/x", tokens(30)), ("b", of(&[(Unit::Tokens, 4), (Unit::Calls, 1)]))]);
    let spent = spent.unwrap();
    assert_eq!(spent[0].view.spent, tokens(30));
    assert_eq!(spent[1].verdict, Verdict::Ok);
    let before = (world.tokens_of("a"), world.tokens_of("a/x"), world.tokens_of("b"));
    assert_eq!(before, ((0, 30), (0, 30), (0, 4)));
    let logged = world.tape.len();
    let refusal = spend(&world, &[("a/x", tokens(20)), ("b", tokens(7))]).unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::BudgetExhausted);
    assert_eq!(
        (refusal.account.as_str(), refusal.unit, refusal.shortfall),
        ("b", Some(Unit::Tokens), 1)
    );
    assert_eq!(before, (world.tokens_of("a"), world.tokens_of("a/x"), world.tokens_of("b")));
    assert_eq!(world.tape.len(), logged, "a refused call leaves no trace");
    assert!(spend(&world, &[("a/x", tokens(20)), ("b", tokens(6))]).is_ok());
}

#[test]
fn r01_accounts_that_fit_alone_and_not_together_are_refused_by_their_ancestor() {
    let world = World::tokens(&[("a", 10), ("a/x", 10), ("a/y", 10)]);
    let refusal = spend(&world, &[("a/x", tokens(6)), ("a/y", tokens(6))]).unwrap_err();
    assert_eq!((refusal.account.as_str(), refusal.shortfall), ("a", 2));
    assert_eq!(world.tokens_of("a"), (0, 0));
    assert!(spend(&world, &[("a/x", tokens(6)), ("a/x", tokens(4))]).is_ok());
    assert_eq!(world.standing("a/x", Unit::Tokens), (10, 0, 10, 0));
    let twice = spend(&world, &[("a/x", tokens(1)), ("a/x", tokens(1))]).unwrap_err();
    assert_eq!(twice.shortfall, 2, "one window, twice");
}

#[test]
fn r02_threads_that_spend_on_pairs_of_accounts_never_pass_a_limit_and_lose_none() {
    let world = World::tokens(&[("a", 1_000), ("a/x", 700), ("a/y", 700), ("b", 900)]);
    let spent = [const { AtomicI64::new(0) }; 3];
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let (world, spent) = (&world, &spent);
            scope.spawn(move || {
                for step in 0..400_usize {
                    let pair = [("a/x", 0), ("a/y", 1), ("b", 2)];
                    let (one, two) = (pair[(thread + step) % 3], pair[(thread + step + 1) % 3]);
                    if spend(world, &[(one.0, tokens(3)), (two.0, tokens(2))]).is_ok() {
                        spent[one.1].fetch_add(3, Ordering::Relaxed);
                        spent[two.1].fetch_add(2, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let [x, y, b] = spent.map(AtomicI64::into_inner);
    assert_eq!(world.tokens_of("a/x"), (0, x));
    assert_eq!(world.tokens_of("a/y"), (0, y));
    assert_eq!(world.standing("a", Unit::Tokens), (1_000, 0, x + y, 1_000 - x - y));
    assert_eq!(world.standing("b", Unit::Tokens), (900, 0, b, 900 - b));
    assert!(x + y > 990 || b > 890, "{x} {y} {b}: until one of them is used up");
}

#[test]
fn r13_spending_is_one_record_and_the_same_after_a_replay() {
    let world = World::tokens(&[("a", 100), ("b", 100)]);
    let before = world.tape.len();
    spend(&world, &[("a/x", tokens(30)), ("b", tokens(40))]).unwrap();
    let spending = |record: &bursar_ledger::fact::Record| {
        record.facts.iter().filter(|fact| matches!(fact, Fact::Settled(_))).count()
    };
    let settled: Vec<_> = world.tape.records()[before..].iter().map(spending).collect();
    assert_eq!(settled.iter().max(), Some(&2), "a crash loses both or none");
    let again = world.replayed(settings(Vec::new()), &world.tape.records());
    assert_eq!((again.tokens_of("a"), again.tokens_of("b")), ((0, 30), (0, 40)));
}

#[test]
fn r10_who_is_frozen_stops_the_spending_of_all() {
    let world = World::tokens(&[("a", 100), ("b", 100)]);
    world.open("b/x").unwrap();
    world.freeze("b", true);
    let refusal = spend(&world, &[("a", tokens(1)), ("b/x", tokens(1))]).unwrap_err();
    assert_eq!((refusal.reason, refusal.account.as_str()), (RefusalReason::AccountFrozen, "b"));
    assert_eq!(world.tokens_of("a"), (0, 0));
}

#[test]
fn r15_spending_is_forgotten_at_once_and_at_the_bound_nothing_is_spent() {
    let few = bursar_ledger::Settings { max_reservations: 3, ..World::plain() };
    let world = World::with(few);
    world.limit("a", Unit::Tokens, Period::total(), 100);
    assert!(spend(&world, &[("a", tokens(1)), ("a", tokens(1))]).is_ok());
    let refused = world.ledger.spend(listed(&[("a", tokens(1)), ("a", tokens(1))]), world.now());
    assert_eq!(refused.map(drop), Err(LedgerError::ReservationLimit { max: 3 }));
    assert_eq!(world.tokens_of("a"), (0, 2));
    world.wait(SECOND);
    assert_eq!(world.ledger.tick(world.now()).forgotten, 2);
    assert!(spend(&world, &[("a", tokens(1)); 3]).is_ok());
}

#[test]
fn r12_what_is_no_spending_is_an_error_and_changes_nothing() {
    let world = World::tokens(&[("a", 100)]);
    let wrong =
        [of(&[(Unit::Tokens, -1)]), of(&[(Unit::VramBytes, 1)]), of(&[(Unit::Concurrency, 1)])];
    for amounts in wrong {
        let refused = world.ledger.spend(listed(&[("a", tokens(1)), ("a", amounts)]), world.now());
        assert!(matches!(refused, Err(LedgerError::InvalidAmount { .. })), "{amounts:?}");
    }
    world.limit("a", Unit::Calls, Period::total(), i64::MAX);
    let calls = of(&[(Unit::Calls, i64::MAX)]);
    let large = world.ledger.spend(listed(&[("a", calls), ("a", calls)]), world.now());
    assert_eq!(large.map(drop), Err(LedgerError::Overflow));
    let unknown = world.ledger.spend(listed(&[("a", tokens(1)), ("c", tokens(1))]), world.now());
    assert!(matches!(unknown, Err(LedgerError::AccountNotFound { .. })));
    assert_eq!(world.tokens_of("a"), (0, 0));
    assert!(spend(&world, &[]).unwrap().is_empty());
}
