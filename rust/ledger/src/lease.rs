//! Leases: reservations that are debited outside of the ledger, on pages that the client counts on
//! (R6, R9).
//!
//! The ledger never trusts a page: what it counts is a claim, held between what was seen and what
//! is granted. Whoever is about to settle the reservation, to carve from it or to take a top-up
//! back closes the page first, so no step slips past. What was topped up and is not used may be
//! taken back before anybody is refused (R5); what Reserve or an explicit Extend has granted may
//! not.
//!
//! Called by the host's pump every few milliseconds, and from `settle`, `nested`, `debit` and
//! `reserve`.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::charge::Shortage;
use crate::error::LedgerError;
use crate::fact::{ChainId, Fact, Journal, Owner, ReservationId};
use crate::ledger::{Ledger, Now, body};
use crate::rates::{Rate, Usage};
use crate::reservation::{Reservation, give_back};
use crate::settle::ToParent;
use crate::unit::{Amounts, Unit};
use crate::verdict::{Advice, Verdict};
use crate::window::Window;
use crate::wish::{Wish, usage_amounts};

/// The most that one lease counts: what fits a page's word.
pub const COUNT_MAX: i64 = (1 << 48) - 1;

/// Where a lease is counted. Its calls take no lock and wait for nobody.
pub trait Pages: Send + Sync + fmt::Debug {
    /// What the client says is used.
    fn used(&self) -> i64;
    /// Stops the client's steps and returns its final claim.
    fn close(&self) -> i64;
    /// Lets the client go on from `used`.
    fn open(&self, used: i64);
    /// Tells the client what is granted and how to go on; `ended`: not at all.
    fn tell(&self, granted: i64, verdict: Verdict, ended: bool);
    /// Tells the client what to change.
    fn advise(&self, advice: Option<&Advice>);
}

/// What one step of a lease counts; all other units follow from the count, so no step rounds.
#[derive(Debug, Clone)]
pub enum Counts {
    /// One of this unit.
    Unit(Unit),
    /// One output token of a model call, at the rates fixed for the reservation.
    Output(Usage),
}

/// A request for a lease.
#[derive(Debug)]
pub struct Attach {
    /// Where it is counted.
    pub pages: Arc<dyn Pages>,
    /// What is counted.
    pub counts: Counts,
    /// What an earlier attachment counted; held within what is known.
    pub claim: i64,
    /// How much to grant ahead of what is used, unasked; 0: never.
    pub ahead: i64,
    /// The most to count in all; 0: no such bound.
    pub at_most: i64,
    /// Who asks: has to be who reserved.
    pub owner: Option<Owner>,
}

/// A lease as its reservation keeps it.
#[derive(Debug)]
pub(crate) struct Lease {
    pages: Arc<dyn Pages>,
    counts: Counts,
    rate: Option<Arc<Rate>>,
    ahead: i64,
    at_most: i64,
    /// What was seen: the floor of any later claim.
    counted: i64,
    /// What the client was told that it may count.
    granted: i64,
    /// What is granted by Reserve or an explicit Extend: never taken back.
    own: i64,
    /// The verdict that the client was told, and the chain whose it is.
    told: Verdict,
    chain: ChainId,
    /// What has to be durable before more may be told than `granted`.
    ticket: u64,
}

/// How a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leased {
    /// What is debited.
    pub used: i64,
    /// What may be debited in all.
    pub granted: i64,
    /// Which lease of the reservation it is.
    pub number: u32,
}

/// What the pump found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pumped {
    /// It goes on.
    On {
        /// A top-up: what has to be durable before [`Ledger::publish`] tells of it.
        topped_up: Option<u64>,
    },
    /// The reservation or its lease is over.
    Over,
}

/// The leases that have been topped up: where to look before somebody is refused.
#[derive(Debug, Default)]
pub(crate) struct ToppedUp(pub(crate) parking_lot::Mutex<BTreeSet<ReservationId>>);

