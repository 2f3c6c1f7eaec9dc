//! R5, R11, R13 for leases to the exact count: when a hold is topped up, what is taken back, who may
//! attach, and what the journal hears.

use std::sync::Arc;

use bursar_ledger::fact::{Fact, Owner};
use bursar_ledger::lease::{Attach, Counts, Leased, Pumped};
use bursar_ledger::{Ask, LedgerError, ReservationId, Unit, Verdict};

use crate::common::*;
use crate::leases::{Page, asking, attach, more, pump};

const IDLE: Pumped = Pumped::On { topped_up: None };

fn owner(pid: u32) -> Owner {
    Owner { pid, start_ticks: 5, boot: 6, uid: 7 }
}

/// Counts one by one, pumping after each, until a step does not fit; returns how many did.
fn run_out(world: &World, id: ReservationId, page: &Page) -> i64 {
    let steps = (0..).take_while(|_| {
        let fits = page.step(1);
        pump(world, id);
        fits
    });
    i64::try_from(steps.count()).unwrap()
}

#[test]
fn r05_a_hold_is_topped_up_once_less_than_half_of_what_is_ahead_is_left() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 10);
    let (page, _) = attach(&world, id, 8, 0);
    for used in 1..=5 {
        assert!(page.step(1));
        assert_eq!(pump(&world, id), IDLE, "{used} of 10 used");
    }
    assert!(page.step(1));
    assert_ne!(pump(&world, id), IDLE);
    assert_eq!(page.told().granted, 6 + 8);
    assert_eq!(world.tokens_of("a"), (14 - 6, 6));
}

#[test]
fn r05_a_top_up_is_told_only_once_it_is_written() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 1);
    let (page, _) = attach(&world, id, 8, 0);
    let Pumped::On { topped_up: Some(ticket) } = world.ledger.pump(id, false, world.now()) else {
        panic!("it is topped up")
    };
    let held = world.tokens_of("a");
    world.ledger.publish(id, ticket - 1);
    assert_eq!(page.told().granted, 1);
    let again = world.ledger.pump(id, false, world.now());
    assert_eq!(again, Pumped::On { topped_up: Some(ticket) }, "still that one");
    assert_eq!(world.tokens_of("a"), held);
    world.ledger.publish(id, ticket);
    assert_eq!(page.told().granted, 8);
}

#[test]
fn r05_a_lease_counts_to_its_bound_whatever_is_held_or_left() {
    let world = World::tokens(&[("a", 100)]);
    for held in [1, 10] {
        let (id, page) = (world.held("a", held), Arc::new(Page::default()));
        let ask = asking(&page, Counts::Unit(Unit::Tokens), 4, 0);
        let ask = Attach { at_most: 7, ..ask };
        let leased = world.ledger.attach(id, ask, world.now()).unwrap();
        assert_eq!(leased.granted, held.min(7));
        assert_eq!(run_out(&world, id, &page), 7);
        let records = world.tape.len();
        assert_eq!(pump(&world, id), IDLE, "there is nothing to ask for");
        assert_eq!(world.tape.len(), records);
        assert_eq!(world.release(id).view.spent, tokens(7));
    }
}

#[test]
fn r05_a_budget_that_is_gone_tops_nothing_up() {
    let world = World::tokens(&[("a", 20)]);
    let id = world.held("a", 1);
    let (page, _) = attach(&world, id, 8, 0);
    assert_eq!(run_out(&world, id, &page), 20);
    let records = world.tape.len();
    assert_eq!(pump(&world, id), IDLE);
    assert_eq!(world.tape.len(), records);
}

#[test]
fn r16_a_nested_lease_is_topped_up_by_its_account_and_gives_back_there() {
    let world = World::tokens(&[("a", 100)]);
    let parent = world.held("a", 20);
    let child = world.nest("a", parent, tokens(1)).unwrap().id;
    let (page, _) = attach(&world, child, 0, 0);
    assert_eq!(more(&world, child, 15), Verdict::Ok);
    assert_eq!(world.tokens_of("a"), (20 + 14, 0));
    assert!(page.step(3));
    assert_eq!(world.ledger.detach(child, world.now()).unwrap(), Some(3));
    assert_eq!(world.tokens_of("a"), (19, 3));
    assert_eq!(world.view(parent).granted, tokens(19));
}

#[test]
fn only_the_process_that_reserved_may_attach_and_anybody_where_that_is_not_known() {
    let world = World::tokens(&[("a", 100)]);
    let ask = Ask { owner: Some(owner(1)), ..ask("a", exactly(tokens(10))) };
    let Ok(bursar_ledger::Admission::Granted(granted)) = world.reserve(ask) else {
        panic!("it fits")
    };
    let (owned, free) = (granted.view.id, world.held("a", 10));
    let may = |id, pid: Option<u32>| world.ledger.may_attach(id, pid.map(owner));
    let attach = |id, pid: Option<u32>| {
        let ask = asking(&Arc::new(Page::default()), Counts::Unit(Unit::Tokens), 0, 0);
        let ask = Attach { owner: pid.map(owner), ..ask };
        world.ledger.attach(id, ask, world.now()).map(drop)
    };
    for stranger in [Some(2), None] {
        assert_eq!(may(owned, stranger), Err(LedgerError::NotTheOwner));
        assert_eq!(attach(owned, stranger), Err(LedgerError::NotTheOwner));
    }
    assert_eq!(may(owned, Some(1)), Ok(true));
    assert_eq!(attach(owned, Some(1)), Ok(()));
    assert_eq!(may(owned, Some(1)), Err(LedgerError::ReservationLeased));
    assert_eq!((may(free, Some(2)), may(free, None)), (Ok(false), Ok(false)));
    assert_eq!(attach(free, Some(2)), Ok(()));
}

#[test]
fn r13_what_a_lease_has_counted_is_logged_once() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 10);
    let (page, _) = attach(&world, id, 0, 0);
    let logged = || {
        let before = world.tape.len();
        world.ledger.log_used(world.now());
        let records = world.tape.records().split_off(before);
        records.into_iter().flat_map(|record| record.facts).collect::<Vec<_>>()
    };
    assert_eq!(logged(), []);
    assert!(page.step(4));
    pump(&world, id);
    assert_eq!(logged(), [Fact::Used(vec![(id, tokens(4))])]);
    assert_eq!(logged(), []);
    let records = world.tape.len();
    assert_eq!(world.ledger.detach(id, world.now()).unwrap(), Some(4));
    assert_eq!(world.tape.len(), records, "it is known already");
    assert_eq!(world.ledger.detach(id, world.now()).unwrap(), None);
    let (_, leased) = attach(&world, id, 0, 0);
    assert_eq!(leased, Leased { used: 4, granted: 10, number: 2 });
}

#[test]
fn r06_a_page_has_the_advice_of_a_verdict_and_none_beside_ok() {
    let world = World::new();
    world.set("a", stepped(100)).unwrap();
    let id = world.held("a", 98);
    let (page, _) = attach(&world, id, 0, 0);
    assert_eq!((page.told().verdict, page.told().advice), (Some(Verdict::Ok), None));
    assert!(page.step(60));
    pump(&world, id);
    assert_eq!(page.told().verdict, Some(Verdict::Warn));
    assert_eq!(page.told().advice.and_then(|advice| advice.max_new_tokens), Some(500));
}
