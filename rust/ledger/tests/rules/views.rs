//! What callers read of a ledger: accounts, figures and names; and what an operator does to one
//! reservation or to all budgets.

use std::sync::Arc;

use bursar_ledger::fact::Fact;
use bursar_ledger::path::{MAX_DEPTH, MAX_NAME_BYTES, Pattern, is_valid};
use bursar_ledger::runaway::Action;
use bursar_ledger::{
    Admission, Ask, BudgetTerms, Period, PeriodKind, Settings, Spending, State, Unit, Verdict, Wish,
};

use crate::common::*;
use crate::leases::{attach, more};

#[test]
fn accounts_are_listed_in_order_with_what_is_pending_at_or_below_them() {
    let world = World::tokens(&[("a", 100)]);
    let ended = world.held("a/x", 5);
    let _pending = (world.held("a/x", 5), world.held("a/x/y", 5), world.held("b", 5));
    world.release(ended);
    let listed = |path, after, limit| {
        let views = world.ledger.accounts(path, after, limit, world.now());
        let view =
            |view: &bursar_ledger::AccountView| (view.path.to_string(), view.open_reservations);
        views.iter().map(view).collect::<Vec<_>>()
    };
    let of = |pairs: &[(&str, i64)]| {
        pairs.iter().map(|(path, open)| ((*path).to_owned(), *open)).collect::<Vec<_>>()
    };
    assert_eq!(listed("", None, 9), of(&[("a", 2), ("a/x", 2), ("a/x/y", 1), ("b", 1)]));
    assert_eq!(listed("a/x", None, 9), of(&[("a/x", 2), ("a/x/y", 1)]));
    assert_eq!(listed("", Some("a"), 2), of(&[("a/x", 2), ("a/x/y", 1)]));
    assert_eq!(world.ledger.account("a", world.now()).unwrap().open_reservations, 2);
    let id = |path| world.ledger.account_id(path).unwrap();
    assert_eq!(world.ledger.nearest("a/x/z/q"), [id("a/x")]);
    assert_eq!(world.ledger.nearest("b"), [id("b")]);
    let mut roots = world.ledger.nearest("c/x");
    roots.sort_unstable();
    assert_eq!(roots, [id("a"), id("b")]);
    let ticket = world.ledger.note_operated(id("b"), "by hand".into(), world.now());
    assert_eq!(ticket, world.tape.len() as u64);
    let noted = Fact::Operated { account: id("b"), detail: "by hand".into() };
    assert_eq!(world.tape.facts().last(), Some(&noted));
}

#[test]
fn a_survey_counts_everything_and_names_the_budgets_nearest_to_the_root() {
    let world = World::tokens(&[("a/x", 50), ("a", 100), ("b", 30)]);
    world.freeze("b", true);
    let (one, two) = (world.held("a/x", 5), world.held("a/x", 5));
    world.commit(one, 5);
    let (_page, _) = attach(&world, two, 0, 0);
    assert_eq!(more(&world, two, 9), Verdict::Ok);
    let survey = world.ledger.survey(2, world.now());
    assert_eq!((survey.accounts, survey.frozen, survey.pending), (3, 1, 1));
    assert_eq!((survey.kept, survey.topped_up, survey.left_out), (2, 1, 1));
    let named = |survey: &bursar_ledger::Survey| {
        let one = |s: &bursar_ledger::Surveyed| {
            (s.budget.path.to_string(), s.standing.spent, s.standing.held)
        };
        survey.budgets.iter().map(one).collect::<Vec<_>>()
    };
    assert_eq!(named(&survey), [("a".into(), 5, 9), ("b".into(), 0, 0)]);
    for (most, left_out) in [(3, 0), (1, 2)] {
        assert_eq!(world.ledger.survey(most, world.now()).left_out, left_out);
    }
}

#[test]
fn of_too_many_accounts_a_survey_names_those_that_have_spent_a_budget_first() {
    let world = World::tokens(&[("a", 100), ("b", 100), ("b/deep/down", 5), ("c", 0)]);
    world.record("b/deep/down", tokens(5)).unwrap();
    let survey = world.ledger.survey(2, world.now());
    let named: Vec<_> = survey.budgets.iter().map(|one| one.budget.path.to_string()).collect();
    assert_eq!(named, ["a", "b/deep/down"]);
    assert_eq!(survey.left_out, 2);
}

