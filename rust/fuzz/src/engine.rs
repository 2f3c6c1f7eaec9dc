//! Calls of clients against a ledger in memory: whatever they send, the books balance after each of
//! them, and once everything is released nothing is held.

use std::collections::BTreeMap;
use std::sync::Arc;

use bursar_server::config::Config;
use bursar_server::{Engine, v1};
use prost::Message;

const CONFIG: &str = include_str!("engine.json");
const METHODS: [&str; 18] = [
    "LedgerService/Reserve",
    "LedgerService/Debit",
    "LedgerService/Extend",
    "LedgerService/Commit",
    "LedgerService/Release",
    "LedgerService/Record",
    "LedgerService/Check",
    "LedgerService/GetReservation",
    "LedgerService/CountTokens",
    "AccountService/SetBudget",
    "AccountService/GetAccount",
    "AccountService/ListAccounts",
    "AccountService/Freeze",
    "AccountService/Unfreeze",
    "AccountService/RetireAccount",
    "AccountService/ListEntries",
    "LedgerService/ListReservations",
    "ProcessService/ListProcesses",
];
const RESERVE: usize = 0;
/// Calls that hold nothing more.
const CHECK: usize = 6;
/// The most calls of one input.
const MOST: usize = 32;

/// Calls: a method's number, the length in two bytes, and the message.
pub(crate) fn run(mut data: &[u8]) {
    let engine = opened();
    let mut reservations = Vec::new();
    let mut before = books(&engine);
    for _ in 0..MOST {
        let Some((method, rest)) = data.split_first() else { break };
        let method = usize::from(*method) % METHODS.len();
        let Some(message) = next(rest, &mut data) else { break };
        let answer = engine.call(METHODS[method], message);
        let after = books(&engine);
        if let (RESERVE, Ok(answer)) = (method, &answer) {
            let answer = v1::ReserveResponse::decode(&answer[..]).expect("an answer is a message");
            assert_eq!(answer.refusal.is_some(), answer.verdict() == v1::Verdict::Stop);
            reservations.extend(answer.reservation.map(|made| made.id));
        }
        if matches!(method, RESERVE | CHECK) {
            assert_within(&before, &after);
        }
        before = after;
    }
    for id in &reservations {
        let message = v1::ReleaseRequest { reservation: id.clone() };
        let _ended = engine.call("LedgerService/Release", &message.encode_to_vec());
    }
    for balance in balances(&engine) {
        assert_eq!(balance.held, 0, "all were released: {balance:?}");
    }
    engine.close().expect("there is no store that could fail");
}

/// Requests of Envoy's: what is let through stays within the limits, and what is not has spent nothing,
/// but for money, which is recorded. Each is the length in two bytes, and the message.
pub(crate) fn envoy(mut data: &[u8]) {
    let engine = opened();
    let spent_on_admission = || {
        let mut books = books(&engine);
        books.retain(|(_, unit, _), _| unit != "usd_nanos");
        books
    };
    let mut before = spent_on_admission();
    for _ in 0..MOST {
        let Some(message) = next(data, &mut data) else { break };
        let passes = bursar_server::fuzzing::envoy(&engine, message);
        let after = spent_on_admission();
        if passes {
            assert_within(&before, &after);
        } else {
            let same =
                |(name, left): (&Window, &i64)| before.get(name).is_none_or(|had| had == left);
            assert!(after.iter().all(same), "refused, and {before:?} became {after:?}");
        }
        before = after;
    }
    engine.close().expect("there is no store that could fail");
}

fn opened() -> Arc<Engine> {
    let config = Config::parse(CONFIG).expect("it is a configuration");
    Engine::open(config).expect("it opens in memory")
}

/// A length in two bytes, and so many bytes or what there is; `rest`: what follows.
fn next<'a>(data: &'a [u8], rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let &[low, high, ref message @ ..] = data else { return None };
    let length = usize::from(u16::from_le_bytes([low, high]));
    let (message, after) = message.split_at(length.min(message.len()));
    *rest = after;
    Some(message)
}

/// A call takes no window below nothing.
fn assert_within(before: &BTreeMap<Window, i64>, after: &BTreeMap<Window, i64>) {
    for (name, left) in after {
        let had = before.get(name).copied().unwrap_or(0);
        assert!(*left >= had.min(0), "{name:?}: {had} were left, and {left} after a call");
    }
}

/// Account, unit and period.
type Window = (String, String, String);

/// What is left in each window.
fn books(engine: &Arc<Engine>) -> BTreeMap<Window, i64> {
    let of = |balance: v1::Balance| {
        assert!(balance.limit >= 0 && balance.held >= 0 && balance.spent >= 0, "{balance:?}");
        let left = i128::from(balance.limit) - i128::from(balance.spent) - i128::from(balance.held);
        assert_eq!(i128::from(balance.remaining), left, "{balance:?}");
        ((balance.account, balance.unit, balance.period), balance.remaining)
    };
    balances(engine).into_iter().map(of).collect()
}

fn balances(engine: &Arc<Engine>) -> Vec<v1::Balance> {
    let request = v1::ListAccountsRequest::default().encode_to_vec();
    let answer = engine.call("AccountService/ListAccounts", &request).expect("it may be asked");
    let answer = v1::ListAccountsResponse::decode(&answer[..]).expect("an answer is a message");
    assert!(answer.next_page_token.is_empty(), "32 accounts are one page");
    answer.accounts.into_iter().flat_map(|account| account.balances).collect()
}
