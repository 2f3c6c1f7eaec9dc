//! A listener of HTTP/1: its connections, how many there are, how long one may be silent, and how they
//! end when the daemon drains.
//!
//! `proxy`, `dashboard` and `metrics` answer what comes in by it. What a request says is not read here.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};

use crate::connection::Socket;
use crate::listen::{pause, until};
use crate::places::{Holder, Places};
use crate::proxy::Reply;
use crate::tls::{Inside, Tls};

/// The most that the head of a request may take, and what is read ahead.
const BUFFER_BYTES: usize = 64 * 1024;

/// What all connections of a listener share.
#[derive(Debug, Clone)]
pub(crate) struct Web {
    pub(crate) tls: Option<Arc<Tls>>,
    /// How long a client may take for the head of a request, and to take a part of the answer.
    pub(crate) patience: Duration,
    pub(crate) seats: Arc<Places>,
}

impl Web {
    /// Accepts until the drain begins, and then waits for the connections under way; who waits for
    /// this thread bounds that.
    pub(crate) async fn run<A, F>(
        &self,
        listener: std::net::TcpListener,
        draining: &watch::Receiver<bool>,
        answer: A,
    ) where
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Reply>> + Send + 'static,
    {
        let Ok(listener) = TcpListener::from_std(listener) else { return };
        until(draining.clone(), self.accept(listener, draining, answer)).await;
        self.seats.all_free().await;
    }

    async fn accept<A, F>(&self, listener: TcpListener, draining: &watch::Receiver<bool>, answer: A)
    where
        A: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Reply>> + Send + 'static,
    {
        loop {
            let Ok((stream, address)) = listener.accept().await else {
                pause().await;
                continue;
            };
            // One more than allowed is closed at once: its caller learns of it and does not wait.
            let Some(seat) = self.seats.take(Holder::elsewhere(address)) else { continue };
            let _slower_without = stream.set_nodelay(true);
            let (web, draining, answer) = (self.clone(), draining.clone(), answer.clone());
            tokio::spawn(async move {
                web.serve(stream, draining, answer).await;
                drop(seat);
            });
        }
    }

    async fn serve<A, F>(&self, stream: TcpStream, mut draining: watch::Receiver<bool>, answer: A)
    where
        A: Fn(Request<Incoming>) -> F,
        F: Future<Output = Response<Reply>> + Send + 'static,
    {
        let patience = self.patience;
        let connected = Socket::of_tcp(stream, self.tls.as_ref(), Inside::Http1).await;
        let Ok((stream, peer)) = connected else { return };
        let service = service_fn(|mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            let answered = answer(request);
            async move { Ok::<_, Infallible>(answered.await) }
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
