//! Connections that speak HTTP/1.1: how many there are, how long one may be silent, and how they end
//! when the daemon drains. What is answered is the caller's.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};

use crate::connection::Socket;
use crate::listen::{Places, pause, until};
use crate::tls::{Inside, Tls};

/// The connections of one listener.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    pub(crate) places: Arc<Places>,
    pub(crate) tls: Option<Arc<Tls>>,
    /// How long a client may take for the head of a request, and to take a part of the answer.
    pub(crate) patience: Duration,
    /// The most that the head of a request may take, and what is read ahead.
    pub(crate) buffer_bytes: usize,
}

impl Door {
    /// Answers until the drain begins, and then those who are being answered. Who is at the other end
    /// is in the extensions of each request.
    pub(crate) async fn serve<F, A, B>(
        self,
        listener: std::net::TcpListener,
        draining: &watch::Receiver<bool>,
        answer: F,
    ) where
        F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
        A: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        let Ok(listener) = TcpListener::from_std(listener) else { return };
        until(draining.clone(), self.accept(listener, draining, &answer)).await;
        // Those under way may finish; who waits for this thread bounds that.
        self.places.all_free().await;
    }

    async fn accept<F, A, B>(
        &self,
        listener: TcpListener,
        draining: &watch::Receiver<bool>,
        answer: &F,
    ) where
        F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
        A: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                pause().await;
                continue;
            };
            // One more than allowed is closed at once: its caller learns of it and does not wait.
            let Some(place) = self.places.take() else { continue };
            let _slower_without = stream.set_nodelay(true);
            let (door, draining, answer) = (self.clone(), draining.clone(), answer.clone());
            tokio::spawn(async move {
                door.connection(stream, draining, answer).await;
                drop(place);
            });
        }
    }

    async fn connection<F, A, B>(
        self,
        stream: TcpStream,
        mut draining: watch::Receiver<bool>,
        answer: F,
    ) where
        F: Fn(Request<Incoming>) -> A + Send,
        A: Future<Output = Response<B>> + Send,
        B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        let patience = self.patience;
        let connected = Socket::of_tcp(stream, self.tls.as_ref(), Inside::Http1).await;
        let Ok((stream, peer)) = connected else { return };
        let service = service_fn(move |mut request| {
            request.extensions_mut().insert(peer.clone());
            let answered = answer(request);
            async move { Ok::<_, Infallible>(answered.await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(patience)
            .max_buf_size(self.buffer_bytes)
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
