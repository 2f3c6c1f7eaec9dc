//! One budget in one period: the words that admission changes, and nothing else.
//!
//! `remaining` is the one word that admits: it is only ever changed by compare-and-swap or add, and a
//! hold is admitted by taking from it. Limit changes add to the same word, so a limit and a hold never
//! disagree. What is held is derived: `limit − spent − remaining`.
//!
//! How several windows are taken from at once is in `charge`. Takes `terms` only at a threshold or a
//! limit change.

use std::sync::Arc;

use crossbeam_utils::CachePadded;

use crate::budget::BudgetInfo;
use crate::canary;
use crate::changes::Changes;
use crate::charge::Short;
use crate::fact::WindowId;
use crate::rolling::{Rolling, Span};
use crate::sync::{AtomicI64, AtomicU8, AtomicU64, Mutex, Ordering};
use crate::unit::Unit;
use crate::verdict::{Advice, Threshold, Verdict, is_told_anew, marks};

/// One budget in one period.
#[derive(Debug)]
pub struct Window {
    /// Its name.
    pub id: WindowId,
    /// The budget it belongs to.
    pub budget: Arc<BudgetInfo>,
    /// The budget's unit, at hand: every charge on the chain asks for it.
    pub(crate) unit: Unit,
    /// Its first millisecond.
    pub start_ms: i64,
    /// The first millisecond after it; `i64::MAX` when it never ends.
    pub end_ms: i64,
    hot: CachePadded<Hot>,
    terms: Mutex<Terms>,
    /// Boxed: most windows have none, and it is large.
    rolling: Option<Box<Rolling>>,
    /// Hears when verdict or advice change.
    changes: Arc<Changes>,
}

/// The words that every call touches, on a cache line of their own.
#[derive(Debug)]
struct Hot {
    /// limit − spent − held; negative when overdrawn.
    remaining: AtomicI64,
    /// How many takings were given back; tells who found it short that it was not for good.
    rollbacks: AtomicU64,
    /// Spent for good.
    spent: AtomicI64,
    /// The least `spent` at which the terms must be looked at.
    next_mark: AtomicI64,
    /// The verdict that the thresholds give now.
    level: AtomicU8,
}

/// What changes only with the configuration or at a threshold.
#[derive(Debug)]
struct Terms {
    limit: i64,
    thresholds: Arc<[Threshold]>,
    /// The shares whose crossing was reported.
    fired: Vec<u16>,
    /// How many thresholds are passed.
    passed: usize,
}

/// A sum would pass the range of `i64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overflow;

/// The words at one moment; consistent when nothing is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The hard limit.
    pub limit: i64,
    /// Held and not spent.
    pub held: i64,
    /// Spent for good.
    pub spent: i64,
    /// limit − spent − held.
    pub remaining: i64,
}

impl Window {
    /// An empty window.
    pub(crate) fn new(
        id: WindowId,
        budget: Arc<BudgetInfo>,
        (start_ms, end_ms): (i64, i64),
        limit: i64,
        thresholds: Arc<[Threshold]>,
        changes: Arc<Changes>,
    ) -> Window {
        let rolling = Rolling::of(&budget.period).map(Box::new);
        let hot = Hot {
            remaining: AtomicI64::new(limit),
            rollbacks: AtomicU64::new(0),
            spent: AtomicI64::new(0),
            next_mark: AtomicI64::new(i64::MAX),
            level: AtomicU8::new(0),
        };
        let terms = Mutex::new(Terms { limit, thresholds, fired: Vec::new(), passed: 0 });
        let window = Window {
            id,
            unit: budget.unit,
            budget,
            start_ms,
            end_ms,
            hot: CachePadded::new(hot),
            terms,
            rolling,
            changes,
        };
        window.refresh(&mut window.terms.lock(), true);
        window
    }

    /// What is left now. A snapshot: only a charge decides.
    #[inline]
    pub(crate) fn remaining(&self) -> i64 {
        self.hot.remaining.load(Ordering::Acquire)
    }

    /// The verdict of the thresholds; STOP once more is spent than the limit allows (R10).
    #[inline]
    pub fn verdict(&self) -> Verdict {
        match self.hot.level.load(Ordering::Relaxed) {
            0 => Verdict::Ok,
            1 => Verdict::Warn,
            2 => Verdict::Degrade,
            _ => Verdict::Stop,
        }
    }

    /// The advice of the most severe threshold that is passed.
    pub fn advice(&self) -> Option<Advice> {
        let terms = self.terms.lock();
        let spent = self.hot.spent.load(Ordering::Acquire);
        let passed = terms.thresholds.iter().filter(|t| t.mark(terms.limit) <= spent);
        passed.max_by_key(|t| (t.verdict, t.permille)).map(|t| t.advice.clone())
    }

