//! Which call a path is, and whose it is: by the path, a header, a token or the default; never by the
//! body.

use hyper::HeaderMap;
use hyper::http::request::Parts;

use super::failure::Failure;
use super::settings::{Api, ProxySection};
use crate::access::sha256;

/// The header that names an account.
pub(crate) const ACCOUNT: &str = "x-bursar-account";
/// The header that names the reservation that a call is a part of.
pub(crate) const PARENT: &str = "x-bursar-parent";

/// The calls that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Completions,
    Responses,
    Embeddings,
    Models,
    Messages,
    CountTokens,
}

impl Endpoint {
    /// Whose interface it belongs to.
    pub(crate) fn api(self) -> Api {
        match self {
            Endpoint::Messages | Endpoint::CountTokens => Api::Anthropic,
            _ => Api::OpenAi,
        }
    }

    /// Whether it costs nothing and is passed on as it is.
    pub(crate) fn is_free(self) -> bool {
        matches!(self, Endpoint::Models | Endpoint::CountTokens)
    }

    fn of(path: &str) -> Option<Endpoint> {
        Some(match path {
            "/v1/chat/completions" => Endpoint::Chat,
            "/v1/completions" => Endpoint::Completions,
            "/v1/responses" => Endpoint::Responses,
            "/v1/embeddings" => Endpoint::Embeddings,
            "/v1/messages" => Endpoint::Messages,
            "/v1/messages/count_tokens" => Endpoint::CountTokens,
            "/v1/models" => Endpoint::Models,
            _ if path.strip_prefix("/v1/models/").is_some_and(is_model) => Endpoint::Models,
            _ => return None,
        })
    }
}

/// Whether it names a model, and no upstream can take it for the way to anything else.
fn is_model(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace("%2f", "/").replace("%2e", ".");
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:@+/%".contains(&byte);
    name.bytes().all(is_plain)
        && !["%25", "%5c"].iter().any(|code| name.contains(code))
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// A call's path taken apart.
#[derive(Debug)]
pub(crate) struct Route<'a> {
    pub(crate) endpoint: Endpoint,
    /// From `/v1` on.
    pub(crate) path: &'a str,
    account: Option<&'a str>,
}

impl<'a> Route<'a> {
    /// `/v1/…`, or `/a/` account `/v1/…`.
    pub(crate) fn of(path: &'a str) -> Option<Route<'a>> {
        let (account, path) = match path.strip_prefix("/a/") {
            Some(rest) => {
                let at = rest.rfind("/v1/").filter(|at| *at > 0)?;
                (Some(&rest[..at]), &rest[at..])
            }
            None => (None, path),
        };
        Some(Route { endpoint: Endpoint::of(path)?, path, account })
    }

    /// Whose call it is. Who shows a token spends within its account only; `spender` says whose one
    /// is that the settings do not name.
    pub(crate) fn account(
        &self,
        headers: &HeaderMap,
        settings: &ProxySection,
        spender: impl FnOnce(Option<&str>) -> Result<Option<String>, Failure>,
    ) -> Result<String, Failure> {
        let header =
            match headers.get(ACCOUNT) {
                Some(value) => Some(value.to_str().map_err(|_| {
                    Failure::invalid(format!("{ACCOUNT}: is not an account's path"))
                })?),
                None => None,
            };
        let named = self.account.or(header);
        let shown = token(headers);
        let of_token = match shown.and_then(|token| account_of(token, settings)) {
            Some(account) => Some(account.to_owned()),
            None => spender(shown)?,
        };
        match (named, of_token.as_deref()) {
            (Some(named), Some(of_token)) if !is_within(named, of_token) => {
                let message = format!("the token is of {of_token} and may not spend on {named}");
                Err(Failure::forbidden(message))
            }
            (Some(account), _) | (None, Some(account)) => Ok(account.to_owned()),
            (None, None) => settings.default_account.clone().ok_or_else(|| {
                Failure::not_found(format!(
                    "the call names no account: put it into the path (/a/ACCOUNT/v1/…) or the \
                     header {ACCOUNT}, or configure proxy.default_account"
                ))
            }),
        }
    }
}

/// What a client shows for itself.
fn token(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    text("authorization").and_then(|value| value.strip_prefix("Bearer ")).or(text("x-api-key"))
}

fn account_of<'a>(token: &str, settings: &'a ProxySection) -> Option<&'a str> {
    if settings.tokens.is_empty() {
        return None;
    }
    let hash = sha256(token);
    let found = settings.tokens.iter().find(|known| known.sha256 == hash);
    found.map(|known| known.account.as_str())
}

