//! Runaways: what shows that an agent has lost its way, in figures that the ledger has anyway
//! (S12).
//!
//! Owns the rules, what a policy allows of each, and the counts of one account. Pure: time is an
//! argument; what follows from a finding is `guard`'s. The counts of an account are of one size
//! whatever it does, begin with its first call, and begin anew once an interval is over: what is
//! split by that border counts as two, so a finding is never too early, and late by one interval at
//! most.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::unit::{Amounts, Unit};
use crate::verdict::Advice;

/// The label that tells one prompt from another.
pub const PROMPT_FINGERPRINT: &str = "prompt_fingerprint";
/// How many prompts of an account are counted at a time.
const PROMPTS: usize = 8;
/// The part of a limit that may be spent in one interval whatever the pace: one in so many.
pub(crate) const BURST: i64 = 4;

/// What is looked at. Serialised: append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Rule {
    /// The account spends, in one interval, so many times the pace of a window that it counts in
    /// (its limit spread over its period), and a quarter of the limit. Windows without a period
    /// have no pace.
    Velocity,
    /// So many reservations are nested in each other.
    Depth,
    /// One prompt, by its fingerprint, was asked for so often in one interval.
    Repeats,
    /// So many nested reservations of one parent are pending.
    Children,
    /// So many reservations of the account are pending.
    OpenReservations,
    /// So many reservations in a row, in one interval, ended with nothing spent.
    NoProgress,
}

impl Rule {
    /// Every rule, in the order of [`Policy::most`].
    pub const ALL: [Rule; 6] = [
        Rule::Velocity,
        Rule::Depth,
        Rule::Repeats,
        Rule::Children,
        Rule::OpenReservations,
        Rule::NoProgress,
    ];

    /// The name in configuration, entries and hints.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Velocity => "velocity",
            Rule::Depth => "depth",
            Rule::Repeats => "repeats",
            Rule::Children => "children",
            Rule::OpenReservations => "open_reservations",
            Rule::NoProgress => "no_progress",
        }
    }
}

/// What follows from a finding; the order is the order of severity. Serialised: append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Action {
    /// It is told.
    Warn,
    /// The calls that show it are admitted with verdict DEGRADE.
    Degrade,
    /// The calls that show it are refused.
    Stop,
    /// The account is frozen.
    Freeze,
}

impl Action {
    /// The name in configuration and entries.
    pub fn name(self) -> &'static str {
        match self {
            Action::Warn => "warn",
            Action::Degrade => "degrade",
            Action::Stop => "stop",
            Action::Freeze => "freeze",
        }
    }
}

/// What accounts may do before it is a runaway, and what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// What follows.
    pub action: Action,
    /// How long counts run.
    pub interval_ms: i64,
    /// The most of each rule that is no finding; `i64::MAX`: the rule is off. For velocity: how
    /// many times the pace.
    pub most: [i64; Rule::ALL.len()],
    /// What to change when the action is to degrade.
    pub advice: Advice,
}

impl Policy {
    /// One that finds nothing.
    pub fn off() -> Policy {
        Policy {
            action: Action::Warn,
            interval_ms: i64::MAX,
            most: [i64::MAX; Rule::ALL.len()],
            advice: Advice::default(),
        }
    }

    #[inline]
    pub(crate) fn most(&self, rule: Rule) -> i64 {
        self.most[rule as usize]
    }

    /// Whether a figure passes what is allowed, for rules that need no counts.
    #[inline]
    pub(crate) fn look(&self, rule: Rule, figure: i64) -> Option<Finding> {
        let most = self.most(rule);
        (figure > most).then_some(Finding { rule, figure, most, unit: None, until_ms: None })
    }
}

