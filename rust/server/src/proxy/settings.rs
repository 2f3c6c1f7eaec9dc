//! `[proxy]` as the Python side hands it over.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::listen::Beside;

/// All of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProxySection {
    /// An address and port; loopback only, unless it has TLS and everybody shows who they are.
    pub(crate) listen: SocketAddr,
    /// Whether it has the TLS of the daemon's own listener.
    #[serde(default)]
    pub(crate) tls: bool,
    /// Where calls go; the first that has the model counts.
    pub(crate) upstreams: Vec<UpstreamSection>,
    /// The account of calls that name none.
    pub(crate) default_account: Option<String>,
    /// Tokens and their accounts.
    pub(crate) tokens: Vec<TokenSection>,
    /// The output that a call is held for where it names no maximum.
    pub(crate) default_max_output_tokens: i64,
    /// The least output worth starting a call for.
    pub(crate) min_output_tokens: i64,
    /// What is appended to an answer that the budget has cut.
    pub(crate) notice: String,
    /// Whether a stream that the budget cuts ends in an error instead of the notice.
    pub(crate) strict_errors: bool,
    /// Models that take tools and images: a call that has them is moved to no other.
    pub(crate) capable_models: Vec<String>,
    /// How many tokens, prompt and output, fallback models take in all.
    pub(crate) context_tokens: HashMap<String, i64>,
    /// The longest request, and the longest answer that is not a stream.
    pub(crate) max_body_bytes: usize,
    /// The most connections at a time.
    pub(crate) max_connections: usize,
    /// The most calls at a time.
    pub(crate) max_calls: usize,
    /// How long a client may take for its request, and to take a part of the answer.
    #[serde(rename = "client_timeout_ms", deserialize_with = "milliseconds")]
    pub(crate) client_timeout: Duration,
    /// How long connecting may take.
    #[serde(rename = "connect_timeout_ms", deserialize_with = "milliseconds")]
    pub(crate) connect_timeout: Duration,
    /// How long the first byte of an answer may take.
    #[serde(rename = "first_byte_timeout_ms", deserialize_with = "milliseconds")]
    pub(crate) first_byte_timeout: Duration,
    /// How long an answer may pause.
    #[serde(rename = "idle_timeout_ms", deserialize_with = "milliseconds")]
    pub(crate) idle_timeout: Duration,
}

/// Where calls go.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpstreamSection {
    /// What errors call it.
    pub(crate) name: String,
    /// Its address, without `/v1`.
    pub(crate) url: String,
    /// Whose interface it has.
    pub(crate) api: Api,
    /// Which engine it is, where that is known.
    pub(crate) engine: Engine,
    /// What it is shown.
    pub(crate) key: Option<Key>,
    /// Its models: names, or their beginnings and `*`.
    pub(crate) models: Vec<String>,
}

/// Whose interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Api {
    OpenAi,
    Anthropic,
}

/// An engine that can tell of each event how many tokens it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Engine {
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    #[serde(rename = "vllm")]
    Vllm,
    #[serde(rename = "other")]
    Other,
}

/// A token that stands for an account.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenSection {
    /// In hexadecimal.
    pub(crate) sha256: String,
    /// The account, and those below it.
    pub(crate) account: String,
}

/// A provider's key: it is written into requests to its upstream and nowhere else.
#[derive(Clone, Deserialize)]
pub(crate) struct Key(pub(crate) String);

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Key(…)")
    }
}

impl ProxySection {
    /// Where it listens.
    pub(crate) fn beside(&self) -> Beside<'static> {
        Beside { section: "proxy", address: self.listen, tls: self.tls }
    }
}

impl UpstreamSection {
    /// Whether it has a model.
    pub(crate) fn serves(&self, model: &str) -> bool {
        self.models.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => model.starts_with(beginning),
            None => pattern == model,
        })
    }
}

fn milliseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_millis)
}
