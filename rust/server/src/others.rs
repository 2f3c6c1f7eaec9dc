//! What listens beside the data plane: the proxy, the dashboard and the metrics, each with a thread of
//! its own.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::config::Config;
use crate::dashboard::{self, Dashboard, DashboardSection};
use crate::engine::OpenError;
use crate::grpc::Api;
use crate::handed::Handed;
use crate::listen::{Beside, Guard};
use crate::metrics::{self, Counted, Metrics, MetricsSection};
use crate::proxy::{self, Proxy, ProxySection};
use crate::serve::{runtime, thread};
use crate::tls::Tls;

/// A listener, and what is to be served by it.
type Bound<S> = Option<(TcpListener, S)>;

/// Those that the configuration names, before they run.
pub(crate) struct Others {
    proxy: Bound<ProxySection>,
    page: Bound<DashboardSection>,
    metrics: Bound<MetricsSection>,
}

/// Where they listen.
#[derive(Debug)]
pub(crate) struct Addresses {
    pub(crate) proxy: Option<SocketAddr>,
    pub(crate) dashboard: Option<SocketAddr>,
    pub(crate) metrics: Option<SocketAddr>,
}

impl Others {
    pub(crate) fn bind(
        config: &Config,
        guard: &Guard,
        handed: &mut Handed,
    ) -> Result<Others, OpenError> {
        Ok(Others {
            proxy: bind(config.proxy.as_ref(), ProxySection::beside, guard, handed)?,
            page: bind(config.dashboard.as_ref(), DashboardSection::beside, guard, handed)?,
            metrics: bind(config.metrics.as_ref(), MetricsSection::beside, guard, handed)?,
        })
    }

    pub(crate) fn addresses(&self) -> Addresses {
        Addresses {
            proxy: address_of(self.proxy.as_ref()),
            dashboard: address_of(self.page.as_ref()),
            metrics: address_of(self.metrics.as_ref()),
        }
    }

    /// How many descriptors their connections may take.
    pub(crate) fn descriptors(&self) -> usize {
        // A call through the proxy has a second one, to its upstream.
        let proxy = self.proxy.as_ref().map_or(0, |(_, it)| it.max_connections + it.max_calls);
        let page = self.page.as_ref().map_or(0, |(_, it)| it.max_connections);
        proxy + page + self.metrics.as_ref().map_or(0, |_| metrics::MAX_CONNECTIONS)
    }

    /// Whether anybody asks for what is counted.
    pub(crate) fn has_metrics(&self) -> bool {
        self.metrics.is_some()
    }

    /// Starts the threads; what is counted is for the metrics.
    pub(crate) fn start(
        self,
        api: &Api,
        tls: Option<&Arc<Tls>>,
        mut counted: Counted,
    ) -> Result<Vec<JoinHandle<()>>, OpenError> {
        let mut threads = Vec::new();
        if let Some((listener, section)) = self.page {
            let page = Dashboard::new(api.clone(), section, tls.cloned());
            counted.connections.push(("dashboard", Arc::clone(&page.seats) as _));
            let runtime = runtime(dashboard::ASIDE_THREADS)?;
            threads.push(thread("bursar-page".into(), move || page.run(&runtime, listener))?);
        }
        if let Some((listener, section)) = self.proxy {
            let (engine, access) = (Arc::clone(&api.engine), Arc::clone(&api.access));
            let proxy = Proxy::new(engine, access, section, tls.cloned())?;
            counted.connections.push(("proxy", Arc::clone(&proxy.seats) as _));
            counted.proxy = Some(Arc::clone(&proxy));
            let (runtime, draining) = (runtime(proxy::ASIDE_THREADS)?, api.draining.clone());
            let run = move || proxy::run(&runtime, listener, &proxy, &draining);
            threads.push(thread("bursar-proxy".into(), run)?);
        }
        if let Some((listener, section)) = self.metrics {
            let metrics = Metrics::new(api, section, tls.cloned(), counted);
            let runtime = runtime(metrics::ASIDE_THREADS)?;
            let run = move || metrics::run(&runtime, listener, &metrics);
            threads.push(thread("bursar-metrics".into(), run)?);
        }
        Ok(threads)
    }
}

fn bind<S: Clone>(
    section: Option<&S>,
    beside: impl Fn(&S) -> Beside<'static>,
    guard: &Guard,
    handed: &mut Handed,
) -> Result<Bound<S>, OpenError> {
    let bind = |section: &S| Ok((beside(section).bind(guard, handed)?, section.clone()));
    section.map(bind).transpose()
}

fn address_of<S>(bound: Option<&(TcpListener, S)>) -> Option<SocketAddr> {
    bound?.0.local_addr().ok()
}
