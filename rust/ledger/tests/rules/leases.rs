//! R5, R6, R7, R9, R16 for leases: reservations debited on pages, here pages in ordinary memory.

use bursar_ledger::lease::{Attach, Counts, Leased, Pages, Pumped};
use bursar_ledger::rates::{Rate, Usage};
use bursar_ledger::{
    Admission, Advice, Amounts, BudgetSpec, Channel, Debiting, Ending, LedgerError, Period,
    PeriodKind, ReservationId, State, Unit, Verdict, Wish,
};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use crate::common::*;

/// What a client sees.
#[derive(Debug, Default)]
pub(crate) struct Page {
    used: AtomicI64,
    told: Mutex<Told>,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Told {
    pub(crate) open: bool,
    pub(crate) granted: i64,
    pub(crate) verdict: Option<Verdict>,
    pub(crate) ended: bool,
    pub(crate) advice: Option<Advice>,
}

impl Pages for Page {
    fn used(&self) -> i64 {
        self.used.load(Ordering::SeqCst)
    }

    fn close(&self) -> i64 {
        self.told.lock().unwrap().open = false;
        self.used()
    }

    fn open(&self, used: i64) {
        self.used.store(used, Ordering::SeqCst);
        self.told.lock().unwrap().open = true;
    }

    fn tell(&self, granted: i64, verdict: Verdict, ended: bool) {
        let mut told = self.told.lock().unwrap();
        (told.granted, told.verdict, told.ended) = (granted, Some(verdict), ended);
    }

    fn advise(&self, advice: Option<&Advice>) {
        self.told.lock().unwrap().advice = advice.cloned();
    }
}

impl Page {
    /// An honest client's step: whether it fitted.
    pub(crate) fn step(&self, count: i64) -> bool {
        let told = self.told.lock().unwrap();
        let fits = told.open && !told.ended && self.used() + count <= told.granted;
        if fits {
            self.used.fetch_add(count, Ordering::SeqCst);
        }
        fits
    }

    pub(crate) fn told(&self) -> Told {
        self.told.lock().unwrap().clone()
    }
}

pub(crate) fn attach(
    world: &World,
    id: ReservationId,
    ahead: i64,
    claim: i64,
) -> (Arc<Page>, Leased) {
    let page = Arc::new(Page::default());
    let ask = asking(&page, Counts::Unit(Unit::Tokens), ahead, claim);
    let leased = world.ledger.attach(id, ask, world.now()).unwrap();
    (page, leased)
}

pub(crate) fn asking(page: &Arc<Page>, counts: Counts, ahead: i64, claim: i64) -> Attach {
    let pages: Arc<dyn Pages> = Arc::clone(page) as _;
    Attach { pages, counts, claim, ahead, at_most: 0, owner: None }
}

pub(crate) fn pump(world: &World, id: ReservationId) -> Pumped {
    let pumped = world.ledger.pump(id, true, world.now());
    if let Pumped::On { topped_up: Some(_) } = pumped {
        world.ledger.publish(id, u64::MAX);
    }
    pumped
}

fn standing(world: &World) -> (i64, i64, i64, i64) {
    world.standing("a", Unit::Tokens)
}

pub(crate) fn more(world: &World, id: ReservationId, total: i64) -> Verdict {
    let wish = exactly(tokens(total));
    let extended = world.ledger.extend(id, Some(&wish), true, None, world.now()).unwrap();
    world.ledger.publish(id, u64::MAX);
    extended.verdict
}

#[test]
fn r06_a_lease_is_debited_to_the_exact_count_and_nothing_else_debits_meanwhile() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 10);
    let (page, leased) = attach(&world, id, 0, 0);
    assert_eq!(leased, Leased { used: 0, granted: 10, number: 1 });
    assert!(page.step(4));
    let debited = world.ledger.debit(id, &tokens(5), world.now()).unwrap_err();
    assert_eq!(debited, LedgerError::ReservationLeased);
    let second = asking(&page, Counts::Unit(Unit::Tokens), 0, 0);
    let second = world.ledger.attach(id, second, world.now()).unwrap_err();
    assert_eq!(second, LedgerError::ReservationLeased);
    assert!(matches!(pump(&world, id), Pumped::On { .. }));
    assert_eq!(standing(&world).2, 4);
    assert_eq!(pump(&world, id), Pumped::On { topped_up: None });
    assert!(page.step(6) && !page.step(1));
    let ended = world.release(id);
    assert_eq!(ended.view.spent, tokens(10));
    assert!(page.told().ended && !page.step(1));
    assert_eq!(pump(&world, id), Pumped::Over);
    assert_eq!((standing(&world).2, standing(&world).1), (10, 0));
}

