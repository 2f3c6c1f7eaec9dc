//! The proxy's thread.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Proxy, call};
use crate::http::Door;
use crate::listen::Places;

/// The most that the head of a request may take, and what is read ahead.
const BUFFER_BYTES: usize = 64 * 1024;
/// Threads for prompts that take long to count, and for looking up addresses.
const ASIDE_THREADS: usize = 4;

/// The proxy's thread, from its start to the end of the drain.
pub(crate) fn run(
    listener: std::net::TcpListener,
    proxy: &Arc<Proxy>,
    places: Arc<Places>,
    draining: &watch::Receiver<bool>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(ASIDE_THREADS)
        .build()
        .expect("a runtime needs an epoll descriptor, which the listeners had as well");
    runtime.block_on(async {
        // Reading an encoding takes a tenth of a second: the first call shall not.
        tokio::task::spawn_blocking(bpe_openai::o200k_base);
        let patience = proxy.settings.client_timeout;
        let (tls, buffer_bytes) = (proxy.tls.clone(), BUFFER_BYTES);
        let shared = Arc::clone(proxy);
        let answer = move |request| call::answer(Arc::clone(&shared), request);
        Door { places, tls, patience, buffer_bytes }.serve(listener, draining, answer).await;
        let calls = u32::try_from(proxy.settings.max_calls).unwrap_or(u32::MAX);
        let _all_settled = proxy.calls.acquire_many(calls).await;
    });
}
