//! R6: repeats are told from new calls.

use bursar_ledger::fact::{Fact, Record, State};
use bursar_ledger::{Admission, Ask, Ending, Granted, LedgerError, Spending, Unit};

use crate::common::{RETENTION, TTL, World, ask, commit, exactly, of, settings, tokens, totals};

fn keyed(account: &str, amount: i64, key: u128) -> Ask<'_> {
    let payload = u128::from(amount.unsigned_abs());
    Ask { key, payload, ..ask(account, exactly(tokens(amount))) }
}

fn granted(world: &World, ask: Ask<'_>) -> Granted {
    match world.reserve(ask).unwrap() {
        Admission::Granted(granted) => granted,
        Admission::Refused(refusal, _) => panic!("{refusal:?}"),
    }
}

#[test]
fn r06_the_same_key_gives_the_first_answer_again() {
    let world = World::tokens(&[("a", 100)]);
    let first = granted(&world, keyed("a", 60, 7));
    let again = granted(&world, keyed("a", 60, 7));
    assert_eq!(first.view.id, again.view.id);
    assert_eq!(again.ticket, u64::MAX, "it waits for all that is logged");
    assert_eq!(world.tokens_of("a"), (60, 0));
    // The answer is of the first reservation, even after its end.
    world.commit(first.view.id, 5);
    let ended = granted(&world, keyed("a", 60, 7)).view;
    assert_eq!((ended.id, ended.state), (first.view.id, State::Committed));
}

#[test]
fn r06_the_same_key_with_another_payload_is_an_error() {
    let world = World::tokens(&[("a", 100)]);
    granted(&world, keyed("a", 60, 7));
    let other = world.reserve(keyed("a", 61, 7)).unwrap_err();
    assert_eq!(other, LedgerError::IdempotencyMismatch("idempotency key"));
    assert_eq!(world.tokens_of("a"), (60, 0));
}

#[test]
fn r06_refusals_are_not_remembered() {
    let world = World::tokens(&[("a", 100)]);
    let blocker = world.held("a", 100);
    assert!(matches!(world.reserve(keyed("a", 60, 7)), Ok(Admission::Refused(..))));
    world.release(blocker);
    assert_eq!(granted(&world, keyed("a", 60, 7)).view.granted, tokens(60));
}

#[test]
fn r06_a_key_lasts_until_the_end_of_its_reservation_plus_retention() {
    let world = World::tokens(&[("a", 100)]);
    let first = granted(&world, keyed("a", 10, 7)).view.id;
    for _ in 0..20 {
        world.wait(TTL - 1);
        world
            .ledger
            .extend(first, Some(&totals(tokens(0), tokens(0))), false, None, world.now())
            .unwrap();
        assert_eq!(world.ledger.tick(world.now()), bursar_ledger::Ticked::default());
    }
    world.commit(first, 10);
    world.wait(RETENTION - 1);
    assert_eq!(world.ledger.tick(world.now()).forgotten, 0);
    // Asking again, or ending again, does not make it last longer.
    assert_eq!(granted(&world, keyed("a", 10, 7)).view.id, first);
    world.commit(first, 10);
    world.release(first);
    world.wait(1);
    assert_eq!(world.ledger.tick(world.now()).forgotten, 1);
    assert_eq!(world.ledger.reservation_count(), 0);
    assert_ne!(granted(&world, keyed("a", 10, 7)).view.id, first);
    assert_eq!(world.end(first, Ending::Release).unwrap_err(), LedgerError::ReservationNotFound);
    assert_eq!(world.tokens_of("a"), (10, 10));
}

#[test]
fn r06_debits_are_cumulative_and_never_go_back() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 50);
    for (used, left) in [(10, 40), (10, 40), (5, 40), (30, 20), (0, 20)] {
        assert_eq!(world.debit(id, used).remaining, tokens(left));
    }
    assert_eq!(world.tokens_of("a"), (20, 30));
    let negative = world.ledger.debit(id, &tokens(i64::MIN), world.now());
    assert!(matches!(negative, Err(LedgerError::InvalidAmount { .. })));
    let capacity = world.ledger.debit(id, &of(&[(Unit::VramBytes, 1)]), world.now());
    assert!(matches!(capacity, Err(LedgerError::InvalidAmount { .. })));
}

#[test]
fn r06_a_second_commit_alike_answers_alike_and_another_fails() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 50);
    let first = world.commit(id, 70);
    let again = world.commit(id, 70);
    assert_eq!(first.view.spent, again.view.spent);
    assert_eq!(first.view.returned, again.view.returned);
    let other = world.end(id, commit(&[(Unit::Tokens, 71)])).unwrap_err();
    assert_eq!(other, LedgerError::IdempotencyMismatch("commit"));
    assert_eq!(world.tokens_of("a"), (0, 70));
}

