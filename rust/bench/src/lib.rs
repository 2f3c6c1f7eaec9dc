//! What the programs of the benchmark share: arguments, the raw wire, the connection, the clock.
//!
//! `echo` is the floor, `sidecar` is what is measured, `load` measures either with the same client
//! code, and other rate limiters and Redis as well. For the proxy, `upstream` is what stands behind it
//! and `passthrough` its floor. `tests/benchmarks/run.py` starts them, pins them and compares.
#![forbid(unsafe_code)]

pub mod calls;
pub mod driver;
mod peers;
pub mod plan;
pub mod redis;
pub mod report;
mod resp;
pub mod stream;
pub mod wire;

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint};

/// The echo's wire types.
#[allow(
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unreachable_pub,
    reason = "generated code; the proto file is its documentation"
)]
pub mod echo {
    tonic::include_proto!("bursar.bench");
}

/// The wire types of other rate limiters.
#[allow(
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unreachable_pub,
    reason = "generated code; the proto file is its documentation"
)]
pub mod peer_wire {
    tonic::include_proto!("bursar.bench.peers");
}

/// What the programs fail with: they tell it and end.
pub type Failure = Box<dyn std::error::Error>;

/// The calls at a time on one connection and the size of a message: the daemon's defaults, which the
/// echo has to share.
pub const MAX_CONCURRENT_CALLS_PER_CONNECTION: u32 = 1000;
/// See [`MAX_CONCURRENT_CALLS_PER_CONNECTION`].
pub const MAX_MESSAGE_BYTES: usize = (4 << 20) + (64 << 10);
/// As in the server: how often a silent connection is asked for a sign of life, and how long for.
pub const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));

/// Arguments of the form `--name value`.
#[derive(Debug)]
pub struct Arguments(HashMap<String, String>);

impl Arguments {
    /// Those of this process, which may be `known` ones only.
    pub fn of_process(known: &[&str]) -> Result<Arguments, Failure> {
        let mut list = std::env::args().skip(1);
        let mut named = HashMap::new();
        while let Some(name) = list.next() {
            let name = name.strip_prefix("--").filter(|name| known.contains(name));
            let name = name.ok_or_else(|| format!("usage: {}", usage(known)))?;
            let value = list.next().ok_or_else(|| format!("--{name}: a value is missing"))?;
            named.insert(name.to_owned(), value);
        }
        Ok(Arguments(named))
    }

    /// One that has to be there.
    pub fn required(&self, name: &str) -> Result<&str, Failure> {
        let value = self.0.get(name).map(String::as_str);
        value.ok_or_else(|| format!("--{name} is missing").into())
    }

    /// One that may be absent.
    pub fn parsed<T>(&self, name: &str) -> Result<Option<T>, Failure>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        let parse = |text: &String| {
            let parsed: Result<T, T::Err> = text.parse();
            parsed.map_err(|error| format!("--{name} {text}: {error}").into())
        };
        self.0.get(name).map(parse).transpose()
    }
}

fn usage(known: &[&str]) -> String {
    let each: Vec<_> = known.iter().map(|name| format!("[--{name} VALUE]")).collect();
    each.join(" ")
}

/// A runtime like the server's: one thread.
pub fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Serves each connection on one thread; says when it listens, and returns when its input ends.
pub fn serving<F, S>(listen: &str, serve: S) -> Result<(), Failure>
where
    F: Future<Output = ()> + Send + 'static,
    S: Fn(TcpStream) -> F + Send + 'static,
{
    let listener = std::net::TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    let accepting = move || -> io::Result<()> {
        runtime()?.block_on(async {
            let listener = TcpListener::from_std(listener)?;
            loop {
                tokio::spawn(serve(listener.accept().await?.0));
            }
        })
    };
    std::thread::Builder::new().name("server".into()).spawn(accepting)?;
    writeln!(io::stdout(), "{{}}")?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

/// Where a server listens.
#[derive(Debug, Clone)]
pub enum Address {
    /// On a Unix socket.
    Unix(PathBuf),
    /// On a port.
    Tcp(SocketAddr),
}

/// A connection of either kind.
pub(crate) type Stream = Box<dyn Duplex>;

/// Bytes both ways.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// One connection.
pub(crate) async fn open(address: &Address) -> io::Result<Stream> {
    match address {
        Address::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
    }
}

/// One connection for gRPC.
pub(crate) async fn connect(address: &Address) -> Result<Channel, Failure> {
    let address = address.clone();
    let connector = tower::service_fn(move |_| {
        let address = address.clone();
        async move { open(&address).await.map(TokioIo::new) }
    });
    // This address only names the authority; the connector decides where to.
    let endpoint = Endpoint::from_static("http://localhost");
    Ok(endpoint.connect_with_connector(connector).await?)
}

/// The clock that everything here is measured with.
#[expect(clippy::disallowed_methods, reason = "to measure is what these programs are for")]
pub fn now() -> Instant {
    Instant::now()
}