fn is_within(account: &str, ancestor: &str) -> bool {
    account.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The headers of a request that its upstream gets to see.
pub(crate) fn passed_on(parts: &Parts) -> impl Iterator<Item = (&'static str, &[u8])> {
    const PASSED: [&str; 10] = [
        "accept",
        "anthropic-beta",
        "anthropic-version",
        "idempotency-key",
        "openai-beta",
        "openai-organization",
        "openai-project",
        "traceparent",
        "tracestate",
        "user-agent",
    ];
    PASSED.into_iter().filter_map(|name| Some((name, parts.headers.get(name)?.as_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(tokens: &[(&str, &str)], default: Option<&str>) -> ProxySection {
        let tokens: Vec<_> = tokens
            .iter()
            .map(|(sha256, account)| serde_json::json!({"sha256": sha256, "account": account}))
            .collect();
        serde_json::from_value(serde_json::json!({
            "listen": "127.0.0.1:0", "upstreams": [], "default_account": default, "tokens": tokens,
            "default_max_output_tokens": 1, "min_output_tokens": 1, "notice": "",
            "strict_errors": false, "capable_models": [], "context_tokens": {},
            "max_body_bytes": 1, "max_connections": 1,
            "max_calls": 1, "client_timeout_ms": 1, "connect_timeout_ms": 1,
            "first_byte_timeout_ms": 1, "idle_timeout_ms": 1,
        }))
        .unwrap()
    }

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_account_is_the_part_of_the_path_before_the_last_v1() {
        let route = Route::of("/a/acme/v1/agent/v1/chat/completions").unwrap();
        assert_eq!((route.account, route.endpoint), (Some("acme/v1/agent"), Endpoint::Chat));
        assert_eq!(route.path, "/v1/chat/completions");
        assert!(Route::of("/a//v1/chat/completions").is_none_or(|r| r.account == Some("")));
        assert!(Route::of("/a/v1/models").is_none());
        assert!(Route::of("/v1/files").is_none());
    }

    #[test]
    fn path_comes_before_header_before_token_before_default() {
        let secret = "88c1f0c4c1ae5f5b8c4dd4ee8e0a5c0bb1a6a1a6b3cd8d8de9b7a3ff4c4f0aa1";
        let open = settings(&[(secret, "acme")], Some("other"));
        let path = Route::of("/a/acme/x/v1/models").unwrap();
        let plain = Route::of("/v1/models").unwrap();
        let named = headers(&[(ACCOUNT, "acme/y")]);
        assert_eq!(path.account(&named, &open, |_| Ok(None)).unwrap(), "acme/x");
        assert_eq!(plain.account(&named, &open, |_| Ok(None)).unwrap(), "acme/y");
        assert_eq!(plain.account(&headers(&[]), &open, |_| Ok(None)).unwrap(), "other");
        assert!(plain.account(&headers(&[]), &settings(&[], None), |_| Ok(None)).is_err());
    }

    #[test]
    fn a_token_spends_within_its_account_only() {
        // SHA-256 of "abc", FIPS 180-2.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let settings = settings(&[(abc, "acme/team")], None);
        for shown in [("authorization", "Bearer abc"), ("x-api-key", "abc")] {
            let of = |path| {
                Route::of(path).unwrap().account(&headers(&[shown]), &settings, |_| Ok(None))
            };
            assert_eq!(of("/v1/models").unwrap(), "acme/team");
            assert_eq!(of("/a/acme/team/x/v1/models").unwrap(), "acme/team/x");
            assert!(of("/a/acme/teamster/v1/models").is_err());
            assert!(of("/a/acme/v1/models").is_err());
        }
    }
}
