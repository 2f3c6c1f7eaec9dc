//! What the daemon tells of itself to whoever scrapes it.
//!
//! `door` owns the listener and its thread, `page` gathers one page, `text` writes it; `calls` and
//! `counts` are what is counted while calls are served: relaxed atomics, no label and no allocation.
//! Everything else is read where it is kept when somebody asks. There is no registry: libraries that
//! have one lock a histogram, or look up a label, for each call.

mod calls;
mod counts;
mod door;
mod page;
mod text;

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Deserialize;

use crate::grpc::Api;
use crate::lease;
use crate::listen::Beside;
use crate::places::Places;
use crate::proxy::Proxy;
use crate::tls::Tls;
pub(crate) use calls::{Calls, Timed};
pub(crate) use counts::{Answers, Descriptors, Histogram, Reserves};
pub(crate) use door::{ASIDE_THREADS, MAX_CONNECTIONS, run};

/// `[metrics]` as the Python side hands it over.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MetricsSection {
    /// An address and port; loopback only, unless it has TLS and everybody shows who they are.
    listen: SocketAddr,
    /// Whether it has the TLS of the daemon's own listener.
    tls: bool,
    /// The most accounts with series of their own.
    max_accounts: usize,
}

impl MetricsSection {
    /// Where it listens.
    pub(crate) fn beside(&self) -> Beside<'static> {
        Beside { section: "metrics", address: self.listen, tls: self.tls }
    }
}

/// The connections of a listener.
pub(crate) trait Connected: Debug + Send + Sync {
    /// How many there are.
    fn open(&self) -> usize;
    /// How many found no place.
    fn turned_away(&self) -> u64;
}

impl Connected for Places {
    fn open(&self) -> usize {
        self.open()
    }

    fn turned_away(&self) -> u64 {
        self.turned_away()
    }
}

/// Those of all listeners, by name.
pub(crate) type Connections = Vec<(&'static str, Arc<dyn Connected>)>;

/// What the receivers of notifications tell of themselves, as OpenMetrics.
pub(crate) type Receivers = Mutex<Arc<str>>;

/// What is counted beside the engine.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    pub(crate) calls: Calls,
    pub(crate) connections: Connections,
    pub(crate) leases: Option<Arc<lease::Figures>>,
    pub(crate) descriptors: Option<Arc<Descriptors>>,
    pub(crate) proxy: Option<Arc<Proxy>>,
    pub(crate) receivers: Arc<Receivers>,
}

/// All that a page is made of.
#[derive(Debug)]
pub(crate) struct Metrics {
    api: Api,
    section: MetricsSection,
    tls: Option<Arc<Tls>>,
    counted: Counted,
    seats: Arc<Places>,
    /// When the daemon was started (Unix ms).
    start_ms: i64,
}

impl Metrics {
    pub(crate) fn new(
        api: &Api,
        section: MetricsSection,
        tls: Option<Arc<Tls>>,
        mut counted: Counted,
    ) -> Arc<Metrics> {
        let seats = Places::new(door::MAX_CONNECTIONS);
        counted.connections.push(("metrics", Arc::clone(&seats) as _));
        let tls = tls.filter(|_| section.tls);
        let (api, start_ms) = (api.clone(), api.engine.now().wall_ms);
        Arc::new(Metrics { api, section, tls, counted, seats, start_ms })
    }
}
