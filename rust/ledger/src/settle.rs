//! Ends of reservations: Commit, Release, expiry, and spending that was never reserved (R7, R8, R9).
//!
//! A settlement first charges what was spent beyond the hold, which alone can fail; then it turns the
//! hold into spending and gives the rest back, which cannot. The true amount is recorded whatever the
//! limit says. A hold carved from a parent goes back to it while it is pending (R16).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use crate::account::Chain;
use crate::error::LedgerError;
use crate::fact::{ChainId, Fact, Journal, ReservationId, Reserved, Settled, SliceFact, State};
use crate::ledger::{Ledger, Now, Scope, View, body, view};
use crate::reservation::{End, Reservation, give_back, spend};
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

impl<J: Journal> Ledger<J> {
    /// Ends a reservation. A repeat answers alike; a Commit counts even after another end.
    pub fn end(
        &self,
        id: ReservationId,
        ending: Ending,
        now: Now,
    ) -> Result<Ended, LedgerError> {
        let now_ms = self.time(now.wall_ms);
        let mut locked = self.slot(id)?.body.lock();
        let reservation = body(&mut locked, id)?;
        let (mut ticket, mut to_parent) = (u64::MAX, ToParent::new());
        match (reservation.state, ending) {
            (State::Pending, Ending::Release) => {
                let spent = reservation.used;
                (ticket, to_parent) =
                    self.settle(reservation, State::Released, spent, false, 0, now_ms)?;
            }
            (State::Pending, Ending::Commit { actual, named, payload }) => {
                let spent = committed(reservation, &actual, named);
                (ticket, to_parent) =
                    self.settle(reservation, State::Committed, spent, false, payload, now_ms)?;
            }
            (State::Committed, Ending::Commit { payload, .. }) => {
                if reservation.end.payload != payload {
                    return Err(LedgerError::IdempotencyMismatch("commit"));
                }
            }
            (_, Ending::Commit { actual, named, payload }) => {
                let spent = committed(reservation, &actual, named);
                ticket = self.correct(reservation, spent, payload, now_ms)?;
            }
            (State::Committed | State::Released, Ending::Release) => {}
            (State::Expired, Ending::Release) => {
                if !reservation.end.kept.is_zero() {
                    ticket = self.log_kept(reservation, now_ms);
                }
            }
        }
        if reservation.deadline_ms == i64::MAX {
            self.forget_later(reservation, now.mono_ms);
        }
        let chain = self.chain_of(&reservation.account, now_ms);
        let ended = Ended {
            view: view(reservation, now.mono_ms),
            verdict: after(&chain),
            scope: Scope(chain),
            ticket,
        };
        let parent = reservation.parent;
        drop(locked);
        Ok(self.hand_up(parent, to_parent, now_ms).map_or(ended.clone(), |ticket| Ended {
            ticket: ended.ticket.max(ticket),
            ..ended
        }))
    }

