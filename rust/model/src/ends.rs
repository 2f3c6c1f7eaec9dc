//! How reservations end in the plain model: settled once, corrected late, forgotten.

use bursar_ledger::fact::State;
use bursar_ledger::{Amounts, Unit};

use crate::plain::{Piece, Plain, UNITS, add};

impl Plain {
    /// Ends a pending reservation.
    fn settle(&mut self, id: usize, state: State, spent: Amounts) {
        let keeps = |unit: Unit| state == State::Expired && unit == Unit::VramBytes;
        let held = self.reservations[id].held();
        let excess = spent.max(&held).checked_sub(&held).unwrap();
        let path = self.reservations[id].path;
        let overdraft = self.spend_now(path, &excess);
        let mut rest = spent.min(&held);
        let mut returned = Amounts::ZERO;
        let mut up = Vec::new();
        for at in 0..self.reservations[id].pieces.len() {
            for unit in UNITS {
                let piece = self.reservations[id].pieces[at].clone();
                let part = rest.get(unit).min(piece.held.get(unit));
                add(&mut rest, unit, -part);
                if part != piece.used.get(unit) {
                    self.use_piece(id, at, unit, part - piece.used.get(unit));
                }
                let back = piece.held.get(unit) - part;
                if back == 0 || keeps(unit) {
                    continue;
                }
                add(&mut self.reservations[id].pieces[at].held, unit, -back);
                add(&mut returned, unit, back);
                up.push((piece, unit, back));
            }
        }
        let due = self.mono + self.retention;
        let reservation = &mut self.reservations[id];
        reservation.kept = UNITS.into_iter().any(|unit| keeps(unit) && held.get(unit) > 0);
        reservation.due = if reservation.kept { i64::MAX } else { due };
        reservation.state = state;
        (reservation.spent, reservation.returned) = (spent, returned);
        reservation.overdraft = overdraft;
        let parent = reservation.parent;
        for (piece, unit, back) in up {
            self.hand_up(parent, &piece, unit, back);
        }
    }

    /// Gives a returned amount to the nearest pending reservation that it was carved from.
    fn hand_up(&mut self, parent: Option<usize>, piece: &Piece, unit: Unit, amount: i64) {
        let Some((parent, base)) = parent.zip(piece.base.as_ref()) else { return };
        if self.orphans || !piece.covered.contains(&unit) {
            return;
        }
        let above = &mut self.reservations[parent];
        if above.state == State::Pending && !above.forgotten {
            let found = above.pieces.iter_mut().find(|piece| piece.key == base.key);
            return add(&mut found.unwrap().held, unit, amount);
        }
        let further = above.parent.filter(|_| !above.forgotten);
        self.hand_up(further, base, unit, amount);
    }

    /// `named`: the true amounts; others count as debited. Returns whether it is no error.
    pub fn commit(&mut self, id: usize, named: &Amounts, units: &[Unit], payload: u128) -> bool {
        let reservation = &self.reservations[id];
        if reservation.forgotten {
            return false;
        }
        let pending = reservation.state == State::Pending;
        let debited = if pending { reservation.used() } else { reservation.spent };
        let true_amount = |unit: Unit| {
            let amount = if units.contains(&unit) { named.get(unit) } else { debited.get(unit) };
            (unit, if unit == Unit::VramBytes { 0 } else { amount })
        };
        let spent: Amounts = UNITS.into_iter().map(true_amount).collect();
        match reservation.state {
            State::Committed => return reservation.payload == payload,
            State::Pending => self.settle(id, State::Committed, spent),
            State::Released | State::Expired => self.correct(id, spent),
        }
        self.reservations[id].payload = payload;
        true
    }

    fn correct(&mut self, id: usize, spent: Amounts) {
        let path = self.reservations[id].path;
        let before = self.reservations[id].spent;
        let over = self.spend_now(path, &spent.max(&before).checked_sub(&before).unwrap());
        let mut less = before.max(&spent).checked_sub(&spent).unwrap();
        for at in (0..self.reservations[id].pieces.len()).rev() {
            for unit in UNITS {
                let part = less.get(unit).min(self.reservations[id].pieces[at].used.get(unit));
                if part > 0 {
                    add(&mut less, unit, -part);
                    self.use_piece(id, at, unit, -part);
                    add(&mut self.reservations[id].pieces[at].held, unit, -part);
                }
            }
        }
        self.owner_gone(id);
        let due = self.mono + self.retention;
        // What was spent in a slice that is forgotten cannot be given back.
        let spent = spent.checked_add(&less).unwrap();
        let reservation = &mut self.reservations[id];
        (reservation.state, reservation.spent, reservation.due) = (State::Committed, spent, due);
        reservation.overdraft = reservation.overdraft.checked_add(&over).unwrap();
    }

    pub fn release(&mut self, id: usize) -> bool {
        if self.reservations[id].forgotten {
            return false;
        }
        match self.reservations[id].state {
            State::Pending => {
                let used = self.reservations[id].used();
                self.settle(id, State::Released, used);
            }
            State::Expired => self.owner_gone(id),
            _ => {}
        }
        true
    }

    pub fn owner_gone(&mut self, id: usize) {
        if !self.reservations[id].kept {
            return;
        }
        let due = self.mono + self.retention;
        let reservation = &mut self.reservations[id];
        (reservation.kept, reservation.due) = (false, due);
        for piece in &mut reservation.pieces {
            let back = piece.held.get(Unit::VramBytes);
            piece.held.set(Unit::VramBytes, 0);
            add(&mut reservation.returned, Unit::VramBytes, back);
        }
    }

    /// Whether time has come to expire or forget it.
    pub fn is_due(&self, id: usize) -> bool {
        let reservation = &self.reservations[id];
        !reservation.forgotten && reservation.due <= self.mono
    }

    /// Ends a pending reservation by its time to live.
    pub fn expire(&mut self, id: usize) {
        let used = self.reservations[id].used();
        self.settle(id, State::Expired, used);
    }

    pub fn tick(&mut self) -> (usize, usize) {
        let (mut expired, mut forgotten) = (0, 0);
        for id in 0..self.reservations.len() {
            if !self.is_due(id) {
                continue;
            }
            if self.reservations[id].state == State::Pending {
                self.expire(id);
                expired += 1;
            } else {
                self.reservations[id].forgotten = true;
                forgotten += 1;
            }
        }
        (expired, forgotten)
    }
}