#[test]
fn a_survey_of_a_window_that_has_ended_opens_no_other() {
    let world = World::new();
    world.limit("a", Unit::Tokens, Period::calendar(PeriodKind::Hour, "UTC"), 100);
    world.record("a", tokens(7)).unwrap();
    let spent = || world.ledger.survey(9, world.now()).budgets[0].standing.spent;
    world.wait(HOUR - 1);
    assert_eq!(spent(), 7);
    let records = world.tape.len();
    world.wait(1);
    assert_eq!((spent(), world.tape.len()), (0, records));
}

#[test]
fn a_reservation_that_is_cut_off_ends_at_what_it_has_used() {
    let world = World::tokens(&[("a", 100)]);
    let (cut, ended) = (world.held("a", 10), world.held("a", 10));
    world.debit(cut, 4);
    world.release(ended);
    for id in [cut, ended] {
        assert_eq!(world.ledger.is_pending(id), id == cut);
        world.ledger.cut_off(id, world.now()).unwrap();
        assert!(!world.ledger.is_pending(id));
    }
    assert_eq!((world.view(cut).state, world.view(cut).spent), (State::Expired, tokens(4)));
    assert_eq!(world.view(ended).state, State::Released);
}

#[test]
fn labels_and_rates_are_found_by_reservation() {
    let world = World::tokens(&[("a", 100)]);
    let labelled = |name: &str| {
        let labels = vec![(name.to_owned(), "x".to_owned())];
        let ask = Ask { labels, ..ask("a", exactly(tokens(1))) };
        let Ok(Admission::Granted(granted)) = world.reserve(ask) else { panic!("it fits") };
        granted.view.id
    };
    let (job, other, ended) = (labelled("job"), labelled("team"), labelled("job"));
    world.release(ended);
    assert_eq!(world.ledger.pending_labelled("job"), [(job, "x".to_owned())]);
    assert_eq!(world.ledger.rate(other), Ok(None));
    let rate = Arc::new(crate::leases::gpt());
    let usage = bursar_ledger::rates::Usage { output_tokens: 5, ..Default::default() };
    let wish = Wish::Usage { rate: Some(Arc::clone(&rate)), usage, min_output_tokens: 5 };
    let Ok(Admission::Granted(granted)) = world.reserve(ask("a", wish)) else { panic!("it fits") };
    assert_eq!(world.ledger.rate(granted.view.id), Ok(Some(rate)));
}

#[test]
fn r05_spending_at_once_has_unused_top_ups_taken_back() {
    let world = World::tokens(&[("a", 20)]);
    let greedy = world.held("a/a", 1);
    let (page, _) = attach(&world, greedy, 0, 0);
    assert_eq!(more(&world, greedy, 19), Verdict::Ok);
    assert!(page.step(5));
    let spend = |amount| {
        let amounts = tokens(amount);
        let labels = Vec::new();
        let spending = Spending { account: "a/b", amounts, key: 0, payload: 0, labels };
        let answer = world.ledger.spend(vec![spending], world.now()).unwrap();
        matches!(answer, Admission::Granted(_))
    };
    assert!(!spend(16), "what would not do is left where it is");
    assert_eq!(page.told().granted, 19);
    assert!(spend(15));
    assert_eq!(page.told().granted, 5);
}

