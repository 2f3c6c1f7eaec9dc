//! What happens to a reservation after its end: a late Commit, capacity that comes back when its owner
//! is gone, and reservations that the store remembers and memory has forgotten (R7, R9).

use std::sync::Arc;

use crate::error::LedgerError;
use crate::fact::{ChainId, Fact, Journal, ReservationId, Reserved, Settled};
use crate::ledger::{Ledger, Now, body};
use crate::reservation::{Reservation, give_back};
use crate::settle::{Settlement, as_it_ended};
use crate::tree::Opening;
use crate::unit::{Amounts, Unit};
use crate::window::Window;

impl<J: Journal> Ledger<J> {
    /// A Commit after another end: the truth still counts (R7). More than was measured is spent beyond
    /// the hold, which is gone; less is given back where it was spent.
    pub(crate) fn correct(
        &self,
        reservation: &mut Reservation,
        settlement: &Settlement,
        now_ms: i64,
    ) -> Result<u64, LedgerError> {
        let (before, spent) = (reservation.end.spent, settlement.spent);
        let more = spent.max(&before).checked_sub(&before);
        let more = more.ok_or(LedgerError::Overflow)?;
        let mut crossed = Vec::new();
        let account = &reservation.account;
        let (beyond, overdraft) = self.spend_beyond(account, &more, now_ms, &mut crossed)?;
        // After this point the correction must succeed.
        let less = before.checked_sub(&spent.min(&before)).expect("not less");
        let given = unspend(reservation, less, now_ms, &mut crossed);
        // Each part is a fact of its own, and only the last one says that it is committed now: by state
        // and spent amount, replay tells a fact that it has seen from one that it has not.
        let mut facts = Vec::with_capacity(given.len() + 2);
        for (chain, part) in given {
            let left = reservation.end.spent.checked_add(&part);
            reservation.end.spent = left.expect("part of it");
            facts.push(Fact::Settled(Settled {
                beyond: Some((chain, part)),
                ..as_it_ended(reservation)
            }));
        }
        let kept = return_kept(reservation);
        reservation.state = settlement.state;
        let total = reservation.end.spent.checked_add(&more);
        reservation.end.spent = total.expect("the larger of two amounts");
        reservation.used = reservation.end.spent;
        reservation.end.payload = settlement.payload;
        let total = reservation.end.overdraft.checked_add(&overdraft);
        reservation.end.overdraft = total.unwrap_or(reservation.end.overdraft);
        facts.push(Fact::Settled(Settled {
            beyond: beyond.map(|(chain, amounts)| (chain.id, amounts)),
            overdraft,
            returned: kept,
            ..as_it_ended(reservation)
        }));
        facts.extend(settlement.judged(reservation));
        let ticket = self.log(now_ms, || facts);
        self.report_crossings(now_ms, &crossed);
        self.look_at_late(reservation, &more, now_ms);
        Ok(ticket)
    }

    /// Returns capacity that outlived its reservation: its owner is gone (R9).
    pub fn owner_gone(&self, id: ReservationId, now: Now) -> Result<u64, LedgerError> {
        let mut locked = self.slot(id)?.body.lock();
        let reservation = body(&mut locked, id)?;
        if reservation.end.kept.is_zero() {
            return Ok(0);
        }
        let ticket = self.log_kept(reservation, self.time(now.wall_ms));
        self.forget_later(reservation, now.mono_ms);
        Ok(ticket)
    }

    /// Gives kept capacity back and tells the journal.
    pub(crate) fn log_kept(&self, reservation: &mut Reservation, now_ms: i64) -> u64 {
        let returned = return_kept(reservation);
        self.log(now_ms, || vec![Fact::Settled(Settled { returned, ..as_it_ended(reservation) })])
    }

    /// Takes an ended reservation back into memory, so that a late Commit finds it.
    pub fn recall(
        &self,
        account: &str,
        (reserved, settled, created_ms): (&Reserved, &Settled, i64),
        now: Now,
    ) -> Result<ReservationId, LedgerError> {
        let now_ms = self.time(now.wall_ms);
        let account = match self.tree.find(account) {
            Some(account) => account,
            None => self.open_account(account, now_ms, Opening::Again)?,
        };
        let slot = self.slots.take();
        let slot = slot.ok_or(LedgerError::ReservationLimit { max: self.slots.max() })?;
        let id = ReservationId { sequence: reserved.id.sequence, slot };
        let reservation = Reservation::ended(id, account, reserved, settled, created_ms);
        let mut locked = self.slots.at(slot).body.lock();
        self.forget_later(&reservation, now.mono_ms);
        *locked = Some(reservation);
        Ok(id)
    }
}

/// Takes `less` out of what the slices have spent, newest first. Returns the parts by chain, negative.
/// What was spent in a slice that is forgotten cannot be given back.
fn unspend(
    reservation: &mut Reservation,
    mut less: Amounts,
    now_ms: i64,
    crossed: &mut Vec<Arc<Window>>,
) -> Vec<(ChainId, Amounts)> {
    let mut given = Vec::new();
    let span = reservation.span(now_ms);
    for slice in reservation.slices.iter_mut().rev() {
        let part = less.min(&slice.used);
        if part.is_zero() {
            continue;
        }
        less = less.checked_sub(&part).expect("part of it");
        slice.held = slice.held.checked_sub(&part).expect("part of it");
        slice.used = slice.used.checked_sub(&part).expect("part of it");
        let part = Amounts::ZERO.checked_sub(&part).expect("not negative");
        for (unit, amount) in part.iter() {
            slice.chain.each(unit, &mut |window| {
                if window.spend_at(amount, -amount, span) {
                    crossed.push(Arc::clone(window));
                }
            });
        }
        given.push((slice.chain.id, part));
    }
    given
}

/// Gives kept capacity back to its windows, and returns it.
pub(crate) fn return_kept(reservation: &mut Reservation) -> Amounts {
    let kept = std::mem::take(&mut reservation.end.kept);
    if !kept.is_zero() {
        for slice in &mut reservation.slices {
            let held = slice.held.filter(Unit::is_capacity);
            give_back(&slice.chain, &held);
            slice.held = slice.held.checked_sub(&held).expect("part of it");
        }
        let returned = reservation.end.returned.checked_add(&kept);
        reservation.end.returned = returned.expect("parts of the hold");
    }
    kept
}
