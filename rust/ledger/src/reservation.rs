//! One reservation: its hold in slices, what was debited of it, and its end.
//!
//! Only changed under its slot's lock. The hold is a short list of slices, each with the chain that
//! admitted it, spent oldest first (R8). Functions here move numbers between the slices and their
//! windows; who may do so, and what the journal hears of it, is decided in `reserve`, `debit` and
//! `settle`.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use smallvec::SmallVec;

use crate::account::{Account, Chain, covers};
use crate::channel::Channel;
use crate::fact::{Owner, ReservationId, Reserved, Settled, SliceFact, State};
use crate::guard::Fork;
use crate::lease::Lease;
use crate::rates::Rate;
use crate::record::Spending;
use crate::rolling::Span;
use crate::unit::{Amounts, Unit};
use crate::window::Window;

/// The most slices of one reservation: one for its start, one for each period in which it was topped
/// up, one for each return from a nested reservation that was carved from another chain.
pub const MAX_SLICES: usize = 8;

/// A part of the hold.
#[derive(Debug, Clone)]
pub(crate) struct Slice {
    pub(crate) chain: Arc<Chain>,
    /// What it holds, the spent part included.
    pub(crate) held: Amounts,
    /// What is spent of it.
    pub(crate) used: Amounts,
}

impl Slice {
    /// One of which nothing is spent yet.
    pub(crate) fn new(chain: Arc<Chain>, held: Amounts) -> Slice {
        let used = Amounts::ZERO;
        Slice { chain, held, used }
    }
}

/// One reservation.
#[derive(Debug)]
pub(crate) struct Reservation {
    pub(crate) id: ReservationId,
    pub(crate) state: State,
    pub(crate) account: Arc<Account>,
    pub(crate) slices: SmallVec<[Slice; 1]>,
    /// What is debited: the sum of the slices' `used`; kept after the end.
    pub(crate) used: Amounts,
    /// Whether `used` changed since the journal last heard of it.
    pub(crate) debited: bool,
    /// Who alone may debit it; `None`: anybody.
    pub(crate) channel: Option<Channel>,
    /// What was granted in all; kept after the end.
    pub(crate) granted: Amounts,
    pub(crate) max_output_tokens: i64,
    pub(crate) created_ms: i64,
    pub(crate) ttl_ms: i64,
    /// On the monotonic clock.
    pub(crate) deadline_ms: i64,
    pub(crate) key: u128,
    pub(crate) payload: u128,
    pub(crate) parent: Option<ReservationId>,
    pub(crate) rate: Option<Arc<Rate>>,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) owner: Option<Owner>,
    /// While it is debited on pages.
    pub(crate) lease: Option<Box<Lease>>,
    /// How many leases it has had.
    pub(crate) leases: u32,
    /// How many pending ones are carved from it; `None`: none ever was.
    pub(crate) children: Option<Arc<AtomicI64>>,
    /// Its place, when it is carved from another.
    pub(crate) fork: Option<Box<Fork>>,
    pub(crate) end: End,
}

/// What it came to; all zero while pending.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct End {
    pub(crate) payload: u128,
    pub(crate) spent: Amounts,
    pub(crate) returned: Amounts,
    pub(crate) overdraft: Amounts,
    /// Capacity still held after expiry.
    pub(crate) kept: Amounts,
}

impl Reservation {
    /// One that held nothing and is committed: what Record remembers.
    pub(crate) fn recorded(
        id: ReservationId,
        chain: &Chain,
        spending: Spending<'_>,
        created_ms: i64,
    ) -> Reservation {
        Reservation {
            id,
            state: State::Committed,
            account: Arc::clone(&chain.account),
            slices: SmallVec::new(),
            used: spending.amounts,
            debited: false,
            channel: None,
            granted: Amounts::ZERO,
            max_output_tokens: 0,
            created_ms,
            ttl_ms: 0,
            deadline_ms: i64::MAX,
            key: spending.key,
            payload: spending.payload,
            parent: None,
            rate: None,
            labels: spending.labels,
            owner: None,
            lease: None,
            leases: 0,
            children: None,
            fork: None,
            end: End { payload: spending.payload, spent: spending.amounts, ..End::default() },
        }
    }

    /// One that has ended, as the store remembers it. Its key is not taken up again: it lasts no longer
    /// than the retention.
    pub(crate) fn ended(
        id: ReservationId,
        account: Arc<Account>,
        reserved: &Reserved,
        settled: &Settled,
        created_ms: i64,
    ) -> Reservation {
        let mut reservation = Reservation {
            id,
            state: settled.state,
            account,
            slices: SmallVec::new(),
            used: settled.spent,
            debited: false,
            channel: None,
            granted: settled.granted(),
            max_output_tokens: reserved.max_output_tokens,
            created_ms,
            ttl_ms: reserved.ttl_ms,
            deadline_ms: i64::MAX,
            key: 0,
            payload: reserved.payload,
            parent: reserved.parent,
            rate: reserved.rate.clone().map(Arc::new),
            labels: reserved.labels.clone(),
            owner: reserved.owner,
            lease: None,
            leases: 0,
            children: None,
            fork: None,
            end: End::default(),
        };
        reservation.finish(settled);
        reservation
    }

    /// What is left of the hold.
    #[inline]
    pub(crate) fn unused(&self) -> Amounts {
        self.sum(|slice| {
            let left = slice.held.checked_sub(&slice.used);
            left.expect("used never passes held")
        })
    }

    /// What is held in all, the spent part included.
    #[inline]
    pub(crate) fn held(&self) -> Amounts {
        self.sum(|slice| slice.held)
    }

