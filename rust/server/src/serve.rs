//! Sockets, threads and the drain.
//!
//! The data plane is thread-per-core: the first runtime thread accepts, hands each connection to the
//! thread that has the fewest, and that one keeps it; the threads share nothing but the engine. (Were
//! all to accept, the one that is awake would take nearly everything.)

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bursar_ledger::Owner;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::config::{Config, ConfigError, Listen};
use crate::engine::{Engine, OpenError};
use crate::grpc::Api;
use crate::lease::Desk;
use crate::owner;
use crate::process::Processes;
use crate::v1::account_service_server::AccountServiceServer;
use crate::v1::ledger_service_server::LedgerServiceServer;
use crate::v1::process_service_server::ProcessServiceServer;

/// A silent connection is asked for a sign of life this often, and closed without one.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// Descriptors that connections leave to the store, the runtime and the sockets.
const OWN_DESCRIPTORS: usize = 128;
/// Threads for calls that read the disk or count tokens.
const ASIDE_THREADS: usize = 4;

/// A daemon that runs.
#[derive(Debug)]
pub struct Running {
    engine: Arc<Engine>,
    desk: Option<Desk>,
    processes: Arc<Processes>,
    addresses: Vec<String>,
    unix: Option<PathBuf>,
    drain: watch::Sender<bool>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    drain_timeout: Duration,
}

/// What a connection tells of its other end.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// The process, where the socket tells it (see `owner`).
    pub(crate) owner: Option<Owner>,
}

/// Opens the engine and serves it until [`Running::shutdown`].
pub fn serve(config: Config) -> Result<Running, OpenError> {
    let listen = config.listen.clone();
    let listen = listen.ok_or_else(|| ConfigError::new("listen: is missing"))?;
    // Who first touches a huge page waits while it is cleared, milliseconds where memory is slow.
    let _where_there_are_any = rustix::thread::disable_transparent_huge_pages(true);
    let (connections, lease_connections) = within_descriptors(listen.max_connections);
    let listeners = Listeners::bind(&listen)?;
    let engine = Engine::open(config)?;
    let desk = Desk::open(&engine, &listen, lease_connections)?;
    let (drain, draining) = watch::channel(false);
    let connections = Arc::new(Semaphore::new(connections));
    let addresses = listeners.addresses();
    let (lanes, incoming): (Vec<_>, Vec<_>) =
        (0..listen.runtime_threads.max(1)).map(|_| Lane::new()).unzip();
    let mut door = Some(Door { listeners, lanes, connections });
    let mut threads = Vec::new();
    let processes = Arc::<Processes>::default();
    for (number, incoming) in incoming.into_iter().enumerate() {
        let api = Api {
            engine: Arc::clone(&engine),
            processes: Arc::clone(&processes),
            draining: draining.clone(),
        };
        let (listen, door) = (listen.clone(), door.take());
        let name = format!("bursar-{number}");
        let run = move || run_thread(door, incoming, api, &listen);
        let thread = std::thread::Builder::new().name(name).spawn(run);
        threads.push(thread.map_err(|error| OpenError::Io("a runtime thread".into(), error))?);
    }
    Ok(Running {
        engine,
        desk,
        processes,
        addresses,
        unix: listen.unix.clone(),
        drain,
        threads: Mutex::new(threads),
        drain_timeout: Duration::from_millis(listen.drain_timeout_ms),
    })
}

/// Takes as many descriptors as the system gives, and shares them out: how many connections there may
/// be, and how many to the lease socket, so that the store never lacks one.
fn within_descriptors(max: usize) -> (usize, usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _as_before = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let all = getrlimit(Resource::Nofile)
        .current
        .map_or(usize::MAX, |all| usize::try_from(all).unwrap_or(usize::MAX));
    let room = all.saturating_sub(OWN_DESCRIPTORS);
    // A lease's connection has a second one, for its process.
    (max.min(room / 2), max.min(room / 4))
}

impl Running {
    /// Where it listens.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// What it serves.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Where a watchdog takes its calls.
    pub fn processes(&self) -> &Arc<Processes> {
        &self.processes
    }

    /// Takes no new calls, finishes those under way (within the configured time), writes everything
    /// and closes the store. Holds are kept.
    pub fn shutdown(&self) -> Result<(), crate::ApiError> {
        self.drain.send_replace(true);
        self.engine.meters.drain();
        self.processes.close();
        let threads = std::mem::take(&mut *self.threads.lock());
        let ended = Arc::new((Mutex::new(false), parking_lot::Condvar::new()));
        let signal = Arc::clone(&ended);
        let wait = move || {
            for thread in threads {
                let _ended = thread.join();
            }
            *signal.0.lock() = true;
            signal.1.notify_all();
        };
        if std::thread::Builder::new().name("bursar-drain".into()).spawn(wait).is_ok() {
            let mut done = ended.0.lock();
            if !*done {
                ended.1.wait_for(&mut done, self.drain_timeout);
            }
        }
        if let Some(path) = &self.unix {
            let _removed = std::fs::remove_file(path);
        }
        if let Some(desk) = &self.desk {
            desk.close();
        }
        self.engine.close()
    }
}

