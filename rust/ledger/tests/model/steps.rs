//! What may happen, and how often.

use bursar_ledger::{Amounts, Period, PeriodKind, Unit};
use bursar_model::UNITS;
use proptest::prelude::*;

use crate::common::{DAY, HOUR, RETENTION, SECOND, TTL};

pub(crate) const PATHS: [&str; 5] = ["a", "a/b", "a/b/c", "a/b/c/d", "a/x"];

/// One operation; reservations are named by a number to be taken modulo how many there are.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Reserve { at: usize, most: Amounts, least: Amounts, parent: Option<usize>, key: u128 },
    Debit { of: usize, used: Amounts },
    Extend { of: usize, most: Amounts, least: Amounts },
    Commit { of: usize, actual: Amounts, named: u8 },
    Release { of: usize },
    OwnerGone { of: usize },
    Record { at: usize, amounts: Amounts },
    Limit { at: usize, unit: Unit, kind: usize, limit: i64 },
    Freeze { at: usize, frozen: bool },
    Wait { ms: i64 },
    Wall { ms: i64 },
    Tick,
}

pub(crate) fn period(kind: usize) -> Period {
    match kind {
        0 => Period::total(),
        1 => Period::calendar(PeriodKind::Hour, "UTC"),
        _ => Period::rolling(64 * SECOND),
    }
}

/// Tokens mostly, money often, memory sometimes.
fn amounts(most: i64) -> impl Strategy<Value = Amounts> {
    let one = |often: f64| prop::option::weighted(often, 0..=most);
    (one(0.9), one(0.4), one(0.15)).prop_map(|(tokens, usd, vram)| {
        let amounts = [tokens, usd, vram].map(Option::unwrap_or_default);
        UNITS.into_iter().zip(amounts).collect()
    })
}

/// What is wished, and the least of it: all, nothing, or some.
fn wish(most: i64) -> impl Strategy<Value = (Amounts, Amounts)> {
    (amounts(most), 0..=4_i64).prop_map(|(most, share)| {
        (most, most.iter().map(|(unit, amount)| (unit, amount * share / 4)).collect())
    })
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let at = || 0..PATHS.len();
    // The latest ones are the most interesting: count from a small range.
    let of = || prop_oneof![3 => 0..4_usize, 1 => 0..64_usize];
    let parent = prop::option::weighted(0.4, of());
    let key = prop_oneof![4 => Just(0_u128), 1 => 1..4_u128];
    let unit = prop::sample::select(UNITS.to_vec());
    let waits = [1, SECOND, 20 * SECOND, TTL, RETENTION, HOUR, HOUR, DAY];
    let walls = [-30 * DAY, -DAY, -HOUR, -1, SECOND, HOUR];
    prop_oneof![
        6 => (at(), wish(60), parent, key).prop_map(|(at, (most, least), parent, key)| {
            Step::Reserve { at, most, least, parent, key }
        }),
        5 => (of(), amounts(60)).prop_map(|(of, used)| Step::Debit { of, used }),
        3 => (of(), wish(90)).prop_map(|(of, (most, least))| Step::Extend { of, most, least }),
        3 => (of(), amounts(80), 0..16_u8).prop_map(|(of, actual, named)| {
            Step::Commit { of, actual, named }
        }),
        2 => of().prop_map(|of| Step::Release { of }),
        1 => of().prop_map(|of| Step::OwnerGone { of }),
        2 => (at(), amounts(40)).prop_map(|(at, amounts)| Step::Record { at, amounts }),
        2 => (at(), unit, 0..3_usize, 0..150_i64).prop_map(|(at, unit, kind, limit)| {
            Step::Limit { at, unit, kind, limit }
        }),
        1 => (at(), any::<bool>()).prop_map(|(at, frozen)| Step::Freeze { at, frozen }),
        3 => prop::sample::select(waits.to_vec()).prop_map(|ms| Step::Wait { ms }),
        1 => prop::sample::select(walls.to_vec()).prop_map(|ms| Step::Wall { ms }),
        1 => Just(Step::Tick),
    ]
}
