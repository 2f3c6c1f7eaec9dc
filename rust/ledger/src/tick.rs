//! What time itself brings about: expiry, forgetting, the floor of what was used.
//!
//! Called every few dozen milliseconds by the host. Costs next to nothing when nothing is due.

use parking_lot::MutexGuard;

use crate::error::LedgerError;
use crate::fact::{Fact, Journal, Owner, ReservationId, State};
use crate::ledger::{Ledger, Now, body};
use crate::reservation::Reservation;
use crate::settle::Settlement;
use crate::slots::Slot;

/// So many floors go into one record: a record has a largest size.
const FLOORS_AT_ONCE: usize = 10_000;

/// What a tick did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ticked {
    /// Reservations that expired.
    pub expired: usize,
    /// Ended reservations that were forgotten.
    pub forgotten: usize,
}

impl<J: Journal> Ledger<J> {
    /// Expires what is due and forgets what has been remembered long enough (R9, R15).
    pub fn tick(&self, now: Now) -> Ticked {
        let mut ticked = Ticked::default();
        self.slots.each_due(now.mono_ms, |index, slot| match self.due(index, slot, now) {
            Some(State::Pending) => ticked.expired += 1,
            Some(_) => ticked.forgotten += 1,
            None => {}
        });
        ticked
    }

    /// Deals with one slot that seems due; returns the state in which it was found if it was.
    fn due(&self, index: u32, slot: &Slot, now: Now) -> Option<State> {
        let mut locked = slot.body.lock();
        let reservation = locked.as_mut()?;
        if !slot.is_due(now.mono_ms) {
            return None;
        }
        if reservation.state == State::Pending {
            if self.count_lease(reservation, now) {
                return None;
            }
            self.expire(locked, now);
            return Some(State::Pending);
        }
        let (key, id, state) = (reservation.key, reservation.id, reservation.state);
        drop(locked);
        // A shard is locked before a slot, everywhere; nobody else ends an ended reservation.
        let mut shard = (key != 0).then(|| self.keys.shard(key));
        let mut locked = slot.body.lock();
        if locked.as_ref().is_none_or(|r| r.id != id) || !slot.is_due(now.mono_ms) {
            return None;
        }
        if let Some(shard) = shard.as_mut().filter(|shard| shard.get(&key) == Some(&id)) {
            shard.remove(&key);
        }
        *locked = None;
        self.slots.set_deadline(index, i64::MAX);
        drop(locked);
        self.slots.free(index);
        Some(state)
    }

    /// Ends a pending reservation at what it has used, and unlocks it.
    fn expire(&self, mut locked: MutexGuard<'_, Option<Reservation>>, now: Now) {
        let now_ms = self.time(now.wall_ms);
        let reservation = locked.as_mut().expect("the caller has seen it");
        self.close_lease(reservation, now_ms);
        let settlement = Settlement::at(reservation.used, State::Expired);
        let mut to_parent = Vec::new();
        let settled = self.settle(reservation, &settlement, now_ms, &mut to_parent);
        settled.expect("what was used is within the hold");
        self.forget_later(reservation, now.mono_ms);
        let parent = reservation.parent;
        drop(locked);
        self.hand_up(parent, to_parent, now_ms);
    }

    /// Ends a reservation that the owner of its lease of this number has left behind, at what it has
    /// used (R7, R9). Does nothing when it has ended, or was leased again since.
    pub fn abandon(&self, id: ReservationId, lease: u32, now: Now) -> Result<(), LedgerError> {
        let mut locked = self.slot(id)?.body.lock();
        let reservation = body(&mut locked, id)?;
        if reservation.state == State::Pending && reservation.leases == lease {
            self.expire(locked, now);
        }
        Ok(())
    }

    /// Ends a reservation whose maker may spend no more, at what it has used. Does nothing when it has
    /// ended.
    pub fn cut_off(&self, id: ReservationId, now: Now) -> Result<(), LedgerError> {
        let mut locked = self.slot(id)?.body.lock();
        if body(&mut locked, id)?.state == State::Pending {
            self.expire(locked, now);
        }
        Ok(())
    }

    /// Whether a reservation is known and has not ended.
    pub fn is_pending(&self, id: ReservationId) -> bool {
        let is_pending = |slot: &Slot| {
            let mut locked = slot.body.lock();
            body(&mut locked, id).is_ok_and(|found| found.state == State::Pending)
        };
        self.slot(id).is_ok_and(is_pending)
    }

    /// Tells the journal what pending reservations have debited since the last call: the floor for
    /// their settlement if client and host die together. Returns the ticket of its last record, or 0.
    pub fn log_used(&self, now: Now) -> u64 {
        let mut used = Vec::new();
        self.slots.each_debited(|_, slot| {
            let mut locked = slot.body.lock();
            if let Some(reservation) = locked.as_mut().filter(|r| r.debited) {
                reservation.debited = false;
                used.push((reservation.id, reservation.used));
            }
        });
        let now_ms = self.time(now.wall_ms);
        let records = used.chunks(FLOORS_AT_ONCE);
        records.fold(0, |_, part| self.log(now_ms, || vec![Fact::Used(part.to_vec())]))
    }

    /// Reservations that have expired and still hold capacity, until [`Ledger::owner_gone`] (R9), with
    /// who made them.
    pub fn kept(&self) -> Vec<(ReservationId, Option<Owner>)> {
        let kept = |slot: &Slot| {
            let locked = slot.body.lock();
            let kept = locked.as_ref().filter(|r| !r.end.kept.is_zero());
            kept.map(|r| (r.id, r.owner))
        };
        self.slots.iter().filter_map(kept).collect()
    }
}

impl<J: Journal> Ledger<J> {
    /// How many reservations are remembered, pending or ended.
    pub fn reservation_count(&self) -> usize {
        self.slots.taken()
    }

    /// How many accounts there are.
    pub fn account_count(&self) -> usize {
        self.tree.accounts.len()
    }
}
