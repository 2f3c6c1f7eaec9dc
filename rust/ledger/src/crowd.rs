//! Room for one more reservation: whether the store has any, and who has taken most, so that there is
//! some left for others (R15).
//!
//! Nothing is counted on the way of a call. While most of the room is taken the host has it looked at
//! now and then; whoever has more than half of all, with what is below it, is refused until the next
//! look finds less. Accounts at the root are not refused: they may be everybody.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::account::Account;
use crate::error::LedgerError;
use crate::fact::Journal;
use crate::ledger::Ledger;

/// The account that is refused, if one is.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    /// Whether one is: while none is, nobody takes the lock.
    is_there: AtomicBool,
    account: Mutex<Option<Arc<Account>>>,
    /// Whether the store has no room for what begins.
    is_store_full: AtomicBool,
}

impl<J: Journal> Ledger<J> {
    /// Says whether the store is nearly full: until it is not, nothing is held or recorded anew, and
    /// nothing raised. What ends or lowers a hold, and what operators set, is taken as ever.
    pub fn set_store_full(&self, is_full: bool) {
        self.crowd.is_store_full.store(is_full, Ordering::Relaxed);
    }

    /// Whether it was said to be nearly full.
    pub fn is_store_full(&self) -> bool {
        self.crowd.is_store_full.load(Ordering::Relaxed)
    }

    /// Looks who has taken more than half of the room, if more than half is taken.
    pub fn look_for_crowd(&self) {
        let share = self.slots.max() / 2;
        let is_full = self.slots.taken() > share;
        let account = if is_full { self.crowd_above(share) } else { None };
        let is_there = account.is_some();
        *self.crowd.account.lock() = account;
        self.crowd.is_there.store(is_there, Ordering::Release);
    }

    /// The highest account below a root that has more than `share` reservations, with those below it.
    fn crowd_above(&self, share: usize) -> Option<Arc<Account>> {
        let mut own: HashMap<*const Account, (Arc<Account>, usize)> = HashMap::new();
        for slot in self.slots.iter() {
            if let Some(reservation) = slot.body.lock().as_ref() {
                let account = &reservation.account;
                let entry = own.entry(Arc::as_ptr(account));
                entry.or_insert_with(|| (Arc::clone(account), 0)).1 += 1;
            }
        }
        let mut below: HashMap<*const Account, (&Arc<Account>, usize)> = HashMap::new();
        for (account, count) in own.values() {
            for above in account.lineage().filter(|above| above.parent.is_some()) {
                below.entry(Arc::as_ptr(above)).or_insert((above, 0)).1 += count;
            }
        }
        let crowds = below.into_values().filter(|(_, count)| *count > share);
        crowds.min_by_key(|(above, _)| above.path.len()).map(|(above, _)| Arc::clone(above))
    }

    /// Refuses what adds to a store that is nearly full.
    #[inline]
    pub(crate) fn check_store(&self) -> Result<(), LedgerError> {
        if self.is_store_full() {
            return Err(LedgerError::StoreNearlyFull);
        }
        Ok(())
    }

    /// Refuses one more reservation where there is no room, or for an account that has most of it.
    #[inline]
    pub(crate) fn check_room(&self, account: &Arc<Account>) -> Result<(), LedgerError> {
        self.check_store()?;
        if !self.crowd.is_there.load(Ordering::Acquire) {
            return Ok(());
        }
        let crowd = self.crowd.account.lock();
        let is_of = |crowd: &Arc<Account>| account.lineage().any(|above| Arc::ptr_eq(above, crowd));
        if crowd.as_ref().is_some_and(is_of) {
            return Err(LedgerError::ReservationLimit { max: self.slots.max() / 2 });
        }
        Ok(())
    }
}
