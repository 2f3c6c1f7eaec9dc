//! What clients and operators ask for.

use std::sync::Arc;

use bursar_ledger::{
    Advice, Amounts, BudgetSpec, BudgetTerms, Period, PeriodKind, ReservationId, Threshold, Unit,
    Verdict,
};

use crate::random::Random;

/// The accounts.
pub const PATHS: [&str; 5] = ["a", "a/b", "a/b/c", "a/b/c/d", "a/x"];
/// How long a hold lives.
pub const TTL_MS: i64 = 60_000;
/// The thresholds of every budget that does not roll.
pub const PERMILLE: [u16; 3] = [500, 800, 1_000];
/// The length of rolling periods.
const ROLLING_MS: i64 = 64_000;

/// One call. It is made once, and may be delivered late, twice, and after others.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the fields are those of the proto")]
pub enum Call {
    Reserve {
        path: &'static str,
        most: Amounts,
        least: Amounts,
        parent: Option<ReservationId>,
        key: u128,
        payload: u128,
    },
    Debit {
        id: ReservationId,
        used: Amounts,
    },
    Extend {
        id: ReservationId,
        most: Amounts,
        least: Amounts,
    },
    Commit {
        id: ReservationId,
        actual: Amounts,
        named: u8,
        payload: u128,
    },
    Release {
        id: ReservationId,
    },
    Record {
        path: &'static str,
        amounts: Amounts,
        key: u128,
        payload: u128,
    },
    Limit {
        path: &'static str,
        unit: Unit,
        kind: PeriodKind,
        limit: i64,
    },
    Freeze {
        path: &'static str,
        frozen: bool,
    },
    OwnerGone {
        id: ReservationId,
    },
}

impl Call {
    /// The budget that a `Limit` sets. A rolling one has no thresholds: it crosses them anew.
    pub fn spec(&self) -> BudgetSpec {
        let Call::Limit { unit, kind, limit, .. } = self else { panic!("not a Limit") };
        let period = match kind {
            PeriodKind::Rolling => Period::rolling(ROLLING_MS),
            PeriodKind::Total => Period::total(),
            kind => Period::calendar(*kind, "UTC"),
        };
        let threshold = |permille| Threshold {
            permille,
            verdict: if permille == 500 { Verdict::Warn } else { Verdict::Degrade },
            advice: Advice::default(),
        };
        let rolls = *kind == PeriodKind::Rolling;
        let thresholds: Vec<_> = PERMILLE.into_iter().filter(|_| !rolls).map(threshold).collect();
        let thresholds = Arc::from(thresholds);
        BudgetSpec {
            unit: *unit,
            period,
            terms: BudgetTerms { limit: *limit, thresholds, manual: true },
        }
    }
}

/// The clients: they make calls, keep those that are under way, and repeat what was not answered.
#[derive(Debug)]
pub struct Clients {
    random: Random,
    keys: u64,
    under_way: Vec<Call>,
}

/// The most calls that are under way; more are lost, as networks do.
const UNDER_WAY_MAX: usize = 20;

impl Clients {
    /// Nobody has asked for anything.
    pub fn new(random: Random) -> Clients {
        Clients { random, keys: 0, under_way: Vec::new() }
    }

    /// The next call that arrives: a new one, a late one, or one for the second time.
    pub fn next(&mut self, ids: &[ReservationId]) -> Call {
        if !self.under_way.is_empty() && self.random.percent(30) {
            let at = self.random.index(self.under_way.len());
            if self.random.percent(25) {
                return self.under_way[at].clone();
            }
            return self.under_way.swap_remove(at);
        }
        let mut call = self.make(ids);
        while self.random.percent(10) {
            // It is late, and another comes first.
            self.keep(call);
            call = self.make(ids);
        }
        if self.random.percent(20) {
            self.keep(call.clone());
        }
        call
    }

    /// A call that was not answered: most clients ask again.
    pub fn unanswered(&mut self, call: Call) {
        if self.random.percent(80) {
            self.keep(call);
        }
    }

    fn keep(&mut self, call: Call) {
        if self.under_way.len() < UNDER_WAY_MAX {
            self.under_way.push(call);
        }
    }

