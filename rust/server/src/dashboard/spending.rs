//! The history charts: what was spent, by hour or day and by account or model.

use std::collections::HashMap;

use bursar_store::Apart;
use serde_json::{Value, json};

use crate::convert;
use crate::engine::Engine;
use crate::error::ApiError;

const HOUR_MS: i64 = 3_600_000;
/// The most stretches of one chart.
const STRETCHES: i64 = 24 * 31;
/// The most lines of one chart; what the others spent is one more.
const LINES: usize = 12;
/// How long one chart may take: then the older stretches are left out, and it says so.
const PATIENCE_MS: i64 = 3_000;
/// How far from UTC clocks are.
const OFFSET_MS: std::ops::RangeInclusive<i64> = -14 * HOUR_MS..=14 * HOUR_MS;

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
    /// How far the watcher's clock is ahead of UTC: days are the watcher's.
    pub(super) offset_ms: i64,
}

impl Chart<'_> {
    pub(super) fn draw(&self, engine: &Engine) -> Result<Value, ApiError> {
        let unit = convert::unit(self.unit)?;
        let account = convert::within(self.account)?;
        let length_ms = match self.stretch {
            "hour" => HOUR_MS,
            "day" => 24 * HOUR_MS,
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
        if !OFFSET_MS.contains(&self.offset_ms) {
            return Err(ApiError::field("offset_ms", "is further from UTC than any clock"));
        }
        let now = engine.now();
        let local_ms = now.wall_ms + self.offset_ms;
        let last_ms = local_ms - local_ms.rem_euclid(length_ms) - self.offset_ms;
        let starts: Vec<i64> =
            (0..self.count).rev().map(|back| last_ms - back * length_ms).collect();
        let mut lines = HashMap::<String, Vec<i64>>::new();
        let mut is_whole = true;
        if let Some(reader) = engine.reader()? {
            // The newest first: where time runs out, those are what matters.
            for (at, start_ms) in starts.iter().enumerate().rev() {
                if engine.now().mono_ms - now.mono_ms > PATIENCE_MS {
                    is_whole = false;
                    break;
                }
                let spent =
                    reader.spent(account, unit, (*start_ms, start_ms + length_ms), apart)?;
                for (name, amount) in spent {
                    let name = if apart == Apart::Account { child(account, &name) } else { &name };
                    let line =
                        lines.entry(name.to_owned()).or_insert_with(|| vec![0; starts.len()]);
                    line[at] = line[at].saturating_add(amount);
                }
            }
        }
        Ok(json!({
            "start_ms": starts,
            "stretch_ms": length_ms,
            "lines": ranked(lines),
            "whole": is_whole,
        }))
    }
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
    fn small_lines_are_one() {
        let line = |number: i64| (format!("m{number:02}"), vec![number, 1]);
        let lines = (0..15).map(line).collect();
        let ranked = ranked(lines);
        assert_eq!(ranked.len(), LINES + 1);
        assert_eq!(ranked[0]["name"], "m14");
        assert_eq!(ranked[LINES], json!({"name": null, "others": 3, "spent": [3, 3]}));
    }
}
