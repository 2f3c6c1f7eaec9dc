//! The proxy: the interfaces of OpenAI and Anthropic with a budget behind them.
//!
//! An agent in any language changes its base URL and nothing else. Every call is held for before its
//! upstream is asked, debited with each event of its stream, and settled at what the upstream says in
//! the end; at the limit the answer is cut, and ended as one that its length has ended.
//!
//! `door` owns the thread (and `web` its connections), `body` what a request brings, `call` one call,
//! `stream` one stream, `hold` its reservation. `openai`, `anthropic` and `responses` know the
//! interfaces; `sse` and `members` take apart what passes, and leave alone what nobody has to read.
//! Nothing here takes the GIL, and a provider's key is known to `upstream` alone.

use std::sync::Arc;

use crate::access::{Access, Caller};
use crate::config::ConfigError;
use crate::engine::Engine;
use crate::metrics::Answers;
use crate::peer::Peer;
use crate::places::Places;
use crate::tls::Tls;

mod anthropic;
mod body;
mod call;
mod count;
mod dialect;
mod door;
mod failure;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod hold;
mod members;
mod openai;
mod probe;
mod replay;
mod reply;
mod request;
mod responses;
mod route;
mod settings;
mod sse;
mod stream;
mod upstream;
mod velocity;

pub(crate) use door::{ASIDE_THREADS, run};
pub(crate) use failure::Failure;
use replay::Replays;
pub(crate) use reply::Reply;
pub(crate) use settings::{Api, ProxySection};
use upstream::{Upstream, Upstreams};
pub(crate) use velocity::retry_after;

/// What all calls share.
#[derive(Debug)]
pub(crate) struct Proxy {
    engine: Arc<Engine>,
    access: Arc<Access>,
    settings: ProxySection,
    tls: Option<Arc<Tls>>,
    pub(crate) seats: Arc<Places>,
    upstreams: Upstreams,
    /// Places for calls under way.
    calls: Arc<Places>,
    room: body::Room,
    replays: Arc<Replays>,
}

impl Proxy {
    pub(crate) fn new(
        engine: Arc<Engine>,
        access: Arc<Access>,
        settings: ProxySection,
        tls: Option<Arc<Tls>>,
    ) -> Result<Arc<Proxy>, ConfigError> {
        let tls = tls.filter(|_| settings.tls);
        let upstreams = Upstreams::new(&settings)?;
        let calls = Places::new(settings.max_calls);
        let replays = Replays::new(engine.times.key_retention_ms);
        let seats = Places::new(settings.max_connections);
        let room = body::Room::new(&settings);
        Ok(Arc::new(Proxy {
            engine,
            access,
            settings,
            tls,
            seats,
            upstreams,
            calls,
            room,
            replays,
        }))
    }

    /// How its upstreams have answered, by name.
    pub(crate) fn answers(&self) -> impl Iterator<Item = (&str, &Answers)> {
        self.upstreams.answers()
    }

    /// Whose a token is, or else a certificate.
    fn spender(&self, shown: Option<&str>, peer: &Peer) -> Result<Caller, failure::Failure> {
        Ok(self.access.spender(shown, peer, self.engine.now().wall_ms)?)
    }

    /// Where a call may go on with a cheaper model: one that has a price and an upstream, and can do
    /// what the call needs.
    fn fallback(&self, call: &request::Call, model: &str, tokens: i64) -> Option<&Upstream> {
        let is_priced = self.engine.rates.rate(model).is_some() || self.engine.allow_unpriced;
        let is_able =
            !call.is_demanding || self.settings.capable_models.iter().any(|able| able == model);
        let fits = self.settings.context_tokens.get(model).is_none_or(|most| tokens <= *most);
        if model == call.model || !is_priced || !is_able || !fits {
            return None;
        }
        let found = self.upstreams.find(call.endpoint.api(), model);
        found.filter(|upstream| call.is_told_by(&upstream.section))
    }
}