#[test]
fn r06_claims_are_held_between_what_was_seen_and_what_is_granted() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 10);
    let (page, _) = attach(&world, id, 0, 0);
    for (claim, counted) in [(3, 3), (1, 3), (-7, 3), (i64::MIN, 3), (i64::MAX, 10), (0, 10)] {
        page.used.store(claim, Ordering::SeqCst);
        pump(&world, id);
        assert_eq!(standing(&world).2, counted, "a claim of {claim}");
    }
    assert_eq!(world.ledger.detach(id, world.now()).unwrap(), Some(10));
    assert_eq!(standing(&world).3, 90);
}

#[test]
fn r06_a_detached_reservation_is_debited_by_call_again() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 10);
    let (page, _) = attach(&world, id, 0, 0);
    assert!(page.step(2));
    assert_eq!(world.ledger.detach(id, world.now()).unwrap(), Some(2));
    assert!(page.told().ended);
    world.debit(id, 3);
    let (page, leased) = attach(&world, id, 0, 0);
    assert_eq!(leased, Leased { used: 3, granted: 10, number: 2 });
    assert!(page.step(7) && !page.step(1));
}

#[test]
fn r09_a_lease_that_moves_lives_and_one_that_rests_expires_at_its_count() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 10);
    let (page, _) = attach(&world, id, 0, 0);
    for _ in 0..3 {
        world.wait(TTL - 1);
        assert!(page.step(1));
        pump(&world, id);
        world.ledger.tick(world.now());
        assert_eq!(world.ledger.reservation(id, world.now()).unwrap().state, State::Pending);
    }
    assert!(page.step(1), "not pumped yet, and counted all the same");
    world.wait(TTL);
    world.ledger.tick(world.now());
    assert_eq!(world.ledger.reservation(id, world.now()).unwrap().state, State::Pending);
    world.wait(TTL);
    world.ledger.tick(world.now());
    let view = world.ledger.reservation(id, world.now()).unwrap();
    assert_eq!((view.state, view.spent), (State::Expired, tokens(4)));
    assert!(page.told().ended);
}

#[test]
fn r10_a_freeze_reaches_the_page_and_its_end_as_well() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a/agent", 10);
    let (page, _) = attach(&world, id, 0, 0);
    let before = world.ledger.changes();
    world.ledger.set_frozen("a", true, "", world.now()).unwrap();
    assert_ne!(world.ledger.changes(), before);
    pump(&world, id);
    assert_eq!(page.told().verdict, Some(Verdict::Stop));
    assert!(page.step(1), "what was used is counted: truth is recorded");
    world.ledger.set_frozen("a", false, "", world.now()).unwrap();
    pump(&world, id);
    assert_eq!(page.told().verdict, Some(Verdict::Ok));
}

#[test]
fn r05_a_lease_tops_itself_up_until_the_budget_is_gone() {
    let world = World::tokens(&[("a", 20)]);
    let id = world.held("a", 1);
    let (page, _) = attach(&world, id, 8, 0);
    let mut debited = 0;
    while page.step(1) {
        debited += 1;
        pump(&world, id);
    }
    assert_eq!(debited, 20);
    assert_eq!(more(&world, id, 21), Verdict::Stop);
    assert_eq!((standing(&world).2, standing(&world).3), (20, 0));
}

#[test]
fn r05_an_unused_top_up_is_taken_back_before_anybody_is_refused() {
    let world = World::tokens(&[("a", 20)]);
    let (greedy, other) = (world.held("a/a", 1), world.held("a/b", 1));
    let (page, _) = attach(&world, greedy, 0, 0);
    assert_eq!(more(&world, greedy, 19), Verdict::Ok);
    assert!(page.step(5));
    assert_eq!(standing(&world).3, 0);
    // 14 of the 19 are neither used nor explicitly reserved.
    assert!(world.hold("a/c", tokens(15)).is_err());
    assert_eq!(page.told().granted, 19, "what would not do is left where it is");
    let third = world.held("a/c", 3);
    assert_eq!(page.told().granted, 5);
    assert!(!page.step(1));
    let (theirs, _) = attach(&world, other, 0, 0);
    assert_eq!(more(&world, other, 9), Verdict::Ok);
    assert!(theirs.step(9));
    for id in [greedy, other, third] {
        world.release(id);
    }
    assert_eq!((standing(&world).2, standing(&world).1), (14, 0));
}

