//! The dashboard: a page that shows the ledger as it changes, and lets operators change limits.
//!
//! `answer` takes a request and knows the paths, `border` who may ask from where, `sessions` who
//! has signed in, `live` what all watchers share, `burn` how fast windows are spent, `views` the
//! JSON, `gzip` how answers are packed. What the page changes goes through the same methods as a
//! call by gRPC, so roles, accounts and entries are theirs. Nothing here takes the GIL. The page
//! itself is in `assets`, without a build.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::grpc::Api;
use crate::listen::Beside;
use crate::places::Places;
use crate::tls::Tls;
use crate::web::Web;

mod answer;
mod assets;
mod border;
mod burn;
mod calls;
mod gzip;
mod live;
mod look;
mod sessions;
mod spending;
mod views;

use assets::Assets;
use live::Live;
use sessions::Sessions;

/// Threads that read the disk or walk the ledger.
pub(crate) const ASIDE_THREADS: usize = 4;
/// How long a client may take for the head of a request, or read nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// `[dashboard]` as the Python side hands it over.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DashboardSection {
    /// An address and port; loopback only, unless it has TLS and everybody shows who they are.
    listen: SocketAddr,
    /// Whether it has the TLS of the daemon's own listener.
    tls: bool,
    /// What else browsers may call a loopback address: names of a proxy in front of it.
    hosts: Vec<String>,
    /// The most connections at a time; half of them may watch.
    pub(crate) max_connections: usize,
}

impl DashboardSection {
    /// Where it listens.
    pub(crate) fn beside(&self) -> Beside<'static> {
        Beside { section: "dashboard", address: self.listen, tls: self.tls }
    }
}

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Dashboard {
    api: Api,
    section: DashboardSection,
    tls: Option<Arc<Tls>>,
    pub(crate) seats: Arc<Places>,
    assets: Assets,
    sessions: Sessions,
    live: Arc<Live>,
}

impl Dashboard {
    pub(crate) fn new(
        api: Api,
        section: DashboardSection,
        tls: Option<Arc<Tls>>,
    ) -> Arc<Dashboard> {
        let live = Live::new(section.max_connections.div_ceil(2));
        let tls = tls.filter(|_| section.tls);
        let (assets, sessions) = (Assets::new(), Sessions::default());
        let seats = Places::new(section.max_connections);
        Arc::new(Dashboard { api, section, tls, seats, assets, sessions, live })
    }

    /// The dashboard's thread, from its start to the end of the drain.
    pub(crate) fn run(
        self: &Arc<Dashboard>,
        runtime: &tokio::runtime::Runtime,
        listener: std::net::TcpListener,
    ) {
        runtime.block_on(async {
            tokio::spawn(look::produce(self.api.clone(), Arc::clone(&self.live)));
            let web =
                Web { tls: self.tls.clone(), patience: PATIENCE, seats: Arc::clone(&self.seats) };
            let dashboard = Arc::clone(self);
            let answer = move |request| answer::answer(Arc::clone(&dashboard), request);
            web.run(listener, &self.api.draining, answer).await;
        });
    }
}
