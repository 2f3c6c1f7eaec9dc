//! Whether an answer is right: the model is asked the same.

use bursar_ledger::fact::{Record, State};
use bursar_ledger::{
    Admission, Amounts, Ended, Extended, Granted, LedgerError, Now, Refusal, Unit,
};
use bursar_model::No;

use crate::call::{Call, TTL_MS};
use crate::daemon::Said;
use crate::oracle::{Oracle, RETENTION_MS, named_units, orphaned};

impl Oracle {
    /// Asks the model, compares, and notes what the ledger told.
    pub fn answer(&mut self, call: &Call, said: &Said, told: Vec<(u64, Record)>, now: Now) {
        self.known.at(now);
        let before = self.known.plain.clone();
        let ids_before = self.known.ids.len();
        self.check(call, said);
        let between = match call {
            Call::Commit { id, actual, named, payload } => self.known.find(*id).map(|id| {
                let units = named_units(*named);
                orphaned(&before, |plain| {
                    plain.commit(id, actual, &units, *payload);
                })
            }),
            Call::Release { id } => {
                let id = self.known.find(*id);
                id.map(|id| {
                    orphaned(&before, |plain| {
                        plain.release(id);
                    })
                })
            }
            _ => None,
        };
        self.note(told, (&before, ids_before), between.as_ref());
    }

    fn check(&mut self, call: &Call, said: &Said) {
        match (call, said) {
            (Call::Reserve { .. }, Said::Reserve(said)) => self.reserved(call, said),
            (Call::Record { path, amounts, key, payload }, Said::Record(said)) => {
                self.recorded(path, *amounts, (*key, *payload), said);
            }
            (Call::Debit { id, used }, Said::Debit(said)) => {
                let debited = self.known.find(*id).and_then(|id| self.known.plain.debit(id, used));
                assert_eq!(said.as_ref().ok().map(|debited| debited.remaining), debited);
            }
            (Call::Extend { id, most, least }, Said::Extend(said)) => {
                let id = self.known.find(*id);
                let plain = id.map_or(Err(()), |id| self.known.plain.extend(id, most, least));
                extended(said, plain);
            }
            (Call::Commit { id, actual, named, payload }, Said::End(said)) => {
                let (id, units) = (self.known.find(*id), named_units(*named));
                let plain = &mut self.known.plain;
                let fine = id.is_some_and(|id| plain.commit(id, actual, &units, *payload));
                self.ended(id, fine, said);
            }
            (Call::Release { id }, Said::End(said)) => {
                let id = self.known.find(*id);
                let fine = id.is_some_and(|id| self.known.plain.release(id));
                self.ended(id, fine, said);
            }
            (Call::OwnerGone { id }, Said::OwnerGone(said)) => {
                let id = self.known.find(*id);
                let fine = id.is_some_and(|id| !self.known.plain.reservations[id].forgotten);
                assert_eq!(said.is_ok(), fine, "{said:?}");
                if let Some(id) = id {
                    self.known.plain.owner_gone(id);
                }
            }
            (Call::Limit { path, unit, kind, limit }, Said::Limit(said)) => {
                assert!(said.is_ok(), "{said:?}");
                self.known.plain.set_budget(path, *unit, *kind, *limit);
            }
            (Call::Freeze { path, frozen }, Said::Freeze(said)) => {
                assert!(said.is_ok(), "{said:?}");
                let accounts = &mut self.known.plain.frozen;
                if *frozen {
                    accounts.insert(path)
                } else {
                    accounts.remove(path)
                };
            }
            (call, said) => panic!("{said:?} is no answer to {call:?}"),
        }
    }

    fn ended(&self, id: Option<usize>, fine: bool, said: &Result<Ended, LedgerError>) {
        assert_eq!(said.is_ok(), fine, "{said:?}");
        if let (Some(id), Ok(ended)) = (id, said) {
            let plain = &self.known.plain.reservations[id];
            assert_eq!((ended.view.state, ended.view.spent), (plain.state, plain.spent), "R6, R7");
        }
    }

