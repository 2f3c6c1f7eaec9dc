//! R1 to R5, R11: what is held, what is refused and how the refusal explains itself.

use std::sync::Arc;

use bursar_ledger::rates::{Rate, RateCard, RateEntry, Usage};
use bursar_ledger::{Admission, Amounts, LedgerError, Period, RefusalReason, Unit, Verdict, Wish};

use crate::common::{DAY, START_MS, World, ask, exactly, of, tokens};

fn rate() -> Rate {
    Rate {
        model: "m".into(),
        input_nanos_per_million: 1_000_000,
        cached_input_nanos_per_million: 0,
        cache_write_nanos_per_million: 0,
        output_nanos_per_million: 10_000_000,
        call_nanos: 0,
        gpu_second_nanos: 0,
        tiers: vec![],
    }
}

fn wish(most: Amounts, least: Amounts) -> Wish {
    Wish::Amounts { most, least }
}

fn granted(world: &World, path: &str, wish: Wish) -> Option<Amounts> {
    let said = world.ledger.check(path, &wish, world.now()).unwrap();
    let did = match world.reserve(ask(path, wish)).unwrap() {
        Admission::Granted(granted) => Some((granted.view.granted, granted.view.max_output_tokens)),
        Admission::Refused(..) => None,
    };
    let said = match said {
        Admission::Granted(fits) => Some((fits.granted, fits.max_output_tokens)),
        Admission::Refused(..) => None,
    };
    assert_eq!(said, did, "Check says what Reserve does");
    did.map(|(amounts, _)| amounts)
}

#[test]
fn r01_reserve_holds_everywhere_or_nowhere() {
    // Four levels, each but the last with room; two units, of which one is short at the root.
    let world = World::tokens(&[("a", 1_000), ("a/b", 500), ("a/b/c", 200), ("a/b/c/d", 100)]);
    for path in ["a", "a/b"] {
        world.limit(path, Unit::UsdNanos, Period::total(), 50);
    }
    let all = ["a", "a/b", "a/b/c", "a/b/c/d"];
    assert!(world.hold("a/b/c/d", of(&[(Unit::Tokens, 100), (Unit::UsdNanos, 50)])).is_ok());
    for path in all {
        assert_eq!(world.tokens_of(path), (100, 0));
    }
    for amounts in [
        of(&[(Unit::Tokens, 1)]),
        of(&[(Unit::Tokens, 1), (Unit::UsdNanos, 1)]),
        of(&[(Unit::UsdNanos, 1)]),
    ] {
        assert!(world.hold("a/b/c/d", amounts).is_err());
    }
    assert!(world.hold("a/b/c", of(&[(Unit::Tokens, 100), (Unit::UsdNanos, 1)])).is_err());
    for path in all {
        assert_eq!(world.tokens_of(path), (100, 0), "{path}");
    }
    assert_eq!(world.standing("a", Unit::UsdNanos), (50, 50, 0, 0));
    // A unit that nobody counts is held without a limit.
    assert!(world.hold("a/b", of(&[(Unit::EnergyMj, i64::MAX)])).is_ok());
}

#[test]
fn r01_a_refused_call_leaves_no_trace() {
    let world = World::tokens(&[("a", 10), ("a/b", 100)]);
    let before = world.ledger.reservation_count();
    assert!(world.hold("a/b", tokens(11)).is_err());
    assert_eq!(world.ledger.reservation_count(), before);
    assert_eq!(world.ledger.account("a", world.now()).unwrap().open_reservations, 0);
    let facts = world.tape.facts();
    assert!(!facts.iter().any(|fact| matches!(fact, bursar_ledger::fact::Fact::Reserved(_))));
}

#[test]
fn r02_the_last_one_that_fits_is_the_last_one_admitted() {
    let world = World::tokens(&[("a", 100), ("a/b", 150), ("a/b/c", 150)]);
    let admitted = (0..2_000).filter(|_| world.hold("a/b/c", tokens(1)).is_ok()).count();
    assert_eq!(admitted, 100);
    assert_eq!(world.standing("a", Unit::Tokens), (100, 100, 0, 0));
}

