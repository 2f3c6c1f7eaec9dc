//! A ledger with clocks that the test turns, and a journal that keeps every record.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use bursar_ledger::fact::{Fact, Record};
use bursar_ledger::path::Pattern;
use bursar_ledger::runaway::Policy;
use bursar_ledger::{
    AccountPattern, Admission, Advice, Amounts, Ask, BudgetSpec, BudgetTerms, Debited, Ended,
    Ending, Extended, Granted, HighIds, Journal, Ledger, LedgerError, Now, Period, Refusal, Replay,
    ReservationId, Settings, Spending, Standing, Threshold, Unit, Verdict, View, Wish,
};

/// 2026-01-01T00:00:00Z.
pub const START_MS: i64 = 1_767_225_600_000;
pub const SECOND: i64 = 1_000;
pub const HOUR: i64 = 3_600 * SECOND;
pub const DAY: i64 = 24 * HOUR;
pub const TTL: i64 = 60 * SECOND;
pub const RETENTION: i64 = 600 * SECOND;

/// A journal that keeps what it hears.
#[derive(Debug, Clone, Default)]
pub struct Tape(Arc<Mutex<Vec<Record>>>);

impl Journal for Tape {
    fn append(&self, record: impl FnOnce() -> Record) -> u64 {
        let mut records = self.0.lock().unwrap();
        records.push(record());
        records.len() as u64
    }
}

impl Tape {
    pub fn records(&self) -> Vec<Record> {
        self.0.lock().unwrap().clone()
    }

    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub fn facts(&self) -> Vec<Fact> {
        let records = self.records();
        records.into_iter().flat_map(|r| r.facts).collect()
    }

    /// The shares (thousandths) whose crossing was reported, in order.
    pub fn crossings(&self) -> Vec<u16> {
        let share = |fact| match fact {
            Fact::Crossed { permille, .. } => Some(permille),
            _ => None,
        };
        self.facts().into_iter().filter_map(share).collect()
    }
}

/// A ledger and its clocks.
#[derive(Debug)]
pub struct World {
    pub ledger: Ledger<Tape>,
    pub tape: Tape,
    wall_ms: AtomicI64,
    mono_ms: AtomicI64,
}

pub fn settings(patterns: Vec<AccountPattern>) -> Settings {
    Settings {
        patterns,
        max_accounts: 1_000,
        max_children: 100,
        max_reservations: 10_000,
        key_retention_ms: RETENTION,
        account_idle_ms: HOUR,
        runaway: Arc::new(Policy::off()),
    }
}

pub fn pattern(text: &str, budgets: Vec<BudgetSpec>) -> AccountPattern {
    let pattern = Pattern::parse(text).unwrap();
    AccountPattern { pattern, budgets, runaway: None }
}

pub fn terms(limit: i64) -> BudgetTerms {
    BudgetTerms { limit, thresholds: Arc::new([]), manual: true }
}

pub fn spec(unit: Unit, period: Period, limit: i64) -> BudgetSpec {
    let terms = terms(limit);
    BudgetSpec { unit, period, terms }
}

/// A budget that the patterns own, with WARN at 50 %, WARN at 80 % and DEGRADE at 90 %.
pub fn stepped(limit: i64) -> BudgetSpec {
    let threshold = |permille, verdict| Threshold {
        permille,
        verdict,
        advice: Advice { max_new_tokens: Some(i64::from(permille)), ..Advice::default() },
    };
    let thresholds = [
        threshold(500, Verdict::Warn),
        threshold(800, Verdict::Warn),
        threshold(900, Verdict::Degrade),
    ];
    BudgetSpec {
        unit: Unit::Tokens,
        period: Period::total(),
        terms: BudgetTerms { limit, thresholds: Arc::new(thresholds), manual: true },
    }
}

pub fn tokens(amount: i64) -> Amounts {
    Amounts::of(Unit::Tokens, amount)
}

pub fn of(amounts: &[(Unit, i64)]) -> Amounts {
    amounts.iter().copied().collect()
}

pub fn exactly(most: Amounts) -> Wish {
    Wish::Amounts { most, least: most }
}

/// The totals that a hold shall reach.
pub fn totals(most: Amounts, least: Amounts) -> Wish {
    Wish::Amounts { most, least }
}

pub fn ask(account: &str, wish: Wish) -> Ask<'_> {
    Ask {
        account,
        wish,
        ttl_ms: TTL,
        key: 0,
        payload: 0,
        parent: None,
        labels: Vec::new(),
        owner: None,
    }
}

/// A Commit that names the units of `actual`.
pub fn commit(actual: &[(Unit, i64)]) -> Ending {
    let named = actual.iter().fold(0, |bits, (unit, _)| bits | 1 << unit.index());
    let payload = actual.iter().fold(1_u128, |hash, (unit, amount)| {
        hash.wrapping_mul(31) + (unit.index() as u128) + u128::from(amount.unsigned_abs())
    });
    Ending::Commit { actual: of(actual), named, payload, success: None }
}

impl World {
    /// A ledger whose accounts `a/**` and `b/**` come to be on first use.
    pub fn new() -> World {
        World::with(World::plain())
    }

    pub fn plain() -> Settings {
        let any = ["a", "a/**", "b", "b/**"].map(|text| pattern(text, Vec::new()));
        settings(any.into())
    }