impl Lease {
    /// The amounts that a count comes to.
    fn amounts(&self, count: i64) -> Result<Amounts, LedgerError> {
        match &self.counts {
            Counts::Unit(unit) => Ok(Amounts::of(*unit, count)),
            Counts::Output(usage) => {
                let usage = Usage { output_tokens: count, ..*usage };
                usage_amounts(self.rate.as_deref(), &usage)
            }
        }
    }

    /// The most that may be counted with these amounts held; `None` when not even 0 may.
    fn most(&self, held: &Amounts) -> Result<Option<i64>, LedgerError> {
        let most = match &self.counts {
            Counts::Unit(unit) => Some(held.get(*unit)),
            Counts::Output(_) => self.wish(COUNT_MAX, 0).largest(held)?.map(|(_, output)| output),
        };
        let bound = if self.at_most > 0 { self.at_most.min(COUNT_MAX) } else { COUNT_MAX };
        Ok(most.map(|most| most.min(bound)))
    }

    /// The hold that a count needs, or as much of it as covers `least`.
    fn wish(&self, most: i64, least: i64) -> Wish {
        match &self.counts {
            Counts::Unit(unit) => {
                let of = |count| Amounts::of(*unit, count);
                Wish::Amounts { most: of(most), least: of(least) }
            }
            Counts::Output(usage) => Wish::Usage {
                rate: self.rate.clone(),
                usage: Usage { output_tokens: most, ..*usage },
                min_output_tokens: least,
            },
        }
    }

    /// What was debited so far, as a count.
    fn count(&self, used: &Amounts) -> i64 {
        match &self.counts {
            Counts::Unit(unit) => used.get(*unit),
            Counts::Output(usage) => {
                used.get(Unit::Tokens).saturating_sub(usage.input_tokens).max(0)
            }
        }
    }

    /// The next top-up: the total to reach, once less than half of what is granted ahead is left.
    fn next_top_up(&self) -> Option<i64> {
        let left = self.granted - self.counted;
        let bound = if self.at_most > 0 { self.at_most } else { COUNT_MAX };
        let total = self.counted.saturating_add(self.ahead).min(bound);
        (self.ahead > 0 && left < self.ahead / 2 + 1 && total > self.granted).then_some(total)
    }

    fn tell(&mut self, verdict: Verdict) {
        self.told = verdict;
        self.pages.tell(self.granted, verdict, false);
    }
}

impl<J: Journal> Ledger<J> {
    /// Whether a reservation may be opened for debits on pages: asked before there are any.
    /// Returns whether it is known to be the owner's, who was allowed to make it.
    pub fn may_attach(&self, id: ReservationId, owner: Option<Owner>) -> Result<bool, LedgerError> {
        let mut locked = self.slot(id)?.body.lock();
        let reservation = body(&mut locked, id)?;
        attachable(reservation, owner)?;
        Ok(reservation.owner.is_some())
    }

    /// Opens a reservation for debits on pages.
    pub fn attach(&self, id: ReservationId, ask: Attach, now: Now) -> Result<Leased, LedgerError> {
        let now_ms = self.time(now.wall_ms);
        let mut locked = self.slot(id)?.body.lock();
        let reservation = body(&mut locked, id)?;
        attachable(reservation, ask.owner)?;
        let rate = reservation.rate.clone();
        if let Counts::Output(_) = &ask.counts
            && rate.is_none()
            && reservation.model().is_none()
        {
            let why = "output tokens are counted where a usage was reserved";
            return Err(LedgerError::InvalidAmount { unit: Unit::Tokens, why });
        }
        let Attach { pages, counts, claim, ahead, at_most, owner: _ } = ask;
        let mut lease = Lease {
            pages,
            counts,
            rate,
            ahead,
            at_most,
            counted: 0,
            granted: 0,
            own: 0,
            told: Verdict::Ok,
            chain: 0,
            ticket: 0,
        };
        let most = lease.most(&reservation.held())?;
        let too_small = LedgerError::InvalidAmount {
            unit: Unit::Tokens,
            why: "the usage's prompt is more than the reservation holds",
        };
        lease.granted = most.ok_or(too_small)?;
        // After this point the lease must succeed.
        lease.own = lease.granted;
        lease.counted = lease.count(&reservation.used).min(lease.granted);
        reservation.lease = Some(Box::new(lease));
        reservation.leases += 1;
        let number = reservation.leases;
        let used = self.fold(reservation, claim, now_ms);
        self.advise(reservation, true, now_ms);
        let lease = reservation.lease.as_ref().expect("just put there");
        lease.pages.open(used);
        Ok(Leased { used, granted: lease.granted, number })
    }

