//! Fuzz target: a client that has a lease and writes on its page whatever it likes, at any moment.

use std::sync::Arc;

use bursar_lease::frame::{Attach, Counts};
use bursar_lease::layout::{COUNT_MAX, WORD};
use bursar_ledger::Ending;

use super::desk::open;
use super::pump::Pump;
use crate::config::Config;
use crate::engine::Engine;
use crate::maker::Maker;
use crate::places::Places;
use crate::{convert, v1};

const LIMIT: i64 = 1_000;
const GRANTED: i64 = 100;

/// Steps: a byte that says what is done, and eight of a number.
pub fn lease_pages(data: &[u8]) {
    let engine = Engine::open(config()).expect("it opens in memory");
    let amounts = vec![v1::Amount { unit: "tokens".into(), value: GRANTED }];
    let request =
        v1::ReserveRequest { account: "acme/a".into(), amounts, ..v1::ReserveRequest::default() };
    let made = engine
        .reserve(&request, None, Maker::Other)
        .expect("it fits")
        .body
        .reservation
        .expect("granted");
    let id = convert::parse_reservation_id(engine.store_id, &made.id).expect("its own");
    let (places, mut pump, mut lease) = (Places::new(engine.max_leases), Pump::default(), None);
    let mut seen = 0;
    for step in data.chunks_exact(9).take(64) {
        let number = u64::from_le_bytes(step[1..].try_into().expect("eight bytes"));
        match step[0] % 8 {
            0 => {
                let attach = Attach {
                    reservation: made.id.clone(),
                    counts: Counts::Unit(0),
                    claim: number,
                    ahead: number.cast_signed() >> 32,
                    at_most: number.cast_signed() << 32 >> 32,
                };
                if let Ok(opened) = open(&engine, &places, None, &attach, || Ok(())) {
                    pump.add(opened.held.reservation, Arc::clone(&opened.held.pages));
                    lease = Some(opened);
                }
            }
            1 | 2 => {
                if let Some(lease) = &lease {
                    let at = if step[0] % 8 == 1 { WORD as u64 } else { number % 512 * 8 };
                    rustix::io::pwrite(&lease.fds.usage, &step[1..], at).expect("its own page");
                }
            }
            3 => pump.round(&engine),
            4 => {
                let _detached = engine.ledger.detach(id, engine.now());
            }
            5 => {
                let extend =
                    v1::ExtendRequest { reservation: made.id.clone(), ..Default::default() };
                let _extended = engine.extend(&extend);
            }
            6 => {
                engine
                    .ledger
                    .set_frozen("acme/a", number % 2 == 0, "fuzzed", engine.now())
                    .expect("known");
            }
            _ => {
                let _logged = engine.ledger.log_used(engine.now());
            }
        }
        let granted = check(&engine, &made.id, &mut seen);
        if let Some(lease) = &lease {
            assert!(lease.answer.granted <= COUNT_MAX && granted <= LIMIT);
        }
    }
    let _ended = engine.ledger.end(id, Ending::Release, engine.now());
    pump.round(&engine);
    check(&engine, &made.id, &mut seen);
    assert_eq!(balance(&engine).held, 0, "it was released");
    engine.close().expect("there is no store that could fail");
}

/// What is counted neither falls nor passes the grant, and the books balance. Returns the grant.
fn check(engine: &Engine, id: &str, seen: &mut i64) -> i64 {
    let request = v1::GetReservationRequest { reservation: id.to_owned() };
    let found = engine.get_reservation(&request).expect("remembered").body.reservation;
    let found = found.expect("it is there");
    let of = |amounts: &[v1::Amount]| amounts.first().map_or(0, |amount| amount.value);
    let (granted, used) = (of(&found.granted), of(&found.used).max(of(&found.spent)));
    assert!(*seen <= used && used <= granted, "{found:?} after {seen}");
    *seen = used;
    let balance = balance(engine);
    assert!(balance.spent <= used && balance.spent + balance.held <= LIMIT, "{balance:?}");
    assert_eq!(balance.remaining, balance.limit - balance.spent - balance.held);
    granted
}

fn balance(engine: &Engine) -> v1::Balance {
    let request = v1::GetAccountRequest { account: "acme/a".into() };
    let account = engine.get_account(&request).expect("known").body.account;
    account.and_then(|account| account.balances.into_iter().next()).expect("it has a budget")
}

fn config() -> Config {
    let json = format!(
        r#"{{"store": {{"path": null, "durability": "memory", "entry_retention_s": 60,
            "sync_interval_ms": 10, "min_free_bytes": 0}},
        "limits": {{"max_accounts": 8, "max_reservations": 8, "max_children": 8, "max_leases": 4}},
        "reservations": {{"default_ttl_ms": 60000, "max_ttl_ms": 60000, "key_retention_ms": 60000}},
        "account_idle_ms": 60000, "allow_unpriced": false, "rates": [],
        "runaway": {{"action": "off", "interval_ms": 1, "most": {{}}, "advice": {{
            "max_new_tokens": null, "temperature": null, "repetition_penalty": null,
            "fallback_model": null, "notice": null}}}},
        "accounts": [{{"path": "**", "budgets": [{{"unit": "tokens", "limit": {LIMIT},
            "period": {{"kind": "total", "time_zone": "UTC", "length_ms": 0}},
            "thresholds": []}}]}}]}}"#
    );
    Config::parse(&json).expect("it is a configuration")
}