/// What was found, in figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Finding {
    /// By which rule.
    pub rule: Rule,
    /// What there was.
    pub figure: i64,
    /// The most that is no finding.
    pub most: i64,
    /// The unit of both, for velocity.
    pub unit: Option<Unit>,
    /// When the counts begin anew (Unix ms); `None` where the next call may be all right.
    pub until_ms: Option<i64>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { rule, figure, most, .. } = self;
        let what = match rule {
            Rule::Velocity => {
                let unit = self.unit.map_or("units", Unit::name);
                let text = "spent within an interval";
                return write!(f, "velocity: {figure} {unit} {text}, {most} allowed");
            }
            Rule::Depth => "reservations nested in each other",
            Rule::Repeats => "times the same prompt within an interval",
            Rule::Children => "nested reservations of one parent pending",
            Rule::OpenReservations => "reservations pending",
            Rule::NoProgress => "reservations in a row ended with nothing spent",
        };
        write!(f, "{}: {figure} {what}, {most} allowed", rule.name())
    }
}

/// A window as velocity sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paced {
    pub(crate) unit: Unit,
    pub(crate) limit: i64,
    /// `None`: it has no period and therefore no pace.
    pub(crate) length_ms: Option<i64>,
}

impl Paced {
    /// The most to spend in one interval: `times` its pace, and at least a part of its limit.
    /// `None` where that passes the limit itself, which is the budget's business.
    pub(crate) fn most(&self, policy: &Policy) -> Option<i64> {
        let (times, interval_ms) = (policy.most(Rule::Velocity), policy.interval_ms);
        let length_ms = i128::from(self.length_ms?.max(1));
        let over_intervals = i128::from(self.limit)
            .checked_mul(i128::from(times))
            .and_then(|amount| amount.checked_mul(i128::from(interval_ms)));
        let pace = over_intervals?.div_euclid(length_ms);
        let most = pace.max(i128::from(self.limit.div_euclid(BURST)));
        i64::try_from(most).ok().filter(|most| *most < self.limit)
    }
}

/// The counts of one account.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    start_ms: i64,
    spent: Amounts,
    /// Rules of which a finding was told in this interval, one bit each.
    told: u8,
    /// Reservations in a row that ended with nothing spent.
    unspent: u32,
    alarm: Option<Finding>,
    prompts: Option<Box<Prompts>>,
    /// What may be spent without a look, and is counted once it is taken back.
    pub(crate) given: Amounts,
}

impl Counts {
    /// Whether the interval is over.
    pub(crate) fn is_over(&self, policy: &Policy, now_ms: i64) -> bool {
        now_ms.saturating_sub(self.start_ms) >= policy.interval_ms
    }

    /// The first millisecond after the interval.
    pub(crate) fn end_ms(&self, policy: &Policy) -> i64 {
        self.start_ms.saturating_add(policy.interval_ms)
    }

    /// Begins anew when the interval is over. What is given was taken back before.
    pub(crate) fn run(&mut self, policy: &Policy, now_ms: i64) {
        if self.is_over(policy, now_ms) {
            let mut prompts = self.prompts.take();
            if let Some(prompts) = &mut prompts {
                **prompts = Prompts::default();
            }
            *self = Counts { start_ms: now_ms, prompts, ..Counts::default() };
        }
    }

    /// Notes a prompt that is asked for.
    pub(crate) fn asked(
        &mut self,
        policy: &Policy,
        fingerprint: u64,
        now_ms: i64,
    ) -> Option<Finding> {
        self.run(policy, now_ms);
        let count = self.prompts.get_or_insert_default().note(fingerprint);
        self.until(policy, policy.look(Rule::Repeats, i64::from(count)))
    }

    /// Notes what was spent.
    pub(crate) fn spend(&mut self, amounts: &Amounts) {
        self.spent = self.spent.saturating_add(amounts);
    }

    /// What was spent in this interval, but for what was drawn and not taken back yet.
    pub(crate) fn spent(&self, unit: Unit) -> i64 {
        self.spent.get(unit)
    }

    /// Notes that what the account does is not in vain.
    pub(crate) fn progressed(&mut self) {
        self.unspent = 0;
    }

    /// Whether what was spent in this interval passes the pace of a window.
    #[cold]
    pub(crate) fn velocity(&self, policy: &Policy, window: &Paced) -> Option<Finding> {
        let figure = self.spent.get(window.unit);
        let most = window.most(policy)?;
        let (rule, unit) = (Rule::Velocity, Some(window.unit));
        let found = Finding { rule, figure, most, unit, until_ms: None };
        self.until(policy, (figure > most).then_some(found))
    }