#[test]
fn r05_an_extend_has_unused_top_ups_taken_back_as_well() {
    let world = World::tokens(&[("a", 20)]);
    let (greedy, other) = (world.held("a/a", 1), world.held("a/b", 1));
    let (page, _) = attach(&world, greedy, 0, 0);
    assert_eq!(more(&world, greedy, 19), Verdict::Ok);
    assert!(page.step(5));
    assert_eq!(world.extend(other, 16).verdict, Verdict::Stop);
    assert_eq!(page.told().granted, 19, "what would not do is left where it is");
    assert_eq!(world.extend(other, 15).verdict, Verdict::Ok);
    assert_eq!(page.told().granted, 5);
    assert_eq!(standing(&world).3, 0);
}

#[test]
fn r05_what_was_explicitly_reserved_is_never_taken_back() {
    let world = World::tokens(&[("a", 20)]);
    let id = world.held("a/a", 15);
    let (page, _) = attach(&world, id, 0, 0);
    assert!(world.hold("a/b", tokens(6)).is_err());
    world.extend(id, 18);
    world.ledger.publish(id, u64::MAX);
    assert!(world.hold("a/b", tokens(3)).is_err());
    assert_eq!(page.told().granted, 18);
    assert!(page.step(18));
}

#[test]
fn r07_a_commit_ends_the_lease_and_its_own_amount_counts() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 10);
    let (page, _) = attach(&world, id, 0, 0);
    assert!(page.step(6));
    let actual = Ending::Commit { actual: tokens(12), named: 1, payload: 1, success: None };
    assert_eq!(world.ledger.end(id, actual, world.now()).unwrap().view.spent, tokens(12));
    assert!(page.told().ended);
    let id = world.held("a", 10);
    let (page, _) = attach(&world, id, 0, 0);
    assert!(page.step(6));
    let measured = Ending::Commit { actual: Amounts::ZERO, named: 0, payload: 1, success: None };
    assert_eq!(world.ledger.end(id, measured, world.now()).unwrap().view.spent, tokens(6));
}

pub(crate) fn gpt() -> Rate {
    Rate {
        model: "m".into(),
        input_nanos_per_million: 333_333_333,
        cached_input_nanos_per_million: 0,
        cache_write_nanos_per_million: 0,
        output_nanos_per_million: 7_777_777,
        call_nanos: 1,
        gpu_second_nanos: 0,
        tiers: Vec::new(),
    }
}

#[test]
fn r12_money_follows_the_count_and_never_rounds_by_step() {
    let world = World::tokens(&[("a", 1_000_000)]);
    let wish = Wish::Usage {
        rate: Some(Arc::new(gpt())),
        usage: Usage { input_tokens: 100, output_tokens: 50, calls: 1, ..Usage::default() },
        min_output_tokens: 50,
    };
    let Ok(Admission::Granted(granted)) = world.reserve(ask("a", wish)) else { panic!("it fits") };
    let id = granted.view.id;
    let page = Arc::new(Page::default());
    let usage = Usage { input_tokens: 100, calls: 1, ..Usage::default() };
    let ask = asking(&page, Counts::Output(usage), 0, 0);
    let leased = world.ledger.attach(id, ask, world.now()).unwrap();
    assert_eq!(leased, Leased { used: 0, granted: 50, number: 1 });
    assert_eq!(standing(&world).2, 100, "the prompt is charged before the first step");
    for _ in 0..50 {
        assert!(page.step(1));
        pump(&world, id);
    }
    let used = world.ledger.reservation(id, world.now()).unwrap().used;
    let whole = Usage { output_tokens: 50, ..usage };
    assert_eq!(used.get(Unit::UsdNanos), gpt().cost_usd_nanos(&whole).unwrap());
    assert_eq!(used.get(Unit::Tokens), 150);
    assert!(!page.step(1));
}

#[test]
fn r16_carving_from_a_leased_parent_takes_no_more_than_its_page_has_left() {
    let world = World::tokens(&[("a", 100)]);
    let parent = world.held("a", 10);
    let (page, _) = attach(&world, parent, 0, 0);
    assert!(page.step(4));
    let nested = |amount| world.nest("a", parent, tokens(amount));
    assert!(nested(7).is_err());
    assert!(page.told().open, "a refusal leaves the lease open");
    let child = nested(5).unwrap().id;
    assert_eq!(page.told().granted, 5);
    assert!(page.step(1) && !page.step(1));
    world.release(child);
    pump(&world, parent);
    assert_eq!(page.told().granted, 10);
    assert!(page.step(5) && !page.step(1));
}