    /// Turns the hold into `spent`, gives the rest back, and marks the end. `keep_capacity`: capacity
    /// stays held until the owner is known to be gone (R9). Called under the slot's lock.
    pub(crate) fn settle(
        &self,
        reservation: &mut Reservation,
        state: State,
        spent: Amounts,
        keep_capacity: bool,
        payload: u128,
        now_ms: i64,
    ) -> Result<(u64, ToParent), LedgerError> {
        let held = reservation.held();
        let from_hold = spent.min(&held);
        let excess = spent.checked_sub(&from_hold).ok_or(LedgerError::Overflow)?;
        let mut crossed = Vec::new();
        let (beyond, overdraft) =
            self.spend_beyond(reservation, &excess, now_ms, &mut crossed)?;
        // After this point the settlement must succeed.
        let kept = held.filter(|unit| keep_capacity && unit.is_capacity());
        let returned = held
            .checked_sub(&from_hold)
            .and_then(|rest| rest.checked_sub(&kept))
            .expect("parts of the hold");
        let mut rest = from_hold;
        let mut to_parent = ToParent::new();
        let mut facts = Vec::with_capacity(reservation.slices.len());
        for slice in &mut reservation.slices {
            let part = slice.held.min(&rest);
            rest = rest.checked_sub(&part).expect("part of it");
            for (unit, delta) in part.checked_sub(&slice.used).expect("within i64").iter() {
                let mut note = |window: &Arc<Window>| crossed.push(Arc::clone(window));
                spend(&slice.chain, unit, delta, now_ms, &mut note);
            }
            let back = slice.held.checked_sub(&part).expect("part of it");
            let back = back.filter(|unit| !(keep_capacity && unit.is_capacity()));
            let up = give_back(&slice.chain, &back);
            if let Some((base, _)) = slice.chain.base.as_ref().filter(|_| !up.is_zero()) {
                to_parent.push((Arc::clone(base), up));
            }
            facts.push(SliceFact { chain: slice.chain.id, held: slice.held, spent: part });
            slice.held = slice.held.checked_sub(&back).expect("part of it");
            slice.used = part;
        }
        reservation.state = state;
        reservation.used = spent;
        reservation.debited = false;
        reservation.deadline_ms = i64::MAX;
        reservation.end = End { payload, spent, returned, overdraft, kept };
        let beyond = beyond.map(|(chain, amounts)| (chain.id, amounts));
        let ticket = self.log(now_ms, || {
            vec![Fact::Settled(settled(reservation, facts, beyond, returned, overdraft))]
        });
        self.report_crossings(now_ms, &crossed);
        self.leave_account(reservation);
        Ok((ticket, to_parent))
    }

    /// Spends what no hold covers, in the windows current now. Fails on overflow and then has changed
    /// nothing. Returns the chain and what passes the limit, per unit.
    #[expect(clippy::type_complexity, reason = "a chain and two amounts")]
    pub(crate) fn spend_beyond(
        &self,
        reservation: &Reservation,
        excess: &Amounts,
        now_ms: i64,
        crossed: &mut Vec<Arc<Window>>,
    ) -> Result<(Option<(Arc<Chain>, Amounts)>, Amounts), LedgerError> {
        if excess.is_zero() {
            return Ok((None, Amounts::ZERO));
        }
        let chain = self.chain_of(&reservation.account, now_ms);
        let mut overdraft = Amounts::ZERO;
        for (taken, (window, amount)) in chain.takings(excess).enumerate() {
            window.roll(now_ms);
            let Ok(over) = window.take_anyway(amount) else {
                for (window, amount) in chain.takings(excess).take(taken) {
                    window.give_back(amount);
                }
                return Err(LedgerError::Overflow);
            };
            let unit = window.budget.unit;
            overdraft.set(unit, overdraft.get(unit).max(over));
        }
        for (unit, amount) in excess.iter() {
            let mut note = |window: &Arc<Window>| crossed.push(Arc::clone(window));
            spend(&chain, unit, amount, now_ms, &mut note);
        }
        Ok((Some((chain, *excess)), overdraft))
    }

