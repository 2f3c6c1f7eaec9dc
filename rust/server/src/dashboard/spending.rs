//! The history charts: what was spent, by hour or day and by account or model.

use std::collections::HashMap;

use bursar_ledger::{Calendar, Period, PeriodKind};
use bursar_store::Apart;
use serde_json::{Value, json};

use crate::convert;
use crate::engine::Engine;
use crate::error::ApiError;

/// The most stretches of one chart.
const STRETCHES: i64 = 24 * 31;
/// The most lines of one chart; what the others spent is one more.
const LINES: usize = 12;
/// How long one chart may take: then the older stretches are left out, and it says so.
const PATIENCE_MS: i64 = 3_000;

/// What a chart is of.
#[derive(Debug)]
pub(super) struct Chart<'a> {
    /// Empty: all.
    pub(super) account: &'a str,
    pub(super) unit: &'a str,
    /// `hour` or `day`.
    pub(super) stretch: &'a str,
    /// `account` or `model`.
    pub(super) by: &'a str,
    /// How many stretches there are, up to now.
    pub(super) count: i64,
    /// The watcher's: days begin at its midnights.
    pub(super) time_zone: &'a str,
}

impl Chart<'_> {
    pub(super) fn draw(&self, engine: &Engine) -> Result<Value, ApiError> {
        let unit = convert::unit(self.unit)?;
        let account = convert::within(self.account)?;
        let kind = match self.stretch {
            "hour" => PeriodKind::Hour,
            "day" => PeriodKind::Day,
            _ => return Err(ApiError::field("stretch", "is \"hour\" or \"day\"")),
        };
        let apart = match self.by {
            "account" => Apart::Account,
            "model" => Apart::Model,
            _ => return Err(ApiError::field("by", "is \"account\" or \"model\"")),
        };
        if !(1..=STRETCHES).contains(&self.count) {
            return Err(ApiError::field("count", format!("has to be from 1 to {STRETCHES}")));
        }
        let calendar = Calendar::new(&Period::calendar(kind, self.time_zone))
            .map_err(|_| ApiError::field("time_zone", "is not one, such as \"Europe/Berlin\""))?;
        let now = engine.now();
        let stretches = stretches(&calendar, now.wall_ms, self.count);
        let mut lines = HashMap::<String, Vec<i64>>::new();
        let mut is_whole = true;
        if let Some(reader) = engine.reader()? {
            // The newest first: where time runs out, those are what matters.
            for (at, stretch) in stretches.iter().enumerate().rev() {
                if engine.now().mono_ms - now.mono_ms > PATIENCE_MS {
                    is_whole = false;
                    break;
                }
                for (name, amount) in reader.spent(account, unit, *stretch, apart)? {
                    let name = if apart == Apart::Account { child(account, &name) } else { &name };
                    let line =
                        lines.entry(name.to_owned()).or_insert_with(|| vec![0; stretches.len()]);
                    line[at] = line[at].saturating_add(amount);
                }
            }
        }
        Ok(json!({
            "start_ms": stretches.iter().map(|(start_ms, _)| start_ms).collect::<Vec<_>>(),
            "lines": ranked(lines),
            "whole": is_whole,
        }))
    }
}

/// The last `count` stretches up to now, the oldest first: (first ms, first ms after it).
fn stretches(calendar: &Calendar, now_ms: i64, count: i64) -> Vec<(i64, i64)> {
    let (mut at_ms, mut next_ms) = (now_ms, i64::MAX);
    let mut back = || {
        let (start_ms, end_ms) = calendar.bounds(at_ms);
        // Hours overlap where the clocks change by half of one.
        let stretch = (start_ms, end_ms.min(next_ms));
        (at_ms, next_ms) = (start_ms - 1, start_ms);
        stretch
    };
    let mut found: Vec<_> = (0..count).map(|_| back()).collect();
    found.reverse();
    found
}

/// The account directly below one on the way to another; itself where they are the same.
fn child<'a>(account: &str, path: &'a str) -> &'a str {
    let from = if account.is_empty() { 0 } else { account.len() + 1 };
    let end = path.get(from..).and_then(|rest| rest.find('/')).map(|slash| from + slash);
    &path[..end.unwrap_or(path.len())]
}

/// The largest lines first, and the others as one without a name.
fn ranked(lines: HashMap<String, Vec<i64>>) -> Vec<Value> {
    let sum = |line: &[i64]| line.iter().fold(0_i64, |sum, part| sum.saturating_add(*part));
    let mut lines: Vec<_> = lines.into_iter().collect();
    lines.sort_by(|(a, one), (b, other)| sum(other).cmp(&sum(one)).then_with(|| a.cmp(b)));
    let rest = lines.split_off(LINES.min(lines.len()));
    let shown = lines.iter().map(|(name, line)| json!({"name": name, "spent": line}));
    let mut shown: Vec<Value> = shown.collect();
    if let Some((_, first)) = rest.first() {
        let add = |mut all: Vec<i64>, (_, line): &(String, Vec<i64>)| {
            for (sum, part) in all.iter_mut().zip(line) {
                *sum = sum.saturating_add(*part);
            }
            all
        };
        let all = rest[1..].iter().fold(first.clone(), add);
        shown.push(json!({"name": null, "others": rest.len(), "spent": all}));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_of_a_child() {
        for (account, path, expected) in [
            ("", "acme/a/b", "acme"),
            ("", "acme", "acme"),
            ("acme", "acme", "acme"),
            ("acme", "acme/a/b", "acme/a"),
            ("acme/a", "acme/a/b", "acme/a/b"),
        ] {
            assert_eq!(child(account, path), expected);
        }
    }

    #[test]
    fn days_begin_at_midnight_where_the_clocks_change() {
        let calendar = Calendar::new(&Period::calendar(PeriodKind::Day, "Europe/Berlin"));
        let noon_ms = 1_774_864_800_000; // 2026-03-30 12:00, the day after
        let found = stretches(&calendar.expect("a time zone"), noon_ms, 4);
        let hours = found.iter().map(|(start, end)| (end - start) / 3_600_000);
        assert_eq!(hours.collect::<Vec<_>>(), [24, 24, 23, 24]);
        assert!(found.windows(2).all(|pair| pair[0].1 == pair[1].0), "without a gap: {found:?}");
        assert_eq!(found[3].0, noon_ms - 12 * 3_600_000);
    }

    #[test]
    fn no_moment_is_in_two_hours_where_the_clocks_change_by_half_of_one() {
        let calendar = Calendar::new(&Period::calendar(PeriodKind::Hour, "Australia/Lord_Howe"));
        let after_ms = 1_775_322_000_000; // 2026-04-04 17:00 UTC, two hours after
        let found = stretches(&calendar.expect("a time zone"), after_ms, 6);
        assert!(found.windows(2).all(|pair| pair[0].1 == pair[1].0), "{found:?}");
    }

    #[test]
    fn small_lines_are_one() {
        let line = |number: i64| (format!("m{number:02}"), vec![number, 1]);
        let lines = (0..15).map(line).collect();
        let ranked = ranked(lines);
        assert_eq!(ranked.len(), LINES + 1);
        assert_eq!(ranked[0]["name"], "m14");
        assert_eq!(ranked[LINES], json!({"name": null, "others": 3, "spent": [3, 3]}));
    }
}
