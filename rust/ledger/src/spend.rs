//! Spending at once, without a hold before it: on several accounts, all of it or nothing (R1, R2, R3).
//!
//! What fits is charged to every window of all the chains in one go, and recorded as Record does, in
//! one record of the journal. Nobody learns the names of what is recorded, so it is forgotten at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::account::{Chain, takings};
use crate::charge::Shortage;
use crate::error::LedgerError;
use crate::fact::{Fact, Journal, ReservationId, Settled};
use crate::ledger::{Ledger, Now, Scope, exhausted, frozen, view};
use crate::record::Spending;
use crate::reservation::{Reservation, spend};
use crate::reserve::{Admission, RECLAIMS, leave};
use crate::rolling::Span;
use crate::settle::{Ended, after, as_it_ended};
use crate::unit::Amounts;
use crate::verdict::Refusal;
use crate::window::Window;

/// What a window has to take.
type Taking<'a> = (&'a Arc<Window>, i64);

impl<J: Journal> Ledger<J> {
    /// Spends all of it where all of it fits, else nothing. No key is looked at.
    pub fn spend(
        &self,
        spendings: Vec<Spending<'_>>,
        now: Now,
    ) -> Result<Admission<Vec<Ended>>, LedgerError> {
        for spending in &spendings {
            spending.amounts.check_not_negative()?;
            spending.amounts.check_no_capacity()?;
        }
        let now_ms = self.time(now.wall_ms);
        let mut chains = Vec::with_capacity(spendings.len());
        let entered = spendings.iter().try_for_each(|spending| {
            chains.push(self.enter(spending.account, now_ms)?);
            Ok::<_, LedgerError>(())
        });
        let amounts: Vec<Amounts> = spendings.iter().map(|spending| spending.amounts).collect();
        let admission = entered.and_then(|()| self.spend_on(&chains, spendings, now, now_ms));
        for (chain, amounts) in chains.iter().zip(&amounts) {
            if let Ok(Admission::Granted(_)) = &admission {
                self.look_at_spending(&chain.account, chain, amounts, now_ms, now_ms);
                chain.account.last_used_ms.store(now_ms, Ordering::Relaxed);
            }
            leave(&chain.account);
        }
        admission
    }

    fn spend_on(
        &self,
        chains: &[Arc<Chain>],
        spendings: Vec<Spending<'_>>,
        now: Now,
        now_ms: i64,
    ) -> Result<Admission<Vec<Ended>>, LedgerError> {
        for (chain, spending) in chains.iter().zip(&spendings) {
            if let Err(refusal) = self.may_spend(chain, &spending.labels, now_ms) {
                return Ok(Admission::Refused(*refusal, Scope(Some(Arc::clone(chain)))));
            }
        }
        chains.iter().try_for_each(|chain| self.check_room(&chain.account))?;
        let takings = all_takings(chains, &spendings)?;
        let slots = self.take_slots(spendings.len())?;
        if let Err(shortage) = self.charge_all(&takings, now_ms) {
            self.free_slots(slots);
            let counts = |chain: &&Arc<Chain>| {
                chain.windows.iter().any(|window| Arc::ptr_eq(window, &shortage.window))
            };
            let scope = Scope(chains.iter().find(counts).cloned());
            return Ok(Admission::Refused(exhausted(&shortage), scope));
        }
        // After this point the spending must succeed.
        Ok(Admission::Granted(self.note_spent(chains, spendings, slots, now, now_ms)))
    }

    /// Whether the account may spend at all.
    fn may_spend(
        &self,
        chain: &Arc<Chain>,
        labels: &[(String, String)],
        now_ms: i64,
    ) -> Result<(), Box<Refusal>> {
        if let Some(by) = self.tree.frozen_by(&chain.account) {
            return Err(Box::new(frozen(by)));
        }
        self.look(&chain.account, labels, now_ms).map(drop)
    }

    fn take_slots(&self, count: usize) -> Result<Vec<u32>, LedgerError> {
        let mut slots = Vec::with_capacity(count);
        while slots.len() < count {
            let Some(slot) = self.slots.take() else {
                self.free_slots(slots);
                return Err(LedgerError::ReservationLimit { max: self.slots.max() });
            };
            slots.push(slot);
        }
        Ok(slots)
    }

    fn free_slots(&self, slots: Vec<u32>) {
        for slot in slots {
            self.slots.free(slot);
        }
    }

    fn charge_all(&self, takings: &[Taking<'_>], now_ms: i64) -> Result<(), Shortage> {
        let charge = || self.charges.charge(&takings.iter().copied());
        let mut charged = charge();
        for _ in 0..RECLAIMS {
            match &charged {
                Err(shortage) if self.reclaim(shortage, None, now_ms) => charged = charge(),
                _ => break,
            }
        }
        charged
    }

    /// Turns what was charged into spending and tells the journal.
    fn note_spent(
        &self,
        chains: &[Arc<Chain>],
        spendings: Vec<Spending<'_>>,
        slots: Vec<u32>,
        now: Now,
        now_ms: i64,
    ) -> Vec<Ended> {
        let (mut facts, mut crossed, mut spent) = (Vec::new(), Vec::new(), Vec::new());
        for ((chain, spending), slot) in chains.iter().zip(spendings).zip(slots) {
            let amounts = spending.amounts;
            for (unit, amount) in amounts.iter() {
                let mut note = |window: &Arc<_>| crossed.push(Arc::clone(window));
                spend(chain, unit, amount, Span::at(now_ms), &mut note);
            }
            let sequence = self.next_sequence.fetch_add(1, Ordering::Relaxed);
            let id = ReservationId { sequence, slot };
            let reservation = Reservation::recorded(id, chain, spending, now_ms);
            let beyond = (!amounts.is_zero()).then_some((chain.id, amounts));
            facts.push(Fact::Reserved(reservation.reserved_fact()));
            facts.push(Fact::Settled(Settled { beyond, ..as_it_ended(&reservation) }));
            spent.push(reservation);
        }
        let ticket = self.log(now_ms, || facts);
        self.report_crossings(now_ms, &crossed);
        let end = |(reservation, chain): (Reservation, &Arc<Chain>)| {
            let slot = reservation.id.slot;
            let view = view(&reservation, now.mono_ms);
            *self.slots.at(slot).body.lock() = Some(reservation);
            self.slots.set_deadline(slot, now.mono_ms);
            Ended { view, verdict: after(chain), scope: Scope(Some(Arc::clone(chain))), ticket }
        };
        spent.into_iter().zip(chains).map(end).collect()
    }
}

/// What each window has to take, each of them once: a charge that gives back to the very window that it
/// finds short would try again for ever.
fn all_takings<'a>(
    chains: &'a [Arc<Chain>],
    spendings: &'a [Spending<'_>],
) -> Result<Vec<Taking<'a>>, LedgerError> {
    let each = chains.iter().zip(spendings);
    let each = each.flat_map(|(chain, spending)| takings(&chain.windows, &spending.amounts));
    let mut all: Vec<Taking<'a>> = each.collect();
    all.sort_by_key(|(window, _)| window.id);
    let mut fits = true;
    all.dedup_by(|later, kept| {
        let is_same = Arc::ptr_eq(later.0, kept.0);
        if is_same {
            let sum = kept.1.checked_add(later.1);
            fits &= sum.is_some();
            kept.1 = sum.unwrap_or(kept.1);
        }
        is_same
    });
    if fits { Ok(all) } else { Err(LedgerError::Overflow) }
}