    pub fn with(settings: Settings) -> World {
        let tape = Tape::default();
        World {
            ledger: Ledger::new(settings, tape.clone()),
            tape,
            wall_ms: AtomicI64::new(START_MS),
            mono_ms: AtomicI64::new(5_000),
        }
    }

    /// With budgets of tokens that never end: (account, limit).
    pub fn tokens(limits: &[(&str, i64)]) -> World {
        let world = World::new();
        for (path, limit) in limits {
            world.limit(path, Unit::Tokens, Period::total(), *limit);
        }
        world
    }

    /// The ledger that the tape's records give from scratch, with the same clocks.
    pub fn replayed(&self, settings: Settings, records: &[Record]) -> World {
        let mut replay = Replay::new(settings, Tape::default(), self.now());
        for record in records {
            replay.apply(record).unwrap();
        }
        let ledger = replay.finish(HighIds::default());
        World {
            tape: ledger.journal().clone(),
            ledger,
            wall_ms: AtomicI64::new(self.now().wall_ms),
            mono_ms: AtomicI64::new(self.now().mono_ms),
        }
    }

    pub fn now(&self) -> Now {
        Now {
            wall_ms: self.wall_ms.load(Ordering::SeqCst),
            mono_ms: self.mono_ms.load(Ordering::SeqCst),
        }
    }

    /// Lets both clocks run.
    pub fn wait(&self, ms: i64) {
        self.wall_ms.fetch_add(ms, Ordering::SeqCst);
        self.mono_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// Sets the wall clock, in either direction.
    pub fn set_wall(&self, ms: i64) {
        self.wall_ms.store(ms, Ordering::SeqCst);
    }

    pub fn limit(&self, path: &str, unit: Unit, period: Period, limit: i64) {
        self.set(path, spec(unit, period, limit)).unwrap();
    }

    pub fn set(&self, path: &str, spec: BudgetSpec) -> Result<Standing, LedgerError> {
        let (balance, _) = self.ledger.set_budget(path, spec, self.now())?;
        Ok(balance.standing)
    }

    /// Lets an account come to be, as its first use does.
    pub fn open(&self, path: &str) -> Result<(), LedgerError> {
        let nothing = exactly(Amounts::ZERO);
        self.ledger.check(path, &nothing, self.now()).map(drop)
    }

    pub fn freeze(&self, path: &str, frozen: bool) {
        let now = self.now();
        self.ledger.set_frozen(path, frozen, "test", now).unwrap();
    }

    pub fn reserve(&self, ask: Ask<'_>) -> Result<Admission<Granted>, LedgerError> {
        self.ledger.reserve(ask, self.now())
    }

    /// Holds exactly these amounts.
    pub fn hold(&self, path: &str, amounts: Amounts) -> Result<Granted, Refusal> {
        match self.reserve(ask(path, exactly(amounts))).unwrap() {
            Admission::Granted(granted) => Ok(granted),
            Admission::Refused(refusal, _) => Err(refusal),
        }
    }

    /// Holds so many tokens and must get them.
    pub fn held(&self, path: &str, amount: i64) -> ReservationId {
        self.hold(path, tokens(amount)).unwrap().view.id
    }

    /// Carves tokens from a parent.
    pub fn nest(&self, path: &str, parent: ReservationId, most: Amounts) -> Result<View, Refusal> {
        let ask = Ask { parent: Some(parent), ..ask(path, exactly(most)) };
        match self.reserve(ask).unwrap() {
            Admission::Granted(granted) => Ok(granted.view),
            Admission::Refused(refusal, _) => Err(refusal),
        }
    }

    pub fn debit(&self, id: ReservationId, used: i64) -> Debited {
        self.ledger.debit(id, &tokens(used), self.now()).unwrap()
    }

    pub fn extend(&self, id: ReservationId, total: i64) -> Extended {
        let total = tokens(total);
        let extended = self.ledger.extend(id, Some(&totals(total, total)), false, None, self.now());
        extended.unwrap()
    }

    pub fn end(&self, id: ReservationId, ending: Ending) -> Result<Ended, LedgerError> {
        self.ledger.end(id, ending, self.now())
    }

    pub fn commit(&self, id: ReservationId, used: i64) -> Ended {
        self.end(id, commit(&[(Unit::Tokens, used)])).unwrap()
    }

    pub fn release(&self, id: ReservationId) -> Ended {
        self.end(id, Ending::Release).unwrap()
    }

    pub fn record(&self, path: &str, amounts: Amounts) -> Result<Ended, LedgerError> {
        let spending = Spending { account: path, amounts, key: 0, payload: 0, labels: Vec::new() };
        self.ledger.record(spending, self.now())
    }

    pub fn view(&self, id: ReservationId) -> View {
        self.ledger.reservation(id, self.now()).unwrap()
    }

    /// (limit, held, spent, remaining) of the account's first budget in the unit.
    pub fn standing(&self, path: &str, unit: Unit) -> (i64, i64, i64, i64) {
        let view = self.ledger.account(path, self.now()).unwrap();
        let mut balances = view.balances.iter();
        let found = balances.find(|balance| balance.window.budget.unit == unit);
        let standing = found.unwrap().standing;
        let Standing { limit, held, spent, remaining } = standing;
        (limit, held, spent, remaining)
    }

    /// (held, spent) of the account's tokens.
    pub fn tokens_of(&self, path: &str) -> (i64, i64) {
        let (_, held, spent, _) = self.standing(path, Unit::Tokens);
        (held, spent)
    }
}
