//! What follows from runaways: looking at calls and ends, telling what is found, and acting on it.
//!
//! Called from admission before anything is held, and from settlements. Mostly it costs a few loads
//! at Reserve, and at the end one draw from the leeway for each unit. What it knows is not stored:
//! after a restart an interval begins anew. What it finds is: as a fact, and for watchers in a short
//! list.

use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use foldhash::fast::FixedState;
use parking_lot::Mutex;

use crate::account::{Account, Chain};
use crate::fact::{Fact, Journal};
use crate::ledger::Ledger;
use crate::leeway::{Holds, Leeway};
use crate::period::PeriodKind;
use crate::reservation::Reservation;
use crate::reserve::leave;
use crate::runaway::{Action, BURST, Counts, Finding, PROMPT_FINGERPRINT, Paced, Policy, Rule};
use crate::unit::{Amounts, Unit};
use crate::verdict::{Refusal, RefusalReason};
use crate::window::Window;

/// The most findings that are kept for watchers.
const FINDINGS: usize = 256;

/// What watches over one account.
#[derive(Debug)]
pub(crate) struct Guard {
    pub(crate) policy: Arc<Policy>,
    /// Whether `counts` may hold an alarm.
    alarmed: AtomicBool,
    /// Whether its last end was in vain.
    failing: AtomicBool,
    /// What may be spent without a look at `counts`; none while it is failing.
    leeway: Leeway,
    /// None until there is something to count, and once the account is idle.
    counts: Mutex<Option<Box<Counts>>>,
}

impl Guard {
    pub(crate) fn new(policy: Arc<Policy>) -> Guard {
        Guard {
            policy,
            alarmed: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            leeway: Leeway::none(),
            counts: Mutex::default(),
        }
    }

    fn with<T>(&self, now_ms: i64, f: impl FnOnce(&mut Counts, &Policy) -> T) -> T {
        let mut counts = self.counts.lock();
        let counts = counts.get_or_insert_default();
        if counts.is_over(&self.policy, now_ms) {
            self.take_back(counts);
        }
        f(counts, &self.policy)
    }

    /// Counts what was drawn from the leeway, and ends it. Called under the lock of the counts.
    fn take_back(&self, counts: &mut Counts) {
        let given = std::mem::take(&mut counts.given);
        if !given.is_zero() {
            counts.spend(&self.leeway.take_back(&given));
        }
    }

    /// Forgets the counts: nothing in them matters any more.
    pub(crate) fn forget(&self) {
        self.alarmed.store(false, Ordering::Relaxed);
        self.failing.store(false, Ordering::Relaxed);
        let mut counts = self.counts.lock();
        if let Some(mut counts) = counts.take() {
            self.take_back(&mut counts);
        }
    }
}

/// A nested reservation's place: how deep, and how many its parent has of its kind.
#[derive(Debug, Clone)]
pub(crate) struct Fork {
    depth: i64,
    siblings: Arc<AtomicI64>,
}

impl Fork {
    /// The place of the next one below a parent, which is locked.
    pub(crate) fn below(parent: &mut Reservation) -> Fork {
        let depth = parent.fork.as_ref().map_or(1, |fork| fork.depth) + 1;
        Fork { depth, siblings: Arc::clone(parent.children.get_or_insert_default()) }
    }

    /// It is taken.
    pub(crate) fn enter(self) -> Fork {
        self.siblings.fetch_add(1, Ordering::Relaxed);
        self
    }

    /// It is free again.
    pub(crate) fn leave(&self) {
        self.siblings.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What was found, and where.
#[derive(Debug, Clone)]
pub struct Found {
    /// Rises with every finding of this ledger; begins at 1.
    pub sequence: u64,
    /// When (Unix ms).
    pub time_ms: i64,
    /// The account's path.
    pub account: Arc<str>,
    /// The rule with its figures.
    pub finding: Finding,
    /// What followed.
    pub action: Action,
}

/// The newest findings.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    kept: Mutex<VecDeque<Found>>,
    /// All there were, by rule.
    counts: [AtomicU64; Rule::ALL.len()],
}

/// Whether a call is to be degraded, or why it is refused.
pub(crate) type Looked = Result<bool, Box<Refusal>>;

impl<J: Journal> Ledger<J> {
    /// Looks at a call of an account before it holds anything.
    #[inline]
    pub(crate) fn look(
        &self,
        account: &Arc<Account>,
        labels: &[(String, String)],
        now_ms: i64,
    ) -> Looked {
        let guard = &account.guard;
        let open = account.open.load(Ordering::Relaxed);
        let is_off = guard.policy.most(Rule::Repeats) == i64::MAX;
        let prompt = labels.iter().find(|(name, _)| name == PROMPT_FINGERPRINT && !is_off);
        let is_quiet = open <= guard.policy.most(Rule::OpenReservations)
            && prompt.is_none()
            && !guard.alarmed.load(Ordering::Relaxed);
        if is_quiet { Ok(false) } else { self.look_closely(account, prompt, open, now_ms) }
    }

