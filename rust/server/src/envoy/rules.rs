//! What a descriptor of Envoy's is charged to: the rules of the configuration, the first that fits.
//!
//! Pure. The values of a descriptor come from whoever sends requests through Envoy: what becomes part
//! of an account's path is one name of it, never a path.

use bursar_ledger::{Unit, path};
use serde::Deserialize;

use super::wire::RateLimitDescriptor;
use crate::config::ConfigError;
use crate::convert;

/// The most rules.
const MAX_RULES: usize = 1_000;
/// The most entries that a rule names.
const MAX_ENTRIES: usize = 32;

/// `[envoy]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EnvoySection {
    unmatched: Unmatched,
    rules: Vec<RuleSection>,
}

/// What becomes of a descriptor that no rule fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Unmatched {
    Refuse,
    Allow,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleSection {
    domain: String,
    entries: Vec<String>,
    account: String,
    unit: String,
    over: Over,
    default_hits: i64,
    per_hit: i64,
    min_left: i64,
}

/// What becomes of a charge that does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Over {
    /// It is refused, and nothing is charged.
    Refuse,
    /// It has been used already: all of it is recorded.
    Record,
}

/// All rules.
#[derive(Debug)]
pub(crate) struct Rules {
    allows_unmatched: bool,
    rules: Vec<Rule>,
}

/// One.
#[derive(Debug)]
struct Rule {
    domain: Text,
    entries: Vec<(Text, Text)>,
    account: Vec<Part>,
    unit: Unit,
    over: Over,
    default_hits: i64,
    per_hit: i64,
    min_left: i64,
}

/// A text, or how one starts.
#[derive(Debug, PartialEq, Eq)]
enum Text {
    Exactly(String),
    Starting(String),
}

/// A piece of an account's path.
#[derive(Debug)]
enum Part {
    Literal(String),
    /// The value of the entry with this index.
    Value(usize),
}

/// What a charge is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) account: String,
    pub(crate) unit: Unit,
    /// How much of the unit one hit is.
    pub(crate) per_hit: i64,
}

/// What one descriptor asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Nothing: no rule is about it, and that is allowed.
    Nothing,
    /// To charge so much.
    Charge(Target, i64, Over),
    /// Whether so much is left.
    Question(Target, i64),
    /// What cannot be had, and why.
    Refused(String),
}

impl EnvoySection {
    /// Checks them.
    pub(crate) fn rules(&self) -> Result<Rules, ConfigError> {
        if self.rules.len() > MAX_RULES {
            return Err(ConfigError::new(format!("envoy: more than {MAX_RULES} rules")));
        }
        let rule = |(number, section): (usize, &RuleSection)| {
            let at = |why| ConfigError::new(format!("envoy.rules[{number}]: {why}"));
            section.rule().map_err(at)
        };
        let rules = self.rules.iter().enumerate().map(rule).collect::<Result<_, _>>()?;
        Ok(Rules { allows_unmatched: self.unmatched == Unmatched::Allow, rules })
    }
}

impl RuleSection {
    fn rule(&self) -> Result<Rule, String> {
        let unit =
            Unit::parse(&self.unit).ok_or_else(|| format!("unknown unit {:?}", self.unit))?;
        if unit.is_capacity() {
            return Err(format!("{} is a capacity: it is held, not spent", self.unit));
        }
        if self.entries.is_empty() || self.entries.len() > MAX_ENTRIES {
            return Err(format!("entries: from 1 to {MAX_ENTRIES}"));
        }
        if self.default_hits < 0 || self.per_hit < 1 || self.min_left < 1 {
            return Err("default_hits is at least 0, per_hit and min_left at least 1".into());
        }
        let entry = |entry: &String| {
            let (key, value) = entry.split_once('=').unwrap_or((entry, "*"));
            (Text::parse(key), Text::parse(value))
        };
        let entries: Vec<_> = self.entries.iter().map(entry).collect();
        Ok(Rule {
            domain: Text::parse(&self.domain),
            account: account(&self.account, &entries)?,
            entries,
            unit,
            over: self.over,
            default_hits: self.default_hits,
            per_hit: self.per_hit,
            min_left: self.min_left,
        })
    }
}

impl Text {
    fn parse(text: &str) -> Text {
        match text.strip_suffix('*') {
            Some(start) => Text::Starting(start.to_owned()),
            None => Text::Exactly(text.to_owned()),
        }
    }

    fn fits(&self, text: &str) -> bool {
        match self {
            Text::Exactly(all) => text == all,
            Text::Starting(start) => text.starts_with(start.as_str()),
        }
    }
}

