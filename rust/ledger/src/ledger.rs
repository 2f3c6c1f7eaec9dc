//! The ledger: one value that owns all accounts, windows and reservations.
//!
//! Time is an argument of every call. Calls may come from any number of threads. What each file adds:
//! `tree` accounts and chains, `reserve` admission, `debit` spending and topping up, `settle` ends,
//! `admin` limits and readings, `retire` accounts out of use, `tick` what time itself
//! brings about, `replay` recovery.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

use crate::account::{Account, Chain};
use crate::budget::BudgetTerms;
use crate::changes::{Changes, Observer};
use crate::charge::{Charges, Shortage};
use crate::crowd::Crowd;
use crate::error::LedgerError;
use crate::fact::{BudgetId, Fact, Journal, Record, ReservationId, State};
use crate::guard::Findings;
use crate::keys::Keys;
use crate::lease::ToppedUp;
use crate::path::Pattern;
use crate::period::Period;
use crate::reservation::Reservation;
use crate::runaway::Policy;
use crate::slots::{Slot, Slots};
use crate::tree::Tree;
use crate::unit::{Amounts, Unit};
use crate::verdict::{Advice, Refusal, RefusalReason, Verdict};
use crate::window::{Standing, Window};

/// The two clocks, read by the caller once per call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Unix time in milliseconds: decides calendar windows and nothing else (R14).
    pub wall_ms: i64,
    /// Monotonic milliseconds since any start: decides times to live.
    pub mono_ms: i64,
}

/// A budget that a pattern gives to the accounts it creates.
#[derive(Debug, Clone)]
pub struct BudgetSpec {
    /// What it counts.
    pub unit: Unit,
    /// When it starts anew.
    pub period: Period,
    /// Limit and thresholds.
    pub terms: BudgetTerms,
}

/// Accounts that come to be on first use, and their budgets.
#[derive(Debug, Clone)]
pub struct AccountPattern {
    /// Which paths.
    pub pattern: Pattern,
    /// Their budgets.
    pub budgets: Vec<BudgetSpec>,
    /// What is a runaway there; `None`: what is one anywhere.
    pub runaway: Option<Arc<Policy>>,
}

/// The bounds and defaults of a ledger.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Which accounts may come to be; the first match of a unit and period wins.
    pub patterns: Vec<AccountPattern>,
    /// The most accounts.
    pub max_accounts: usize,
    /// The most accounts directly below one.
    pub max_children: usize,
    /// The most reservations, pending or remembered for their keys.
    pub max_reservations: usize,
    /// How long an ended reservation is remembered.
    pub key_retention_ms: i64,
    /// How long an idle account without a budget of its own stays.
    pub account_idle_ms: i64,
    /// What is a runaway where no pattern says otherwise.
    pub runaway: Arc<Policy>,
}

impl Settings {
    /// What is a runaway at a path: the first pattern that says so decides.
    pub(crate) fn policy(&self, path: &str) -> Arc<Policy> {
        let mut matching = self.patterns.iter().filter(|p| p.pattern.matches(path));
        let own = matching.find_map(|p| p.runaway.as_ref());
        Arc::clone(own.unwrap_or(&self.runaway))
    }
}

/// The ledger.
#[derive(Debug)]
pub struct Ledger<J> {
    pub(crate) journal: J,
    pub(crate) settings: Settings,
    pub(crate) changes: Arc<Changes>,
    pub(crate) tree: Tree,
    pub(crate) slots: Slots,
    pub(crate) keys: Keys,
    pub(crate) charges: Charges,
    pub(crate) next_window: AtomicU64,
    pub(crate) next_chain: AtomicU64,
    /// Apart from what every call only reads.
    pub(crate) next_sequence: CachePadded<AtomicU64>,
    pub(crate) topped_up: ToppedUp,
    pub(crate) crowd: Crowd,
    pub(crate) findings: Findings,
    /// The latest wall time that was seen; time never goes back behind it (R14).
    time_ms: AtomicI64,
}

/// The windows that an answer is about; none when it says that all is well.
#[derive(Debug, Clone)]
pub struct Scope(pub(crate) Option<Arc<Chain>>);