    /// Whether the key is in use, and then that the answer is the first one again.
    fn repeats(
        &self,
        (key, payload): (u128, u128),
        again: Result<bursar_ledger::ReservationId, &LedgerError>,
    ) -> bool {
        let known = &self.known;
        let reservations = known.plain.reservations.iter();
        // A key that was used again after it was forgotten means the later one.
        let found = reservations.rev().position(|r| key != 0 && r.key == key && !r.forgotten);
        let Some(back) = found else { return false };
        let at = known.ids.len() - 1 - back;
        if known.plain.reservations[at].asked == payload {
            assert_eq!(again, Ok(known.ids[at]), "R6: the first answer again");
        } else {
            let other = LedgerError::IdempotencyMismatch("idempotency key");
            assert_eq!(again, Err(&other), "R6: the key was used for another payload");
        }
        true
    }

    fn reserved(&mut self, call: &Call, said: &Result<Admission<Granted>, LedgerError>) {
        let Call::Reserve { path, most, least, parent, key, payload } = call else { return };
        let again = match said {
            Ok(Admission::Granted(granted)) => Ok(granted.view.id),
            Ok(Admission::Refused(..)) => Err(&LedgerError::Overflow),
            Err(error) => Err(error),
        };
        if self.repeats((*key, *payload), again) {
            return;
        }
        let asked = (*key, *payload);
        let parent = match parent.map(|parent| self.known.find(parent)) {
            Some(None) => {
                // A freeze is found first.
                let frozen = self.known.plain.frozen_by(path).is_some();
                assert!(said.is_err() || frozen, "R16: it has no parent: {said:?}");
                return;
            }
            Some(found) => found,
            None => None,
        };
        let plain = self.known.plain.reserve(path, (*most, *least), parent, TTL_MS, asked);
        match (said, plain) {
            (Ok(Admission::Granted(granted)), Ok(Ok(amounts))) => {
                assert_eq!(granted.view.granted, amounts, "R5");
                self.name(granted.view.id);
            }
            (Ok(Admission::Refused(refusal, _)), Ok(Err(no))) => refused(refusal, no),
            (Err(_), Err(())) => {}
            (ledger, plain) => panic!("R1, R2, R3: {ledger:?} is not {plain:?}"),
        }
    }

    fn recorded(
        &mut self,
        path: &'static str,
        amounts: Amounts,
        asked: (u128, u128),
        said: &Result<Ended, LedgerError>,
    ) {
        if self.repeats(asked, said.as_ref().map(|ended| ended.view.id)) {
            return;
        }
        let ended = said.as_ref().expect("R7: what is spent is recorded");
        let plain = &mut self.known.plain;
        let overdraft = plain.spend_now(path, &amounts);
        assert_eq!(ended.view.overdraft, overdraft, "R7");
        // It is remembered like a reservation that has ended.
        let none = (Amounts::ZERO, Amounts::ZERO);
        let frozen = std::mem::take(&mut plain.frozen);
        let remembered = plain.reserve(path, none, None, TTL_MS, asked);
        assert!(matches!(remembered, Ok(Ok(_))), "nothing always fits");
        plain.frozen = frozen;
        let due = plain.mono + if asked.0 == 0 { 0 } else { RETENTION_MS };
        let recorded = plain.reservations.last_mut().expect("it was pushed");
        (recorded.state, recorded.spent, recorded.due) = (State::Committed, amounts, due);
        recorded.overdraft = overdraft;
        self.name(ended.view.id);
    }
}

fn refused(refusal: &Refusal, (account, unit, shortfall): No) {
    let found: (&str, Option<Unit>, i64) = (&refusal.account, refusal.unit, refusal.shortfall);
    assert_eq!(found, (account.as_str(), unit, shortfall), "R4");
}

fn extended(said: &Result<Extended, LedgerError>, plain: Result<Result<(), No>, ()>) {
    match (said, plain) {
        (Ok(extended), Ok(Ok(()))) => assert_eq!(extended.refusal, None),
        (Ok(extended), Ok(Err(no))) => {
            refused(extended.refusal.as_ref().expect("R4: it is refused"), no);
        }
        (Err(_), Err(())) => {}
        (ledger, plain) => panic!("R8: {ledger:?} is not {plain:?}"),
    }
}
