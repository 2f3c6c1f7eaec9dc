//! Counts what is debited on the pages of leases, and tells their clients how to go on.
//!
//! A lease that moves is looked at on every round, one that rests a few times a second: a round
//! costs what has moved, not what there is. When verdicts may have changed, all are told at once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bursar_ledger::ReservationId;
use bursar_ledger::lease::{Pages, Pumped};

use super::shared::SharedPages;
use crate::engine::Engine;

/// How long from round to round, in milliseconds.
pub(super) const ROUND_MS: u64 = 4;
/// After so many rounds without a debit a lease rests.
const RESTS_AFTER: u32 = 16;
/// Within so many rounds every resting lease is looked at once.
const RESTING_ROUNDS: usize = 64;

/// One lease.
#[derive(Debug)]
struct Pumping {
    reservation: ReservationId,
    pages: Arc<SharedPages>,
    /// What its page said when it was looked at last.
    seen: i64,
    /// Rounds without a debit.
    quiet: u32,
}

/// All leases of the daemon.
#[derive(Debug, Default)]
pub(super) struct Pump {
    leases: HashMap<u64, Pumping>,
    active: Vec<u64>,
    resting: VecDeque<u64>,
    /// Top-ups that are held and not told yet, with what has to be durable first.
    unpublished: Vec<(ReservationId, u64)>,
    /// The ledger's count of changes when all were told last.
    changes: u64,
}

impl Pump {
    pub(super) fn len(&self) -> usize {
        self.leases.len()
    }

    pub(super) fn add(&mut self, number: u64, reservation: ReservationId, pages: Arc<SharedPages>) {
        let seen = pages.used();
        self.leases.insert(number, Pumping { reservation, pages, seen, quiet: 0 });
        self.active.push(number);
    }

    pub(super) fn reservation(&self, number: u64) -> Option<ReservationId> {
        self.leases.get(&number).map(|lease| lease.reservation)
    }

    /// Lets go of a lease that has ended; its pages are unmapped.
    pub(super) fn remove(&mut self, number: u64) {
        self.leases.remove(&number);
    }

    /// One round.
    pub(super) fn round(&mut self, engine: &Engine) {
        let changes = engine.ledger.changes();
        let look = changes != self.changes;
        self.changes = changes;
        for number in std::mem::take(&mut self.active) {
            match self.visit(engine, number, look) {
                Some(quiet) if quiet > RESTS_AFTER => self.resting.push_back(number),
                Some(_) => self.active.push(number),
                None => self.remove(number),
            }
        }
        let share = self.resting.len().div_ceil(RESTING_ROUNDS);
        for _ in 0..if look { self.resting.len() } else { share } {
            let Some(number) = self.resting.pop_front() else { break };
            // Its turn comes a few times a second, so it can afford a look at its verdict.
            match self.visit(engine, number, true) {
                Some(0) => self.active.push(number),
                Some(_) => self.resting.push_back(number),
                None => self.remove(number),
            }
        }
        self.publish(engine);
    }

    /// Looks at one lease; the rounds since it moved, or `None` when it is over.
    fn visit(&mut self, engine: &Engine, number: u64, look: bool) -> Option<u32> {
        let lease = self.leases.get_mut(&number)?;
        if lease.pages.has_ended() {
            return None;
        }
        let seen = lease.pages.used();
        let moved = seen != lease.seen;
        lease.seen = seen;
        lease.quiet = if moved { 0 } else { lease.quiet.saturating_add(1) };
        // The first quiet round still asks, for a top-up that waits.
        if moved || look || lease.quiet == 1 {
            match engine.ledger.pump(lease.reservation, look, engine.now()) {
                Pumped::Over => return None,
                Pumped::Idle => {}
                Pumped::Active { topped_up } => {
                    let waits = topped_up.map(|ticket| (lease.reservation, ticket));
                    self.unpublished.extend(waits);
                }
            }
        }
        Some(lease.quiet)
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