#[test]
fn r13_a_claim_after_a_restart_lies_between_the_logged_floor_and_the_logged_grant() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 10);
    world.debit(id, 4);
    world.ledger.log_used(world.now());
    for (claim, used) in [(2, 4), (7, 7), (99, 10)] {
        let world = world.replayed(settings(Vec::new()), &world.tape.records());
        let (_, leased) = attach(&world, id, 0, claim);
        assert_eq!(leased, Leased { used, granted: 10, number: 1 }, "a claim of {claim}");
        assert_eq!(standing(&world).2, used);
    }
}

#[test]
fn r15_a_count_fits_its_word_whatever_is_held() {
    let world = World::tokens(&[("a", i64::MAX)]);
    let id = world.held("a", i64::MAX);
    let (_, leased) = attach(&world, id, 0, i64::MAX);
    assert_eq!(leased.granted, 0xffff_ffff_ffff, "48 bits");
    assert_eq!(leased.granted, bursar_ledger::lease::COUNT_MAX);
    assert_eq!(standing(&world).2, leased.granted);
}

#[test]
fn r07_who_leaves_a_lease_behind_settles_it_unless_another_has_it_since() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 10);
    let (_, first) = attach(&world, id, 0, 0);
    world.ledger.detach(id, world.now()).unwrap();
    let (page, second) = attach(&world, id, 0, 0);
    world.ledger.abandon(id, first.number, world.now()).unwrap();
    assert!(page.step(3));
    world.ledger.abandon(id, second.number, world.now()).unwrap();
    let view = world.view(id);
    assert_eq!((view.state, view.spent), (State::Expired, tokens(3)));
}

#[test]
fn r13_what_a_detached_lease_has_counted_survives() {
    let world = World::tokens(&[("a", 100)]);
    let id = world.held("a", 10);
    let (page, _) = attach(&world, id, 0, 0);
    assert!(page.step(7));
    world.ledger.detach(id, world.now()).unwrap();
    let world = world.replayed(settings(Vec::new()), &world.tape.records());
    assert_eq!(world.view(id).used, tokens(7));
}

#[test]
fn r06_a_page_is_told_what_time_alone_has_changed() {
    let world = World::new();
    world.set("a", BudgetSpec { period: Period::rolling(HOUR), ..stepped(100) }).unwrap();
    let id = world.held("a", 98);
    let (page, _) = attach(&world, id, 0, 0);
    assert!(page.step(97));
    pump(&world, id);
    assert_ne!(page.told().verdict, Some(Verdict::Ok));
    world.wait(2 * HOUR);
    pump(&world, id);
    assert_eq!(page.told().verdict, Some(Verdict::Ok));
}

#[test]
fn r06_a_lease_that_is_topped_up_in_other_windows_hears_of_their_verdict() {
    let world = World::tokens(&[("a", 1_000)]);
    let id = world.held("a", 1);
    let (page, _) = attach(&world, id, 64, 0);
    assert_eq!(page.told().verdict, Some(Verdict::Ok));
    world
        .set("a", BudgetSpec { period: Period::calendar(PeriodKind::Day, "UTC"), ..stepped(100) })
        .unwrap();
    world.record("a", tokens(95)).unwrap();
    let changes = world.ledger.changes();
    assert!(page.step(1));
    world.ledger.pump(id, false, world.now());
    assert_eq!(world.ledger.changes(), changes, "nobody else says so");
    assert_ne!(page.told().verdict, Some(Verdict::Ok));
}

#[test]
fn of_the_open_reservations_leases_come_first_and_then_the_newest() {
    let world = World::tokens(&[("a", 100), ("a/b", 100), ("ab", 100)]);
    let ids: Vec<_> = (1..=5).map(|amount| world.held("a", amount)).collect();
    let (_page, _) = attach(&world, ids[1], 0, 0);
    world.ledger.claim(ids[0], Channel::Meter(7)).unwrap();
    world.release(ids[4]);
    let open = |limit| {
        let open = world.ledger.open_reservations("", limit, world.now());
        let shown: Vec<_> = open.shown.iter().map(|(view, by)| (view.id, *by)).collect();
        (shown, open.count)
    };
    let all = vec![
        (ids[1], Debiting::Leased),
        (ids[0], Debiting::Metered),
        (ids[3], Debiting::Calls),
        (ids[2], Debiting::Calls),
    ];
    assert_eq!(open(9), (all.clone(), 4));
    assert_eq!(open(4), (all.clone(), 4));
    assert_eq!(open(2), (all[..2].to_vec(), 4));
    assert_eq!(open(0), (vec![], 4));
    let of = |within| world.ledger.open_reservations(within, 9, world.now()).count;
    world.held("a/b", 1);
    world.held("ab", 1);
    assert_eq!(["a", "a/b", "ab", "b", ""].map(of), [5, 1, 1, 0, 6]);
}
