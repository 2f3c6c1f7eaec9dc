//! Ends of reservations: Commit, Release, expiry (R7, R8, R9). Ends that are corrected later are in
//! `late`.
//!
//! A settlement first charges what was spent beyond the hold, which alone can fail; then it turns the
//! hold into spending and gives the rest back, which cannot. The true amount is recorded whatever the
//! limit says. A hold carved from a parent goes back to it while it is pending (R16).

use std::iter;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::account::{Chain, covers};
use crate::canary;
use crate::error::LedgerError;
use crate::fact::{Fact, Journal, ReservationId, Settled, SliceFact, State};
use crate::lease::reopen_lease;
use crate::ledger::{Ledger, Now, Scope, View, body, view};
use crate::reservation::{End, Reservation, Slice, give_back, spend_and_give_back};
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
        /// Whether the work succeeded; `None`: nobody judged.
        success: Option<bool>,
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
pub(crate) type ToParent = Vec<(Arc<Chain>, Amounts)>;

/// How a reservation is settled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settlement {
    pub(crate) state: State,
    pub(crate) spent: Amounts,
    /// Hash of the Commit as sent; 0: none.
    pub(crate) payload: u128,
    /// What the Commit says of the work.
    pub(crate) success: Option<bool>,
}

impl Settlement {
    /// A settlement at an amount, by no Commit.
    pub(crate) fn at(spent: Amounts, state: State) -> Settlement {
        Settlement { state, spent, payload: 0, success: None }
    }