    /// The words now.
    pub fn standing(&self) -> Standing {
        let limit = self.terms.lock().limit;
        let remaining = self.hot.remaining.load(Ordering::Acquire);
        let spent = self.hot.spent.load(Ordering::Acquire);
        // In flight, the three words are of three moments; a hold is never shown as negative.
        let held = limit.saturating_sub(spent).saturating_sub(remaining).max(0);
        Standing { limit, held, spent, remaining: limit.saturating_sub(spent).saturating_sub(held) }
    }

    /// What is spent and what is left: of the limit, all but what is held.
    #[inline]
    pub(crate) fn unheld(&self) -> i64 {
        let spent = self.hot.spent.load(Ordering::Relaxed);
        spent.saturating_add(self.hot.remaining.load(Ordering::Relaxed))
    }

    /// Takes `amount` if so much is left; see `charge`.
    #[inline]
    pub(crate) fn take(&self, amount: i64) -> Result<(), Short> {
        let hot = &self.hot;
        loop {
            // The count comes first, and `untake` raises it last: a taking whose return is counted here
            // is back in what is read next.
            let rollbacks = self.rollbacks();
            let remaining = hot.remaining.load(Ordering::Acquire);
            if remaining < amount {
                let shortfall = amount.saturating_sub(remaining);
                return Err(Short { amount, shortfall, rollbacks });
            }
            let (ok, fail) = (Ordering::AcqRel, Ordering::Relaxed);
            let left = remaining - amount;
            if hot.remaining.compare_exchange(remaining, left, ok, fail).is_ok() {
                return Ok(());
            }
        }
    }

    /// Gives a taking back, and counts that; in this order (see `take`).
    pub(crate) fn untake(&self, amount: i64) {
        self.hot.remaining.fetch_add(amount, Ordering::AcqRel);
        self.hot.rollbacks.fetch_add(1, Ordering::AcqRel);
    }

    /// How many takings were given back.
    #[inline]
    pub(crate) fn rollbacks(&self) -> u64 {
        self.hot.rollbacks.load(Ordering::Acquire)
    }

    /// As below, after what has left the period by now.
    #[inline]
    #[must_use]
    pub(crate) fn spend_at(&self, amount: i64, back: i64, span: Span) -> bool {
        self.roll(span.now_ms);
        self.spend_held(amount, back, span)
    }

    /// Turns so much of a hold into spending (negative: back into a hold), and gives `back` of the hold
    /// back. Returns whether a threshold has to be looked at.
    #[inline]
    #[must_use]
    pub(crate) fn spend_held(&self, amount: i64, back: i64, span: Span) -> bool {
        let spent = match &self.rolling {
            None => amount,
            Some(rolling) => rolling.spend(amount, span),
        };
        // AcqRel pairs with `refresh`: either it sees this spending or we see its mark.
        let before = self.hot.spent.fetch_add(spent, Ordering::AcqRel);
        // What has left the period by itself was given back then, and what may have stays until it
        // leaves. In one step, or others would find less than there is.
        let back = back + (amount - spent);
        if back != 0 {
            self.give_back(back);
        }
        amount < 0 || before.wrapping_add(spent) >= self.hot.next_mark.load(Ordering::Acquire)
    }

    /// Gives so much of a hold back.
    #[inline]
    pub(crate) fn give_back(&self, amount: i64) {
        self.hot.remaining.fetch_add(amount, Ordering::AcqRel);
    }

    /// Takes `amount` whether it fits or not: truth is recorded (R7). Returns what of it passes the
    /// limit.
    pub(crate) fn take_anyway(&self, amount: i64) -> Result<i64, Overflow> {
        // spent + held = limit − remaining stays within i64 when remaining ≥ limit − i64::MAX; the
        // limit does not change while its lock is held.
        let terms = self.terms.lock();
        let floor = terms.limit - i64::MAX;
        let (ok, fail) = (Ordering::AcqRel, Ordering::Acquire);
        let taken = self
            .hot
            .remaining
            .fetch_update(ok, fail, |r| r.checked_sub(amount).filter(|after| *after >= floor));
        drop(terms);
        let before = taken.map_err(|_| Overflow)?;
        Ok((amount - before.max(0)).clamp(0, amount.max(0)))
    }

    /// Changes the limit without touching what is spent or held (R10). `log` runs once nothing can fail
    /// any more and before anybody can see the change. Returns the shares that it crosses by itself.
    pub(crate) fn set_limit(
        &self,
        limit: i64,
        thresholds: Arc<[Threshold]>,
        log: impl FnOnce(),
    ) -> Result<Vec<u16>, Overflow> {
        let mut terms = self.terms.lock();
        let change = limit.checked_sub(terms.limit).ok_or(Overflow)?;
        // limit − i64::MAX ≤ remaining ≤ limit holds for any limit of 0 or more (see `take_anyway`), so
        // what others take meanwhile cannot make the sum pass the range.
        self.remaining().checked_add(change).ok_or(Overflow)?;
        log();
        self.hot.remaining.fetch_add(change, Ordering::AcqRel);
        terms.limit = limit;
        terms.thresholds = thresholds;
        self.arm_anew(&mut terms);
        let crossed = self.refresh(&mut terms, true);
        self.changes.limit();
        Ok(crossed)
    }

