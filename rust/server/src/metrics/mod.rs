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

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use serde::Deserialize;

use crate::access::Access;
use crate::config::ConfigError;
use crate::engine::{Engine, OpenError};
use crate::handed::Handed;
use crate::lease;
use crate::listen::{Guard, Places};
use crate::process::Processes;
use crate::tls::Tls;
pub(crate) use calls::{Calls, Timed};
pub(crate) use counts::{Histogram, Reserves};
pub(crate) use door::run;

/// The most connections at a time: who scrapes needs one.
pub(crate) const MAX_CONNECTIONS: usize = 32;

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
    /// Listens where it says.
    pub(crate) fn bind(
        &self,
        guard: &Guard,
        handed: &mut Handed,
    ) -> Result<TcpListener, OpenError> {
        if self.tls && guard.tls.is_none() {
            let message = "metrics.tls is true, and there is no [server.tls] to take it from";
            return Err(ConfigError::new(message).into());
        }
        let guard = Guard { tls: guard.tls.clone().filter(|_| self.tls), ..*guard };
        guard.bind_tcp("metrics.listen", self.listen, handed)
    }
}

/// All that a page is made of.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) section: MetricsSection,
    pub(crate) engine: Arc<Engine>,
    pub(crate) access: Arc<Access>,
    pub(crate) processes: Arc<Processes>,
    pub(crate) calls: Calls,
    pub(crate) leases: Option<Arc<lease::Figures>>,
    /// The connections of each listener, by its name.
    pub(crate) places: Vec<(&'static str, Arc<Places>)>,
    /// The TLS of the daemon's own listener.
    pub(crate) tls: Option<Arc<Tls>>,
    /// When the daemon was started (Unix ms).
    pub(crate) start_ms: i64,
}
