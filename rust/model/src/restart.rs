//! What a restart does that nobody asked for.

use bursar_ledger::fact::State;
use bursar_ledger::{Amounts, Unit};

use crate::plain::{Plain, UNITS};

impl Plain {
    /// Goes on after a restart at this time. What pending reservations have debited falls back to
    /// what was written down of it (`floors`), and is spent oldest first; their times to live begin
    /// anew. An ended one is known as long as it would have been by the wall clock: `ended` says when
    /// those that are still known have ended. Where they have spent is forgotten.
    pub fn restart(
        &mut self,
        (wall, mono): (i64, i64),
        floors: &[Amounts],
        ended: impl Fn(usize) -> Option<i64>,
    ) {
        self.at(wall, mono);
        assert_eq!(floors.len(), self.reservations.len(), "one for each");
        for (id, floor) in floors.iter().enumerate() {
            if self.reservations[id].state == State::Pending {
                self.debit_anew(id, floor);
                self.reservations[id].due = mono + self.reservations[id].ttl;
                continue;
            }
            let known = ended(id).map(|ended| (self.retention - (self.wall - ended)).max(0));
            let reservation = &mut self.reservations[id];
            reservation.forgotten = known.is_none();
            for piece in &mut reservation.pieces {
                piece.used = Amounts::ZERO;
                piece.held = piece.held.filter(Unit::is_capacity);
            }
            if let Some(left) = known.filter(|_| !reservation.kept) {
                reservation.due = mono + left;
            }
        }
    }

    fn debit_anew(&mut self, id: usize, floor: &Amounts) {
        for at in 0..self.reservations[id].pieces.len() {
            for unit in UNITS {
                let used = self.reservations[id].pieces[at].used.get(unit);
                if used > 0 {
                    self.use_piece(id, at, unit, -used);
                }
            }
        }
        self.debit(id, floor);
    }
}
