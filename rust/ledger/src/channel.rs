//! One debit channel at a time (R6).
//!
//! Debit calls need no claim, and are refused while somebody has one. A claim is kept in memory only:
//! after a restart nothing is claimed. It ends with its reservation, or by its holder's word.

use crate::debit::pending;
use crate::error::LedgerError;
use crate::fact::{Journal, ReservationId};
use crate::ledger::{Ledger, body};
use crate::reservation::Reservation;

/// Who alone debits a reservation, by a number that its host gives out once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// A Meter stream.
    Meter(u64),
}

impl<J: Journal> Ledger<J> {
    /// Makes `channel` the only one that debits the reservation. A repeat changes nothing.
    pub fn claim(&self, id: ReservationId, channel: Channel) -> Result<(), LedgerError> {
        let mut locked = self.slot(id)?.body.lock();
        pending(body(&mut locked, id)?)?.open_to(Some(channel))
    }

    /// Ends the claim of `channel`, if it has one.
    pub fn unclaim(&self, id: ReservationId, channel: Channel) {
        let Ok(slot) = self.slot(id) else { return };
        let mut locked = slot.body.lock();
        if let Ok(reservation) = body(&mut locked, id)
            && reservation.channel == Some(channel)
        {
            reservation.channel = None;
        }
    }
}

impl Reservation {
    /// Lets a debit through `channel` in, which claims an unclaimed reservation; `None`: a Debit call.
    #[inline]
    pub(crate) fn open_to(&mut self, channel: Option<Channel>) -> Result<(), LedgerError> {
        if self.channel == channel && self.lease.is_none() {
            return Ok(());
        }
        if self.channel.is_some() || self.lease.is_some() {
            return Err(LedgerError::ReservationLeased);
        }
        self.channel = channel;
        Ok(())
    }
}
