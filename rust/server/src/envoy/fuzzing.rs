//! Fuzz target: what Envoy asks, whose descriptors carry what clients send.

use prost::Message;

use super::limits::{MAX_DESCRIPTORS, should_rate_limit};
use super::rules::EnvoySection;
use super::wire::RateLimitRequest;
use super::wire::rate_limit_response::Code;
use crate::access::{Access, AccessSection};
use crate::convert;
use crate::engine::Engine;
use crate::metrics::Descriptors;
use crate::peer::Peer;

const SECTION: &str = r#"{"unmatched": "refuse", "rules": [
    {"domain": "edge", "entries": ["agent"], "account": "acme/{agent}", "unit": "tokens",
     "over": "refuse", "default_hits": 1, "per_hit": 1, "min_left": 1},
    {"domain": "*", "entries": ["team=core", "agent=bot-*"], "account": "acme/bots/{agent}",
     "unit": "usd_nanos", "over": "record", "default_hits": 0, "per_hit": 3, "min_left": 2}]}"#;

/// Whether a request is let through. An error lets it through in Envoy, so there is none but for what
/// Envoy never sends.
pub fn envoy(engine: &Engine, message: &[u8]) -> bool {
    let Ok(request) = RateLimitRequest::decode(message) else { return false };
    let section: EnvoySection = serde_json::from_str(SECTION).expect("it is a section");
    let rules = section.rules().expect("they are valid");
    let access = Access::open(AccessSection::default(), None).expect("in memory");
    let caller = access.by_peer(&Peer::default(), 0).expect("it is open to all");
    let counts = Descriptors::new(rules.len());
    let answer = should_rate_limit(engine, (&rules, &counts), &caller, &request);
    let count = request.descriptors.len();
    let is_envoys = !request.domain.is_empty() && (1..=MAX_DESCRIPTORS).contains(&count);
    assert_eq!(answer.is_ok(), is_envoys && request.domain.len() <= convert::MAX_TEXT);
    let Ok(answer) = answer else { return false };
    assert_eq!(answer.body.statuses.len(), count);
    answer.body.overall_code() == Code::Ok
}