#[test]
fn r06_a_record_is_told_from_its_repeat() {
    let world = World::tokens(&[("a", 100)]);
    let record = |amount, key| {
        let spending = Spending {
            account: "a",
            amounts: tokens(amount),
            key,
            payload: u128::from(amount.unsigned_abs()),
            labels: Vec::new(),
        };
        world.ledger.record(spending, world.now())
    };
    let first = record(30, 9).unwrap().view.id;
    assert_eq!(record(30, 9).unwrap().view.id, first);
    let mismatch = Some(LedgerError::IdempotencyMismatch("idempotency key"));
    assert_eq!(record(31, 9).err(), mismatch);
    assert_eq!(world.reserve(keyed("a", 31, 9)).err(), mismatch, "Reserve shares the keys");
    record(30, 0).unwrap();
    record(30, 0).unwrap();
    assert_eq!(world.tokens_of("a"), (0, 90));
    assert!(record(-1, 0).is_err());
}

/// All orders of two equal Debits, a Commit and a Release end in one ledger.
#[test]
fn r06_any_order_of_repeats_ends_alike() {
    #[derive(Clone, Copy)]
    enum Call {
        Debit,
        Commit,
        Release,
    }
    let calls =
        [Call::Debit, Call::Debit, Call::Commit, Call::Release, Call::Commit, Call::Release];
    let mut orders = 0;
    permute(&mut calls.to_vec(), 0, &mut |order| {
        let world = World::tokens(&[("a", 1_000), ("a/b", 500)]);
        let id = world.held("a/b", 100);
        for call in order {
            match call {
                Call::Debit => drop(world.ledger.debit(id, &tokens(40), world.now())),
                Call::Commit => drop(world.end(id, commit(&[(Unit::Tokens, 65)])).unwrap()),
                Call::Release => drop(world.end(id, Ending::Release).unwrap()),
            }
        }
        assert_eq!(world.tokens_of("a"), (0, 65));
        assert_eq!(world.standing("a/b", Unit::Tokens), (500, 0, 65, 435));
        let view = world.view(id);
        assert_eq!((view.state, view.spent), (State::Committed, tokens(65)));
        orders += 1;
    });
    assert_eq!(orders, 720);
}

fn permute<T: Copy>(items: &mut Vec<T>, from: usize, f: &mut dyn FnMut(&[T])) {
    if from == items.len() {
        return f(items);
    }
    for i in from..items.len() {
        items.swap(from, i);
        permute(items, from + 1, f);
        items.swap(from, i);
    }
}

/// Goal: after a restart a key means what it meant before. Method: a key is used again once it is
/// forgotten; the store, by whose clock the first reservation is young, tells of it last.
#[test]
fn r06_a_key_that_was_used_again_means_the_later_one_after_a_restart() {
    let world = World::tokens(&[("a", 1_000)]);
    let first = granted(&world, keyed("a", 10, 7)).view.id;
    world.release(first);
    let before = world.tape.records();
    world.wait(RETENTION);
    world.ledger.tick(world.now());
    let second = granted(&world, keyed("a", 20, 7)).view.id;
    let (mut reserved, mut settled) = (None, None);
    for fact in before.iter().flat_map(|record| &record.facts) {
        match fact {
            Fact::Reserved(fact) => reserved = Some(Box::new(fact.clone())),
            Fact::Settled(fact) => settled = Some(Box::new(fact.clone())),
            _ => {}
        }
    }
    let (mut reserved, settled) = (reserved.unwrap(), settled.unwrap());
    reserved.slices.clear();
    // The slots are apart, so both can be there.
    reserved.id.slot = second.slot + 1;
    let moved = reserved.id;
    let mut told: Vec<Record> = world.tape.records();
    let is_first = |record: &Record| {
        record.facts.iter().any(|fact| match fact {
            Fact::Reserved(reserved) => reserved.id == first,
            Fact::Settled(settled) => settled.id == first,
            _ => false,
        })
    };
    told.retain(|record| !is_first(record));
    let time_ms = world.now().wall_ms;
    let remembered = Fact::Remembered { reserved, settled, created_ms: 0, ended_ms: time_ms - 1 };
    told.push(Record { time_ms, facts: vec![remembered] });
    let after = world.replayed(settings(Vec::new()), &told);
    assert_eq!(granted(&after, keyed("a", 20, 7)).view.id, second);
    assert_eq!(after.view(moved).created_ms, 0, "when it began, not when it was told of");
}