    #[cold]
    fn look_closely(
        &self,
        account: &Arc<Account>,
        prompt: Option<&(String, String)>,
        open: i64,
        now_ms: i64,
    ) -> Looked {
        // Refused anyway.
        if self.tree.frozen_by(account).is_some() {
            return Ok(false);
        }
        let guard = &account.guard;
        let pending = guard.policy.look(Rule::OpenReservations, open);
        let mut alarm = None;
        if guard.alarmed.load(Ordering::Relaxed) {
            alarm = guard.with(now_ms, |counts, policy| counts.alarmed(policy, now_ms));
            guard.alarmed.store(alarm.is_some(), Ordering::Relaxed);
        }
        let repeated = prompt.and_then(|(_, prompt)| {
            let fingerprint = FixedState::default().hash_one(prompt);
            guard.with(now_ms, |counts, policy| counts.asked(policy, fingerprint, now_ms))
        });
        self.act([pending, alarm, repeated], account, now_ms)
    }

    /// Looks at a call that is to be nested in another reservation.
    pub(crate) fn look_at_fork(&self, account: &Arc<Account>, fork: &Fork, now_ms: i64) -> Looked {
        let policy = &account.guard.policy;
        let deep = policy.look(Rule::Depth, fork.depth);
        let children = fork.siblings.load(Ordering::Relaxed) + 1;
        self.act([deep, policy.look(Rule::Children, children)], account, now_ms)
    }

    /// Looks at the end of a reservation, whose account somebody still uses.
    #[inline]
    pub(crate) fn look_at_end(&self, reservation: &Reservation, spent: &Amounts, now_ms: i64) {
        if !spent.is_zero() {
            let Reservation { account, created_ms, .. } = reservation;
            let chain = &reservation.slices.last().expect("a hold has a slice").chain;
            self.look_at_spending(account, chain, spent, *created_ms, now_ms);
        } else if is_attempt(reservation) {
            self.look_at_failure(&reservation.account, now_ms);
        }
    }

    /// Looks at what a Commit after the end has spent beyond it.
    pub(crate) fn look_at_late(&self, reservation: &Reservation, spent: &Amounts, now_ms: i64) {
        if spent.is_zero() {
            return;
        }
        // Where it was spent: one that has retired since has a successor.
        if let Ok(chain) = self.enter(&reservation.account.path, now_ms) {
            self.look_at_spending(&chain.account, &chain, spent, reservation.created_ms, now_ms);
            leave(&chain.account);
        }
    }

    #[cold]
    fn look_at_failure(&self, account: &Arc<Account>, now_ms: i64) {
        let guard = &account.guard;
        if guard.policy.most(Rule::NoProgress) != i64::MAX {
            let found = guard.with(now_ms, |counts, policy| {
                guard.take_back(counts);
                guard.failing.store(true, Ordering::Relaxed);
                counts.unspent(policy, now_ms)
            });
            self.raise_alarm(found, account, now_ms);
        }
    }

    /// Looks at what an account has spent since `start_ms`.
    #[inline]
    pub(crate) fn look_at_spending(
        &self,
        account: &Arc<Account>,
        chain: &Chain,
        spent: &Amounts,
        start_ms: i64,
        now_ms: i64,
    ) {
        let guard = &account.guard;
        let paced = if guard.policy.most(Rule::Velocity) == i64::MAX { 0 } else { chain.paced };
        if paced == 0 {
            if guard.failing.load(Ordering::Relaxed) {
                self.look_at_counts(account, chain, &Amounts::ZERO, now_ms);
            }
            return;
        }
        let (interval_ms, lasted_ms) = (guard.policy.interval_ms, now_ms.saturating_sub(start_ms));
        let part = |unit| shortened(spent.get(unit), interval_ms, lasted_ms);
        let holds = Holds { chain: chain.id, limits: self.changes.limits() };
        if let Err(short) = guard.leeway.draw(part, paced, &holds, now_ms) {
            let uncounted = Unit::among(short).map(|unit| (unit, part(unit))).collect();
            self.look_at_counts(account, chain, &uncounted, now_ms);
        }
    }

    /// Counts what was spent, looks at all that was in this interval, and leaves leeway for what comes.
    #[cold]
    fn look_at_counts(&self, account: &Arc<Account>, chain: &Chain, spent: &Amounts, now_ms: i64) {
        let guard = &account.guard;
        let found = guard.with(now_ms, |counts, policy| {
            guard.failing.store(false, Ordering::Relaxed);
            counts.progressed();
            guard.take_back(counts);
            counts.run(policy, now_ms);
            counts.spend(spent);
            if policy.most(Rule::Velocity) == i64::MAX {
                return None;
            }
            // Before the limits are looked at: who draws under later ones looks again.
            let holds = Holds { chain: chain.id, limits: self.changes.limits() };
            let found = too_fast(chain, counts, policy);
            // A nested reservation's chain is used by itself only: it is looked at every time.
            if found.is_none() && chain.base.is_none() {
                counts.given = leeway(chain, counts, policy);
                guard.leeway.give(&counts.given, &holds, counts.end_ms(policy));
            }
            found
        });
        if found.is_some() {
            self.raise_alarm(found, account, now_ms);
        }
    }

