//! Recovery of reservations: what they hold, what they have spent, how they ended.
//!
//! Live and replayed, the same fact moves the same amounts between the same windows; see `replay`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::canary;
use crate::fact::{Journal, ReservationId, Reserved, Settled, SliceFact, State};
use crate::guard::Fork;
use crate::late::return_kept;
use crate::replay::{Replay, ReplayError, missing};
use crate::reservation::{End, Reservation, Slice, spend};
use crate::rolling::Span;
use crate::unit::{Amounts, Unit};

impl<J: Journal> Replay<J> {
    fn slices(&self, facts: &[SliceFact]) -> Result<Vec<Slice>, ReplayError> {
        let slice =
            |fact: &SliceFact| Ok(Slice::new(Arc::clone(self.chain(fact.chain)?), fact.held));
        facts.iter().map(slice).collect()
    }

    pub(crate) fn reserve(&mut self, reserved: &Reserved) -> Result<(), ReplayError> {
        if self.places.contains_key(&reserved.id.sequence) {
            return Ok(());
        }
        let slices = self.slices(&reserved.slices)?;
        let mut reservation = self.blank(reserved)?;
        let fork = reserved.parent.and_then(|parent| self.with(parent, Fork::below));
        reservation.fork = fork.map(|fork| Box::new(fork.enter()));
        slices.iter().for_each(hold);
        reservation.slices = slices.into();
        reservation.granted = reservation.held();
        reservation.account.open.fetch_add(1, Ordering::Relaxed);
        let _evicted = self.place(reservation, self.mono_ms.saturating_add(reserved.ttl_ms));
        Ok(())
    }

    fn blank(&self, reserved: &Reserved) -> Result<Reservation, ReplayError> {
        Ok(Reservation {
            id: reserved.id,
            state: State::Pending,
            account: Arc::clone(self.account(reserved.account)?),
            slices: smallvec::SmallVec::new(),
            used: Amounts::ZERO,
            debited: false,
            channel: None,
            granted: Amounts::ZERO,
            max_output_tokens: reserved.max_output_tokens,
            created_ms: self.time_ms,
            ttl_ms: reserved.ttl_ms,
            deadline_ms: i64::MAX,
            key: reserved.key,
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
        })
    }

    /// Puts a reservation into its slot. Returns the sequence of the one that was there before.
    fn place(&mut self, mut reservation: Reservation, deadline_ms: i64) -> Option<u64> {
        let id = reservation.id;
        self.high.sequence = self.high.sequence.max(id.sequence);
        self.places.insert(id.sequence, id.slot);
        self.ledger.slots.take_at(id.slot);
        if reservation.state == State::Pending {
            reservation.deadline_ms = deadline_ms;
        }
        if reservation.key != 0 {
            let mut shard = self.ledger.keys.shard(reservation.key);
            let known = shard.entry(reservation.key).or_insert(id);
            // One that had been forgotten may be told of after the one that its key was used for again.
            if known.sequence < id.sequence || canary::sings("older-key") {
                *known = id;
            }
        }
        let slot = self.ledger.slots.at(id.slot);
        let evicted = slot.body.lock().replace(reservation);
        // The slot was reused, so the one before it was forgotten before this one was made.
        let evicted = evicted.filter(|old| old.id != id);
        if let Some(old) = &evicted {
            let mut shard = self.ledger.keys.shard(old.key);
            if shard.get(&old.key) == Some(&old.id) {
                shard.remove(&old.key);
            }
        }
        self.ledger.slots.set_deadline(id.slot, deadline_ms);
        evicted.map(|old| old.id.sequence)
    }

    /// Changes the reservation in its slot, if it is there. One that was recalled from the store since
    /// goes by another slot in the facts: the sequence names it.
    fn with<T>(&self, id: ReservationId, f: impl FnOnce(&mut Reservation) -> T) -> Option<T> {
        let slot = self.places.get(&id.sequence)?;
        let mut locked = self.ledger.slots.get(*slot)?.body.lock();
        let reservation = locked.as_mut();
        reservation.filter(|reservation| reservation.id.sequence == id.sequence).map(f)
    }

    pub(crate) fn reslice(
        &mut self,
        id: ReservationId,
        facts: &[SliceFact],
        ttl_ms: i64,
    ) -> Result<(), ReplayError> {
        let slices = self.slices(facts)?;
        let deadline_ms = self.mono_ms.saturating_add(ttl_ms);
        self.with(id, |reservation| {
            if reservation.state != State::Pending {
                return;
            }
            let mut slices = slices;
            for old in &reservation.slices {
                let present = slices.iter_mut().find(|s| s.chain.id == old.chain.id);
                match present {
                    Some(slice) if old.used.min(&slice.held) == old.used => slice.used = old.used,
                    _ if old.used.is_zero() => {}
                    // No hold ever shrinks below what is spent of it: this fact comes a second time,
                    // and is older than that spending.
                    _ => return,
                }
            }
            for old in &reservation.slices {
                unhold(old, &old.held);
            }
            slices.iter().for_each(hold);
            reservation.slices = slices.into();
            reservation.granted = reservation.held();
            reservation.ttl_ms = ttl_ms;
            reservation.deadline_ms = deadline_ms;
            self.ledger.slots.set_deadline(reservation.id.slot, deadline_ms);
        });
        Ok(())
    }

    pub(crate) fn used(&mut self, id: ReservationId, used: &Amounts) {
        let time_ms = self.time_ms;
        self.with(id, |reservation| {
            if reservation.state == State::Pending {
                for (unit, to) in used.iter() {
                    reservation.debit(unit, to, time_ms, &mut |_| {});
                }
                reservation.debited = false;
            }
        });
    }