#[test]
fn r04_a_refusal_names_account_unit_shortfall_and_reset() {
    let world = World::tokens(&[("a/b", 1_000)]);
    world.limit("a", Unit::UsdNanos, Period::calendar(bursar_ledger::PeriodKind::Day, "UTC"), 30);
    let refusal = world.hold("a/b", of(&[(Unit::Tokens, 7), (Unit::UsdNanos, 42)])).unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::BudgetExhausted);
    assert_eq!((refusal.account.as_str(), refusal.unit), ("a", Some(Unit::UsdNanos)));
    assert_eq!((refusal.shortfall, refusal.reset_ms), (12, Some(START_MS + DAY)));
    let refusal = world.hold("a/b", tokens(1_001)).unwrap_err();
    assert_eq!((refusal.account.as_str(), refusal.shortfall, refusal.reset_ms), ("a/b", 1, None));
}

#[test]
fn r05_a_partial_grant_takes_what_is_left_down_to_the_least() {
    let world = World::tokens(&[("a", 100), ("a/b", 70)]);
    assert_eq!(granted(&world, "a/b", wish(tokens(90), tokens(71))), None);
    assert_eq!(granted(&world, "a/b", wish(tokens(90), tokens(70))), Some(tokens(70)));
    assert_eq!(granted(&world, "a/b", wish(tokens(90), tokens(1))), None);
    assert_eq!(granted(&world, "a", wish(tokens(90), tokens(1))), Some(tokens(30)));
}

#[test]
fn r05_each_unit_has_a_least_of_its_own() {
    let world = World::tokens(&[("a", 100)]);
    world.limit("a", Unit::UsdNanos, Period::total(), 10);
    let most = of(&[(Unit::Tokens, 200), (Unit::UsdNanos, 20)]);
    let least = of(&[(Unit::Tokens, 50), (Unit::UsdNanos, 20)]);
    assert_eq!(granted(&world, "a", wish(most, least)), None);
    let least = of(&[(Unit::Tokens, 50), (Unit::UsdNanos, 10)]);
    let expected = of(&[(Unit::Tokens, 100), (Unit::UsdNanos, 10)]);
    assert_eq!(granted(&world, "a", wish(most, least)), Some(expected));
}

#[test]
fn r05_an_overdrawn_unit_that_is_not_asked_for_limits_nothing() {
    let world = World::tokens(&[("a", 100)]);
    world.limit("a", Unit::UsdNanos, Period::total(), 10);
    world.record("a", of(&[(Unit::UsdNanos, 25)])).unwrap();
    assert_eq!(granted(&world, "a", exactly(tokens(10))), Some(tokens(10)));
    assert_eq!(granted(&world, "a", wish(tokens(200), tokens(10))), Some(tokens(90)));
}

#[test]
fn r05_usage_is_granted_as_many_output_tokens_as_fit_every_unit() {
    // 1,000 input tokens cost 1,000 nanos, one output token 10.
    let world = World::tokens(&[("a", 100_000), ("a/b", 1_500)]);
    world.limit("a", Unit::UsdNanos, Period::total(), 4_009);
    let usage =
        |output_tokens| Usage { input_tokens: 1_000, output_tokens, calls: 1, ..Usage::default() };
    let wish = |most, min_output_tokens| Wish::Usage {
        rate: Some(Arc::new(rate())),
        usage: usage(most),
        min_output_tokens,
    };
    assert_eq!(granted(&world, "a/b", wish(600, 501)), None, "tokens limit to 500");
    let price = |output: i64| 1_000 + 10 * output;
    let amounts = |output: i64| {
        of(&[(Unit::Tokens, 1_000 + output), (Unit::UsdNanos, price(output)), (Unit::Calls, 1)])
    };
    let told = world.ledger.check("a", &wish(600, 301), world.now()).unwrap();
    assert!(matches!(told, Admission::Refused(r, _) if r.shortfall == 1 && r.account == "a"));
    assert_eq!(granted(&world, "a/b", wish(600, 1)), Some(amounts(300)), "money limits to 300");
    assert_eq!(world.standing("a", Unit::UsdNanos), (4_009, 4_000, 0, 9));
}

