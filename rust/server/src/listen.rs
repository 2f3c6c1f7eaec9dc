//! Where connections come in, and how they reach the thread that serves them.
//!
//! Owns the sockets, their names and modes, and the share of each data-plane thread. Never reads what
//! a connection says.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bursar_ledger::Owner;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tonic::transport::server::Connected;

use crate::config::{ConfigError, Listen};
use crate::engine::OpenError;
use crate::handed::Handed;
use crate::owner;

/// What a connection tells of its other end.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Peer {
    /// The process, where the socket tells it (see `owner`).
    pub(crate) owner: Option<Owner>,
    /// Its user and group; none by TCP.
    pub(crate) ids: Option<(u32, u32)>,
}

/// The listeners before they belong to a runtime.
pub(crate) struct Listeners {
    unix: Option<(std::os::unix::net::UnixListener, PathBuf)>,
    tcp: Option<std::net::TcpListener>,
    /// The file that was made here, and is to be removed at the end.
    pub(crate) made: Option<PathBuf>,
}

impl Listeners {
    /// Takes those that were handed over, and binds the others.
    pub(crate) fn bind(listen: &Listen, handed: &mut Handed) -> Result<Listeners, OpenError> {
        if listen.unix.is_none() && listen.tcp.is_none() {
            return Err(ConfigError::new("listen: neither a Unix socket nor TCP").into());
        }
        let mut made = None;
        let unix = match &listen.unix {
            Some(path) if let Some(unix) = handed.unix(path)? => Some((unix, path.clone())),
            Some(path) => {
                made = Some(path.clone());
                let bound = bind_unix(path, listen.unix_mode);
                let what = || format!("cannot listen on {}", path.display());
                Some((bound.map_err(|error| OpenError::Io(what(), error))?, path.clone()))
            }
            None => None,
        };
        let tcp = listen.tcp.map(|address| bind_tcp("listen.tcp", address, handed)).transpose()?;
        Ok(Listeners { unix, tcp, made })
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        let unix = self.unix.iter().map(|(_, path)| format!("unix:{}", path.display()));
        let tcp = self.tcp.iter().filter_map(|listener| listener.local_addr().ok());
        unix.chain(tcp.map(|address| address.to_string())).collect()
    }
}

/// Listens on a loopback address: who calls there shows no credentials.
pub(crate) fn bind_tcp(
    setting: &str,
    address: SocketAddr,
    handed: &mut Handed,
) -> Result<std::net::TcpListener, OpenError> {
    if !address.ip().is_loopback() {
        let message = format!("{setting}: {address} is not a loopback address");
        return Err(ConfigError::new(message).into());
    }
    if let Some(listener) = handed.tcp(address)? {
        return Ok(listener);
    }
    let bind = || {
        let bound = std::net::TcpListener::bind(address)?;
        bound.set_nonblocking(true)?;
        Ok(bound)
    };
    bind().map_err(|error| OpenError::Io(format!("cannot listen on {address}"), error))
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

/// Runs until the drain begins.
pub(crate) async fn until(mut draining: watch::Receiver<bool>, accept: impl Future<Output = ()>) {
    tokio::select! {
        () = accept => {}
        _ = draining.wait_for(|draining| *draining) => {}
    }
}

/// One data-plane thread as the door sees it.
#[derive(Clone)]
pub(crate) struct Lane {
    sender: mpsc::Sender<Accepted>,
    /// How many connections it has.
    load: Arc<AtomicUsize>,
}

impl Lane {
    pub(crate) fn new() -> (Lane, mpsc::Receiver<Accepted>) {
        let (sender, receiver) = mpsc::channel(16);
        (Lane { sender, load: Arc::default() }, receiver)
    }
}

/// Where connections come in.
pub(crate) struct Door {
    pub(crate) listeners: Listeners,
    pub(crate) lanes: Vec<Lane>,
    pub(crate) connections: Arc<Semaphore>,
}

impl Door {
    /// Accepts until the drain begins.
    pub(crate) fn open(self, draining: &watch::Receiver<bool>) {
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
        let credentials = stream.peer_cred().ok();
        let peer = Peer {
            owner: credentials.and_then(|peer| owner::identify(peer.pid()?, peer.uid())),
            ids: credentials.map(|peer| (peer.uid(), peer.gid())),
        };
        let Ok(stream) = stream.into_std() else { continue };
        hand_over(&lanes, StdSocket::Unix(stream), peer, permit).await;
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
        hand_over(&lanes, StdSocket::Tcp(stream), Peer::default(), permit).await;
    }
}

/// Gives a connection to the thread that has the fewest.
async fn hand_over(lanes: &[Lane], socket: StdSocket, peer: Peer, permit: OwnedSemaphorePermit) {
    let lane = lanes.iter().min_by_key(|lane| lane.load.load(Ordering::Relaxed));
    let lane = lane.expect("there is at least one thread");
    let place = Place::new(&lane.load, permit);
    // A thread that has ended drops it, which closes it.
    let _taken = lane.sender.send(Accepted { socket, peer, place }).await;
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
pub(crate) struct Accepted {
    socket: StdSocket,
    peer: Peer,
    place: Place,
}

enum StdSocket {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
}

impl Accepted {
    /// Takes it into this thread's runtime.
    pub(crate) fn adopt(self) -> io::Result<Connection> {
        let socket = match self.socket {
            StdSocket::Unix(stream) => Socket::Unix(UnixStream::from_std(stream)?),
            StdSocket::Tcp(stream) => Socket::Tcp(TcpStream::from_std(stream)?),
        };
        Ok(Connection { socket, peer: self.peer, _place: self.place })
    }
}

/// Out of descriptors, most likely: the next try has to wait until some are closed.
pub(crate) async fn pause() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// A connection of this thread.
pub(crate) struct Connection {
    socket: Socket,
    peer: Peer,
    _place: Place,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
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
