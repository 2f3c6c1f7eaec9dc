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

use serde::Deserialize;

use crate::grpc::Api;
use crate::lease;
use crate::listen::Beside;
use crate::places::Places;
use crate::tls::Tls;
pub(crate) use calls::{Calls, Timed};
pub(crate) use counts::{Histogram, Reserves};
pub(crate) use door::{MAX_CONNECTIONS, run};

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

/// All that a page is made of.
#[derive(Debug)]
pub(crate) struct Metrics {
    api: Api,
    section: MetricsSection,
    tls: Option<Arc<Tls>>,
    calls: Calls,
    leases: Option<Arc<lease::Figures>>,
    connections: Connections,
    seats: Arc<Places>,
    /// When the daemon was started (Unix ms).
    start_ms: i64,
}

impl Metrics {
    pub(crate) fn new(
        api: &Api,
        section: MetricsSection,
        tls: Option<Arc<Tls>>,
        calls: Calls,
        leases: Option<Arc<lease::Figures>>,
        mut connections: Connections,
    ) -> Arc<Metrics> {
        let seats = Places::new(door::MAX_CONNECTIONS);
        connections.push(("metrics", Arc::clone(&seats) as _));
        let tls = tls.filter(|_| section.tls);
        let (api, start_ms) = (api.clone(), api.engine.now().wall_ms);
        Arc::new(Metrics { api, section, tls, calls, leases, connections, seats, start_ms })
    }
}
