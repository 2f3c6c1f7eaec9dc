//! The proxy's listener, its thread, and its connections: how many there are, how long one may be
//! silent, and how they end when the daemon drains.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Sleep, sleep};

use super::{Proxy, call};
use crate::connection::Socket;
use crate::listen::{pause, until};
use crate::tls::Inside;

/// The most that the head of a request may take, and what is read ahead.
const BUFFER_BYTES: usize = 64 * 1024;
/// Threads for prompts that take long to count, and for looking up addresses.
const ASIDE_THREADS: usize = 4;

/// The proxy's thread, from its start to the end of the drain.
pub(crate) fn run(
    listener: std::net::TcpListener,
    proxy: &Arc<Proxy>,
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
        let Ok(listener) = TcpListener::from_std(listener) else { return };
        let most = u32::try_from(proxy.settings.max_connections).unwrap_or(u32::MAX);
        let connections = Arc::new(Semaphore::new(most as usize));
        until(draining.clone(), accept(listener, proxy, &connections, draining)).await;
        // Those under way may finish; who waits for this thread bounds that.
        let _all_ended = connections.acquire_many(most).await;
        let calls = u32::try_from(proxy.settings.max_calls).unwrap_or(u32::MAX);
        let _all_settled = proxy.calls.acquire_many(calls).await;
    });
}

async fn accept(
    listener: TcpListener,
    proxy: &Arc<Proxy>,
    connections: &Arc<Semaphore>,
    draining: &watch::Receiver<bool>,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            pause().await;
            continue;
        };
        // One more than allowed is closed at once: its caller learns of it and does not wait.
        let Ok(place) = Arc::clone(connections).try_acquire_owned() else { continue };
        let _slower_without = stream.set_nodelay(true);
        let (proxy, draining) = (Arc::clone(proxy), draining.clone());
        tokio::spawn(async move {
            serve(stream, &proxy, draining).await;
            drop(place);
        });
    }
}

async fn serve(stream: TcpStream, proxy: &Arc<Proxy>, mut draining: watch::Receiver<bool>) {
    let patience = proxy.settings.client_timeout;
    let connected = Socket::of_tcp(stream, proxy.tls.as_ref(), Inside::Http1).await;
    let Ok((stream, peer)) = connected else { return };
    let service = service_fn(|mut request| {
        let proxy = Arc::clone(proxy);
        request.extensions_mut().insert(peer.clone());
        async move { Ok::<_, Infallible>(call::answer(proxy, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(Patient { stream, patience, stalled: None }), service);
    tokio::pin!(connection);
    tokio::select! {
        _ended = &mut connection => return,
        _ = draining.wait_for(|draining| *draining) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ended = connection.await;
}

/// A connection that breaks when its client takes nothing for too long.
struct Patient {
    stream: Socket,
    patience: Duration,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    /// Whether a write that has to wait has waited too long.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")))
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, buffer);
        self.watch(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
