//! The proxy's thread, from its start to the end of the drain.

use std::sync::Arc;

use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::{Proxy, call};
use crate::web::Web;

/// Threads for prompts that take long to count, and for looking up addresses.
pub(crate) const ASIDE_THREADS: usize = 4;

/// Answers calls until the drain begins, and then finishes those under way.
pub(crate) fn run(
    runtime: &Runtime,
    listener: std::net::TcpListener,
    proxy: &Arc<Proxy>,
    draining: &watch::Receiver<bool>,
) {
    runtime.block_on(async {
        // Reading an encoding takes a tenth of a second: the first call shall not.
        tokio::task::spawn_blocking(bpe_openai::o200k_base);
        let settings = &proxy.settings;
        let web = Web {
            tls: proxy.tls.clone(),
            patience: settings.client_timeout,
            seats: Arc::clone(&proxy.seats),
        };
        let of_calls = Arc::clone(proxy);
        let answer = move |request| call::answer(Arc::clone(&of_calls), request);
        web.run(listener, draining, answer).await;
        proxy.calls.all_free().await;
    });
}
