//! The rate card against the exact rational that it stands for.

use bursar_ledger::rates::{Rate, RateCard, RateEntry, RateError, Tier, Usage};
use proptest::prelude::*;

const PRICE_MAX: i64 = 1_000_000_000_000; // 1,000 USD a million: beyond any provider's
const TOKENS_MAX: i64 = 10_000_000;

fn price() -> impl Strategy<Value = i64> {
    prop_oneof![Just(0), 1..1_000_i64, 0..=PRICE_MAX]
}

fn rate() -> impl Strategy<Value = Rate> {
    let tokens = || (price(), price(), price(), price());
    let tiers = prop::collection::btree_map(0..TOKENS_MAX, tokens(), 0..3);
    (tokens(), price(), price(), tiers).prop_map(|(base, call_nanos, gpu_second_nanos, tiers)| {
        Rate {
            model: "m".into(),
            input_nanos_per_million: base.0,
            cached_input_nanos_per_million: base.1,
            cache_write_nanos_per_million: base.2,
            output_nanos_per_million: base.3,
            call_nanos,
            gpu_second_nanos,
            tiers: tiers.into_iter().map(|(above, prices)| tier(above, prices)).collect(),
        }
    })
}

fn tier(above_input_tokens: i64, prices: (i64, i64, i64, i64)) -> Tier {
    Tier {
        above_input_tokens,
        input_nanos_per_million: prices.0,
        cached_input_nanos_per_million: prices.1,
        cache_write_nanos_per_million: prices.2,
        output_nanos_per_million: prices.3,
    }
}

fn usage() -> impl Strategy<Value = Usage> {
    let parts = (0..TOKENS_MAX, 0..TOKENS_MAX, 0..TOKENS_MAX);
    (parts, 0..TOKENS_MAX, 0..100_000_i64, 0..10_i64).prop_map(|(input, output, gpu_ms, calls)| {
        Usage {
            input_tokens: input.0 + input.1 + input.2,
            cached_input_tokens: input.1,
            cache_write_tokens: input.2,
            output_tokens: output,
            gpu_ms,
            calls,
        }
    })
}

/// The cost in millionths of a nano-USD, written down a second time and plainly.
fn exact(rate: &Rate, usage: &Usage) -> i128 {
    let mut prices = (
        rate.input_nanos_per_million,
        rate.cached_input_nanos_per_million,
        rate.cache_write_nanos_per_million,
        rate.output_nanos_per_million,
    );
    let mut passed = -1;
    for tier in &rate.tiers {
        if usage.input_tokens > tier.above_input_tokens && tier.above_input_tokens > passed {
            passed = tier.above_input_tokens;
            prices = (
                tier.input_nanos_per_million,
                tier.cached_input_nanos_per_million,
                tier.cache_write_nanos_per_million,
                tier.output_nanos_per_million,
            );
        }
    }
    let uncached = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens;
    let terms = [
        (uncached, prices.0, 1),
        (usage.cached_input_tokens, prices.1, 1),
        (usage.cache_write_tokens, prices.2, 1),
        (usage.output_tokens, prices.3, 1),
        (usage.gpu_ms, rate.gpu_second_nanos, 1_000),
        (usage.calls, rate.call_nanos, 1_000_000),
    ];
    terms.into_iter().map(|(n, price, scale)| i128::from(n) * i128::from(price) * scale).sum()
}

proptest! {
    #[test]
    fn cost_is_the_exact_rational_rounded_up_by_less_than_one(rate in rate(), usage in usage()) {
        let cost = i128::from(rate.cost_usd_nanos(&usage).unwrap()) * 1_000_000;
        let exact = exact(&rate, &usage);
        prop_assert!(cost >= exact);
        prop_assert!(cost < exact + 1_000_000);
    }

    #[test]
    fn cost_never_falls_when_more_is_used(
        rate in rate(), usage in usage(), more in usage(), which in 0..4_usize,
    ) {
        let mut larger = usage;
        match which {
            0 => larger.output_tokens += more.output_tokens,
            1 => larger.gpu_ms += more.gpu_ms,
            2 => larger.calls += more.calls,
            _ if rate.tiers.is_empty() => larger.input_tokens += more.input_tokens,
            _ => {}, // a tier may be cheaper, so input is monotone only without
        }
        prop_assert!(rate.cost_usd_nanos(&larger).unwrap() >= rate.cost_usd_nanos(&usage).unwrap());
    }

    #[test]
    fn max_output_tokens_is_the_largest_that_fits(
        rate in rate(), usage in usage(), wish in 0..TOKENS_MAX, permille in 0..1_500_i64,
    ) {
        let cost_of = |output_tokens| {
            rate.cost_usd_nanos(&Usage { output_tokens, ..usage }).unwrap()
        };
        let left = i64::try_from(i128::from(cost_of(wish)) * i128::from(permille) / 1_000).unwrap();
        match rate.max_output_tokens(&usage, left, wish).unwrap() {
            None => prop_assert!(cost_of(0) > left),
            Some(most) => {
                prop_assert!((0..=wish).contains(&most));
                prop_assert!(cost_of(most) <= left);
                prop_assert!(most == wish || cost_of(most + 1) > left);
            }
        }
    }

    #[test]
    fn any_integers_give_an_answer_or_an_error(
        counts in any::<[i64; 6]>(), prices in prop::array::uniform6(0..=i64::MAX),
        left in any::<i64>(), wish in any::<i64>(),
    ) {
        let rate = Rate {
            model: "m".into(),
            input_nanos_per_million: prices[0],
            cached_input_nanos_per_million: prices[1],
            cache_write_nanos_per_million: prices[2],
            output_nanos_per_million: prices[3],
            call_nanos: prices[4],
            gpu_second_nanos: prices[5],
            tiers: vec![],
        };
        let usage = Usage {
            input_tokens: counts[0],
            cached_input_tokens: counts[1],
            cache_write_tokens: counts[2],
            output_tokens: counts[3],
            gpu_ms: counts[4],
            calls: counts[5],
        };
        let _ = rate.cost_usd_nanos(&usage);
        if let Ok(Some(most)) = rate.max_output_tokens(&usage, left, wish) {
            prop_assert!(most <= wish);
        }
    }
}

