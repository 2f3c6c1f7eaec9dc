//! Spending from a hold, and raising it: Debit and Extend (R6, R8, R10, R17).

use std::sync::Arc;

use crate::account::{Account, Chain};
use crate::channel::Channel;
use crate::charge::Shortage;
use crate::error::LedgerError;
use crate::fact::{Journal, ReservationId, State};
use crate::ledger::{Ledger, Now, Scope, View, body, exhausted, frozen, view};
use crate::nested::check_slices;
use crate::reservation::Reservation;
use crate::reserve::{NoHold, RECLAIMS, hold};
use crate::unit::{Amounts, Unit};
use crate::verdict::{Refusal, RefusalReason, Verdict};
use crate::window::Window;
use crate::wish::Wish;

/// The answer to a debit.
#[derive(Debug, Clone)]
pub struct Debited {
    /// Whether to go on.
    pub verdict: Verdict,
    /// What is left of the hold.
    pub remaining: Amounts,
    /// What is held in all: tells units that are held from units that are not.
    pub held: Amounts,
    /// Why to stop.
    pub refusal: Option<Refusal>,
    /// The windows, for advice; none while the verdict is OK.
    pub scope: Scope,
    /// What must be durable before the answer may leave; 0: nothing.
    pub ticket: u64,
}

/// The answer to an extension.
#[derive(Debug, Clone)]
pub struct Extended {
    /// Whether to go on.
    pub verdict: Verdict,
    /// The reservation.
    pub view: View,
    /// Why the hold was not raised.
    pub refusal: Option<Refusal>,
    /// The windows, for advice.
    pub scope: Scope,
    /// What must be durable before the answer may leave.
    pub ticket: u64,
}

impl<J: Journal> Ledger<J> {
    /// Raises what is debited to `used` per unit (cumulative; lower values change nothing), at most to
    /// the hold. Capacity cannot be debited, nor what a channel has claimed.
    pub fn debit(
        &self,
        id: ReservationId,
        used: &Amounts,
        now: Now,
    ) -> Result<Debited, LedgerError> {
        self.debit_by(None, id, used, now)
    }

    /// The same through `channel`, which claims the reservation.
    pub fn debit_through(
        &self,
        channel: Channel,
        id: ReservationId,
        used: &Amounts,
        now: Now,
    ) -> Result<Debited, LedgerError> {
        self.debit_by(Some(channel), id, used, now)
    }

    fn debit_by(
        &self,
        channel: Option<Channel>,
        id: ReservationId,
        used: &Amounts,
        now: Now,
    ) -> Result<Debited, LedgerError> {
        used.check_not_negative()?;
        used.check_no_capacity()?;
        let now_ms = self.time(now.wall_ms);
        let mut locked = self.slot(id)?.body.lock();
        let reservation = pending(body(&mut locked, id)?)?;
        reservation.open_to(channel)?;
        let (mut ticket, mut short) = (0, None);
        let was_debited = reservation.debited;
        for unit in Unit::each().filter(|unit| used.get(*unit) != 0) {
            let to = used.get(unit);
            let mut note = |window: &Arc<Window>| {
                ticket = self.report_crossing(now_ms, window).max(ticket);
            };
            if !reservation.debit(unit, to, now_ms, &mut note) {
                short = Some((unit, to - reservation.used.get(unit)));
            }
        }
        if reservation.debited && !was_debited {
            self.slots.set_debited(id.slot);
        }
        let chain = newest(reservation);
        chain.roll(now_ms);
        let (verdict, frozen_by) = (chain.verdict(), self.tree.frozen_by(&reservation.account));
        let (remaining, held) = (reservation.unused(), reservation.held());
        if verdict == Verdict::Ok && short.is_none() && frozen_by.is_none() {
            // There is no advice, and the hot path leaves the chain's count alone.
            let scope = Scope(None);
            return Ok(Debited { verdict, remaining, held, refusal: None, scope, ticket });
        }
        let refusal = match (frozen_by, short) {
            (Some(by), _) => Some(frozen(by)),
            (None, Some(short)) => Some(hold_exhausted(&reservation.account, short)),
            (None, None) => overspent(chain),
        };
        let verdict = if refusal.is_some() { Verdict::Stop } else { verdict };
        let scope = Scope(Some(Arc::clone(chain)));
        Ok(Debited { verdict, remaining, held, refusal, scope, ticket })
    }

    /// Renews the time to live and raises the hold to `wish` in all (cumulative), or to what is
    /// left of it as long as it is worth having. What is added is charged to the windows current
    /// now. `top_up`: it is for a lease and may be taken back while it is unused.
    pub fn extend(
        &self,
        id: ReservationId,
        wish: Option<&Wish>,
        top_up: bool,
        ttl_ms: Option<i64>,
        now: Now,
    ) -> Result<Extended, LedgerError> {
        let now_ms = self.time(now.wall_ms);
        for _ in 0..RECLAIMS {
            match self.try_extend(id, wish, top_up, ttl_ms, now)? {
                (_, Some(NoHold::Short(shortage))) if self.reclaim(&shortage, Some(id), now_ms) => {
                }
                (extended, _) => return Ok(extended),
            }
        }
        self.try_extend(id, wish, top_up, ttl_ms, now).map(|(extended, _)| extended)
    }

