//! Ends of reservations: Commit, Release, expiry (R7, R8, R9). Ends that are corrected later are in
//! `late`.
//!
//! A settlement first charges what was spent beyond the hold, which alone can fail; then it turns the
//! hold into spending and gives the rest back, which cannot. The true amount is recorded whatever the
//! limit says. A hold carved from a parent goes back to it while it is pending (R16).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use crate::account::{Chain, covers};
use crate::error::LedgerError;
use crate::fact::{Fact, Journal, ReservationId, Settled, SliceFact, State};
use crate::ledger::{Ledger, Now, Scope, View, body, view};
use crate::reservation::{End, Reservation, give_back, spend};
use crate::reserve::leave;
use crate::unit::{Amounts, Unit};
use crate::verdict::Verdict;
use crate::window::Window;

/// How a caller ends a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With true amounts; units that are not `named` count as debited.
    Commit {
        /// The true amounts.
        actual: Amounts,
        /// The units that `actual` names, one bit per unit index.
        named: u8,
        /// Hash of the request as sent.
        payload: u128,
    },
    /// At what was debited.
    Release,
}

/// The answer to an end.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The reservation as it ended.
    pub view: View,
    /// STOP when a window is overdrawn now.
    pub verdict: Verdict,
    /// The windows, for advice.
    pub scope: Scope,
    /// What must be durable before the answer may leave.
    pub ticket: u64,
}

/// Holds that go back to a parent, by the chain that they were carved from.
type ToParent = SmallVec<[(Arc<Chain>, Amounts); 1]>;

/// How a reservation is settled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settlement {
    pub(crate) state: State,
    pub(crate) spent: Amounts,
    /// Hash of the Commit as sent; 0: none.
    pub(crate) payload: u128,
}

impl<J: Journal> Ledger<J> {
    /// Ends a reservation. A repeat answers alike; a Commit counts even after another end.
    pub fn end(&self, id: ReservationId, ending: Ending, now: Now) -> Result<Ended, LedgerError> {
        if let Ending::Commit { actual, .. } = &ending {
            actual.check_not_negative()?;
        }
        let now_ms = self.time(now.wall_ms);
        let mut locked = self.slot(id)?.body.lock();
        let reservation = body(&mut locked, id)?;
        let (mut ticket, mut to_parent) = (u64::MAX, ToParent::new());
        let settlement = settlement(reservation, &ending);
        match (reservation.state, ending) {
            (State::Pending, _) => {
                (ticket, to_parent) = self.settle(reservation, &settlement, now_ms)?;
                self.forget_later(reservation, now.mono_ms);
            }
            (State::Committed, Ending::Commit { payload, .. }) => {
                if reservation.end.payload != payload {
                    return Err(LedgerError::IdempotencyMismatch("commit"));
                }
            }
            (State::Released | State::Expired, Ending::Commit { .. }) => {
                ticket = self.correct(reservation, &settlement, now_ms)?;
                self.forget_later(reservation, now.mono_ms);
            }
            (State::Expired, Ending::Release) if !reservation.end.kept.is_zero() => {
                ticket = self.log_kept(reservation, now_ms);
                self.forget_later(reservation, now.mono_ms);
            }
            (_, Ending::Release) => {}
        }
        let chain = self.chain_of(&reservation.account, now_ms);
        let mut ended = Ended {
            view: view(reservation, now.mono_ms),
            verdict: after(&chain),
            scope: Scope(Some(chain)),
            ticket,
        };
        let parent = reservation.parent;
        drop(locked);
        if let Some(later) = self.hand_up(parent, to_parent, now_ms) {
            ended.ticket = ended.ticket.max(later);
        }
        Ok(ended)
    }

