//! Counts what is debited on the pages of leases, and tells their clients how to go on.
//!
//! A lease that moves is looked at on every round, one that rests a few times a second: a round
//! costs what has moved, not what there is. When verdicts may have changed, all are told at once.
//! A lease that the ledger is done with is let go of when its turn comes.

use std::collections::VecDeque;
use std::sync::Arc;

use bursar_ledger::lease::{Pages, Pumped};
use bursar_ledger::{Now, ReservationId};

use super::shared::SharedPages;
use crate::engine::Engine;

/// How long from round to round, in milliseconds.
pub(super) const ROUND_MS: u64 = 4;
/// After so many rounds without a debit a lease rests.
const RESTS_AFTER: u32 = 16;
/// Within so many rounds every resting lease is looked at once.
const RESTING_ROUNDS: usize = 64;
/// On every so-manieth look its verdict is found anew, which time alone may change.
const VERDICT_LOOKS: u32 = 16;

/// One lease.
#[derive(Debug)]
struct Pumping {
    reservation: ReservationId,
    pages: Arc<SharedPages>,
    /// What its page said when it was looked at last.
    seen: i64,
    /// Looks without a debit.
    quiet: u32,
}

/// All leases of the daemon.
#[derive(Debug, Default)]
pub(super) struct Pump {
    active: Vec<Pumping>,
    resting: VecDeque<Pumping>,
    /// Top-ups that are held and not told yet, with what has to be durable first.
    unpublished: Vec<(ReservationId, u64)>,
    /// The ledger's count of changes when all were told last.
    changes: u64,
}

impl Pump {
    pub(super) fn is_empty(&self) -> bool {
        self.active.is_empty() && self.resting.is_empty()
    }

    pub(super) fn add(&mut self, reservation: ReservationId, pages: Arc<SharedPages>) {
        let seen = pages.used();
        self.active.push(Pumping { reservation, pages, seen, quiet: 0 });
    }

    /// One round.
    pub(super) fn round(&mut self, engine: &Engine) {
        let (changes, now) = (engine.ledger.changes(), engine.now());
        let look = changes != self.changes;
        self.changes = changes;
        let share = if look { usize::MAX } else { self.resting.len().div_ceil(RESTING_ROUNDS) };
        let share = share.min(self.resting.len());
        let resting: Vec<Pumping> = self.resting.drain(..share).collect();
        for mut lease in std::mem::take(&mut self.active).into_iter().chain(resting) {
            if !lease.visit(engine, look, now, &mut self.unpublished) {
                continue;
            }
            if lease.quiet > RESTS_AFTER {
                self.resting.push_back(lease);
            } else {
                self.active.push(lease);
            }
        }
        self.publish(engine);
    }

    /// Tells of the top-ups that are durable by now.
    fn publish(&mut self, engine: &Engine) {
        if self.unpublished.is_empty() {
            return;
        }
        let durable = engine.durable.reached();
        self.unpublished.retain(|(reservation, ticket)| {
            let is_durable = *ticket <= durable;
            if is_durable {
                engine.ledger.publish(*reservation, durable);
            }
            !is_durable
        });
    }
}

impl Pumping {
    /// Looks at it; returns whether it goes on.
    fn visit(
        &mut self,
        engine: &Engine,
        look: bool,
        now: Now,
        unpublished: &mut Vec<(ReservationId, u64)>,
    ) -> bool {
        if self.pages.has_ended() {
            return false;
        }
        let seen = self.pages.used();
        let moved = seen != self.seen;
        self.seen = seen;
        self.quiet = if moved { 0 } else { self.quiet.saturating_add(1) };
        let look = look || self.quiet.is_multiple_of(VERDICT_LOOKS) && !moved;
        // The first quiet look still asks, for a top-up that waits.
        if !moved && !look && self.quiet != 1 {
            return true;
        }
        match engine.ledger.pump(self.reservation, look, now) {
            Pumped::Over => return false,
            Pumped::Idle | Pumped::Active { topped_up: None } => {}
            Pumped::Active { topped_up: Some(ticket) } => {
                unpublished.push((self.reservation, ticket));
            }
        }
        true
    }
}
