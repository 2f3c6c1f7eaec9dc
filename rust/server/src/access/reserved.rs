//! Which token has reserved what, so that what it holds ends with it.

use std::collections::{HashMap, HashSet};

use bursar_ledger::ReservationId;
use parking_lot::Mutex;

use crate::engine::Engine;

/// Pending reservations by the id of their token; some have ended since the last look.
#[derive(Debug, Default)]
pub(super) struct Reserved(Mutex<HashMap<String, HashSet<ReservationId>>>);

impl Reserved {
    pub(super) fn note(&self, token: &str, reservation: ReservationId) {
        let mut noted = self.0.lock();
        match noted.get_mut(token) {
            Some(held) => _ = held.insert(reservation),
            None => _ = noted.insert(token.to_owned(), HashSet::from([reservation])),
        }
    }

    /// Ends what tokens hold that are good no more, at what was debited, and forgets what has ended.
    pub(super) fn end(&self, engine: &Engine, is_good: impl Fn(&str) -> bool) {
        let noted = std::mem::take(&mut *self.0.lock());
        for (token, mut held) in noted {
            if !is_good(&token) {
                for id in held {
                    let _ended_before = engine.ledger.cut_off(id, engine.now());
                }
                engine.write();
                continue;
            }
            held.retain(|id| engine.ledger.is_pending(*id));
            if held.is_empty() {
                continue;
            }
            let mut noted = self.0.lock();
            // The fewer go to the more: who notes one meanwhile waits for this.
            let of_now = noted.entry(token).or_default();
            if of_now.len() < held.len() {
                std::mem::swap(of_now, &mut held);
            }
            of_now.extend(held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_again_takes_no_more_room() {
        let reserved = Reserved::default();
        for _ in 0..1_000 {
            reserved.note("a", ReservationId { sequence: 1, slot: 0 });
        }
        assert_eq!(reserved.0.lock()["a"].len(), 1);
    }
}