/// The pieces of `acme/{team}/{agent}`.
fn account(template: &str, entries: &[(Text, Text)]) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some((literal, after)) = rest.split_once('{') {
        let (key, after) = after.split_once('}').ok_or("account: a { without its }")?;
        let named = |(text, _): &&(Text, Text)| *text == Text::Exactly(key.to_owned());
        if entries.iter().filter(named).count() != 1 {
            return Err(format!("account: {{{key}}} has to be the key of exactly one entry"));
        }
        parts.push(Part::Literal(literal.to_owned()));
        parts.extend(entries.iter().position(|entry| named(&entry)).map(Part::Value));
        rest = after;
    }
    parts.push(Part::Literal(rest.to_owned()));
    let example = joined(&parts, |_| "x");
    if !path::is_valid(&example) {
        return Err(format!("account: {template:?} makes no path of an account"));
    }
    Ok(parts)
}

fn joined<'a>(parts: &'a [Part], value: impl Fn(usize) -> &'a str) -> String {
    let text = |part: &'a Part| match part {
        Part::Literal(literal) => literal.as_str(),
        Part::Value(index) => value(*index),
    };
    parts.iter().map(text).collect()
}

impl Rules {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.rules.len()
    }

    /// The place of the rule that fits, and what a descriptor asks for; `hits_addend` is the request's.
    pub(crate) fn read(
        &self,
        domain: &str,
        asks: &RateLimitDescriptor,
        hits_addend: u32,
    ) -> (Option<usize>, Asked) {
        let Some(place) = self.rules.iter().position(|rule| rule.fits(domain, asks)) else {
            if self.allows_unmatched {
                return (None, Asked::Nothing);
            }
            let keys: Vec<_> = asks.entries.iter().map(|entry| convert::cut(&entry.key)).collect();
            let (domain, keys) = (convert::cut(domain), convert::cut(&keys.join(", ")));
            let what = format!("the domain {domain:?} and the entries {keys:?}");
            let why = format!("no rule of [envoy] fits {what}, with their values");
            return (None, Asked::Refused(why));
        };
        let asked = self.rules[place].read(asks, hits_addend).unwrap_or_else(Asked::Refused);
        (Some(place), asked)
    }
}

impl Rule {
    fn fits(&self, domain: &str, asks: &RateLimitDescriptor) -> bool {
        let entries = || self.entries.iter().zip(&asks.entries);
        self.domain.fits(domain)
            && self.entries.len() == asks.entries.len()
            && entries()
                .all(|((key, value), entry)| key.fits(&entry.key) && value.fits(&entry.value))
    }

    fn read(&self, asks: &RateLimitDescriptor, hits_addend: u32) -> Result<Asked, String> {
        if asks.limit.is_some() {
            return Err("a descriptor has no limit of its own here: limits are budgets".into());
        }
        if asks.is_negative_hits {
            return Err("hits are not negative here: what is spent is never given back".into());
        }
        let Rule { unit, per_hit, .. } = *self;
        let target = Target { account: self.account_of(asks)?, unit, per_hit };
        let hits = match (asks.hits_addend, hits_addend) {
            (Some(own), _) => i64::try_from(own).ok(),
            (None, 0) => Some(self.default_hits),
            (None, of_request) => Some(i64::from(of_request)),
        };
        let asked = match hits {
            Some(0) => {
                self.min_left.checked_mul(per_hit).map(|least| Asked::Question(target, least))
            }
            Some(hits) => {
                hits.checked_mul(per_hit).map(|amount| Asked::Charge(target, amount, self.over))
            }
            None => None,
        };
        asked.ok_or_else(|| "the hits are more than can be counted".into())
    }