    /// The sum over the slices; there is mostly one.
    #[inline]
    pub(crate) fn sum(&self, of: impl Fn(&Slice) -> Amounts) -> Amounts {
        if let [slice] = self.slices.as_slice() {
            return of(slice);
        }
        self.slices.iter().fold(Amounts::ZERO, |sum, slice| {
            sum.checked_add(&of(slice)).expect("a hold is within i64")
        })
    }

    /// The model it was made for.
    pub(crate) fn model(&self) -> Option<&str> {
        self.label("model")
    }

    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(known, _)| known == name).map(|(_, text)| text.as_str())
    }

    /// Raises what is debited of `unit` to `to`, or to what is held; spends oldest first. Calls
    /// `crossed` with each window whose thresholds have to be looked at. Returns whether `to` was
    /// reached.
    #[inline]
    pub(crate) fn debit(
        &mut self,
        unit: Unit,
        to: i64,
        now_ms: i64,
        crossed: &mut impl FnMut(&Arc<Window>),
    ) -> bool {
        let mut rest = to - self.used.get(unit);
        if rest <= 0 {
            return true;
        }
        for slice in &mut self.slices {
            let used = slice.used.get(unit);
            let part = rest.min(slice.held.get(unit) - used);
            if part > 0 {
                slice.used.set(unit, used + part);
                spend(&slice.chain, unit, part, Span::at(now_ms), crossed);
                rest -= part;
            }
        }
        self.used.set(unit, to - rest);
        self.debited = true;
        rest == 0
    }

    /// When what it has spent was spent.
    pub(crate) fn span(&self, now_ms: i64) -> Span {
        Span { since_ms: self.created_ms, now_ms }
    }

    /// The slices as facts.
    pub(crate) fn slice_facts(&self) -> Vec<SliceFact> {
        let fact = |s: &Slice| SliceFact { chain: s.chain.id, held: s.held, spent: Amounts::ZERO };
        self.slices.iter().map(fact).collect()
    }

    /// As it was reserved.
    pub(crate) fn reserved_fact(&self) -> Reserved {
        Reserved {
            id: self.id,
            account: self.account.id,
            key: self.key,
            payload: self.payload,
            slices: self.slice_facts(),
            max_output_tokens: self.max_output_tokens,
            ttl_ms: self.ttl_ms,
            parent: self.parent,
            rate: self.rate.as_deref().cloned(),
            labels: self.labels.clone(),
            owner: self.owner,
        }
    }

    /// Adds to the hold: to a slice of the same chain if there is one. Returns whether the sum is an
    /// `i64`; nothing is added otherwise.
    pub(crate) fn add_slice(&mut self, chain: &Arc<Chain>, held: Amounts) -> bool {
        if self.held().checked_add(&held).is_none() {
            return false;
        }
        let mut slices = self.slices.iter_mut();
        if let Some(slice) = slices.find(|slice| slice.chain.id == chain.id) {
            slice.held = slice.held.checked_add(&held).expect("part of the sum");
        } else if !held.is_zero() {
            self.slices.push(Slice::new(Arc::clone(chain), held));
        }
        true
    }

    /// Takes `wanted` out of the unused hold, newest first, as pieces with their chains (R16).
    pub(crate) fn carve(&mut self, wanted: &Amounts) -> Vec<(Arc<Chain>, Amounts)> {
        let mut pieces = Vec::new();
        let mut wanted = *wanted;
        for slice in self.slices.iter_mut().rev() {
            let left = slice.held.checked_sub(&slice.used).expect("used never passes held");
            let piece = wanted.min(&left);
            if !piece.is_zero() {
                slice.held = slice.held.checked_sub(&piece).expect("a piece is part of it");
                wanted = wanted.checked_sub(&piece).expect("a piece is part of it");
                pieces.push((Arc::clone(&slice.chain), piece));
            }
        }
        pieces
    }
}

/// Turns held into spent in every window that the unit counts in (negative: back into held). Calls
/// `crossed` with each window whose thresholds have to be looked at.
#[inline]
pub(crate) fn spend(
    chain: &Chain,
    unit: Unit,
    amount: i64,
    span: Span,
    crossed: &mut impl FnMut(&Arc<Window>),
) {
    chain.each(unit, &mut |window| {
        if window.spend_at(amount, 0, span) {
            crossed(window);
        }
    });
}

/// Both at a settlement: turns `delta` of what is held into spent, and gives `back` to the chain's own
/// windows. Each window is visited once, since others may be using it as well.
#[inline]
pub(crate) fn spend_and_give_back(
    chain: &Chain,
    delta: &Amounts,
    back: &Amounts,
    span: Span,
    crossed: &mut impl FnMut(&Arc<Window>),
) {
    for unit in Unit::each() {
        let (delta, back) = (delta.get(unit), back.get(unit));
        if delta | back == 0 {
            continue;
        }
        for window in chain.windows.iter().filter(|window| window.unit == unit) {
            if delta == 0 {
                window.give_back(back);
            } else if window.spend_at(delta, back, span) {
                crossed(window);
            }
        }
        if let Some((base, units)) = &chain.base
            && delta != 0
            && covers(*units, unit)
        {
            spend(base, unit, delta, span, crossed);
        }
    }
}

/// Gives held back to the chain's own windows, and returns what belongs to its base: that goes to the
/// parent while it is pending.
#[inline]
pub(crate) fn give_back(chain: &Chain, amounts: &Amounts) -> Amounts {
    for (window, amount) in chain.takings(amounts) {
        window.give_back(amount);
    }
    match &chain.base {
        Some((_, units)) => amounts.filter(|unit| covers(*units, unit)),
        None => Amounts::ZERO,
    }
}
