//! The services without a socket: a method's name and bytes in, bytes out.

use prost::Message;

use crate::engine::{Answer, Engine};
use crate::error::ApiError;
use crate::history::Watch;
use crate::maker::Maker;
use crate::{convert, process, v1};

/// A watch of accounts by whoever looks: there is no connection to push to.
#[derive(Debug)]
pub struct AccountWatch(Watch);

impl AccountWatch {
    /// Of an account and those below it; empty: of all.
    pub fn new(account: String) -> Result<AccountWatch, ApiError> {
        convert::within(&account)?;
        Ok(AccountWatch(Watch::new(account)))
    }

    /// A `WatchAccountsResponse`, if anything has changed since the last look.
    pub fn look(&mut self, engine: &Engine) -> Option<Vec<u8>> {
        self.0.look(engine).map(|changes| changes.encode_to_vec())
    }
}

impl Engine {
    /// Answers `Service/Method` once the answer is durable. Streams are not offered here.
    pub fn call(&self, method: &str, request: &[u8]) -> Result<Vec<u8>, ApiError> {
        self.call_of(Maker::Other, method, request)
    }

    /// The same for a part of the sidecar: what it reserves, it alone ends.
    pub fn call_of_sidecar(&self, method: &str, request: &[u8]) -> Result<Vec<u8>, ApiError> {
        self.call_of(Maker::Sidecar, method, request)
    }

    fn call_of(&self, maker: Maker<'_>, method: &str, request: &[u8]) -> Result<Vec<u8>, ApiError> {
        match method {
            "LedgerService/Reserve" => {
                self.answer(request, |r: &v1::ReserveRequest| self.reserve(r, None, maker))
            }
            "LedgerService/Debit" => self.answer(request, |r| self.debit(r)),
            "LedgerService/Extend" => self.answer(request, |r| self.extend(r)),
            "LedgerService/Commit" => self.answer(request, |r| self.commit(r)),
            "LedgerService/Release" => self.answer(request, |r| self.release(r)),
            "LedgerService/Record" => self.answer(request, |r| self.record(r)),
            "LedgerService/Check" => self.answer(request, |r| self.check(r)),
            "LedgerService/GetReservation" => self.answer(request, |r| self.get_reservation(r)),
            "LedgerService/ListReservations" => self.answer(request, |r| self.list_reservations(r)),
            "LedgerService/CountTokens" => self.answer(request, |r| self.count_tokens(r)),
            "AccountService/SetBudget" => self.answer(request, |r| self.set_budget(r)),
            "AccountService/GetAccount" => self.answer(request, |r| self.get_account(r)),
            "AccountService/ListAccounts" => self.answer(request, |r| self.list_accounts(r)),
            "AccountService/Freeze" => self.answer(request, |r| self.freeze(r)),
            "AccountService/Unfreeze" => self.answer(request, |r| self.unfreeze(r)),
            "AccountService/RetireAccount" => self.answer(request, |r| self.retire_account(r)),
            "AccountService/ListEntries" => self.answer(request, |r| self.list_entries(r)),
            _ if method.starts_with("ProcessService/") => Err(process::unavailable(
                "there is no watchdog here: call the sidecar at its socket",
            )),
            _ => Err(ApiError::field("method", format!("there is no {method:?} here"))),
        }
    }

    fn answer<Q: Message + Default, A: Message>(
        &self,
        request: &[u8],
        call: impl FnOnce(&Q) -> Result<Answer<A>, ApiError>,
    ) -> Result<Vec<u8>, ApiError> {
        let request = Q::decode(request)
            .map_err(|error| ApiError::field("request", format!("not a message: {error}")))?;
        let answer = call(&request)?;
        if let Err(error) = self.durable.wait_blocking(answer.ticket) {
            self.undo(answer.hold);
            return Err(error);
        }
        self.publish(answer.raised);
        Ok(answer.body.encode_to_vec())
    }
}