    /// What it says of a reservation's work, if anything.
    pub(crate) fn judged(&self, reservation: &Reservation) -> Option<Fact> {
        let (id, account) = (reservation.id, reservation.account.id);
        self.success.map(|success| Fact::Judged { id, account, success })
    }
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
        let mut to_parent = ToParent::new();
        let ticket = self.bring_to_end(reservation, &ending, now, now_ms, &mut to_parent)?;
        let chain = self.present_chain(reservation, now_ms);
        if to_parent.is_empty() {
            return Ok(ended(reservation, chain, ticket, now));
        }
        let mut ended = ended(reservation, chain, ticket, now);
        let parent = reservation.parent;
        drop(locked);
        let later = self.hand_up(parent, to_parent, now_ms);
        ended.ticket = later.map_or(ticket, |later| later.max(ticket));
        Ok(ended)
    }

    /// Takes back a hold that could not be made durable: nobody has heard of it.
    pub fn undo(&self, hold: ReservationId, now: Now) {
        if canary::sings("no-undo") {
            return;
        }
        // One that is gone holds nothing.
        let _released = self.end(hold, Ending::Release, now);
    }

    /// Does what an ending asks for in the state that the reservation is in.
    fn bring_to_end(
        &self,
        reservation: &mut Reservation,
        ending: &Ending,
        now: Now,
        now_ms: i64,
        to_parent: &mut ToParent,
    ) -> Result<u64, LedgerError> {
        let ticket = match (reservation.state, ending) {
            (State::Pending, _) => {
                self.close_lease(reservation, now_ms);
                let settlement = settlement(reservation, ending);
                let settled = self.settle(reservation, &settlement, now_ms, to_parent);
                settled.inspect_err(|_| reopen_lease(reservation))?
            }
            (State::Committed, Ending::Commit { payload, .. }) => {
                if reservation.end.payload != *payload {
                    return Err(LedgerError::IdempotencyMismatch("commit"));
                }
                return Ok(u64::MAX);
            }
            (State::Released | State::Expired, Ending::Commit { .. }) => {
                let settlement = settlement(reservation, ending);
                self.correct(reservation, &settlement, now_ms)?
            }
            (State::Expired, Ending::Release) if !reservation.end.kept.is_zero() => {
                self.log_kept(reservation, now_ms)
            }
            (_, Ending::Release) => return Ok(u64::MAX),
        };
        self.forget_later(reservation, now.mono_ms);
        Ok(ticket)
    }

    /// The current chain of a reservation's account: mostly the one that admitted it.
    fn present_chain(&self, reservation: &Reservation, now_ms: i64) -> Arc<Chain> {
        let account = &reservation.account;
        let newest = reservation.slices.last().map(|slice| &slice.chain);
        match newest {
            Some(chain) if chain.base.is_none() && self.is_in_use(account, chain, now_ms) => {
                chain.roll(now_ms);
                Arc::clone(chain)
            }
            _ => self.chain_of(account, now_ms),
        }
    }

    /// Turns the hold into what was spent, gives the rest back (what goes to a parent: into
    /// `to_parent`), and marks the end. On expiry capacity stays held until the owner is known to be
    /// gone (R9). Called under the slot's lock.
    pub(crate) fn settle(
        &self,
        reservation: &mut Reservation,
        settlement: &Settlement,
        now_ms: i64,
        to_parent: &mut ToParent,
    ) -> Result<u64, LedgerError> {
        let Settlement { state, spent, payload, .. } = *settlement;
        let held = reservation.held();
        let from_hold = spent.min(&held);
        let excess = spent.checked_sub(&from_hold).ok_or(LedgerError::Overflow)?;
        let mut crossed = Vec::new();
        let (mut beyond, mut overdraft) = (None, Amounts::ZERO);
        if !excess.is_zero() {
            let account = &reservation.account;
            (beyond, overdraft) = self.spend_beyond(account, &excess, now_ms, &mut crossed)?;
        }
        // After this point the settlement must succeed.
        let mut kept = Amounts::ZERO;
        if state == State::Expired {
            kept = held.filter(Unit::is_capacity);
        }
        let returned = held
            .checked_sub(&from_hold)
            .and_then(|rest| rest.checked_sub(&kept))
            .expect("parts of the hold");
        let _counted = self.end_lease(reservation);
        reservation.state = state;
        settle_slices(reservation, from_hold, now_ms, &mut crossed, to_parent);
        if let Some(channel) = reservation.channel.take() {
            self.changes.ended(channel, reservation.id, state);
        }
        reservation.used = spent;
        reservation.debited = false;
        reservation.end = End { payload, spent, returned, overdraft, kept };
        let ticket = self.log(now_ms, || {
            let fact = |s: &Slice| SliceFact { chain: s.chain.id, held: s.held, spent: s.used };
            let settled = Fact::Settled(Settled {
                slices: reservation.slices.iter().map(fact).collect(),
                beyond: beyond.map(|(chain, amounts)| (chain.id, amounts)),
                overdraft,
                returned,
                ..as_it_ended(reservation)
            });
            iter::once(settled).chain(settlement.judged(reservation)).collect()
        });
        for slice in &mut reservation.slices {
            let back = returnable(slice, state);
            slice.held = slice.held.checked_sub(&back).expect("part of it");
        }
        self.report_crossings(now_ms, &crossed);
        self.look_at_end(reservation, &spent, now_ms);
        if let Some(fork) = &reservation.fork {
            fork.leave();
        }
        let account = &reservation.account;
        account.last_used_ms.store(now_ms, Ordering::Relaxed);
        leave(account);
        Ok(ticket)
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
                let later = self.log_resliced(holder, now_ms, Amounts::ZERO);
                self.raised(holder, false, later);
                ticket = Some(later);
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

/// The answer about a reservation that has ended.
#[inline]
fn ended(reservation: &Reservation, chain: Arc<Chain>, ticket: u64, now: Now) -> Ended {
    let verdict = after(&chain);
    let view = view(reservation, now.mono_ms);
    Ended { view, verdict, scope: Scope(Some(chain)), ticket }
}

/// Turns `rest` of what the slices hold into spent, oldest first, and gives back what is left. The
/// slices go on to say what they held: the journal hears that first.
#[inline]
fn settle_slices(
    reservation: &mut Reservation,
    mut rest: Amounts,
    now_ms: i64,
    crossed: &mut Vec<Arc<Window>>,
    to_parent: &mut ToParent,
) {
    let span = reservation.span(now_ms);
    for slice in &mut reservation.slices {
        let part = slice.held.min(&rest);
        rest = rest.checked_sub(&part).expect("part of it");
        let delta = part.checked_sub(&slice.used).expect("within i64");
        slice.used = part;
        let back = returnable(slice, reservation.state);
        let mut note = |window: &Arc<Window>| crossed.push(Arc::clone(window));
        spend_and_give_back(&slice.chain, &delta, &back, span, &mut note);
        if let Some((base, units)) = &slice.chain.base {
            let up = back.filter(|unit| covers(*units, unit));
            if !up.is_zero() {
                to_parent.push((Arc::clone(base), up));
            }
        }
    }
}

/// What a slice does not need any more at its end: after expiry, all but capacity.
#[inline]
fn returnable(slice: &Slice, state: State) -> Amounts {
    let rest = slice.held.checked_sub(&slice.used).expect("used never passes held");
    if state == State::Expired { rest.filter(|unit| !unit.is_capacity()) } else { rest }
}

/// What an ending comes to.
#[inline]
fn settlement(reservation: &Reservation, ending: &Ending) -> Settlement {
    match ending {
        Ending::Release => Settlement::at(reservation.used, State::Released),
        Ending::Commit { actual, named, payload, success } => Settlement {
            state: State::Committed,
            spent: committed(reservation, actual, *named),
            payload: *payload,
            success: *success,
        },
    }
}

/// What a Commit comes to: what it names, what was debited of the rest; a committed call is a call;
/// capacity is never spent.
fn committed(reservation: &Reservation, actual: &Amounts, named: u8) -> Amounts {
    let mut spent = actual.blend(&reservation.used, named);
    for unit in Unit::CAPACITIES {
        spent.set(unit, 0);
    }
    let calls = reservation.granted.get(Unit::Calls);
    if !covers(named, Unit::Calls) && spent.get(Unit::Calls) < calls {
        spent.set(Unit::Calls, calls);
    }
    spent
}

/// The verdict after spending: STOP when a window is overdrawn.
#[inline]
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
