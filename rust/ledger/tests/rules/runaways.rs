//! S12: runaways are found by name, within their bounds, and by what the account's policy says.

use std::sync::Arc;

use bursar_ledger::fact::Fact;
use bursar_ledger::runaway::{Action, Finding, PROMPT_FINGERPRINT, Policy, Rule};
use bursar_ledger::{
    Admission, Advice, Ask, Granted, Period, PeriodKind, Refusal, RefusalReason, ReservationId,
    Unit, Verdict,
};

use crate::common::{World, ask, exactly, of, pattern, settings, spec, tokens};

const MINUTE: i64 = 60_000;

/// Small bounds: 4 times the pace, depth 3, 5 repeats, 4 children, 6 pending, 3 in vain.
fn policy(action: Action) -> Policy {
    let advice = Advice { max_new_tokens: Some(16), ..Advice::default() };
    Policy { action, interval_ms: 5 * MINUTE, most: [4, 3, 5, 4, 6, 3], advice }
}

/// Accounts `a/**` under the small bounds, with a day's budget of 100,000 tokens on `a`.
fn world(action: Action) -> World {
    let day = Period::calendar(PeriodKind::Day, "UTC");
    let mut a = pattern("a", vec![spec(Unit::Tokens, day, 100_000)]);
    a.runaway = Some(Arc::new(policy(action)));
    let mut below = pattern("a/**", Vec::new());
    below.runaway = Some(Arc::new(policy(action)));
    World::with(settings(vec![a, below, pattern("b/**", Vec::new())]))
}

fn try_to(world: &World, ask: Ask<'_>) -> Result<Granted, Refusal> {
    match world.reserve(ask).unwrap() {
        Admission::Granted(granted) => Ok(granted),
        Admission::Refused(refusal, _) => Err(refusal),
    }
}

fn prompt(account: &'static str, fingerprint: &str) -> Ask<'static> {
    let labels = vec![(PROMPT_FINGERPRINT.to_owned(), fingerprint.to_owned())];
    Ask { labels, ..ask(account, exactly(tokens(1))) }
}

/// The findings in the journal.
fn told(world: &World) -> Vec<(Finding, Action)> {
    let told = |fact| match fact {
        Fact::Runaway { finding, action, .. } => Some((finding, action)),
        _ => None,
    };
    world.tape.facts().into_iter().filter_map(told).collect()
}

fn rule(refusal: &Refusal) -> Rule {
    match refusal.reason {
        RefusalReason::Runaway(finding) => finding.rule,
        other => panic!("{other:?}"),
    }
}

/// Nests until it is refused; returns how deep that went.
fn recurse(world: &World, mut parent: ReservationId) -> (i64, Refusal) {
    for depth in 2.. {
        match world.nest("a/x", parent, tokens(10)) {
            Ok(view) => parent = view.id,
            Err(refusal) => return (depth, refusal),
        }
    }
    unreachable!("it goes on for ever")
}

#[test]
fn s12_a_call_nested_too_deep_is_stopped_and_shallow_ones_go_on() {
    let world = world(Action::Stop);
    let top = world.held("a/x", 10);
    let (depth, refusal) = recurse(&world, top);
    assert_eq!((depth, rule(&refusal), refusal.account.as_str()), (4, Rule::Depth, "a/x"));
    assert_eq!(refusal.reset_ms, None);
    assert!(world.nest("a/x", top, tokens(0)).is_ok());
    let found = told(&world);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0.to_string(), "depth: 4 reservations nested in each other, 3 allowed");
    // The refused call has held nothing.
    assert_eq!(world.tokens_of("a"), (10, 0));
}

#[test]
fn s12_depth_and_children_are_known_after_a_restart() {
    let world = world(Action::Stop);
    let top = world.held("a/x", 100);
    let second = world.nest("a/x", top, tokens(50)).unwrap().id;
    let third = world.nest("a/x", second, tokens(50)).unwrap().id;
    let again = world.replayed(world_settings(), &world.tape.records());
    assert_eq!(rule(&again.nest("a/x", third, tokens(1)).unwrap_err()), Rule::Depth);
    for _ in 0..3 {
        again.nest("a/x/y", top, tokens(1)).unwrap();
    }
    assert_eq!(rule(&again.nest("a/x/y", top, tokens(1)).unwrap_err()), Rule::Children);
    again.release(second);
    assert!(again.nest("a/x/y", top, tokens(1)).is_ok());
}

