//! The one call of other rate limiters: check a counter and add to it.
//!
//! They know no reservations, no idempotency keys and no accounts above the counter; what they do is
//! the nearest to a Reserve that they have.

use bytes::Bytes;
use prost::Message;

use crate::calls::{ACCOUNTS, HOLD, account};
use crate::peer_wire::{
    Hits, HitsRequest, RateLimitDescriptor, RateLimitRequest, rate_limit_descriptor,
};
use crate::wire::{self, Value};

/// The set of rules that the peers are configured with, and the key of its one rule.
const DOMAIN: &str = "budgets";
const KEY: &str = "budget";
/// Gubernator is told the limit by each request: more than a run can use, in a day.
const LIMIT: i64 = 1 << 50;
const DAY_MS: i64 = 86_400_000;
/// Gubernator's name for answering each request by itself.
const NO_BATCHING: i32 = 1;
/// The code that says OK.
const RATE_LIMIT_OK: u64 = 1;

/// One request for each account, as Envoy's protocol has it.
pub(crate) fn rate_limits() -> Vec<Bytes> {
    let entry =
        |number| rate_limit_descriptor::Entry { key: KEY.to_owned(), value: account(number) };
    let request = |number| RateLimitRequest {
        domain: DOMAIN.to_owned(),
        descriptors: vec![RateLimitDescriptor { entries: vec![entry(number)] }],
        hits_addend: u32::try_from(HOLD).expect("a small number"),
    };
    (0..ACCOUNTS).map(|number| request(number).encode_to_vec().into()).collect()
}

/// Whether an answer in Envoy's protocol says OK.
pub(crate) fn rate_limit_is_ok(answer: &[u8]) -> bool {
    wire::field(answer, 1) == Some(Value::Number(RATE_LIMIT_OK))
}

/// One request for each account, as Gubernator has it.
pub(crate) fn hits() -> Vec<Bytes> {
    let hits = |number| Hits {
        name: KEY.to_owned(),
        unique_key: account(number),
        hits: HOLD,
        limit: LIMIT,
        duration: DAY_MS,
        behavior: NO_BATCHING,
    };
    let request = |number| HitsRequest { requests: vec![hits(number)] };
    (0..ACCOUNTS).map(|number| request(number).encode_to_vec().into()).collect()
}

/// Whether an answer of Gubernator has one counter, under its limit, without an error.
pub(crate) fn hits_are_ok(answer: &[u8]) -> bool {
    let Some(one) = wire::bytes_field(answer, 1) else { return false };
    let is_under = matches!(wire::field(one, 1), None | Some(Value::Number(0)));
    is_under && wire::bytes_field(one, 5).is_none_or(<[u8]>::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer_wire::{HitsAnswer, HitsResponse, RateLimitResponse};

    #[test]
    fn each_account_has_a_counter_of_its_own() {
        for messages in [rate_limits(), hits()] {
            let distinct: std::collections::HashSet<_> = messages.iter().collect();
            assert_eq!(distinct.len(), ACCOUNTS);
        }
    }

    #[test]
    fn an_answer_over_the_limit_is_not_ok() {
        for (overall_code, is_ok) in [(0, false), (1, true), (2, false)] {
            let answer = RateLimitResponse { overall_code }.encode_to_vec();
            assert_eq!(rate_limit_is_ok(&answer), is_ok);
        }
    }

    #[test]
    fn a_counter_over_its_limit_or_with_an_error_is_not_ok() {
        let answer = |status, error: &str| {
            let one = HitsAnswer { status, remaining: 7, error: error.to_owned() };
            HitsResponse { responses: vec![one] }.encode_to_vec()
        };
        assert!(hits_are_ok(&answer(0, "")));
        assert!(!hits_are_ok(&answer(1, "")));
        assert!(!hits_are_ok(&answer(0, "no such peer")));
        assert!(!hits_are_ok(&[]), "no counter at all");
    }
}
