//! Fuzz targets: what callers show for themselves, and the file that tokens are kept in.

use std::collections::HashMap;
use std::sync::Arc;

use hyper::header::{AUTHORIZATION, HeaderMap, HeaderValue};

use super::known::Mode;
use super::reserved::Reserved;
use super::vault::{Order, Token, Vault, forget, parse};
use super::{Access, AccessSection, Role};
use crate::peer::Peer;

const NOW_MS: i64 = 1_800_000_000_000;

/// An `authorization` header, and an API key for the proxy: nobody is let in by what is no token.
pub fn access(data: &[u8]) {
    let vault = Vault::open(None).expect("in memory");
    let order = Order {
        name: "ci".into(),
        role: Role::Agent,
        account: "acme".into(),
        creator: "test".into(),
        ttl_ms: 1_000,
    };
    let (_, shown) = vault.create(order, NOW_MS).expect("room");
    let section = AccessSection { mode: Mode::Enforce, ..AccessSection::default() };
    let access = Access { section, own_uid: 0, vault, reserved: Reserved::default() };
    let peer = Peer::default();
    if let Ok(value) = HeaderValue::from_bytes(data) {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
        assert!(access.caller(&headers, &peer, NOW_MS).is_err(), "{data:?}");
    }
    if let Ok(text) = std::str::from_utf8(data) {
        assert!(access.spender(Some(text), &peer, NOW_MS).is_err(), "{text:?}");
        // What is cut off or put on makes a token none.
        let changed = shown.replacen(&text.chars().take(2).collect::<String>(), "", 1);
        assert_eq!(access.by_token(&changed, NOW_MS).is_ok(), changed == shown);
        assert_eq!(access.by_token(&format!("{shown}{text}"), NOW_MS).is_ok(), text.is_empty());
    }
}

/// The file of the tokens.
pub fn token_file(data: &[u8]) {
    let tokens = parse(data).unwrap_or_default();
    for now_ms in [0, NOW_MS, i64::MAX] {
        let mut kept: HashMap<_, _> =
            tokens.iter().map(|token| (token.id.clone(), Arc::new(token.clone()))).collect();
        let good = |tokens: &HashMap<String, Arc<Token>>| {
            tokens.values().filter(|token| token.ended(now_ms).is_none()).count()
        };
        let before = good(&kept);
        forget(&mut kept, now_ms);
        assert_eq!(good(&kept), before, "only what has ended is forgotten");
    }
}