fn dollar_a_token() -> Rate {
    Rate {
        model: "m".into(),
        input_nanos_per_million: 1_000_000_000_000_000,
        cached_input_nanos_per_million: 1,
        cache_write_nanos_per_million: 1,
        output_nanos_per_million: 1,
        call_nanos: 0,
        gpu_second_nanos: 0,
        tiers: vec![tier(10, (2, 2, 2, 3_000_000))],
    }
}

#[test]
fn a_tier_prices_the_whole_call_once_the_input_passes_it() {
    let cost = |input_tokens, output_tokens| {
        dollar_a_token().cost_usd_nanos(&Usage { input_tokens, output_tokens, ..Usage::default() })
    };
    assert_eq!(cost(10, 0), Ok(10_000_000_000));
    assert_eq!(cost(11, 0), Ok(1)); // 22 millionths of a nano, rounded up
    assert_eq!(cost(11, 1), Ok(4)); // 3.000022, rounded up once
    assert_eq!(cost(10, 1), Ok(10_000_000_001));
}

#[test]
fn usage_that_cannot_be_is_refused() {
    let cost = |usage: Usage| dollar_a_token().cost_usd_nanos(&usage);
    let negative = Usage { output_tokens: -1, ..Usage::default() };
    assert_eq!(cost(negative), Err(RateError::NegativeCount("output_tokens")));
    let cached = Usage {
        input_tokens: 5,
        cached_input_tokens: 3,
        cache_write_tokens: 3,
        ..Usage::default()
    };
    assert_eq!(cost(cached), Err(RateError::CacheExceedsInput));
    let wrapping = Usage {
        input_tokens: i64::MAX,
        cached_input_tokens: i64::MAX,
        cache_write_tokens: i64::MAX,
        ..Usage::default()
    };
    assert_eq!(cost(wrapping), Err(RateError::CacheExceedsInput));
    let rate = Rate { tiers: vec![], ..dollar_a_token() };
    let huge = Usage { input_tokens: i64::MAX, ..Usage::default() };
    assert_eq!(rate.cost_usd_nanos(&huge), Err(RateError::Overflow));
    assert_eq!(
        rate.max_output_tokens(&Usage::default(), 0, -1),
        Err(RateError::NegativeCount("output_tokens"))
    );
}

#[test]
fn nothing_left_buys_free_output_only() {
    let free = Rate { input_nanos_per_million: 0, output_nanos_per_million: 0, ..dollar_a_token() };
    assert_eq!(free.max_output_tokens(&Usage::default(), 0, 7), Ok(Some(7)));
    assert_eq!(free.max_output_tokens(&Usage::default(), -1, 7), Ok(None));
    assert_eq!(dollar_a_token().max_output_tokens(&Usage::default(), 0, 7), Ok(Some(0)));
}

fn entry(name: &str, aliases: &[&str]) -> RateEntry {
    RateEntry {
        rate: Rate { model: name.into(), ..dollar_a_token() },
        aliases: aliases.iter().map(ToString::to_string).collect(),
        tokenizer: Some("o200k_base".into()),
    }
}

#[test]
fn a_card_finds_models_by_name_and_alias() {
    let card = RateCard::new(vec![entry("a", &["b", "acme/a"]), entry("c", &[])]).unwrap();
    assert_eq!(card.rate("acme/a").unwrap().model, "a");
    assert_eq!(card.tokenizer("b"), Some("o200k_base"));
    assert!(card.rate("d").is_none() && card.tokenizer("d").is_none());
}

#[test]
fn a_card_with_a_name_twice_or_impossible_prices_is_refused() {
    let twice = RateCard::new(vec![entry("a", &[]), entry("b", &["a"])]);
    assert_eq!(twice.unwrap_err(), RateError::DuplicateName { name: "a".into() });
    let mut negative = entry("a", &[]);
    negative.rate.tiers[0].output_nanos_per_million = -1;
    assert!(matches!(RateCard::new(vec![negative]), Err(RateError::Invalid { .. })));
    let mut same_tier = entry("a", &[]);
    same_tier.rate.tiers.push(same_tier.rate.tiers[0]);
    assert!(matches!(RateCard::new(vec![same_tier]), Err(RateError::Invalid { .. })));
}

#[test]
fn an_entry_reads_the_configurations_json() {
    let json = r#"{"model": "m", "aliases": ["n"], "tokenizer": null,
        "input_nanos_per_million": 9223372036854775807, "cached_input_nanos_per_million": 1,
        "cache_write_nanos_per_million": 1, "output_nanos_per_million": 1, "call_nanos": 0,
        "gpu_second_nanos": 0, "tiers": [{"above_input_tokens": 10,
        "input_nanos_per_million": 2, "cached_input_nanos_per_million": 2,
        "cache_write_nanos_per_million": 2, "output_nanos_per_million": 3000000}]}"#;
    let entry: RateEntry = serde_json::from_str(json).unwrap();
    let rate = Rate { input_nanos_per_million: i64::MAX, ..dollar_a_token() };
    let aliases = vec!["n".to_owned()];
    assert_eq!(entry, RateEntry { rate, aliases, tokenizer: None });
}
