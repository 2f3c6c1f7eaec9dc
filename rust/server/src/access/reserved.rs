//! Which token has reserved what, so that what it holds ends with it.
//!
//! Forgotten when the daemon ends: what a token held before that ends by its time to live, which only
//! a token that is good renews.

use std::collections::HashMap;

use bursar_ledger::ReservationId;
use parking_lot::Mutex;

use crate::engine::Engine;

/// Pending reservations by the id of their token; some have ended since the last look.
#[derive(Debug, Default)]
pub(super) struct Reserved(Mutex<HashMap<String, Vec<ReservationId>>>);

impl Reserved {
    pub(super) fn note(&self, token: &str, reservation: ReservationId) {
        let mut noted = self.0.lock();
        match noted.get_mut(token) {
            Some(list) => list.push(reservation),
            None => _ = noted.insert(token.to_owned(), vec![reservation]),
        }
    }

    /// Ends what tokens hold that are good no more, at what was debited, and forgets what has ended.
    pub(super) fn end(&self, engine: &Engine, is_good: impl Fn(&str) -> bool) {
        let noted = std::mem::take(&mut *self.0.lock());
        for (token, mut list) in noted {
            if !is_good(&token) {
                for id in list {
                    let _ended_before = engine.ledger.cut_off(id, engine.now());
                }
                engine.write();
                continue;
            }
            list.retain(|id| engine.ledger.is_pending(*id));
            if !list.is_empty() {
                self.0.lock().entry(token).or_default().append(&mut list);
            }
        }
    }
}