fn world_settings() -> bursar_ledger::Settings {
    let mut any = pattern("a/**", Vec::new());
    any.runaway = Some(Arc::new(policy(Action::Stop)));
    settings(vec![pattern("a", Vec::new()), any])
}

#[test]
fn s12_a_prompt_that_comes_back_is_stopped_until_the_interval_is_over() {
    let world = world(Action::Stop);
    for _ in 0..5 {
        let granted = try_to(&world, prompt("a/x", "loop")).unwrap();
        world.commit(granted.view.id, 1);
    }
    for _ in 0..20 {
        let refusal = try_to(&world, prompt("a/x", "loop")).unwrap_err();
        assert_eq!(rule(&refusal), Rule::Repeats);
        assert_eq!(refusal.reset_ms, Some(world.now().wall_ms + 5 * MINUTE));
    }
    assert_eq!(told(&world).len(), 1, "told once an interval");
    // Other prompts, and others with the same one, go on.
    assert!(try_to(&world, prompt("a/x", "else")).is_ok());
    assert!(try_to(&world, prompt("a/y", "loop")).is_ok());
    world.wait(5 * MINUTE);
    assert!(try_to(&world, prompt("a/x", "loop")).is_ok());
}

#[test]
fn s12_a_repeat_by_its_key_is_no_repeat_of_the_prompt() {
    let world = world(Action::Stop);
    for _ in 0..50 {
        let ask = Ask { key: 7, ..prompt("a/x", "once") };
        assert!(try_to(&world, ask).is_ok());
    }
}

#[test]
fn s12_spending_faster_than_the_pace_stops_the_one_who_does() {
    let world = world(Action::Stop);
    // 5 minutes of a day at 4 times the pace are less than a quarter: that is what is allowed.
    for _ in 0..25 {
        world.commit(world.held("a/x", 1_000), 1_000);
        world.commit(world.held("a/y", 100), 100);
    }
    world.commit(world.held("a/x", 1), 1);
    let refusal = world.hold("a/x", tokens(1)).unwrap_err();
    let RefusalReason::Runaway(finding) = refusal.reason else { panic!("{refusal:?}") };
    assert_eq!((finding.figure, finding.most, finding.unit), (25_001, 25_000, Some(Unit::Tokens)));
    assert!(world.hold("a/y", tokens(1)).is_ok());
    world.wait(5 * MINUTE);
    assert!(world.hold("a/x", tokens(1)).is_ok());
}

#[test]
fn s12_what_was_spent_over_hours_counts_as_evenly_spent() {
    let world = world(Action::Stop);
    let ask = Ask { ttl_ms: 600 * MINUTE, ..ask("a/x", exactly(tokens(90_000))) };
    let id = try_to(&world, ask).unwrap().view.id;
    world.wait(60 * MINUTE);
    world.commit(id, 90_000);
    assert_eq!(told(&world), [], "90,000 in an hour are 7,500 in 5 minutes");
    world.record("a/x", tokens(1)).unwrap();
    assert!(world.hold("a/x", tokens(1)).is_ok());
}

#[test]
fn s12_what_was_spent_over_two_intervals_counts_by_half() {
    let world = world(Action::Stop);
    let id = world.held("a/x", 60_000);
    world.wait(10 * MINUTE);
    world.commit(id, 60_000);
    assert_eq!(told(&world)[0].0.figure, 30_000);
}

/// Accounts `a/**` under the small bounds and no budget.
fn unlimited() -> World {
    World::with(world_settings())
}

#[test]
fn s12_a_total_has_no_pace() {
    let world = unlimited();
    world.limit("a", Unit::Tokens, Period::total(), 100_000);
    // Looked at for this one, whose pace nobody passes.
    world.limit("a", Unit::Tokens, Period::calendar(PeriodKind::Day, "UTC"), 1_000_000_000);
    world.record("a/x", tokens(60_000)).unwrap();
    assert_eq!(told(&world), []);
}

#[test]
fn s12_the_pace_of_a_rolling_window_is_that_of_its_length() {
    let world = unlimited();
    world.limit("a", Unit::Tokens, Period::rolling(20 * MINUTE), 100_000);
    world.limit("a/day", Unit::Tokens, Period::rolling(24 * 60 * MINUTE), 100_000);
    // Four times the pace of 20 minutes are all of it within 5.
    world.record("a/x", tokens(60_000)).unwrap();
    assert_eq!(told(&world), []);
    world.record("a/day", tokens(30_000)).unwrap();
    assert_eq!((told(&world)[0].0.figure, told(&world)[0].0.most), (30_000, 25_000));
}