    fn make(&mut self, ids: &[ReservationId]) -> Call {
        let kind = self.random.below(if ids.is_empty() { 50 } else { 100 });
        let path = self.random.pick(&PATHS);
        match kind {
            0..30 => self.reserve(path, ids),
            30..38 => {
                let amounts = self.amounts(40).filter(|unit| unit != Unit::VramBytes);
                let (key, payload) = (self.key(1 << 64), amounts_hash(&amounts));
                Call::Record { path, amounts, key, payload }
            }
            38..46 => self.limit(),
            46..50 => Call::Freeze { path, frozen: self.random.percent(40) },
            50..66 => {
                // Not in the unit of rolling budgets: when it was debited is not written down.
                let used = self.amounts(60).filter(|unit| unit == Unit::Tokens);
                Call::Debit { id: self.id(ids), used }
            }
            66..75 => {
                let (most, least) = self.wish(90);
                Call::Extend { id: self.id(ids), most, least }
            }
            75..90 => {
                let actual = self.amounts(80);
                let named = u8::try_from(self.random.below(16)).expect("small");
                let payload = amounts_hash(&actual) * 256 + u128::from(named) + 1;
                Call::Commit { id: self.id(ids), actual, named, payload }
            }
            90..97 => Call::Release { id: self.id(ids) },
            _ => Call::OwnerGone { id: self.id(ids) },
        }
    }

    fn reserve(&mut self, path: &'static str, ids: &[ReservationId]) -> Call {
        let (most, least) = self.wish(60);
        let nested = !ids.is_empty() && self.random.percent(35);
        let parent = nested.then(|| self.id(ids));
        let key = self.key(0);
        let payload = amounts_hash(&most) * 64 + u128::from(nested) + 1;
        Call::Reserve { path, most, least, parent, key, payload }
    }

    fn limit(&mut self) -> Call {
        const BUDGETS: [(&str, Unit, PeriodKind); 8] = [
            ("a/b", Unit::Tokens, PeriodKind::Total),
            ("a", Unit::Tokens, PeriodKind::Hour),
            ("a", Unit::UsdNanos, PeriodKind::Total),
            ("a/b/c", Unit::UsdNanos, PeriodKind::Rolling),
            ("a", Unit::Tokens, PeriodKind::Total),
            ("a/b", Unit::VramBytes, PeriodKind::Total),
            ("a/x", Unit::Tokens, PeriodKind::Hour),
            ("a/b/c/d", Unit::Tokens, PeriodKind::Total),
        ];
        let (path, unit, kind) = self.random.pick(&BUDGETS);
        Call::Limit { path, unit, kind, limit: self.random.amount(250) }
    }

    /// Mostly one of the latest.
    fn id(&mut self, ids: &[ReservationId]) -> ReservationId {
        let last = ids.len() - 1;
        let back = if self.random.percent(70) { last.min(4) } else { last };
        ids[last - self.random.index(back + 1)]
    }

    /// Mostly a new one; else one that was used before, or none.
    fn key(&mut self, space: u128) -> u128 {
        match self.random.below(10) {
            0 => 0,
            1 => space + 1 + u128::from(self.random.below(self.keys + 1)),
            _ => {
                self.keys += 1;
                space + u128::from(self.keys)
            }
        }
    }

    fn amounts(&mut self, most: i64) -> Amounts {
        let often = [(Unit::Tokens, 90), (Unit::UsdNanos, 40), (Unit::VramBytes, 15)];
        let mut amounts = Amounts::ZERO;
        for (unit, share) in often {
            if self.random.percent(share) {
                amounts.set(unit, self.random.amount(most));
            }
        }
        amounts
    }

    /// What is wished, and the least of it: all, nothing, or some.
    fn wish(&mut self, most: i64) -> (Amounts, Amounts) {
        let (most, share) = (self.amounts(most), self.random.amount(4));
        (most, most.iter().map(|(unit, amount)| (unit, amount * share / 4)).collect())
    }
}

/// Tells payloads apart.
fn amounts_hash(amounts: &Amounts) -> u128 {
    amounts.iter().fold(7, |hash: u128, (unit, amount)| {
        (hash * 1_000 + unit.index() as u128) * 1_000 + u128::from(amount.unsigned_abs())
    })
}
