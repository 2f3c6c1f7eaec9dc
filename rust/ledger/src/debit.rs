//! Spending from a hold, and raising it: Debit and Extend (R6, R8, R10, R17).

use std::sync::Arc;

use crate::account::Chain;
use crate::channel::Channel;
use crate::error::LedgerError;
use crate::fact::{Journal, ReservationId, State};
use crate::ledger::{Ledger, Now, Scope, View, body, exhausted, frozen, view};
use crate::nested::check_slices;
use crate::reservation::Reservation;
use crate::reserve::hold;
use crate::unit::Amounts;
use crate::verdict::{Refusal, RefusalReason, Verdict};
use crate::window::{Shortage, Window};
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
        let mut crossed: Vec<Arc<Window>> = Vec::new();
        let mut short = None;
        let was_debited = reservation.debited;
        for (unit, to) in used.iter() {
            let mut note = |window: &Arc<Window>| crossed.push(Arc::clone(window));
            if !reservation.debit(unit, to, now_ms, &mut note) {
                short = Some((unit, to - reservation.used.get(unit)));
            }
        }
        if reservation.debited && !was_debited {
            self.slots.set_debited(id.slot);
        }
        let ticket = self.report_crossings(now_ms, &crossed);
        let chain = newest(reservation);
        chain.roll(now_ms);
        let verdict = chain.verdict();
        let refusal = match (reservation.account.frozen_by(), short) {
            (Some(by), _) => Some(frozen(by)),
            (None, Some((unit, shortfall))) => Some(Refusal {
                reason: RefusalReason::HoldExhausted,
                account: reservation.account.path.to_string(),
                unit: Some(unit),
                shortfall,
                reset_ms: None,
            }),
            (None, None) if verdict == Verdict::Stop => overspent(chain),
            (None, None) => None,
        };
        let verdict = match refusal {
            Some(_) => Verdict::Stop,
            None => verdict,
        };
        Ok(Debited {
            verdict,
            remaining: reservation.unused(),
            held: reservation.held(),
            refusal,
            // Where all is well there is no advice, and the hot path leaves the chain's count alone.
            scope: Scope((verdict != Verdict::Ok).then(|| Arc::clone(chain))),
            ticket,
        })
    }

    /// Renews the time to live and raises the hold to `most` in all (cumulative), or to what is left of
    /// it as long as it is `least`. What is added is charged to the windows current now.
    pub fn extend(
        &self,
        id: ReservationId,
        (most, least): (&Amounts, &Amounts),
        ttl_ms: Option<i64>,
        now: Now,
    ) -> Result<Extended, LedgerError> {
        most.check_not_negative()?;
        least.check_not_negative()?;
        let now_ms = self.time(now.wall_ms);
        let mut locked = self.slot(id)?.body.lock();
        let reservation = pending(body(&mut locked, id)?)?;
        let held = reservation.held();
        let more = |total: &Amounts| total.max(&held).checked_sub(&held).expect("not less");
        let (most, least) = (more(most), more(least));
        let chain = self.chain_of(&reservation.account, now_ms);
        let mut refusal = None;
        let mut added = Amounts::ZERO;
        if !most.is_zero() {
            if !reservation.slices.iter().any(|slice| slice.chain.id == chain.id) {
                check_slices(reservation.slices.len())?;
            }
            match top_up(&chain, most, least)? {
                Ok(amounts) => added = amounts,
                Err(refused) => refusal = Some(refused),
            }
        }
        // After this point the extension must succeed.
        let fits = reservation.add_slice(&chain, added);
        debug_assert!(fits, "a total that was asked for is an amount");
        reservation.granted = reservation.held();
        if let Some(ttl_ms) = ttl_ms {
            reservation.ttl_ms = ttl_ms;
        }
        reservation.deadline_ms = now.mono_ms.saturating_add(reservation.ttl_ms);
        self.slots.set_deadline(id.slot, reservation.deadline_ms);
        let ticket = self.log_resliced(reservation, now_ms, added);
        Ok(Extended {
            verdict: if refusal.is_some() { Verdict::Stop } else { chain.verdict() },
            view: view(reservation, now.mono_ms),
            refusal,
            scope: Scope(Some(chain)),
            ticket,
        })
    }
}

fn top_up(
    chain: &Arc<Chain>,
    most: Amounts,
    least: Amounts,
) -> Result<Result<Amounts, Refusal>, LedgerError> {
    if let Some(by) = chain.account.frozen_by() {
        return Ok(Err(frozen(by)));
    }
    let wish = Wish::Amounts { most, least };
    Ok(hold(chain, &wish, false)?.map(|(amounts, _)| amounts))
}

/// The reservation, unless it has ended.
pub(crate) fn pending(reservation: &mut Reservation) -> Result<&mut Reservation, LedgerError> {
    match reservation.state {
        State::Pending => Ok(reservation),
        state => Err(LedgerError::ReservationEnded(state)),
    }
}

/// The chain of the newest slice.
pub(crate) fn newest(reservation: &Reservation) -> &Arc<Chain> {
    &reservation.slices.last().expect("a pending reservation has a slice").chain
}

/// Why to stop when a window has spent more than its limit allows (R10).
#[cold]
fn overspent(chain: &Chain) -> Option<Refusal> {
    let mut found = None;
    for unit in crate::unit::Unit::ALL {
        chain.each(unit, &mut |window| {
            if window.verdict() == Verdict::Stop {
                found = Some(Arc::clone(window));
            }
        });
    }
    found.map(|window| {
        let standing = window.standing();
        let shortfall = standing.spent.saturating_sub(standing.limit);
        exhausted(&Shortage { window, shortfall })
    })
}