#[test]
fn r05_a_wish_that_makes_no_sense_is_an_error() {
    let world = World::tokens(&[("a", 100)]);
    for (most, least) in [(-1, -1), (5, -1), (5, 6)] {
        let asked = world.reserve(ask("a", wish(tokens(most), tokens(least))));
        assert!(matches!(asked, Err(LedgerError::InvalidAmount { unit: Unit::Tokens, .. })));
        let asked = world.ledger.check("a", &wish(tokens(most), tokens(least)), world.now());
        assert!(matches!(asked, Err(LedgerError::InvalidAmount { .. })));
    }
    let usage = Usage { input_tokens: -5, ..Usage::default() };
    let unpriced = Wish::Usage { rate: None, usage, min_output_tokens: 0 };
    assert!(world.reserve(ask("a", unpriced)).is_err());
    assert_eq!(world.standing("a", Unit::Tokens), (100, 0, 0, 100));
    assert_eq!(world.ledger.reservation_count(), 0);
}

#[test]
fn r07_overdraft_blocks_new_holds() {
    let world = World::tokens(&[("a", 100), ("a/b", 1_000)]);
    let id = world.held("a/b", 60);
    let ended = world.commit(id, 130);
    assert_eq!((ended.view.overdraft, ended.verdict), (tokens(30), Verdict::Stop));
    assert_eq!(world.standing("a", Unit::Tokens), (100, 0, 130, -30));
    assert_eq!(world.hold("a/b", tokens(1)).unwrap_err().shortfall, 31);
    world.limit("a", Unit::Tokens, Period::total(), 131);
    assert!(world.hold("a/b", tokens(1)).is_ok());
}

#[test]
fn r11_a_model_that_the_card_does_not_name_has_no_rate() {
    let entry = RateEntry { rate: rate(), aliases: vec!["n".into()], tokenizer: None };
    let card = RateCard::new(vec![entry]).unwrap();
    assert!(card.rate("m").is_some() && card.rate("n").is_some());
    assert!(card.rate("M").is_none() && card.rate("m-2").is_none() && card.rate("").is_none());
}

#[test]
fn r12_sums_of_usage_do_not_wrap() {
    let world = World::tokens(&[("a", i64::MAX)]);
    let usage = Usage { input_tokens: i64::MAX, output_tokens: 1, ..Usage::default() };
    let wish = Wish::Usage { rate: None, usage, min_output_tokens: 1 };
    assert!(matches!(world.reserve(ask("a", wish)), Err(LedgerError::Overflow)));
    assert_eq!(world.tokens_of("a"), (0, 0));
    assert_eq!(world.ledger.reservation_count(), 0);
}

#[test]
fn r05_the_least_worth_having_is_granted_where_exactly_that_is_left() {
    let usage = Usage { input_tokens: 10, output_tokens: 50, ..Usage::default() };
    for (limit, granted_tokens) in [(29, None), (30, Some(tokens(30))), (31, Some(tokens(31)))] {
        let world = World::tokens(&[("a", limit)]);
        let wish = Wish::Usage { rate: None, usage, min_output_tokens: 20 };
        let granted =
            granted(&world, "a", wish).map(|amounts| amounts.filter(|u| u == Unit::Tokens));
        assert_eq!(granted, granted_tokens, "of {limit}");
    }
}

#[test]
fn r05_a_least_above_the_most_is_refused_in_the_unit_where_it_is() {
    let world = World::tokens(&[("a", 100)]);
    let pairs = |tokens, usd| of(&[(Unit::Tokens, tokens), (Unit::UsdNanos, usd)]);
    for (least, wrong) in [(pairs(6, 5), Unit::Tokens), (pairs(5, 6), Unit::UsdNanos)] {
        let failed = world.reserve(ask("a", wish(pairs(5, 5), least))).unwrap_err();
        assert!(
            matches!(failed, LedgerError::InvalidAmount { unit, .. } if unit == wrong),
            "{failed:?}"
        );
    }
}
