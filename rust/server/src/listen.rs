//! Where connections come in, and how they reach the thread that serves them.
//!
//! Owns the sockets, their names and modes, and the share of each data-plane thread. Never reads what
//! a connection says.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};

use crate::config::{ConfigError, Listen};
use crate::connection::{Connection, Socket};
use crate::engine::OpenError;
use crate::greeting::Greeting;
use crate::handed::Handed;
use crate::peer::Peer;
use crate::places::{Holder, Places, Taken};
use crate::tls::{Inside, Tls};

/// The listeners before they belong to a runtime.
pub(crate) struct Listeners {
    unix: Option<(std::os::unix::net::UnixListener, PathBuf)>,
    tcp: Option<std::net::TcpListener>,
    /// The file that was made here, and is to be removed at the end.
    pub(crate) made: Option<PathBuf>,
}

impl Listeners {
    /// Takes those that were handed over, and binds the others.
    pub(crate) fn bind(
        listen: &Listen,
        guard: &Guard,
        handed: &mut Handed,
    ) -> Result<Listeners, OpenError> {
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
        let bind = |address| guard.bind_tcp("server.tcp", address, handed);
        let tcp = listen.tcp.map(bind).transpose()?;
        Ok(Listeners { unix, tcp, made })
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        let unix = self.unix.iter().map(|(_, path)| format!("unix:{}", path.display()));
        let tcp = self.tcp.iter().filter_map(|listener| listener.local_addr().ok());
        unix.chain(tcp.map(|address| address.to_string())).collect()
    }
}

/// What a listener has to keep others from reading, and nobody from calling.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    pub(crate) tls: Option<Arc<Tls>>,
    /// Whether everybody has to show who they are.
    pub(crate) enforces: bool,
}

impl Guard {
    /// Listens on a loopback address, or on any where both are given.
    pub(crate) fn bind_tcp(
        &self,
        setting: &str,
        address: SocketAddr,
        handed: &mut Handed,
    ) -> Result<std::net::TcpListener, OpenError> {
        let is_guarded = self.tls.is_some() && self.enforces;
        if !is_guarded && !address.ip().is_loopback() {
            let message = format!(
                "{setting}: {address} can be reached from other hosts, which takes TLS \
                 ([server.tls]) and callers who show who they are ([access] mode = \"enforce\")"
            );
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
}

/// A listener beside the daemon's own, as its section describes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beside<'a> {
    /// What its section is called.
    pub(crate) section: &'a str,
    pub(crate) address: SocketAddr,
    /// Whether it has the TLS of the daemon's own listener.
    pub(crate) tls: bool,
}

impl Beside<'_> {
    /// Listens where it says.
    pub(crate) fn bind(
        self,
        guard: &Guard,
        handed: &mut Handed,
    ) -> Result<std::net::TcpListener, OpenError> {
        let Beside { section, address, tls } = self;
        if tls && guard.tls.is_none() {
            let message =
                format!("{section}.tls is true, and there is no [server.tls] to take it from");
            return Err(ConfigError::new(message).into());
        }
        let guard = Guard { tls: guard.tls.clone().filter(|_| tls), ..*guard };
        guard.bind_tcp(&format!("{section}.listen"), address, handed)
    }
}

/// Binds under another name, sets the mode, and only then takes the name: nobody ever connects with
/// the wrong mode. A socket that nobody listens on any more is replaced.
fn bind_unix(path: &Path, mode: u32) -> io::Result<std::os::unix::net::UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            let message = "another sidecar listens on it";
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
    pub(crate) places: Arc<Places>,
    pub(crate) tls: Option<Arc<Tls>>,
    /// Whether somebody is known by a control group.
    pub(crate) with_cgroups: bool,
}

impl Door {
    /// Accepts until the drain begins.
    pub(crate) fn open(mut self, draining: &watch::Receiver<bool>) {
        let unix =
            self.listeners.unix.take().and_then(|(unix, _)| UnixListener::from_std(unix).ok());
        let tcp = self.listeners.tcp.take().and_then(|tcp| TcpListener::from_std(tcp).ok());
        let door = Arc::new(self);
        if let Some(listener) = unix {
            let door = Arc::clone(&door);
            tokio::spawn(until(draining.clone(), async move { door.accept_unix(listener).await }));
        }
        if let Some(listener) = tcp {
            tokio::spawn(until(draining.clone(), async move { door.accept_tcp(listener).await }));
        }
    }

    async fn accept_unix(&self, listener: UnixListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                pause().await;
                continue;
            };
            let peer = Peer::of(&stream, self.with_cgroups);
            // One more than allowed is closed at once: its caller learns of it and does not wait.
            let user = Holder::User(peer.local.as_ref().map(|local| local.uid));
            let Some(taken) = self.places.take(user) else { continue };
            let Ok(stream) = stream.into_std() else { continue };
            hand_over(&self.lanes, StdSocket::Unix(stream, peer), taken).await;
        }
    }

    async fn accept_tcp(&self, listener: TcpListener) {
        loop {
            let Ok((stream, address)) = listener.accept().await else {
                pause().await;
                continue;
            };
            let Some(taken) = self.places.take(Holder::at(address)) else { continue };
            let _slower_without = stream.set_nodelay(true);
            let Ok(stream) = stream.into_std() else { continue };
            hand_over(&self.lanes, StdSocket::Tcp(stream, self.tls.clone()), taken).await;
        }
    }
}

/// Gives a connection to the thread that has the fewest.
async fn hand_over(lanes: &[Lane], socket: StdSocket, taken: Taken) {
    let lane = lanes.iter().min_by_key(|lane| lane.load.load(Ordering::Relaxed));
    let lane = lane.expect("there is at least one thread");
    let place = Place::new(&lane.load, taken);
    // A thread that has ended drops it, which closes it.
    let _taken = lane.sender.send(Accepted { socket, place }).await;
}

/// A connection's place: it counts against the maximum, and as its thread's load, while it lives.
pub(crate) struct Place {
    load: Arc<AtomicUsize>,
    taken: Taken,
}

impl Place {
    fn new(load: &Arc<AtomicUsize>, taken: Taken) -> Place {
        load.fetch_add(1, Ordering::Relaxed);
        Place { load: Arc::clone(load), taken }
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
    place: Place,
}

enum StdSocket {
    Unix(std::os::unix::net::UnixStream, Peer),
    Tcp(std::net::TcpStream, Option<Arc<Tls>>),
}

impl Accepted {
    /// Takes it into this thread's runtime.
    async fn adopt(self) -> io::Result<Connection> {
        let (socket, peer) = match self.socket {
            StdSocket::Unix(stream, peer) => (Socket::Unix(UnixStream::from_std(stream)?), peer),
            StdSocket::Tcp(stream, tls) => {
                Socket::of_tcp(TcpStream::from_std(stream)?, tls.as_ref(), Inside::Http2).await?
            }
        };
        let peer = Peer { calls: Arc::clone(&self.place.taken.calls), ..peer };
        let greeting = Greeting::default();
        Ok(Connection { socket, peer, greeting, _place: self.place })
    }
}

/// The connections of this thread, each once its handshake is over; none waits for another's.
pub(crate) fn adopted(mut accepted: mpsc::Receiver<Accepted>) -> mpsc::Receiver<Connection> {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Some(one) = accepted.recv().await {
            let sender = sender.clone();
            tokio::spawn(async move {
                if let Ok(connection) = one.adopt().await {
                    let _closes_it = sender.send(connection).await;
                }
            });
        }
    });
    receiver
}

/// Out of descriptors, most likely: the next try has to wait until some are closed.
pub(crate) async fn pause() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}
