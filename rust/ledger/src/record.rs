//! Spending that no hold covers: Record, and what a Commit spends beyond its hold (R7, R8).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::account::{Account, Chain};
use crate::error::LedgerError;
use crate::fact::{Fact, Journal, ReservationId, Settled};
use crate::ledger::{Ledger, Now, Scope, body, view};
use crate::reservation::{Reservation, spend};
use crate::reserve::leave;
use crate::rolling::Span;
use crate::settle::{Ended, after, as_it_ended};
use crate::unit::Amounts;
use crate::window::Window;

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

/// What was spent beyond a hold, and the chain current then.
pub(crate) type Beyond = (Arc<Chain>, Amounts);

impl<J: Journal> Ledger<J> {
    /// Records spending, whatever the limit says. It is remembered as a reservation that held nothing
    /// and is committed.
    pub fn record(&self, spending: Spending<'_>, now: Now) -> Result<Ended, LedgerError> {
        spending.amounts.check_not_negative()?;
        spending.amounts.check_no_capacity()?;
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
        Ok(Ended { view, verdict, scope: Scope(Some(chain)), ticket: u64::MAX })
    }

    fn record_once(&self, spending: Spending<'_>, now: Now) -> Result<Ended, LedgerError> {
        let now_ms = self.time(now.wall_ms);
        let chain = self.enter(spending.account, now_ms)?;
        let amounts = spending.amounts;
        let ended = self.record_on(&chain, spending, now, now_ms);
        if ended.is_ok() {
            self.look_at_spending(&chain.account, &chain, &amounts, now_ms, now_ms);
        }
        chain.account.last_used_ms.store(now_ms, Ordering::Relaxed);
        leave(&chain.account);
        ended
    }

    fn record_on(
        &self,
        chain: &Arc<Chain>,
        spending: Spending<'_>,
        now: Now,
        now_ms: i64,
    ) -> Result<Ended, LedgerError> {
        self.check_room(&chain.account)?;
        let slot = self.slots.take();
        let slot = slot.ok_or(LedgerError::ReservationLimit { max: self.slots.max() })?;
        let mut crossed = Vec::new();
        let spent = self.spend_beyond(&chain.account, &spending.amounts, now_ms, &mut crossed);
        let (beyond, overdraft) = spent.inspect_err(|_| self.slots.free(slot))?;
        // After this point the recording must succeed.
        let sequence = self.next_sequence.fetch_add(1, Ordering::Relaxed);
        let id = ReservationId { sequence, slot };
        let mut reservation = Reservation::recorded(id, chain, spending, now_ms);
        reservation.end.overdraft = overdraft;
        let mut locked = self.slots.at(slot).body.lock();
        let ticket = self.log(now_ms, || {
            let settled = Settled {
                beyond: beyond.map(|(chain, amounts)| (chain.id, amounts)),
                overdraft,
                ..as_it_ended(&reservation)
            };
            vec![Fact::Reserved(reservation.reserved_fact()), Fact::Settled(settled)]
        });
        self.report_crossings(now_ms, &crossed);
        if reservation.key == 0 {
            // Nobody can send it again.
            self.slots.set_deadline(slot, now.mono_ms);
        } else {
            self.forget_later(&reservation, now.mono_ms);
        }
        let view = view(&reservation, now.mono_ms);
        *locked = Some(reservation);
        Ok(Ended { view, verdict: after(chain), scope: Scope(Some(Arc::clone(chain))), ticket })
    }

    /// Spends what no hold covers, in the windows current now. Fails on overflow and then has changed
    /// nothing. Returns the chain with the amounts, and what of them passes the limit.
    pub(crate) fn spend_beyond(
        &self,
        account: &Arc<Account>,
        excess: &Amounts,
        now_ms: i64,
        crossed: &mut Vec<Arc<Window>>,
    ) -> Result<(Option<Beyond>, Amounts), LedgerError> {
        if excess.is_zero() {
            return Ok((None, Amounts::ZERO));
        }
        let chain = self.chain_of(account, now_ms);
        let mut overdraft = Amounts::ZERO;
        for (taken, (window, amount)) in chain.takings(excess).enumerate() {
            window.roll(now_ms);
            let Ok(over) = window.take_anyway(amount) else {
                for (window, amount) in chain.takings(excess).take(taken) {
                    window.give_back(amount);
                }
                return Err(LedgerError::Overflow);
            };
            let unit = window.unit;
            overdraft.set(unit, overdraft.get(unit).max(over));
        }
        for (unit, amount) in excess.iter() {
            let mut note = |window: &Arc<Window>| crossed.push(Arc::clone(window));
            spend(&chain, unit, amount, Span::at(now_ms), &mut note);
        }
        Ok((Some((chain, *excess)), overdraft))
    }
}