    /// Ends a lease and keeps its reservation, without what was topped up and is not used. Returns
    /// what is debited; `None`: there was no lease.
    pub fn detach(&self, id: ReservationId, now: Now) -> Result<Option<i64>, LedgerError> {
        let now_ms = self.time(now.wall_ms);
        let mut locked = self.slot(id)?.body.lock();
        let reservation = body(&mut locked, id)?;
        self.close_lease(reservation, now_ms);
        let to_parent = self.shrink(reservation, now_ms);
        let counted = self.end_lease(reservation);
        if counted.is_some() && std::mem::take(&mut reservation.debited) {
            // Its client counts on it from now on, and asks for no more.
            self.log(now_ms, || vec![Fact::Used(vec![(id, reservation.used)])]);
        }
        let parent = reservation.parent;
        drop(locked);
        self.hand_up(parent, to_parent, now_ms);
        Ok(counted)
    }

    /// Counts what is new on a lease's pages, renews its time to live if there is something, tops
    /// it up if it runs low, and tells its client how to go on. `look`: verdicts may have changed
    /// since the last time.
    pub fn pump(&self, id: ReservationId, look: bool, now: Now) -> Pumped {
        let now_ms = self.time(now.wall_ms);
        let Ok(slot) = self.slot(id) else { return Pumped::Over };
        let mut locked = slot.body.lock();
        let Ok(reservation) = body(&mut locked, id) else { return Pumped::Over };
        if reservation.lease.is_none() {
            return Pumped::Over;
        }
        self.count_lease(reservation, now);
        let topped_up = self.top_up(reservation, now_ms);
        // What the debit itself has crossed is a change as well: the next call looks.
        let chain = crate::debit::newest(reservation).id;
        if look || reservation.lease.as_ref().is_some_and(|lease| lease.chain != chain) {
            self.advise(reservation, false, now_ms);
        }
        Pumped::On { topped_up }
    }

    /// Tells a lease's client of what was topped up, once that is `written`.
    pub fn publish(&self, id: ReservationId, written: u64) {
        let Ok(slot) = self.slot(id) else { return };
        let mut locked = slot.body.lock();
        let Ok(reservation) = body(&mut locked, id) else { return };
        let held = reservation.held();
        if let Some(lease) = reservation.lease.as_mut().filter(|lease| lease.ticket <= written)
            && let Ok(Some(most)) = lease.most(&held)
            && most > lease.granted
        {
            lease.granted = most;
            lease.tell(lease.told);
        }
    }

    /// Takes a claim for what it is worth, and debits it. Returns what is counted.
    fn fold(&self, reservation: &mut Reservation, claim: i64, now_ms: i64) -> i64 {
        let lease = reservation.lease.as_mut().expect("the caller has seen it");
        // `granted` may have fallen below what was counted when a limit of this lease says so.
        let count = claim.min(lease.granted).max(lease.counted);
        let Ok(amounts) = lease.amounts(count) else { return lease.counted };
        lease.counted = count;
        let mut crossed: Vec<Arc<Window>> = Vec::new();
        let was_debited = reservation.debited;
        for (unit, to) in amounts.iter() {
            let mut note = |window: &Arc<Window>| crossed.push(Arc::clone(window));
            let _reached = reservation.debit(unit, to, now_ms, &mut note);
        }
        if reservation.debited && !was_debited {
            self.slots.set_debited(reservation.id.slot);
        }
        self.report_crossings(now_ms, &crossed);
        count
    }