    /// Looks at the thresholds and returns the shares that are crossed and were never reported (R17).
    pub(crate) fn crossings(&self) -> Vec<u16> {
        self.refresh(&mut self.terms.lock(), true)
    }

    /// Finds verdict and next mark. Returns what is crossed and was never reported: by a caller that
    /// reports it. For one that does not it stays crossed, and the next spending looks anew.
    fn refresh(&self, terms: &mut Terms, reports: bool) -> Vec<u16> {
        let thresholds = Arc::clone(&terms.thresholds);
        let mut crossed = Vec::new();
        let before = (self.hot.level.load(Ordering::Relaxed), terms.passed);
        loop {
            let spent = self.hot.spent.load(Ordering::SeqCst);
            let over = spent > terms.limit;
            let mut level = if over { Verdict::Stop } else { Verdict::Ok };
            let mut next = if over { i64::MAX } else { terms.limit.saturating_add(1) };
            terms.passed = 0;
            for (share, mark, verdict) in marks(&thresholds, terms.limit) {
                if mark > spent {
                    next = next.min(mark);
                    continue;
                }
                level = level.max(verdict);
                terms.passed += usize::from(verdict > Verdict::Ok);
                if terms.fired.contains(&share) {
                    continue;
                }
                if reports {
                    terms.fired.push(share);
                    crossed.push(share);
                } else {
                    next = 0;
                }
            }
            self.hot.level.store(level as u8, Ordering::Relaxed);
            self.hot.next_mark.store(next, Ordering::Release);
            // A read-modify-write, so that it has a place among the spendings: one before it is seen
            // here, one after it sees the new mark. Behind the last mark nothing is left to be missed,
            // and at 0 every spending looks.
            if self.hot.spent.fetch_add(0, Ordering::AcqRel) < next || matches!(next, 0 | i64::MAX)
            {
                break;
            }
        }
        // Other thresholds passed are other advice.
        if (self.hot.level.load(Ordering::Relaxed), terms.passed) != before {
            self.changes.verdicts();
        }
        crossed
    }

    /// For a rolling window: what was reported and may be again is not reported yet.
    fn arm_anew(&self, terms: &mut Terms) {
        if self.rolls() {
            let spent = self.hot.spent.load(Ordering::SeqCst);
            let Terms { limit, thresholds, fired, .. } = terms;
            fired.retain(|share| {
                !marks(thresholds, *limit).any(|(of, m, _)| of == *share && is_told_anew(m, spent))
            });
        }
    }

    /// Whether spending leaves it by itself.
    pub(crate) fn rolls(&self) -> bool {
        self.rolling.is_some()
    }

    /// For a rolling window: gives back what has left the period. Cheap when nothing has.
    #[inline]
    pub(crate) fn roll(&self, now_ms: i64) {
        if let Some(rolling) = &self.rolling {
            self.roll_out(rolling, now_ms);
        }
    }

    fn roll_out(&self, rolling: &Rolling, now_ms: i64) {
        let left = rolling.roll(now_ms);
        if left != 0 {
            self.hot.spent.fetch_sub(left, Ordering::SeqCst);
            self.hot.remaining.fetch_add(left, Ordering::AcqRel);
            let mut terms = self.terms.lock();
            self.arm_anew(&mut terms);
            self.refresh(&mut terms, false);
        }
    }

    /// Puts the words back as they stood (recovery, before any charge).
    pub(crate) fn restore(&self, spent: i64, fired: &[u16], buckets: &[(i64, i64)]) {
        self.hot.spent.fetch_add(spent, Ordering::SeqCst);
        self.hot.remaining.fetch_sub(spent, Ordering::AcqRel);
        if let Some(rolling) = &self.rolling {
            rolling.restore(buckets);
        }
        for share in fired {
            self.replay_crossed(*share);
        }
    }

    /// Takes without a limit: replay states facts and does not admit again.
    pub(crate) fn replay_take(&self, amount: i64) {
        self.hot.remaining.fetch_sub(amount, Ordering::AcqRel);
    }

    /// Changes the limit; what it crosses is a fact of its own (recovery).
    pub(crate) fn replay_limit(&self, limit: i64, thresholds: Arc<[Threshold]>) {
        let mut terms = self.terms.lock();
        let change = limit.wrapping_sub(terms.limit);
        self.hot.remaining.fetch_add(change, Ordering::AcqRel);
        terms.limit = limit;
        terms.thresholds = thresholds;
    }

    /// Marks a threshold as reported (recovery).
    pub(crate) fn replay_crossed(&self, permille: u16) {
        let mut terms = self.terms.lock();
        if !terms.fired.contains(&permille) && !canary::sings("crossing-twice") {
            terms.fired.push(permille);
        }
    }

    /// Finds verdict and mark anew, after recovery. What was crossed and never reported is left to
    /// whoever looks next.
    pub(crate) fn recovered(&self) {
        self.refresh(&mut self.terms.lock(), false);
    }
}
