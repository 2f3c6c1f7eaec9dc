//! The requests that are sent, and what is made of the answers.
//!
//! A Reserve is encoded once per account; before each call its idempotency key, of fixed length, is
//! patched, so that every call is a new reservation four levels deep.

use bursar_server::v1;
use bytes::Bytes;
use prost::Message;

use crate::echo::EchoRequest;
use crate::wire::{self, Value};

/// How many accounts the load is spread over.
pub const ACCOUNTS: usize = 64;
/// What one Reserve holds, in tokens.
pub const HOLD: i64 = 1;
/// What a reservation for debits holds: more than a run can debit.
pub const LARGE_HOLD: i64 = 1 << 40;
/// The time to live that is asked for: longer than any run.
const TTL_S: i64 = 3600;
const KEY_BYTES: usize = 16;

/// The path of an account: organisation, department, team, agent.
pub fn account(number: usize) -> String {
    let (department, team) = (number / 16, number / 4);
    format!("acme/department-{department}/team-{team:02}/agent-{number:02}")
}

/// Reserves with fresh keys.
#[derive(Debug)]
pub struct Reserves {
    /// One per account: the message, and where its key is.
    templates: Vec<(Vec<u8>, usize)>,
    /// The next key: no other process or worker counts from here.
    key: u64,
    turn: usize,
}

impl Reserves {
    /// Those of one worker.
    pub fn new(worker: usize, hold: i64) -> Reserves {
        let run = u64::from(std::process::id());
        let worker_bits = u64::try_from(worker).expect("few workers");
        let template = |number| {
            let placeholder = "~".repeat(KEY_BYTES);
            let request = v1::ReserveRequest {
                account: account(number),
                idempotency_key: placeholder.clone(),
                amounts: vec![amount(hold)],
                ttl: Some(prost_types::Duration { seconds: TTL_S, nanos: 0 }),
                ..v1::ReserveRequest::default()
            };
            let message = request.encode_to_vec();
            let at = message.windows(KEY_BYTES).position(|part| part == placeholder.as_bytes());
            (message, at.expect("the key is in the message as it is"))
        };
        Reserves {
            templates: (0..ACCOUNTS).map(template).collect(),
            key: run << 40 | worker_bits << 32,
            turn: worker.wrapping_mul(7919),
        }
    }

    /// The next one.
    pub fn fresh(&mut self) -> Bytes {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let (message, at) = &self.templates[self.turn % ACCOUNTS];
        let mut message = message.clone();
        for (index, byte) in message[*at..*at + KEY_BYTES].iter_mut().enumerate() {
            *byte = DIGITS[usize::from((self.key >> (index * 4)).to_le_bytes()[0] & 15)];
        }
        self.turn = self.turn.wrapping_add(1);
        self.key += 1;
        Bytes::from(message)
    }

    /// How long they are.
    pub fn length(&self) -> usize {
        self.templates[0].0.len()
    }
}

/// What an echo has to carry to be as long as a message of `length` bytes.
pub fn echo_body(length: usize) -> usize {
    // The tag, and a length of one byte up to 127, of two beyond.
    if length <= 129 { length - 2 } else { length - 3 }
}

/// A request to the echo of that length.
pub fn echo(length: usize) -> Bytes {
    let body = Bytes::from(vec![b'~'; echo_body(length)]);
    Bytes::from(EchoRequest { body }.encode_to_vec())
}

/// Ends a reservation at one unit.
pub fn commit(reservation: &str) -> Bytes {
    let reservation = reservation.to_owned();
    let request =
        v1::CommitRequest { reservation, actual: vec![amount(HOLD)], usage: None, success: None };
    Bytes::from(request.encode_to_vec())
}

/// Ends a reservation at what was debited.
pub fn release(reservation: &str) -> Bytes {
    let request = v1::ReleaseRequest { reservation: reservation.to_owned() };
    Bytes::from(request.encode_to_vec())
}

/// So much was used so far.
pub fn debit(reservation: &str, used: i64) -> Bytes {
    let reservation = reservation.to_owned();
    let request = v1::DebitRequest { reservation, used: vec![amount(used)], usage: None };
    Bytes::from(request.encode_to_vec())
}

/// The same, on a Meter stream.
pub fn meter(reservation: &str, used: i64) -> Bytes {
    let reservation = reservation.to_owned();
    let debit = v1::MeterDebit { reservation, used: vec![amount(used)], usage: None };
    Bytes::from(v1::MeterRequest { debits: vec![debit] }.encode_to_vec())
}

/// Whether the one answer of a Meter response says OK.
pub fn is_metered(response: &[u8]) -> bool {
    let ok = u64::try_from(i32::from(v1::Verdict::Ok)).ok();
    let answer = wire::bytes_field(response, 1).unwrap_or_default();
    matches!(wire::field(answer, 2), Some(Value::Number(verdict)) if Some(verdict) == ok)
}

fn amount(value: i64) -> v1::Amount {
    v1::Amount { unit: "tokens".to_owned(), value }
}

/// Whether an answer of the ledger says OK: every verdict is field 1.
pub fn is_ok(answer: &[u8]) -> bool {
    let ok = u64::try_from(i32::from(v1::Verdict::Ok)).ok();
    matches!(wire::field(answer, 1), Some(Value::Number(verdict)) if Some(verdict) == ok)
}

/// The id in an answer to Reserve.
pub fn reservation(answer: &[u8]) -> Option<&str> {
    let reservation = wire::bytes_field(answer, 2)?;
    std::str::from_utf8(wire::bytes_field(reservation, 1)?).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reserve_has_a_key_of_its_own_and_the_same_length() {
        let mut reserves = [Reserves::new(0, HOLD), Reserves::new(1, HOLD)];
        let mut keys = HashSet::new();
        for turn in 0..1000 {
            let message = reserves[turn % 2].fresh();
            assert_eq!(message.len(), reserves[0].length());
            let request = v1::ReserveRequest::decode(message).expect("a Reserve");
            assert_eq!(request.account.split('/').count(), 4);
            assert_eq!(request.amounts, [amount(HOLD)]);
            assert!(keys.insert(request.idempotency_key));
        }
    }

    #[test]
    fn an_echo_is_as_long_as_what_it_stands_for() {
        for length in [3, 80, 127, 128, 129, 132, 133, 300] {
            assert_eq!(echo(length).len(), length);
        }
    }

    #[test]
    fn answers_are_told_apart() {
        let answer = v1::ReserveResponse {
            verdict: v1::Verdict::Ok.into(),
            reservation: Some(v1::Reservation { id: "a-1".to_owned(), ..Default::default() }),
            ..Default::default()
        };
        let answer = answer.encode_to_vec();
        assert!(is_ok(&answer));
        assert_eq!(reservation(&answer), Some("a-1"));
        let refused =
            v1::ReserveResponse { verdict: v1::Verdict::Stop.into(), ..Default::default() };
        assert!(!is_ok(&refused.encode_to_vec()));
    }
}