#[test]
fn s12_money_has_a_pace_as_well() {
    let world = unlimited();
    let day = Period::calendar(PeriodKind::Day, "UTC");
    world.limit("a", Unit::UsdNanos, day, 100_000);
    world.record("a/x", of(&[(Unit::UsdNanos, 30_000)])).unwrap();
    assert_eq!(told(&world)[0].0.unit, Some(Unit::UsdNanos));
}

#[test]
fn s12_a_nested_call_is_held_against_its_parents_pace_beside_its_own() {
    let world = world(Action::Stop);
    let day = Period::calendar(PeriodKind::Day, "UTC");
    world.limit("a/x/y", Unit::Tokens, day, 1_000_000_000);
    let parent = world.held("a/x", 60_000);
    let nested = world.nest("a/x/y", parent, tokens(60_000)).unwrap().id;
    world.commit(nested, 30_000);
    let found = told(&world)[0].0;
    assert_eq!((found.rule, found.figure, found.most), (Rule::Velocity, 30_000, 25_000));
}

#[test]
fn s12_an_account_that_is_unfrozen_after_a_runaway_is_not_alarmed() {
    let world = world(Action::Freeze);
    world.commit(world.held("a/x", 30_000), 30_000);
    world.freeze("a/x", false);
    assert!(world.hold("a/x", tokens(1)).is_ok());
}

#[test]
fn s12_recorded_spending_counts_too() {
    let world = world(Action::Stop);
    world.record("a/x", tokens(30_000)).unwrap();
    assert_eq!(rule(&world.hold("a/x", tokens(1)).unwrap_err()), Rule::Velocity);
}

/// Who releases first and tells later has spent as fast.
#[test]
fn s12_what_a_late_commit_has_spent_counts_too() {
    let world = world(Action::Stop);
    let id = world.held("a/x", 1_000);
    world.release(id);
    assert!(world.hold("a/x", tokens(1)).is_ok());
    world.commit(id, 30_000);
    assert_eq!(rule(&world.hold("a/x", tokens(1)).unwrap_err()), Rule::Velocity);
}

#[test]
fn s12_what_was_spent_counts_for_its_interval_also_while_nobody_calls() {
    let world = world(Action::Stop);
    world.commit(world.held("a/x", 1_000), 20_000);
    world.wait(MINUTE);
    world.ledger.retire_idle(world.now());
    world.commit(world.held("a/x", 1_000), 6_000);
    assert_eq!(rule(&world.hold("a/x", tokens(1)).unwrap_err()), Rule::Velocity);
}

#[test]
fn s12_too_many_pending_children_of_one_parent_or_of_one_account_are_stopped() {
    let world = world(Action::Stop);
    let top = world.held("a/x", 100);
    let children: Vec<_> =
        (0..4).map(|_| world.nest("a/x/y", top, tokens(1)).unwrap().id).collect();
    assert_eq!(rule(&world.nest("a/x/y", top, tokens(1)).unwrap_err()), Rule::Children);
    // Each end makes room, whatever it spent.
    world.commit(children[0], 1);
    assert!(world.nest("a/x/y", top, tokens(1)).is_ok());
    for _ in 0..6 {
        world.held("a/z", 1);
    }
    let refusal = world.hold("a/z", tokens(1)).unwrap_err();
    assert_eq!(rule(&refusal), Rule::OpenReservations);
}

#[test]
fn s12_calls_that_all_end_in_vain_are_stopped_and_one_that_spends_ends_the_row() {
    let world = world(Action::Stop);
    for _ in 0..5 {
        for _ in 0..3 {
            world.release(world.held("a/x", 1));
        }
        world.commit(world.held("a/x", 1), 1);
    }
    for _ in 0..4 {
        world.release(world.held("a/x", 1));
    }
    let refusal = world.hold("a/x", tokens(1)).unwrap_err();
    assert_eq!(rule(&refusal), Rule::NoProgress);
    world.wait(5 * MINUTE);
    assert!(world.hold("a/x", tokens(1)).is_ok());
}

#[test]
fn s12_holds_of_capacity_and_parents_of_others_are_no_attempts() {
    let world = world(Action::Stop);
    for _ in 0..10 {
        let memory = world.hold("a/x", of(&[(Unit::VramBytes, 5)])).unwrap().view.id;
        world.release(memory);
        let parent = world.held("a/x", 5);
        let child = world.nest("a/x/y", parent, tokens(5)).unwrap().id;
        world.commit(child, 5);
        world.release(parent);
    }
    assert_eq!(told(&world), []);
}