    /// Counts what a lease's page says. Returns whether there was something new, which renews the time
    /// to live.
    pub(crate) fn count_lease(&self, reservation: &mut Reservation, now: Now) -> bool {
        let Some(lease) = &reservation.lease else { return false };
        let (before, count) = (lease.counted, lease.pages.used());
        let moved = self.fold(reservation, count, self.time(now.wall_ms)) != before;
        if moved {
            reservation.deadline_ms = now.mono_ms.saturating_add(reservation.ttl_ms);
            self.slots.set_deadline(reservation.id.slot, reservation.deadline_ms);
        }
        moved
    }

    /// Tells the client the verdict and the advice, where they have changed or `anew`.
    fn advise(&self, reservation: &mut Reservation, anew: bool, now_ms: i64) {
        let chain = Arc::clone(crate::debit::newest(reservation));
        chain.roll(now_ms);
        let frozen = self.tree.frozen_by(&reservation.account).is_some();
        let verdict = if frozen { Verdict::Stop } else { chain.verdict() };
        let lease = reservation.lease.as_mut().expect("the caller has seen it");
        lease.chain = chain.id;
        if verdict != lease.told || anew {
            // The advice first: who sees the verdict finds it.
            let advice = chain.advice().filter(|_| verdict != Verdict::Ok);
            lease.pages.advise(advice.as_ref());
            lease.tell(verdict);
        }
    }

    /// Holds more where the lease runs low. Returns what has to be durable before what is new is told.
    fn top_up(&self, reservation: &mut Reservation, now_ms: i64) -> Option<u64> {
        let lease = reservation.lease.as_ref().expect("the caller has seen it");
        let waiting = lease.most(&reservation.held()).ok().flatten() > Some(lease.granted);
        if waiting {
            return Some(lease.ticket);
        }
        let wish = lease.wish(lease.next_top_up()?, lease.granted + 1);
        self.raise(reservation, &wish, true, now_ms).ok()?.ok()
    }

    /// Notes how a hold was raised: what may be taken back, and what its client may be told when.
    pub(crate) fn raised(&self, reservation: &mut Reservation, top_up: bool, ticket: u64) {
        let held = reservation.held();
        let Some(lease) = &mut reservation.lease else { return };
        lease.ticket = ticket;
        if top_up {
            self.topped_up.0.lock().insert(reservation.id);
        } else if let Ok(Some(most)) = lease.most(&held) {
            lease.own = most;
        }
    }

    /// Stops a lease's steps and debits what it counts in the end; without a lease, nothing.
    pub(crate) fn close_lease(&self, reservation: &mut Reservation, now_ms: i64) {
        if let Some(lease) = &reservation.lease {
            let count = lease.pages.close();
            self.fold(reservation, count, now_ms);
        }
    }

    /// Ends a closed lease; returns what it counted.
    pub(crate) fn end_lease(&self, reservation: &mut Reservation) -> Option<i64> {
        let lease = reservation.lease.take()?;
        lease.pages.tell(lease.counted, Verdict::Stop, true);
        self.topped_up.0.lock().remove(&reservation.id);
        Some(lease.counted)
    }

    /// Takes back what other leases were topped up by and have not used, as far as the shortage can
    /// be met by it. Returns whether it was, so that the call is worth another try. Called with no
    /// reservation locked; `own` is the caller's and keeps what it has.
    pub(crate) fn reclaim(
        &self,
        shortage: &Shortage,
        own: Option<ReservationId>,
        now_ms: i64,
    ) -> bool {
        let mut leases: Vec<ReservationId> = self.topped_up.0.lock().iter().copied().collect();
        leases.retain(|id| Some(*id) != own);
        let window = &shortage.window;
        let slack = |id: &ReservationId| {
            let mut locked = self.slot(*id).ok()?.body.lock();
            let reservation = body(&mut locked, *id).ok()?;
            Some(slack(reservation, window)).filter(|slack| *slack > 0)
        };
        // First looked at, then taken: what would not do is left where it is.
        let found: Vec<(ReservationId, i64)> =
            leases.iter().filter_map(|id| slack(id).map(|slack| (*id, slack))).collect();
        let left = window.remaining();
        let free = found.iter().fold(left, |sum, (_, slack)| sum.saturating_add(*slack));
        if found.is_empty() || free < shortage.amount {
            return false;
        }
        for (id, _) in found {
            if window.remaining() >= shortage.amount {
                break;
            }
            self.take_back(id, window, now_ms);
        }
        // Even where others were quicker, the windows have changed: look again.
        true
    }