    /// Notes an end with nothing spent.
    pub(crate) fn unspent(&mut self, policy: &Policy, now_ms: i64) -> Option<Finding> {
        self.run(policy, now_ms);
        self.unspent = self.unspent.saturating_add(1);
        self.until(policy, policy.look(Rule::NoProgress, i64::from(self.unspent)))
    }

    /// What was found at the end of a reservation holds for the calls until the interval is over.
    pub(crate) fn alarm(&mut self, finding: Finding) {
        self.alarm = Some(finding);
    }

    /// What was found before and still holds.
    pub(crate) fn alarmed(&mut self, policy: &Policy, now_ms: i64) -> Option<Finding> {
        self.run(policy, now_ms);
        self.alarm
    }

    /// Whether a finding is the first by its rule in this interval.
    pub(crate) fn tell(&mut self, policy: &Policy, rule: Rule, now_ms: i64) -> bool {
        self.run(policy, now_ms);
        let bit = 1 << rule as u8;
        let first = self.told & bit == 0;
        self.told |= bit;
        first
    }

    fn until(&self, policy: &Policy, found: Option<Finding>) -> Option<Finding> {
        let until_ms = Some(self.end_ms(policy));
        found.map(|finding| Finding { until_ms, ..finding })
    }
}

/// The prompts that come most often, after Misra and Gries: a count is never too high, and too low
/// by one for every eight other prompts at most.
#[derive(Debug, Default)]
struct Prompts([(u64, u32); PROMPTS]);