/// One window and its words.
#[derive(Debug, Clone)]
pub struct Balance {
    /// The window.
    pub window: Arc<Window>,
    /// Its words.
    pub standing: Standing,
}

/// A reservation as it is.
// In this order no amounts follow the gap that a reservation's id leaves behind it: the compiler copies
// gap and amounts as one, at odd offsets, and waits for its own stores.
#[repr(C)]
#[derive(Debug, Clone)]
pub struct View {
    /// Its name.
    pub id: ReservationId,
    /// Where it is in its life.
    pub state: State,
    /// The account's path.
    pub account: Arc<str>,
    /// What was granted in all.
    pub granted: Amounts,
    /// What is debited.
    pub used: Amounts,
    /// What was spent; zero while pending.
    pub spent: Amounts,
    /// What went back; zero while pending.
    pub returned: Amounts,
    /// What passed the limit.
    pub overdraft: Amounts,
    /// The output tokens granted, for one made from usage.
    pub max_output_tokens: i64,
    /// Unix milliseconds.
    pub created_ms: i64,
    /// Time to live.
    pub ttl_ms: i64,
    /// How long until it expires; 0 once it has ended.
    pub expires_in_ms: i64,
    /// The reservation it was carved from.
    pub parent: Option<ReservationId>,
    /// The model it was made for.
    pub model: Option<String>,
}

impl<J: Journal> Ledger<J> {
    /// An empty ledger. Recovery feeds it through [`Ledger::replay`] before anything else.
    pub fn new(settings: Settings, journal: J) -> Ledger<J> {
        Ledger {
            journal,
            changes: Arc::default(),
            tree: Tree::new(),
            slots: Slots::new(settings.max_reservations),
            keys: Keys::new(),
            charges: Charges::new(),
            next_window: AtomicU64::new(1),
            next_chain: AtomicU64::new(1),
            next_sequence: CachePadded::new(AtomicU64::new(1)),
            topped_up: ToppedUp::default(),
            crowd: Crowd::default(),
            findings: Findings::default(),
            time_ms: AtomicI64::new(0),
            settings,
        }
    }

    /// Where the facts go.
    pub fn journal(&self) -> &J {
        &self.journal
    }

    /// Sends the facts elsewhere from now on: recovery is over.
    pub fn set_journal(&mut self, journal: J) {
        self.journal = journal;
    }

    /// Names one more who hears of changes from now on.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.changes.observe(observer);
    }

    /// Rises whenever a window's verdict or advice, a freeze or a limit changes, and whenever a
    /// reservation that a channel had claimed ends.
    pub fn changes(&self) -> u64 {
        self.changes.count()
    }

    /// The wall time, held at the latest that was ever seen.
    #[inline]
    pub fn time(&self, wall_ms: i64) -> i64 {
        let seen = self.time_ms.load(Ordering::Acquire);
        if wall_ms <= seen {
            return seen;
        }
        self.time_ms.fetch_max(wall_ms, Ordering::AcqRel).max(wall_ms)
    }

    pub(crate) fn log(&self, time_ms: i64, facts: impl FnOnce() -> Vec<Fact>) -> u64 {
        self.journal.append(|| Record { time_ms, facts: facts() })
    }

    /// Tells the journal, once, of every threshold that is newly crossed in the windows (R17).
    pub(crate) fn report_crossings(&self, time_ms: i64, windows: &[Arc<Window>]) -> u64 {
        let reported = windows.iter().map(|window| self.report_crossing(time_ms, window));
        reported.fold(0, u64::max)
    }

    /// As above, for one window; 0 when it has crossed nothing.
    #[cold]
    pub(crate) fn report_crossing(&self, time_ms: i64, window: &Window) -> u64 {
        let crossed = window.crossings();
        if crossed.is_empty() { 0 } else { self.log_crossed(time_ms, window, &crossed) }
    }

    pub(crate) fn log_crossed(&self, time_ms: i64, window: &Window, crossed: &[u16]) -> u64 {
        let fact = |permille: &u16| Fact::Crossed { window: window.id, permille: *permille };
        self.log(time_ms, || crossed.iter().map(fact).collect())
    }

    /// The slot's lock, if it still holds this reservation.
    #[inline]
    pub(crate) fn slot(&self, id: ReservationId) -> Result<&Slot, LedgerError> {
        self.slots.get(id.slot).ok_or(LedgerError::ReservationNotFound)
    }
}