    /// Takes back what one lease was topped up by and has not used.
    fn take_back(&self, id: ReservationId, window: &Arc<Window>, now_ms: i64) {
        let Ok(slot) = self.slot(id) else { return };
        let mut locked = slot.body.lock();
        let Ok(reservation) = body(&mut locked, id) else { return };
        if slack(reservation, window) == 0 {
            return;
        }
        self.close_lease(reservation, now_ms);
        let to_parent = self.shrink(reservation, now_ms);
        reopen_lease(reservation);
        let parent = reservation.parent;
        drop(locked);
        self.hand_up(parent, to_parent, now_ms);
    }

    /// Shrinks a closed lease's hold to what is its own or used. Returns what belongs to a parent.
    fn shrink(&self, reservation: &mut Reservation, now_ms: i64) -> ToParent {
        let back = topped_up(reservation);
        let mut to_parent = ToParent::new();
        let Some(lease) = reservation.lease.as_mut().filter(|_| !back.is_zero()) else {
            return to_parent;
        };
        lease.granted = lease.own.max(lease.counted);
        let pieces = reservation.carve(&back);
        reservation.granted = reservation.held();
        let less = Amounts::ZERO.checked_sub(&back).expect("not negative");
        self.log_resliced(reservation, now_ms, less);
        for (chain, amounts) in pieces {
            let up = give_back(&chain, &amounts);
            if let Some((base, _)) = chain.base.as_ref().filter(|_| !up.is_zero()) {
                to_parent.push((Arc::clone(base), up));
            }
        }
        to_parent
    }
}

fn attachable(reservation: &mut Reservation, owner: Option<Owner>) -> Result<(), LedgerError> {
    let reservation = crate::debit::pending(reservation)?;
    if reservation.owner.is_some() && reservation.owner != owner {
        return Err(LedgerError::NotTheOwner);
    }
    if reservation.lease.is_some() || reservation.channel.is_some() {
        return Err(LedgerError::ReservationLeased);
    }
    Ok(())
}

/// Lets a closed lease go on with what is held now; without a lease, nothing.
pub(crate) fn reopen_lease(reservation: &mut Reservation) {
    let held = reservation.held();
    if let Some(lease) = &mut reservation.lease {
        let most = lease.most(&held).ok().flatten().unwrap_or(0);
        lease.granted = most.min(lease.granted).max(lease.counted);
        lease.own = lease.own.min(lease.granted);
        lease.tell(lease.told);
        lease.pages.open(lease.counted);
    }
}

/// What may be taken back of a hold: topped up, and not used.
fn topped_up(reservation: &Reservation) -> Amounts {
    let Some(lease) = &reservation.lease else { return Amounts::ZERO };
    let count = lease.own.max(lease.counted.max(lease.pages.used().min(lease.granted)));
    let keep = lease.amounts(count).unwrap_or_else(|_| reservation.held());
    let counted = lease.amounts(COUNT_MAX.min(lease.granted)).unwrap_or(Amounts::ZERO);
    let held = reservation.held();
    // Only the units that the lease counts are topped up.
    let part = held.filter(|unit| counted.get(unit) != 0);
    let keep = keep.max(&reservation.used);
    part.max(&keep).checked_sub(&keep).unwrap_or(Amounts::ZERO)
}

/// How much of a window a lease would give back.
fn slack(reservation: &Reservation, window: &Arc<Window>) -> i64 {
    let back = topped_up(reservation).get(window.unit);
    let in_window = reservation
        .slices
        .iter()
        .filter(|slice| slice.chain.windows.iter().any(|own| Arc::ptr_eq(own, window)));
    let unused = in_window.map(|slice| slice.held.get(window.unit) - slice.used.get(window.unit));
    back.min(unused.sum())
}