#[test]
fn s12_warn_tells_degrade_advises_and_freeze_freezes_by_name() {
    let warned = world(Action::Warn);
    for _ in 0..9 {
        assert_eq!(try_to(&warned, prompt("a/x", "p")).unwrap().verdict, Verdict::Ok);
        warned.wait(1);
    }
    let action = told(&warned)[0].1;
    assert_eq!(action, Action::Warn);
    let degraded = world(Action::Degrade);
    for _ in 0..5 {
        assert!(!try_to(&degraded, prompt("a/x", "p")).unwrap().degraded);
    }
    let granted = try_to(&degraded, prompt("a/x", "p")).unwrap();
    assert_eq!((granted.verdict, granted.degraded), (Verdict::Degrade, true));
    let advice = granted.scope.runaway_advice().unwrap();
    assert_eq!(advice.max_new_tokens, Some(16));

    let frozen = world(Action::Freeze);
    for _ in 0..5 {
        try_to(&frozen, prompt("a/x", "p")).unwrap();
    }
    assert_eq!(rule(&try_to(&frozen, prompt("a/x", "p")).unwrap_err()), Rule::Repeats);
    let account = frozen.ledger.account("a/x", frozen.now()).unwrap();
    let reason = "runaway: repeats: 6 times the same prompt within an interval, 5 allowed";
    assert_eq!((account.frozen, account.freeze_reason.as_str()), (true, reason));
    let refusal = try_to(&frozen, prompt("a/x", "q")).unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::AccountFrozen);
    // Whoever unfreezes it trusts it: its counts begin anew.
    frozen.freeze("a/x", false);
    assert!(try_to(&frozen, prompt("a/x", "p")).is_ok());
}

#[test]
fn s12_a_velocity_found_at_the_end_of_a_call_freezes_at_once() {
    let world = world(Action::Freeze);
    let pending = world.held("a/x", 10);
    world.commit(world.held("a/x", 30_000), 30_000);
    assert_eq!(world.debit(pending, 1).verdict, Verdict::Stop);
    assert_eq!(told(&world).len(), 1);
}

#[test]
fn s12_accounts_without_the_policy_are_left_alone() {
    let world = world(Action::Stop);
    for _ in 0..50 {
        let granted = try_to(&world, prompt("b/x", "p")).unwrap();
        world.release(granted.view.id);
    }
    assert_eq!((told(&world), world.ledger.counted_accounts()), (Vec::new(), 0));
}

#[test]
fn s12_watchers_hear_of_the_newest_findings() {
    let world = world(Action::Stop);
    for n in 0..300 {
        let path = format!("a/{}/{n}", n / 100);
        world.record(&path, tokens(30_000)).unwrap();
    }
    let found = world.ledger.findings(0);
    let named: Vec<_> = found.iter().map(|found| found.sequence).collect();
    assert_eq!(named, (45..=300).collect::<Vec<_>>());
    assert_eq!(&*found[255].account, "a/2/299");
    assert_eq!(world.ledger.findings(299).len(), 1);
    let counts = [Rule::Velocity, Rule::Depth].map(|rule| world.ledger.found(rule));
    assert_eq!(counts, [300, 0]);
}

#[test]
fn s12_a_hundred_thousand_accounts_have_bounded_counts_that_go_once_they_are_idle() {
    let mut any = pattern("a/**", Vec::new());
    any.runaway = Some(Arc::new(policy(Action::Warn)));
    let mut settings = settings(vec![pattern("a", Vec::new()), any]);
    settings.max_accounts = 100_200;
    settings.max_children = 1_000;
    settings.key_retention_ms = 0;
    let world = World::with(settings);
    for n in 0..100_000 {
        let path = format!("a/{}/{n}", n / 1_000);
        let labels = vec![(PROMPT_FINGERPRINT.to_owned(), format!("prompt {n}"))];
        let ask = Ask { labels, ..ask(&path, exactly(tokens(1))) };
        let id = try_to(&world, ask).unwrap().view.id;
        world.commit(id, 1);
        if n % 1_000 == 0 {
            world.ledger.tick(world.now());
        }
    }
    assert_eq!(world.ledger.counted_accounts(), 100_000);
    world.wait(5 * MINUTE);
    world.ledger.retire_idle(world.now());
    assert_eq!(world.ledger.counted_accounts(), 0);
}