    pub(crate) fn settle(&mut self, settled: &Settled) -> Result<(), ReplayError> {
        let id = settled.id;
        if self.ends.get(&id.sequence).is_some_and(|end| is_seen(end, settled)) {
            return Ok(());
        }
        let beyond = match &settled.beyond {
            Some((chain, amounts)) => Some((Arc::clone(self.chain(*chain)?), *amounts)),
            None => None,
        };
        let time_ms = self.time_ms;
        let created_ms = self.with(id, |reservation| {
            if reservation.state == State::Pending {
                turn_into_spending(reservation, settled, time_ms);
                reservation.account.open.fetch_sub(1, Ordering::Relaxed);
                reservation.fork.iter().for_each(|fork| fork.leave());
            } else if settled.kept.is_zero() {
                let returned = reservation.end.returned;
                return_kept(reservation);
                reservation.end.returned = returned;
            }
            reservation.finish(settled);
            reservation.created_ms
        });
        // One that is forgotten here has no hold left, but its late Commit still counts.
        if created_ms.is_none() && !settled.slices.is_empty() {
            return Err(missing("reservation", id.sequence));
        }
        if let Some((chain, amounts)) = beyond {
            let slice = Slice::new(chain, amounts);
            hold(&slice);
            let since_ms = created_ms.unwrap_or(i64::MIN);
            respend(&slice, &amounts, Span { since_ms, now_ms: time_ms });
        }
        self.ends.insert(id.sequence, settled.clone());
        self.forget_after(id, 0);
        Ok(())
    }

    pub(crate) fn remember(
        &mut self,
        reserved: &Reserved,
        settled: &Settled,
        (created_ms, ended_ms): (i64, i64),
    ) -> Result<(), ReplayError> {
        let mut reservation = self.blank(reserved)?;
        reservation.created_ms = created_ms;
        reservation.granted = settled.granted();
        reservation.finish(settled);
        let id = reservation.id;
        // No fact of before comes after this one: of those that shared a slot, the last is enough.
        if let Some(evicted) = self.place(reservation, i64::MAX) {
            self.places.remove(&evicted);
            self.ends.remove(&evicted);
        }
        self.ends.insert(id.sequence, settled.clone());
        self.forget_after(id, self.time_ms.saturating_sub(ended_ms).max(0));
        Ok(())
    }

    /// Forgets an ended reservation once the retention has passed, of which `passed_ms` already has.
    fn forget_after(&self, id: ReservationId, passed_ms: i64) {
        let retention_ms = self.ledger.settings.key_retention_ms;
        let remains_ms = retention_ms.saturating_sub(passed_ms).max(0);
        self.with(id, |reservation| {
            let deadline_ms = if reservation.end.kept.is_zero() {
                self.mono_ms.saturating_add(remains_ms)
            } else {
                i64::MAX
            };
            self.ledger.slots.set_deadline(reservation.id.slot, deadline_ms);
        });
    }
}

impl Reservation {
    /// Takes over how it ended.
    pub(crate) fn finish(&mut self, settled: &Settled) {
        let sum = |a: &Amounts, b: &Amounts| a.checked_add(b).unwrap_or(*a);
        self.state = settled.state;
        self.used = settled.spent;
        self.debited = false;
        self.deadline_ms = i64::MAX;
        self.end = End {
            payload: settled.payload,
            spent: settled.spent,
            returned: sum(&self.end.returned, &settled.returned),
            overdraft: sum(&self.end.overdraft, &settled.overdraft),
            kept: settled.kept,
        };
    }
}

/// Whether a settlement is the last one again or one before it. Kept capacity only goes; a committed
/// reservation is never corrected.
fn is_seen(last: &Settled, settled: &Settled) -> bool {
    let alike = last.state == settled.state && last.spent == settled.spent;
    last.state == State::Committed || alike && (last.kept == settled.kept || last.kept.is_zero())
}

/// Turns the hold of a pending reservation into what its settlement says, slice by slice.
fn turn_into_spending(reservation: &mut Reservation, settled: &Settled, now_ms: i64) {
    let kept = |unit: Unit| settled.kept.get(unit) != 0;
    let span = reservation.span(now_ms);
    for (slice, fact) in reservation.slices.iter_mut().zip(&settled.slices) {
        let delta = fact.spent.checked_sub(&slice.used).expect("within i64");
        respend(slice, &delta, span);
        let rest = slice.held.checked_sub(&fact.spent).unwrap_or_default();
        let back = rest.filter(|unit| !kept(unit));
        unhold(slice, &back);
        slice.held = slice.held.checked_sub(&back).expect("part of it");
        slice.used = fact.spent;
    }
}

/// Takes a slice's hold from every window that it counts in.
fn hold(slice: &Slice) {
    for (unit, amount) in slice.held.iter() {
        let chain = &slice.chain;
        chain.each(unit, &mut |window| window.replay_take(amount));
    }
}

/// Gives so much of a slice's hold back to every window that it counts in.
fn unhold(slice: &Slice, amounts: &Amounts) {
    for (unit, amount) in amounts.iter() {
        let chain = &slice.chain;
        chain.each(unit, &mut |window| window.give_back(amount));
    }
}

/// Turns so much of a hold into spending, or (negative) back.
fn respend(slice: &Slice, amounts: &Amounts, span: Span) {
    for (unit, amount) in amounts.iter() {
        spend(&slice.chain, unit, amount, span, &mut |_| {});
    }
}