/// The listeners before they belong to a runtime.
struct Listeners {
    unix: Option<(std::os::unix::net::UnixListener, PathBuf)>,
    tcp: Option<std::net::TcpListener>,
}

impl Listeners {
    fn bind(listen: &Listen) -> Result<Listeners, OpenError> {
        if listen.unix.is_none() && listen.tcp.is_none() {
            return Err(ConfigError::new("listen: neither a Unix socket nor TCP").into());
        }
        if let Some(address) = listen.tcp.filter(|address| !address.ip().is_loopback()) {
            let message = format!("listen.tcp: {address} is not a loopback address");
            return Err(ConfigError::new(message).into());
        }
        let unix = match &listen.unix {
            Some(path) => {
                let bound = bind_unix(path, listen.unix_mode);
                let what = || format!("cannot listen on {}", path.display());
                Some((bound.map_err(|error| OpenError::Io(what(), error))?, path.clone()))
            }
            None => None,
        };
        let tcp = match listen.tcp {
            Some(address) => {
                let bound = std::net::TcpListener::bind(address);
                let what = || format!("cannot listen on {address}");
                let bound = bound.map_err(|error| OpenError::Io(what(), error))?;
                bound.set_nonblocking(true).map_err(|error| OpenError::Io(what(), error))?;
                Some(bound)
            }
            None => None,
        };
        Ok(Listeners { unix, tcp })
    }

    fn addresses(&self) -> Vec<String> {
        let unix = self.unix.iter().map(|(_, path)| format!("unix:{}", path.display()));
        let tcp = self.tcp.iter().filter_map(|listener| listener.local_addr().ok());
        unix.chain(tcp.map(|address| address.to_string())).collect()
    }
}

/// Binds under another name, sets the mode, and only then takes the name: nobody ever connects with
/// the wrong mode. A socket that nobody listens on any more is replaced.
fn bind_unix(path: &Path, mode: u32) -> io::Result<std::os::unix::net::UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            let message = "another daemon listens on it";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            use std::os::unix::fs::FileTypeExt;
            if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
                let message = "a file is in the way that is not a socket";
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
            }
        }
        Err(error) => return Err(error),
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(name);
    let _stale = std::fs::remove_file(&temporary);
    let listener = std::os::unix::net::UnixListener::bind(&temporary).map_err(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            return error;
        }
        let message = "its folder does not exist: make it, or choose another server.socket";
        io::Error::new(io::ErrorKind::NotFound, message)
    })?;
    listener.set_nonblocking(true)?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode))?;
    std::fs::rename(&temporary, path)?;
    Ok(listener)
}

/// One data-plane thread, from its start to the end of the drain. The first one has the door.
fn run_thread(door: Option<Door>, incoming: mpsc::Receiver<Accepted>, api: Api, listen: &Listen) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(ASIDE_THREADS)
        .build()
        .expect("a runtime needs an epoll descriptor, which the listeners had as well");
    runtime.block_on(async {
        let draining = api.draining.clone();
        if let Some(door) = door {
            door.open(&draining);
        }
        let incoming = ReceiverStream::new(incoming).filter_map(|one| one.adopt().ok());
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_serving::<LedgerServiceServer<Api>>().await;
        reporter.set_serving::<AccountServiceServer<Api>>().await;
        reporter.set_serving::<ProcessServiceServer<Api>>().await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(crate::v1::DESCRIPTORS)
            .build_v1()
            .expect("the descriptors are compiled in");
        // What most tools still ask for.
        let reflection_v1alpha = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(crate::v1::DESCRIPTORS)
            .build_v1alpha()
            .expect("the descriptors are compiled in");
        let limit = listen.max_message_bytes;
        let mut stop = draining.clone();
        let served = tonic::transport::Server::builder()
            .max_concurrent_streams(listen.max_concurrent_calls_per_connection)
            .http2_keepalive_interval(Some(KEEPALIVE.0))
            .http2_keepalive_timeout(Some(KEEPALIVE.1))
            .add_service(LedgerServiceServer::new(api.clone()).max_decoding_message_size(limit))
            .add_service(AccountServiceServer::new(api.clone()).max_decoding_message_size(limit))
            .add_service(ProcessServiceServer::new(api).max_decoding_message_size(limit))
            .add_service(health)
            .add_service(reflection)
            .add_service(reflection_v1alpha)
            .serve_with_incoming_shutdown(incoming.map(io::Result::Ok), async move {
                let _drain = stop.wait_for(|draining| *draining).await;
            });
        let _ended = served.await;
    });
}

