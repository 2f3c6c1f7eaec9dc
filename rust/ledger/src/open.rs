//! The reservations that are open, for people to look at.
//!
//! Walks all slots and holds each one's lock for a moment, no two at once: what is read is of many
//! moments. For people who look, not for calls that spend.

use std::cmp::Reverse;

use crate::channel::Channel;
use crate::fact::{Journal, State};
use crate::ledger::{Ledger, Now, View, view};
use crate::path::is_within;
use crate::slots::Slot;

/// How a reservation is debited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Debiting {
    /// By calls, if at all.
    Calls,
    /// By a Meter stream.
    Metered,
    /// On pages of shared memory.
    Leased,
}

/// The reservations that are open.
#[derive(Debug, Default)]
pub struct Open {
    /// Leases first, then the newest.
    pub shown: Vec<(View, Debiting)>,
    /// How many there are in all.
    pub count: usize,
}

impl<J: Journal> Ledger<J> {
    /// The open reservations of an account and those below it (empty: all), at most `limit`: leases
    /// come first, then the newest.
    pub fn open_reservations(&self, within: &str, limit: usize, now: Now) -> Open {
        if !within.is_empty() && self.open_below(within) == 0 {
            return Open::default();
        }
        let ranked = |(index, slot): (u32, &Slot)| {
            let locked = slot.body.lock();
            let found = locked.as_ref().filter(|found| found.state == State::Pending)?;
            if !(within.is_empty() || is_within(&found.account.path, within)) {
                return None;
            }
            let debiting = match (&found.lease, found.channel) {
                (Some(_), _) => Debiting::Leased,
                (None, Some(Channel::Meter(_))) => Debiting::Metered,
                (None, None) => Debiting::Calls,
            };
            Some((debiting, found.id.sequence, index))
        };
        let mut found: Vec<_> = self.slots.numbered().filter_map(ranked).collect();
        let count = found.len();
        if count > limit {
            found.select_nth_unstable_by_key(limit, |one| Reverse(*one));
            found.truncate(limit);
        }
        found.sort_unstable_by_key(|one| Reverse(*one));
        let shown = found.into_iter().filter_map(|(debiting, sequence, index)| {
            let locked = self.slots.get(index)?.body.lock();
            let found = locked
                .as_ref()
                .filter(|found| found.id.sequence == sequence && found.state == State::Pending)?;
            Some((view(found, now.mono_ms), debiting))
        });
        Open { shown: shown.collect(), count }
    }
}