/// The reservation in a locked slot, if it is the one that is meant.
#[inline]
pub(crate) fn body(
    slot: &mut Option<Reservation>,
    id: ReservationId,
) -> Result<&mut Reservation, LedgerError> {
    slot.as_mut().filter(|reservation| reservation.id == id).ok_or(LedgerError::ReservationNotFound)
}

#[allow(clippy::inline_always, reason = "as a call it is built apart and copied: 400 bytes")]
#[inline(always)]
pub(crate) fn view(reservation: &Reservation, mono_ms: i64) -> View {
    // First, since it may fail: what is built before it would have to lie somewhere else meanwhile.
    let model = reservation.model().map(str::to_owned);
    View {
        id: reservation.id,
        state: reservation.state,
        account: Arc::clone(&reservation.account.path),
        granted: reservation.granted,
        used: reservation.used,
        spent: reservation.end.spent,
        returned: reservation.end.returned,
        overdraft: reservation.end.overdraft,
        max_output_tokens: reservation.max_output_tokens,
        created_ms: reservation.created_ms,
        ttl_ms: reservation.ttl_ms,
        expires_in_ms: match reservation.state {
            State::Pending => reservation.deadline_ms.saturating_sub(mono_ms).max(0),
            _ => 0,
        },
        parent: reservation.parent,
        model,
    }
}

impl Scope {
    /// For each of the units, the window with the least left.
    pub fn tightest(&self, amounts: &Amounts) -> Vec<Balance> {
        let windows = self.0.as_ref().map_or(&[][..], |chain| &chain.windows);
        let tightest = |(unit, _)| {
            let own = windows.iter().filter(|window| window.unit == unit);
            own.min_by_key(|window| window.remaining())
                .map(|window| Balance { window: Arc::clone(window), standing: window.standing() })
        };
        amounts.iter().filter_map(tightest).collect()
    }

    /// What to change at the present verdict.
    pub fn advice(&self) -> Option<Advice> {
        self.0.as_ref().and_then(|chain| chain.advice())
    }

    /// What a call of the account is to change that looks like a runaway.
    pub fn runaway_advice(&self) -> Option<&Advice> {
        self.0.as_ref().map(|chain| &chain.account.guard.policy.advice)
    }

    /// Whether time alone may change what the windows say: one of them is a rolling one.
    pub fn rolls(&self) -> bool {
        self.0.as_ref().is_some_and(|chain| chain.rolls)
    }

    /// The most severe verdict of the windows; STOP when the account or an ancestor is frozen.
    pub fn verdict(&self) -> Verdict {
        match &self.0 {
            None => Verdict::Ok,
            Some(chain) if chain.account.frozen_by().is_some() => Verdict::Stop,
            Some(chain) => chain.verdict(),
        }
    }
}

/// Refused for want of budget.
#[cold]
pub(crate) fn exhausted(shortage: &Shortage) -> Refusal {
    let window = &shortage.window;
    Refusal {
        reason: RefusalReason::BudgetExhausted,
        account: window.budget.path.to_string(),
        unit: Some(window.budget.unit),
        shortfall: shortage.shortfall,
        reset_ms: Some(window.end_ms).filter(|end| *end != i64::MAX),
    }
}

/// Refused because of a freeze.
pub(crate) fn frozen(by: &Account) -> Refusal {
    Refusal {
        reason: RefusalReason::AccountFrozen,
        account: by.path.to_string(),
        unit: None,
        shortfall: 0,
        reset_ms: None,
    }
}

/// The largest ids in use, so that none is given out twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HighIds {
    /// Of reservations.
    pub sequence: u64,
    /// Of windows.
    pub window: u64,
    /// Of chains.
    pub chain: u64,
    /// Of budgets.
    pub budget: BudgetId,
    /// Of accounts.
    pub account: u32,
}