    /// Turns the hold into what was spent, gives the rest back, and marks the end. On expiry capacity
    /// stays held until the owner is known to be gone (R9). Called under the slot's lock.
    pub(crate) fn settle(
        &self,
        reservation: &mut Reservation,
        settlement: &Settlement,
        now_ms: i64,
    ) -> Result<(u64, ToParent), LedgerError> {
        let Settlement { state, spent, payload } = *settlement;
        let held = reservation.held();
        let from_hold = spent.min(&held);
        let excess = spent.checked_sub(&from_hold).ok_or(LedgerError::Overflow)?;
        let mut crossed = Vec::new();
        let account = &reservation.account;
        let (beyond, overdraft) = self.spend_beyond(account, &excess, now_ms, &mut crossed)?;
        // After this point the settlement must succeed.
        let keeps = |unit: Unit| state == State::Expired && unit.is_capacity();
        let kept = held.filter(keeps);
        let returned = held
            .checked_sub(&from_hold)
            .and_then(|rest| rest.checked_sub(&kept))
            .expect("parts of the hold");
        let mut rest = from_hold;
        let mut to_parent = ToParent::new();
        let mut facts = SmallVec::<[SliceFact; 1]>::new();
        for slice in &mut reservation.slices {
            let part = slice.held.min(&rest);
            rest = rest.checked_sub(&part).expect("part of it");
            for (unit, delta) in part.checked_sub(&slice.used).expect("within i64").iter() {
                let mut note = |window: &Arc<Window>| crossed.push(Arc::clone(window));
                spend(&slice.chain, unit, delta, now_ms, &mut note);
            }
            let back = slice.held.checked_sub(&part).expect("part of it");
            let back = back.filter(|unit| !keeps(unit));
            let up = give_back(&slice.chain, &back);
            if let Some((base, _)) = slice.chain.base.as_ref().filter(|_| !up.is_zero()) {
                to_parent.push((Arc::clone(base), up));
            }
            facts.push(SliceFact { chain: slice.chain.id, held: slice.held, spent: part });
            slice.held = slice.held.checked_sub(&back).expect("part of it");
            slice.used = part;
        }
        reservation.state = state;
        if let Some(channel) = reservation.channel.take() {
            self.changes.ended(channel, reservation.id, state);
        }
        reservation.used = spent;
        reservation.debited = false;
        reservation.end = End { payload, spent, returned, overdraft, kept };
        let ticket = self.log(now_ms, || {
            let beyond = beyond.map(|(chain, amounts)| (chain.id, amounts));
            vec![Fact::Settled(Settled {
                slices: facts.into_vec(),
                beyond,
                overdraft,
                returned,
                ..as_it_ended(reservation)
            })]
        });
        self.report_crossings(now_ms, &crossed);
        let account = &reservation.account;
        account.last_used_ms.store(now_ms, Ordering::Relaxed);
        leave(account);
        Ok((ticket, to_parent))
    }

    /// Sets when the ended reservation, and its key, are forgotten.
    pub(crate) fn forget_later(&self, reservation: &Reservation, mono_ms: i64) {
        if reservation.end.kept.is_zero() {
            let forget_ms = mono_ms.saturating_add(self.settings.key_retention_ms);
            self.slots.set_deadline(reservation.id.slot, forget_ms);
        } else {
            self.slots.set_deadline(reservation.id.slot, i64::MAX);
        }
    }

    /// Gives unused pieces back to the parent they were carved from, or, when that has ended, on to
    /// where it gave its own. Returns the ticket of the parent's new slices.
    pub(crate) fn hand_up(
        &self,
        parent: Option<ReservationId>,
        mut pieces: ToParent,
        now_ms: i64,
    ) -> Option<u64> {
        if pieces.is_empty() {
            return None;
        }
        let mut locked = parent.and_then(|parent| Some(self.slot(parent).ok()?.body.lock()));
        let holder = parent.zip(locked.as_mut());
        let holder = holder.and_then(|(parent, slot)| body(slot, parent).ok());
        let mut grandparent = None;
        let mut ticket = None;
        if let Some(holder) = holder {
            grandparent = holder.parent;
            if holder.state == State::Pending {
                pieces.retain(|(chain, amounts)| !holder.add_slice(chain, *amounts));
                holder.granted = holder.held();
                ticket = Some(self.log_resliced(holder, now_ms, Amounts::ZERO));
            }
        }
        drop(locked);
        let mut further = ToParent::new();
        for (chain, amounts) in pieces {
            let up = give_back(&chain, &amounts);
            if let Some((base, _)) = chain.base.as_ref().filter(|_| !up.is_zero()) {
                further.push((Arc::clone(base), up));
            }
        }
        ticket.max(self.hand_up(grandparent, further, now_ms))
    }
}

/// What an ending comes to.
fn settlement(reservation: &Reservation, ending: &Ending) -> Settlement {
    match ending {
        Ending::Release => {
            Settlement { state: State::Released, spent: reservation.used, payload: 0 }
        }
        Ending::Commit { actual, named, payload } => Settlement {
            state: State::Committed,
            spent: committed(reservation, actual, *named),
            payload: *payload,
        },
    }
}

/// What a Commit comes to: what it names, what was debited of the rest; a committed call is a call;
/// capacity is never spent.
fn committed(reservation: &Reservation, actual: &Amounts, named: u8) -> Amounts {
    let mut spent = reservation.used.filter(|unit| !unit.is_capacity());
    for unit in Unit::ALL.into_iter().filter(|unit| !unit.is_capacity()) {
        if covers(named, unit) {
            spent.set(unit, actual.get(unit));
        } else if unit == Unit::Calls {
            spent.set(unit, reservation.granted.get(unit).max(spent.get(unit)));
        }
    }
    spent
}

/// The verdict after spending: STOP when a window is overdrawn.
pub(crate) fn after(chain: &Chain) -> Verdict {
    let overdrawn = chain.windows.iter().any(|window| window.remaining() < 0);
    if overdrawn { Verdict::Stop } else { chain.verdict() }
}

/// An ended reservation as a fact, with no money moved.
pub(crate) fn as_it_ended(reservation: &Reservation) -> Settled {
    Settled {
        id: reservation.id,
        account: reservation.account.id,
        state: reservation.state,
        payload: reservation.end.payload,
        slices: Vec::new(),
        beyond: None,
        overdraft: Amounts::ZERO,
        spent: reservation.end.spent,
        returned: Amounts::ZERO,
        kept: reservation.end.kept,
        model: reservation.model().map(str::to_owned),
    }
}
