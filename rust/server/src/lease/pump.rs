//! Counts what is debited on the pages of leases, and tells their clients how to go on.
//!
//! A lease that moves is looked at on every round, one that rests a few times a second: a round
//! costs what has moved, not what there is. While all rest, rounds are rare. When verdicts may have
//! changed, all are told at once.
//! A lease that the ledger is done with is let go of when its turn comes.

use std::collections::VecDeque;
use std::sync::Arc;

use bursar_ledger::lease::{Pages, Pumped};
use bursar_ledger::{Now, ReservationId};

use super::shared::SharedPages;
use crate::engine::Engine;

/// How long from round to round, in milliseconds.
pub(super) const ROUND_MS: i64 = 4;
/// The same where no lease moves.
const RARE_ROUND_MS: i64 = 64;
/// After so many rounds without a debit a lease rests.
const RESTS_AFTER: u32 = 250;
/// Within so many rounds, or rare rounds, every resting lease is looked at once.
const ROUNDS: usize = 64;
const RARE_ROUNDS: usize = 4;
/// On every so-manieth look its verdict is found anew, which time alone may change.
const VERDICT_LOOKS: u32 = 64;

/// One lease.
#[derive(Debug)]
struct Pumping {
    reservation: ReservationId,
    pages: Arc<SharedPages>,
    /// What its page said on the last look, and on the one before.
    used: i64,
    seen: i64,
    /// Looks without a debit.
    quiet: u32,
    /// A top-up that is held and not told yet: what has to be durable first.
    topped_up: Option<u64>,
}

/// All leases of the daemon.
#[derive(Debug, Default)]
pub(super) struct Pump {
    active: Vec<Pumping>,
    resting: VecDeque<Pumping>,
    /// Whether a top-up waits to be told.
    topped_up: bool,
    /// The ledger's count of changes when all were told last.
    changes: u64,
}

impl Pump {
    /// How long the next round may wait; for ever without a lease.
    pub(super) fn pace_ms(&self) -> Option<i64> {
        if !self.active.is_empty() {
            return Some(ROUND_MS);
        }
        (!self.resting.is_empty()).then_some(RARE_ROUND_MS)
    }

    /// Whether verdicts may have changed since the last round.
    pub(super) fn is_behind(&self, engine: &Engine) -> bool {
        engine.ledger.changes() != self.changes
    }

    pub(super) fn add(&mut self, reservation: ReservationId, pages: Arc<SharedPages>) {
        let used = pages.used();
        self.active.push(Pumping {
            reservation,
            pages,
            used,
            seen: used,
            quiet: 0,
            topped_up: None,
        });
    }

    /// One round.
    pub(super) fn round(&mut self, engine: &Engine) {
        let (changes, now) = (engine.ledger.changes(), engine.now());
        let durable =
            if std::mem::take(&mut self.topped_up) { engine.durable.reached() } else { 0 };
        let look = changes != self.changes;
        self.changes = changes;
        let rounds = if self.active.is_empty() { RARE_ROUNDS } else { ROUNDS };
        let share = if look { self.resting.len() } else { self.resting.len().div_ceil(rounds) };
        let mut due: Vec<Pumping> = std::mem::take(&mut self.active);
        due.extend(self.resting.drain(..share));
        // A pass by itself: other cores have written most of these lines, and waits for them overlap.
        for lease in &mut due {
            lease.seen = std::mem::replace(&mut lease.used, lease.pages.used());
        }
        for mut lease in due {
            if !lease.visit(engine, look, now, durable) {
                continue;
            }
            self.topped_up |= lease.topped_up.is_some();
            if lease.quiet > RESTS_AFTER && lease.topped_up.is_none() {
                self.resting.push_back(lease);
            } else {
                self.active.push(lease);
            }
        }
    }
}

impl Pumping {
    /// Looks at it; returns whether it goes on. `durable`: what the store has reached.
    fn visit(&mut self, engine: &Engine, look: bool, now: Now, durable: u64) -> bool {
        if self.pages.has_ended() {
            return false;
        }
        if self.topped_up.is_some_and(|ticket| ticket <= durable) {
            engine.ledger.publish(self.reservation, durable);
            self.topped_up = None;
        }
        let moved = self.used != self.seen;
        self.quiet = if moved { 0 } else { self.quiet.saturating_add(1) };
        let look = look || self.quiet.is_multiple_of(VERDICT_LOOKS) && !moved;
        // The first quiet look still asks, for a top-up that waits.
        if !moved && !look && self.quiet != 1 {
            return true;
        }
        match engine.ledger.pump(self.reservation, look, now) {
            Pumped::Over => false,
            Pumped::On { topped_up } => {
                self.topped_up = self.topped_up.or(topped_up);
                true
            }
        }
    }
}