    /// A Commit after another end: the truth still counts (R7). More than was measured is spent beyond
    /// the hold, which is gone; less is given back where it was spent.
    fn correct(
        &self,
        reservation: &mut Reservation,
        spent: Amounts,
        payload: u128,
        now_ms: i64,
    ) -> Result<u64, LedgerError> {
        let before = reservation.end.spent;
        let more = spent.max(&before).checked_sub(&before).ok_or(LedgerError::Overflow)?;
        let mut crossed = Vec::new();
        let (beyond, overdraft) = self.spend_beyond(reservation, &more, now_ms, &mut crossed)?;
        // After this point the correction must succeed.
        let less = before.checked_sub(&spent.min(&before)).expect("not less");
        let (given, kept_spent) = unspend(reservation, less, now_ms);
        let kept = return_kept(reservation);
        reservation.state = State::Committed;
        reservation.used = spent.checked_add(&kept_spent).expect("no more than before");
        reservation.end.spent = reservation.used;
        reservation.end.payload = payload;
        let total = reservation.end.overdraft.checked_add(&overdraft);
        reservation.end.overdraft = total.unwrap_or(reservation.end.overdraft);
        let mut facts: Vec<Fact> = given
            .into_iter()
            .map(|part| settled(reservation, Vec::new(), Some(part), Amounts::ZERO, Amounts::ZERO))
            .map(Fact::Settled)
            .collect();
        let beyond = beyond.map(|(chain, amounts)| (chain.id, amounts));
        facts.push(Fact::Settled(settled(reservation, Vec::new(), beyond, kept, overdraft)));
        let ticket = self.log(now_ms, || facts);
        self.report_crossings(now_ms, &crossed);
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

    fn log_kept(&self, reservation: &mut Reservation, now_ms: i64) -> u64 {
        let kept = return_kept(reservation);
        self.log(now_ms, || {
            vec![Fact::Settled(settled(reservation, Vec::new(), None, kept, Amounts::ZERO))]
        })
    }

    /// The account has one pending reservation fewer.
    pub(crate) fn leave_account(&self, reservation: &Reservation) {
        reservation.account.open.fetch_sub(1, Ordering::SeqCst);
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
        pieces: ToParent,
        now_ms: i64,
    ) -> Option<u64> {
        let parent = parent.filter(|_| !pieces.is_empty())?;
        let mut locked = self.slot(parent).ok().map(|slot| slot.body.lock());
        let holder = locked.as_mut().and_then(|slot| body(slot, parent).ok());
        if let Some(holder) = holder.filter(|holder| holder.state == State::Pending) {
            for (chain, amounts) in &pieces {
                holder.add_slice(chain, *amounts);
            }
            return Some(self.log_resliced(holder, now_ms, Amounts::ZERO));
        }
        let grandparent = locked.as_mut().and_then(|slot| body(slot, parent).ok()?.parent);
        drop(locked);
        let mut further = ToParent::new();
        for (chain, amounts) in pieces {
            let up = give_back(&chain, &amounts);
            if let Some((base, _)) = chain.base.as_ref().filter(|_| !up.is_zero()) {
                further.push((Arc::clone(base), up));
            }
        }
        self.hand_up(grandparent, further, now_ms)
    }
}

/// What a Commit comes to: what it names, what was debited of the rest; a committed call is a call;
/// capacity is never spent.
fn committed(reservation: &Reservation, actual: &Amounts, named: u8) -> Amounts {
    let mut spent = reservation.used.filter(|unit| !unit.is_capacity());
    for unit in Unit::ALL.into_iter().filter(|unit| !unit.is_capacity()) {
        if crate::account::covers(named, unit) {
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

/// Takes `less` out of what the slices have spent, newest first. Returns the parts by chain, negative,
/// and what could not be given back because its slice is forgotten.
fn unspend(
    reservation: &mut Reservation,
    mut less: Amounts,
    now_ms: i64,
) -> (Vec<(ChainId, Amounts)>, Amounts) {
    let mut given = Vec::new();
    for slice in reservation.slices.iter_mut().rev() {
        let part = less.min(&slice.used);
        if part.is_zero() {
            continue;
        }
        less = less.checked_sub(&part).expect("part of it");
        slice.used = slice.used.checked_sub(&part).expect("part of it");
        for (unit, amount) in part.iter() {
            spend(&slice.chain, unit, -amount, now_ms, &mut |_| {});
            slice.chain.each(unit, &mut |window| window.give_back(amount));
        }
        given.push((slice.chain.id, Amounts::ZERO.checked_sub(&part).expect("not negative")));
    }
    (given, less)
}

/// Gives kept capacity back to its windows, and returns it.
fn return_kept(reservation: &mut Reservation) -> Amounts {
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

fn settled(
    reservation: &Reservation,
    slices: Vec<SliceFact>,
    beyond: Option<(ChainId, Amounts)>,
    returned: Amounts,
    overdraft: Amounts,
) -> Settled {
    Settled {
        id: reservation.id,
        account: reservation.account.id,
        state: reservation.state,
        payload: reservation.end.payload,
        slices,
        beyond,
        overdraft,
        spent: reservation.end.spent,
        returned,
        kept: reservation.end.kept,
        model: reservation.model().map(str::to_owned),
    }
}

/// Spending that no reservation announced.
#[derive(Debug, Clone)]
pub struct Spending<'a> {
    /// The account's path.
    pub account: &'a str,
    /// What was spent.
    pub amounts: Amounts,
    /// Hash of account and idempotency key; 0: never a repeat.
    pub key: u128,
    /// Hash of the request as sent.
    pub payload: u128,
    /// Names for the history.
    pub labels: Vec<(String, String)>,
}

impl<J: Journal> Ledger<J> {
    /// Records spending, whatever the limit says. It is remembered as a reservation that held nothing
    /// and is committed.
    pub fn record(&self, spending: Spending<'_>, now: Now) -> Result<Ended, LedgerError> {
        if let Some((unit, _)) = spending.amounts.iter().find(|(unit, _)| unit.is_capacity()) {
            return Err(LedgerError::InvalidAmount { unit, why: "a capacity is held, not spent" });
        }
        if spending.key == 0 {
            return self.record_once(spending, now);
        }
        let mut shard = self.keys.shard(spending.key);
        let Some(id) = shard.get(&spending.key).copied() else {
            let key = spending.key;
            let ended = self.record_once(spending, now)?;
            shard.insert(key, ended.view.id);
            return Ok(ended);
        };
        let mut locked = self.slot(id)?.body.lock();
        let reservation = body(&mut locked, id)?;
        if reservation.payload != spending.payload {
            return Err(LedgerError::IdempotencyMismatch("idempotency key"));
        }
        let chain = self.chain_of(&reservation.account, self.time(now.wall_ms));
        let (view, verdict) = (view(reservation, now.mono_ms), after(&chain));
        Ok(Ended { view, verdict, scope: Scope(chain), ticket: u64::MAX })
    }

    /// Takes an ended reservation back into memory, so that a late Commit finds it.
    pub fn recall(
        &self,
        account: &str,
        reserved: &Reserved,
        settled: &Settled,
        now: Now,
    ) -> Result<ReservationId, LedgerError> {
        let now_ms = self.time(now.wall_ms);
        let account = match self.tree.find(account) {
            Some(account) => account,
            None => self.open_account(account, now_ms, true)?,
        };
        let slot = self.slots.take();
        let slot = slot.ok_or(LedgerError::ReservationLimit { max: self.slots.max() })?;
        let id = ReservationId { sequence: reserved.id.sequence, slot };
        let reservation = Reservation::ended(id, account, reserved, settled, now_ms);
        let mut locked = self.slot(id)?.body.lock();
        self.forget_later(&reservation, now.mono_ms);
        *locked = Some(reservation);
        Ok(id)
    }

    fn record_once(&self, spending: Spending<'_>, now: Now) -> Result<Ended, LedgerError> {
        let now_ms = self.time(now.wall_ms);
        let chain = self.enter(spending.account, now_ms)?;
        let ended = self.record_on(&chain, spending, now, now_ms);
        self.leave(&chain);
        ended
    }

    fn record_on(
        &self,
        chain: &Arc<Chain>,
        spending: Spending<'_>,
        now: Now,
        now_ms: i64,
    ) -> Result<Ended, LedgerError> {
        let slot = self.slots.take();
        let slot = slot.ok_or(LedgerError::ReservationLimit { max: self.slots.max() })?;
        let sequence = self.next_sequence.fetch_add(1, Ordering::Relaxed);
        let id = ReservationId { sequence, slot };
        let mut reservation = Reservation::recorded(id, chain, &spending, now_ms);
        let mut crossed = Vec::new();
        let spent = self.spend_beyond(&reservation, &spending.amounts, now_ms, &mut crossed);
        let (beyond, overdraft) = spent.inspect_err(|_| self.slots.free(slot))?;
        // After this point the recording must succeed.
        reservation.end.overdraft = overdraft;
        let beyond = beyond.map(|(chain, amounts)| (chain.id, amounts));
        let mut locked = self.slot(id)?.body.lock();
        let ticket = self.log(now_ms, || {
            let end = settled(&reservation, Vec::new(), beyond, Amounts::ZERO, overdraft);
            vec![Fact::Reserved(reservation.reserved_fact()), Fact::Settled(end)]
        });
        self.report_crossings(now_ms, &crossed);
        self.forget_later(&reservation, now.mono_ms);
        let view = view(&reservation, now.mono_ms);
        *locked = Some(reservation);
        Ok(Ended { view, verdict: after(chain), scope: Scope(Arc::clone(chain)), ticket })
    }
}