    fn account_of(&self, asks: &RateLimitDescriptor) -> Result<String, String> {
        let value = |index: usize| asks.entries[index].value.as_str();
        for part in &self.account {
            let Part::Value(index) = part else { continue };
            if value(*index).is_empty() || value(*index).contains('/') {
                let (key, value) = (&asks.entries[*index].key, convert::cut(value(*index)));
                return Err(format!("{value:?} of {key} is no name of an account"));
            }
        }
        let account = joined(&self.account, value);
        if path::is_valid(&account) {
            return Ok(account);
        }
        Err(format!("{:?} is no path of an account", convert::cut(&account)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::rate_limit_descriptor::{Entry, RateLimitOverride};
    use super::*;

    fn section(entries: &[&str], account: &str) -> RuleSection {
        RuleSection {
            domain: "edge".into(),
            entries: entries.iter().map(|&entry| entry.to_owned()).collect(),
            account: account.into(),
            unit: "tokens".into(),
            over: Over::Refuse,
            default_hits: 1,
            per_hit: 1,
            min_left: 1,
        }
    }

    fn rules(rules: Vec<RuleSection>) -> Rules {
        EnvoySection { unmatched: Unmatched::Refuse, rules }.rules().expect("valid")
    }

    fn descriptor(entries: &[(&str, &str)]) -> RateLimitDescriptor {
        let entry = |&(key, value): &(&str, &str)| Entry { key: key.into(), value: value.into() };
        let entries = entries.iter().map(entry).collect();
        RateLimitDescriptor { entries, ..RateLimitDescriptor::default() }
    }

    fn account_of(rules: &Rules, entries: &[(&str, &str)]) -> Result<String, String> {
        match rules.read("edge", &descriptor(entries), 5).1 {
            Asked::Charge(Target { account, .. }, 5, _) => Ok(account),
            Asked::Refused(why) => Err(why),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_rule_whose_entries_fit_in_order_counts() {
        let rules = rules(vec![
            section(&["team=core", "agent"], "acme/core/{agent}"),
            section(&["team", "agent=bot-*"], "acme/{team}/bots"),
            section(&["team"], "acme/{team}"),
        ]);
        let of = |entries: &[(&str, &str)]| account_of(&rules, entries);
        assert_eq!(of(&[("team", "core"), ("agent", "bot-1")]).as_deref(), Ok("acme/core/bot-1"));
        assert_eq!(of(&[("team", "x"), ("agent", "bot-1")]).as_deref(), Ok("acme/x/bots"));
        assert_eq!(of(&[("team", "x")]).as_deref(), Ok("acme/x"));
        for none in [
            &[("team", "x"), ("agent", "y")][..],
            &[("agent", "bot-1"), ("team", "x")],
            &[("team", "x"), ("agent", "bot-1"), ("model", "m")],
            &[],
        ] {
            assert!(of(none).expect_err("no rule fits").contains("no rule"), "{none:?}");
        }
    }

    #[test]
    fn a_value_is_one_name_and_never_a_path() {
        let rules = rules(vec![section(&["agent"], "acme/{agent}/run")]);
        let long = "x".repeat(65);
        for bad in ["", "a/b", "../rival", "..", "a b", "a\0", "ä", "-a", &long] {
            let why = account_of(&rules, &[("agent", bad)]).expect_err(bad);
            assert!(why.contains("is no"), "{why}");
        }
        assert_eq!(
            account_of(&rules, &[("agent", "10.0.0.1")]).as_deref(),
            Ok("acme/10.0.0.1/run")
        );
    }

    #[test]
    fn hits_are_those_of_the_descriptor_else_of_the_request_else_of_the_rule() {
        let rules = rules(vec![RuleSection {
            default_hits: 7,
            per_hit: 1_000,
            min_left: 30,
            ..section(&["agent"], "{agent}")
        }]);
        let read = |own: Option<u64>, of_request| {
            let asks = RateLimitDescriptor { hits_addend: own, ..descriptor(&[("agent", "a")]) };
            match rules.read("edge", &asks, of_request).1 {
                Asked::Charge(_, amount, _) => amount,
                Asked::Question(_, amount) => -amount,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!([read(Some(2), 3), read(None, 3), read(None, 0)], [2_000, 3_000, 7_000]);
        assert_eq!([read(Some(0), 3), read(Some(0), 0)], [-30_000, -30_000]);
        let most = u64::try_from(i64::MAX / 1_000).expect("positive");
        assert_eq!(read(Some(most), 0), i64::MAX / 1_000 * 1_000);
        for more in [most + 1, u64::MAX] {
            let asks =
                RateLimitDescriptor { hits_addend: Some(more), ..descriptor(&[("agent", "a")]) };
            assert!(matches!(rules.read("edge", &asks, 0).1, Asked::Refused(_)), "{more}");
        }
    }

    #[test]
    fn what_would_raise_a_limit_or_give_back_is_refused() {
        let rules = rules(vec![section(&["agent"], "{agent}")]);
        let own = RateLimitOverride { requests_per_unit: 1_000_000 };
        let limit = RateLimitDescriptor { limit: Some(own), ..descriptor(&[("agent", "a")]) };
        let back = RateLimitDescriptor { is_negative_hits: true, ..descriptor(&[("agent", "a")]) };
        for asks in [limit, back] {
            assert!(matches!(rules.read("edge", &asks, 1).1, Asked::Refused(_)), "{asks:?}");
        }
    }

    #[test]
    fn what_no_rule_fits_is_refused_unless_that_is_allowed() {
        let mut section = EnvoySection { unmatched: Unmatched::Refuse, rules: Vec::new() };
        let asks = descriptor(&[("agent", "a")]);
        let (_, refused) = section.rules().expect("valid").read("edge", &asks, 1);
        assert!(matches!(refused, Asked::Refused(_)));
        section.unmatched = Unmatched::Allow;
        let allowed = section.rules().expect("valid").read("edge", &asks, 1);
        assert_eq!(allowed, (None, Asked::Nothing));
    }

    #[test]
    fn templates_that_make_no_path_are_told_of() {
        for (entries, account) in [
            (&["a"][..], "{b}"),
            (&["a", "a"], "{a}"),
            (&["a*"], "{a}"),
            (&["a"], "x/{a"),
            (&["a"], "/{a}"),
            (&["a"], ""),
            (&[], "x"),
        ] {
            assert!(section(entries, account).rule().is_err(), "{entries:?} {account}");
        }
        let held = RuleSection { unit: "vram_bytes".into(), ..section(&["a"], "{a}") };
        assert!(held.rule().expect_err("a capacity").contains("capacity"));
    }
}