    /// What was found at an end holds for the calls that follow.
    #[cold]
    fn raise_alarm(&self, found: Option<Finding>, account: &Arc<Account>, now_ms: i64) {
        let Some(finding) = found else { return };
        if self.act([found], account, now_ms) != Ok(false)
            && account.guard.policy.action != Action::Freeze
        {
            account.guard.with(now_ms, |counts, _| counts.alarm(finding));
            account.guard.alarmed.store(true, Ordering::Relaxed);
        }
    }

    /// Tells what was found, and does what the policy of the account says.
    #[inline]
    fn act(
        &self,
        found: impl IntoIterator<Item = Option<Finding>>,
        account: &Arc<Account>,
        now_ms: i64,
    ) -> Looked {
        let mut degrade = false;
        for finding in found.into_iter().flatten() {
            degrade |= self.act_on(finding, account, now_ms)?;
        }
        Ok(degrade)
    }

    #[cold]
    fn act_on(&self, finding: Finding, account: &Arc<Account>, now_ms: i64) -> Looked {
        let action = account.guard.policy.action;
        if account.guard.with(now_ms, |counts, policy| counts.tell(policy, finding.rule, now_ms)) {
            self.log(now_ms, || vec![Fact::Runaway { account: account.id, finding, action }]);
            let account = Arc::clone(&account.path);
            self.findings.push(Found { sequence: 0, time_ms: now_ms, account, finding, action });
        }
        match action {
            Action::Warn => return Ok(false),
            Action::Degrade => return Ok(true),
            Action::Stop => {}
            Action::Freeze => {
                self.mark_frozen(account, true, &format!("runaway: {finding}"), now_ms);
                account.guard.forget();
            }
        }
        Err(Box::new(Refusal {
            reason: RefusalReason::Runaway(finding),
            account: account.path.to_string(),
            unit: finding.unit,
            shortfall: finding.figure.saturating_sub(finding.most),
            reset_ms: finding.until_ms.filter(|_| action == Action::Stop),
        }))
    }

    /// The findings after one of them (0: all that are kept), oldest first.
    pub fn findings(&self, after: u64) -> Vec<Found> {
        let kept = self.findings.kept.lock();
        kept.iter().filter(|found| found.sequence > after).cloned().collect()
    }

    /// How many findings there were by a rule, since this ledger was opened.
    pub fn found(&self, rule: Rule) -> u64 {
        self.findings.counts[rule as usize].load(Ordering::Relaxed)
    }

    /// How many accounts have counts at the moment.
    pub fn counted_accounts(&self) -> usize {
        let accounts = self.tree.accounts.pin();
        accounts.values().filter(|account| account.guard.counts.lock().is_some()).count()
    }
}

impl Findings {
    fn push(&self, found: Found) {
        self.counts[found.finding.rule as usize].fetch_add(1, Ordering::Relaxed);
        let mut kept = self.kept.lock();
        let sequence = kept.back().map_or(0, |last| last.sequence) + 1;
        if kept.len() == FINDINGS {
            kept.pop_front();
        }
        kept.push_back(Found { sequence, ..found });
    }
}

/// The first window whose pace is passed by what was spent in this interval.
fn too_fast(chain: &Chain, counts: &Counts, policy: &Policy) -> Option<Finding> {
    let mut found = None;
    for unit in Unit::among(chain.paced) {
        let total = counts.spent(unit);
        chain.each(unit, &mut |window| {
            // Never says no when it is above: these are parts of the limit.
            if total > window.unheld().div_euclid(BURST) && found.is_none() {
                found = counts.velocity(policy, &paced(window));
            }
        });
    }
    found
}

/// So much more of each unit passes the pace of no window.
fn leeway(chain: &Chain, counts: &Counts, policy: &Policy) -> Amounts {
    let of_unit = |unit| {
        let mut least = i64::MAX;
        chain.each(unit, &mut |window| {
            least = least.min(paced(window).most(policy).unwrap_or(i64::MAX));
        });
        (unit, least.saturating_sub(counts.spent(unit)).max(0))
    };
    Unit::among(chain.paced).map(of_unit).collect()
}

/// Whether an end with nothing spent says something: not of what cannot be spent, and not of one
/// that others were carved from.
fn is_attempt(reservation: &Reservation) -> bool {
    let consumable = reservation.granted.filter(|unit| !unit.is_capacity());
    reservation.children.is_none() && !consumable.is_zero()
}

fn paced(window: &Window) -> Paced {
    let period = &window.budget.period;
    let length_ms = match period.kind {
        PeriodKind::Total => None,
        PeriodKind::Rolling => Some(period.length_ms),
        _ => Some(window.end_ms.saturating_sub(window.start_ms)),
    };
    Paced { unit: window.unit, limit: window.standing().limit, length_ms }
}

/// What was spent in one interval, of what was spent evenly over a longer time; rounded down.
#[inline]
fn shortened(amount: i64, interval_ms: i64, lasted_ms: i64) -> i64 {
    if lasted_ms <= interval_ms {
        return amount;
    }
    let part = i128::from(amount) * i128::from(interval_ms);
    i64::try_from(part.div_euclid(i128::from(lasted_ms))).unwrap_or(amount)
}