    /// One attempt, and why the hold was not raised.
    fn try_extend(
        &self,
        id: ReservationId,
        wish: Option<&Wish>,
        top_up: bool,
        ttl_ms: Option<i64>,
        now: Now,
    ) -> Result<(Extended, Option<NoHold>), LedgerError> {
        let now_ms = self.time(now.wall_ms);
        let mut locked = self.slot(id)?.body.lock();
        let reservation = pending(body(&mut locked, id)?)?;
        let (ttl_before, mut ticket) = (reservation.ttl_ms, 0);
        reservation.ttl_ms = ttl_ms.unwrap_or(ttl_before);
        let raised = match wish {
            Some(wish) => self.raise(reservation, wish, top_up, now_ms),
            None => Ok(Ok(0)),
        };
        let raised = raised.inspect_err(|_| reservation.ttl_ms = ttl_before)?;
        let none = raised.map(|raised| ticket = raised).err();
        if ticket == 0 {
            ticket = self.log_resliced(reservation, now_ms, Amounts::ZERO);
        }
        reservation.deadline_ms = now.mono_ms.saturating_add(reservation.ttl_ms);
        self.slots.set_deadline(id.slot, reservation.deadline_ms);
        let chain = self.chain_of(&reservation.account, now_ms);
        let refusal = none.as_ref().map(NoHold::refusal);
        let extended = Extended {
            verdict: if refusal.is_some() { Verdict::Stop } else { chain.verdict() },
            view: view(reservation, now.mono_ms),
            refusal,
            scope: Scope(Some(chain)),
            ticket,
        };
        Ok((extended, none))
    }

    /// Raises a pending reservation's hold; called under its lock. Returns what has to be durable
    /// before anybody may spend of it; 0: nothing was missing.
    pub(crate) fn raise(
        &self,
        reservation: &mut Reservation,
        wish: &Wish,
        top_up: bool,
        now_ms: i64,
    ) -> Result<Result<u64, NoHold>, LedgerError> {
        let chain = self.chain_of(&reservation.account, now_ms);
        let held = reservation.held();
        let (most, _) = wish.bounds()?;
        most.0.check_not_negative()?;
        if most.0.is_within(&held) {
            return Ok(Ok(0));
        }
        if let Some(by) = self.tree.frozen_by(&chain.account) {
            return Ok(Err(NoHold::Refused(frozen(by))));
        }
        self.check_store()?;
        if !reservation.slices.iter().any(|slice| slice.chain.id == chain.id) {
            check_slices(reservation.slices.len())?;
        }
        let (added, output) = match hold(&self.charges, &chain, wish, Some(&held))? {
            Ok(portion) => portion,
            Err(shortage) => return Ok(Err(NoHold::Short(shortage))),
        };
        // After this point the raise must succeed.
        let fits = reservation.add_slice(&chain, added);
        debug_assert!(fits, "a total that was asked for is an amount");
        reservation.granted = reservation.held();
        reservation.max_output_tokens = reservation.max_output_tokens.max(output);
        let ticket = self.log_resliced(reservation, now_ms, added);
        self.raised(reservation, top_up, ticket);
        Ok(Ok(ticket))
    }
}

/// The reservation, unless it has ended.
#[inline]
pub(crate) fn pending(reservation: &mut Reservation) -> Result<&mut Reservation, LedgerError> {
    match reservation.state {
        State::Pending => Ok(reservation),
        state => Err(LedgerError::ReservationEnded(state)),
    }
}

/// The chain of the newest slice.
#[inline]
pub(crate) fn newest(reservation: &Reservation) -> &Arc<Chain> {
    &reservation.slices.last().expect("a pending reservation has a slice").chain
}

/// Why to stop when the hold covers only part of a debit.
#[cold]
fn hold_exhausted(account: &Account, (unit, shortfall): (Unit, i64)) -> Refusal {
    Refusal {
        reason: RefusalReason::HoldExhausted,
        account: account.path.to_string(),
        unit: Some(unit),
        shortfall,
        reset_ms: None,
    }
}

/// Why to stop when a window has spent more than its limit allows (R10), if one has.
#[cold]
fn overspent(chain: &Chain) -> Option<Refusal> {
    let mut found = None;
    for unit in Unit::ALL {
        chain.each(unit, &mut |window| {
            if window.verdict() == Verdict::Stop {
                found = Some(Arc::clone(window));
            }
        });
    }
    found.map(|window| {
        let standing = window.standing();
        let shortfall = standing.spent.saturating_sub(standing.limit);
        exhausted(&Shortage { window, amount: standing.spent, shortfall })
    })
}