/// Runs until the drain begins.
async fn until(mut draining: watch::Receiver<bool>, accept: impl Future<Output = ()>) {
    tokio::select! {
        () = accept => {}
        _ = draining.wait_for(|draining| *draining) => {}
    }
}

/// One data-plane thread as the door sees it.
#[derive(Clone)]
struct Lane {
    sender: mpsc::Sender<Accepted>,
    /// How many connections it has.
    load: Arc<AtomicUsize>,
}

impl Lane {
    fn new() -> (Lane, mpsc::Receiver<Accepted>) {
        let (sender, receiver) = mpsc::channel(16);
        (Lane { sender, load: Arc::default() }, receiver)
    }
}

/// Where connections come in.
struct Door {
    listeners: Listeners,
    lanes: Vec<Lane>,
    connections: Arc<Semaphore>,
}

impl Door {
    /// Accepts until the drain begins.
    fn open(self, draining: &watch::Receiver<bool>) {
        let Door { listeners, lanes, connections } = self;
        if let Some(listener) =
            listeners.unix.and_then(|(unix, _)| UnixListener::from_std(unix).ok())
        {
            let accept = accept_unix(listener, lanes.clone(), Arc::clone(&connections));
            tokio::spawn(until(draining.clone(), accept));
        }
        if let Some(listener) = listeners.tcp.and_then(|tcp| TcpListener::from_std(tcp).ok()) {
            tokio::spawn(until(draining.clone(), accept_tcp(listener, lanes, connections)));
        }
    }
}

async fn accept_unix(listener: UnixListener, lanes: Vec<Lane>, connections: Arc<Semaphore>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            pause().await;
            continue;
        };
        // One more than allowed is closed at once: its caller learns of it and does not wait.
        let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else { continue };
        let peer = stream.peer_cred().ok();
        let owner = peer.and_then(|peer| owner::identify(peer.pid()?, peer.uid()));
        let Ok(stream) = stream.into_std() else { continue };
        hand_over(&lanes, StdSocket::Unix(stream), owner, permit).await;
    }
}

async fn accept_tcp(listener: TcpListener, lanes: Vec<Lane>, connections: Arc<Semaphore>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            pause().await;
            continue;
        };
        let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else { continue };
        let _slower_without = stream.set_nodelay(true);
        let Ok(stream) = stream.into_std() else { continue };
        hand_over(&lanes, StdSocket::Tcp(stream), None, permit).await;
    }
}

/// Gives a connection to the thread that has the fewest.
async fn hand_over(
    lanes: &[Lane],
    socket: StdSocket,
    owner: Option<Owner>,
    permit: OwnedSemaphorePermit,
) {
    let lane = lanes.iter().min_by_key(|lane| lane.load.load(Ordering::Relaxed));
    let lane = lane.expect("there is at least one thread");
    let place = Place::new(&lane.load, permit);
    // A thread that has ended drops it, which closes it.
    let _taken = lane.sender.send(Accepted { socket, owner, place }).await;
}

/// A connection's place: it counts against the maximum, and as its thread's load, while it lives.
struct Place {
    load: Arc<AtomicUsize>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn new(load: &Arc<AtomicUsize>, permit: OwnedSemaphorePermit) -> Place {
        load.fetch_add(1, Ordering::Relaxed);
        Place { load: Arc::clone(load), _permit: permit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection on its way from one runtime to another.
struct Accepted {
    socket: StdSocket,
    owner: Option<Owner>,
    place: Place,
}

enum StdSocket {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
}

impl Accepted {
    /// Takes it into this thread's runtime.
    fn adopt(self) -> io::Result<Connection> {
        let socket = match self.socket {
            StdSocket::Unix(stream) => Socket::Unix(UnixStream::from_std(stream)?),
            StdSocket::Tcp(stream) => Socket::Tcp(TcpStream::from_std(stream)?),
        };
        Ok(Connection { socket, owner: self.owner, _place: self.place })
    }
}

/// Out of descriptors, most likely: the next try has to wait until some are closed.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// A connection of this thread.
struct Connection {
    socket: Socket,
    owner: Option<Owner>,
    _place: Place,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer { owner: self.owner }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Socket::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Unix(stream) => Pin::new(stream).poll_write(context, buffer),
            Socket::Tcp(stream) => Pin::new(stream).poll_write(context, buffer),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.socket {
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