#[test]
fn r10_a_configuration_makes_what_it_names_and_changes_what_nobody_has_set() {
    let patterns = |limit| {
        let budget = |period| {
            let terms = BudgetTerms { manual: false, ..terms(limit) };
            bursar_ledger::BudgetSpec { unit: Unit::Tokens, period, terms }
        };
        let total = budget(Period::total());
        let both = vec![total.clone(), budget(Period::rolling(HOUR))];
        vec![pattern("a", if limit == 10 { vec![total] } else { both }), pattern("b/*", vec![])]
    };
    let world = World::with(settings(patterns(10)));
    world.ledger.configure(world.now()).unwrap();
    assert_eq!(world.standing("a", Unit::Tokens).0, 10);
    assert_eq!(world.ledger.account_count(), 1, "a pattern names no account");
    let records = world.tape.len();
    let overruled = world.ledger.configure(world.now()).unwrap();
    assert_eq!(world.tape.len(), records, "nothing is changed twice");
    assert!(overruled.is_empty());
    let limits = |world: &World| {
        let view = world.ledger.account("a", world.now()).unwrap();
        view.balances.iter().map(|balance| balance.standing.limit).collect::<Vec<_>>()
    };
    let again = world.replayed(settings(patterns(20)), &world.tape.records());
    again.ledger.configure(again.now()).unwrap();
    assert_eq!(limits(&again), [20, 20]);
    world.limit("a", Unit::Tokens, Period::total(), 15);
    let settings = Settings { max_accounts: 9, ..settings(patterns(20)) };
    let again = world.replayed(settings, &world.tape.records());
    let overruled = again.ledger.configure(again.now()).unwrap();
    assert_eq!(limits(&again), [15, 20], "an operator has set that one");
    let [one] = &overruled[..] else { panic!("{overruled:?}") };
    let period = one.budget.period.to_string();
    assert_eq!((period.as_str(), one.limit, one.configured), ("total", 15, 20));
}

#[test]
fn r17_what_was_spent_before_a_crash_and_never_told_is_told_after_it() {
    let world = World::new();
    world.limit("a", Unit::Tokens, Period::total(), 10);
    world.record("a", tokens(10)).unwrap();
    let mut records = world.tape.records();
    records.retain(|record| !record.facts.iter().any(|fact| matches!(fact, Fact::Crossed { .. })));
    let again = world.replayed(settings(vec![]), &records);
    assert_eq!(again.tape.crossings(), []);
    again.ledger.configure(again.now()).unwrap();
    assert_eq!(again.tape.crossings(), [1_000]);
    again.ledger.configure(again.now()).unwrap();
    assert_eq!(again.tape.crossings(), [1_000], "once");
}

#[test]
fn the_longest_paths_and_patterns_are_valid_and_no_longer_ones() {
    let path = |depth, bytes| vec!["n".repeat(bytes); depth].join("/");
    for (depth, bytes, valid) in [
        (MAX_DEPTH, MAX_NAME_BYTES, true),
        (MAX_DEPTH + 1, 1, false),
        (1, MAX_NAME_BYTES + 1, false),
    ] {
        assert_eq!(is_valid(&path(depth, bytes)), valid, "{depth} names of {bytes}");
        assert_eq!(Pattern::parse(&path(depth, bytes)).is_some(), valid);
    }
    for (text, literal) in [("a/b", true), ("a/*", false), ("a/**", false)] {
        let pattern = Pattern::parse(text).unwrap();
        assert_eq!((pattern.as_str(), pattern.is_literal()), (text, literal));
    }
}

#[test]
fn periods_and_actions_have_names() {
    let period = |kind, zone| Period::calendar(kind, zone).to_string();
    assert_eq!(bursar_ledger::ROLLING_MS, 1_000..=31_622_400_000, "a second to a leap year");
    assert_eq!(Period::total().to_string(), "total");
    assert_eq!(Period::rolling(90_000).to_string(), "rolling:90s");
    assert_eq!(Period::rolling(1_500).to_string(), "rolling:1500ms");
    assert_eq!(period(PeriodKind::Day, "UTC"), "day");
    assert_eq!(period(PeriodKind::Month, "Europe/Berlin"), "month@Europe/Berlin");
    let actions = [Action::Warn, Action::Degrade, Action::Stop, Action::Freeze];
    assert_eq!(actions.map(Action::name), ["warn", "degrade", "stop", "freeze"]);
}

#[test]
fn a_verdict_of_a_call_is_stop_while_its_account_or_one_above_is_frozen() {
    let world = World::tokens(&[("a", 100), ("a/x", 50)]);
    let ended = world.commit(world.held("a/x", 5), 5);
    assert_eq!(ended.scope.verdict(), Verdict::Ok);
    let tightest = ended.scope.tightest(&tokens(1));
    assert_eq!(tightest.iter().map(|b| b.standing.remaining).collect::<Vec<_>>(), [45]);
    world.freeze("a", true);
    assert_eq!(ended.scope.verdict(), Verdict::Stop);
}