impl Prompts {
    /// Counts one; returns how often it was seen at least.
    fn note(&mut self, fingerprint: u64) -> u32 {
        let known = self.0.iter_mut().find(|(known, count)| *known == fingerprint && *count != 0);
        if let Some((_, count)) = known {
            *count = count.saturating_add(1);
            return *count;
        }
        if let Some(free) = self.0.iter_mut().find(|(_, count)| *count == 0) {
            *free = (fingerprint, 1);
            return 1;
        }
        self.0.iter_mut().for_each(|(_, count)| *count -= 1);
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;

    fn policy() -> Policy {
        Policy {
            action: Action::Warn,
            interval_ms: 5 * MINUTE,
            most: [10, 16, 3, 8, 100, 4],
            advice: Advice::default(),
        }
    }

    fn window(limit: i64, length_ms: i64) -> Paced {
        Paced { unit: Unit::Tokens, limit, length_ms: Some(length_ms) }
    }

    fn spend(counts: &mut Counts, window: Paced, amount: i64, now_ms: i64) -> Option<Finding> {
        counts.progressed();
        counts.run(&policy(), now_ms);
        counts.spend(&Amounts::of(Unit::Tokens, amount));
        counts.velocity(&policy(), &window)
    }

    #[test]
    fn velocity_is_times_the_pace_and_at_least_a_quarter_of_the_limit() {
        let hour = window(1_200, 60 * MINUTE);
        assert_eq!(hour.most(&policy()), Some(1_000));
        let day = window(1_000, 24 * 60 * MINUTE);
        assert_eq!(day.most(&policy()), Some(250));
        // Ten times the pace of so short a window is more than all of it.
        assert_eq!(window(1_000, 50 * MINUTE).most(&policy()), None);
        assert_eq!(Paced { length_ms: None, ..day }.most(&policy()), None);
        let most = [i64::MAX; Rule::ALL.len()];
        let endless = Policy { interval_ms: i64::MAX, most, ..policy() };
        assert!(window(i64::MAX, 1).most(&endless).is_none());
    }

    #[test]
    fn a_day_s_budget_spent_by_a_quarter_within_minutes_is_velocity() {
        let (mut counts, day) = (Counts::default(), window(1_000, 24 * 60 * MINUTE));
        assert_eq!(spend(&mut counts, day, 250, MINUTE * 10), None);
        let found = spend(&mut counts, day, 1, MINUTE * 11).expect("it is above");
        assert_eq!((found.rule, found.figure, found.most), (Rule::Velocity, 251, 250));
        assert_eq!(found.until_ms, Some(15 * MINUTE));
        let text = "velocity: 251 tokens spent within an interval, 250 allowed";
        assert_eq!(found.to_string(), text);
        // The interval is over: it begins anew.
        assert_eq!(spend(&mut counts, day, 250, MINUTE * 15), None);
    }

    #[test]
    fn an_alarm_holds_until_the_interval_is_over() {
        let (mut counts, policy) = (Counts::default(), policy());
        let day = window(1_000, 24 * 60 * MINUTE);
        let found = spend(&mut counts, day, 999, 10 * MINUTE).expect("it is above");
        counts.alarm(found);
        assert_eq!(counts.alarmed(&policy, 15 * MINUTE - 1), Some(found));
        assert_eq!(counts.alarmed(&policy, 15 * MINUTE), None);
    }

    #[test]
    fn a_prompt_is_found_at_its_bound_and_again_in_the_next_interval() {
        let (mut counts, policy) = (Counts::default(), policy());
        let mut asked = |fingerprint, at| counts.asked(&policy, fingerprint, at);
        for _ in 0..3 {
            assert_eq!(asked(7, 10 * MINUTE), None);
        }
        let found = asked(7, 11 * MINUTE).expect("the fourth time");
        assert_eq!((found.rule, found.figure, found.most), (Rule::Repeats, 4, 3));
        assert_eq!(asked(8, 11 * MINUTE), None);
        assert_eq!(asked(7, 15 * MINUTE), None);
    }

    #[test]
    fn a_loop_over_eight_prompts_is_found_and_many_different_ones_are_not() {
        let (mut counts, policy) = (Counts::default(), policy());
        let looped = (0..32).filter_map(|n| counts.asked(&policy, n % 8, MINUTE)).count();
        assert_eq!(looped, 8, "each of them, the fourth time");
        let mut counts = Counts::default();
        for n in 0..100_000 {
            assert_eq!(counts.asked(&policy, n % 1_000, MINUTE), None);
        }
    }

    #[test]
    fn ends_without_spending_are_found_only_in_a_row() {
        let (mut counts, policy) = (Counts::default(), policy());
        let far = window(i64::MAX, MINUTE);
        for _ in 0..10 {
            for _ in 0..4 {
                assert_eq!(counts.unspent(&policy, MINUTE), None);
            }
            assert_eq!(spend(&mut counts, far, 1, MINUTE), None);
        }
        let found: Vec<_> = (0..5).map(|_| counts.unspent(&policy, MINUTE)).collect();
        assert!(found[..4].iter().all(Option::is_none));
        assert_eq!(found[4].map(|f| (f.rule, f.figure)), Some((Rule::NoProgress, 5)));
    }

    #[test]
    fn a_finding_is_told_once_per_rule_and_interval() {
        let (mut counts, policy) = (Counts::default(), policy());
        assert!(counts.tell(&policy, Rule::Depth, 10 * MINUTE));
        assert!(!counts.tell(&policy, Rule::Depth, 14 * MINUTE));
        assert!(counts.tell(&policy, Rule::Children, 14 * MINUTE));
        assert!(counts.tell(&policy, Rule::Depth, 15 * MINUTE));
    }

    #[test]
    fn a_policy_that_is_off_finds_nothing() {
        let (mut counts, off) = (Counts::default(), Policy::off());
        for _ in 0..1_000 {
            assert_eq!(counts.asked(&off, 1, MINUTE), None);
            assert_eq!(counts.unspent(&off, MINUTE), None);
        }
        counts.spend(&Amounts::of(Unit::Tokens, i64::MAX));
        assert_eq!(counts.velocity(&off, &window(10, 24 * 60 * MINUTE)), None);
        assert!(Rule::ALL.iter().all(|rule| off.look(*rule, i64::MAX).is_none()));
    }

    #[test]
    fn rules_stand_in_the_order_of_their_bounds() {
        for (index, rule) in Rule::ALL.into_iter().enumerate() {
            assert_eq!(rule as usize, index);
        }
    }

    #[test]
    fn the_counts_of_an_account_are_small() {
        assert!(size_of::<Counts>() <= 216, "{}", size_of::<Counts>());
        assert!(size_of::<Prompts>() <= 128, "{}", size_of::<Prompts>());
    }
}
