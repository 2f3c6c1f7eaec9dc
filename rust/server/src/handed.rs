//! Listeners that a service manager hands over, found by what the configuration calls them.
//!
//! systemd's socket activation: the manager listens, also while no daemon runs, so that callers wait
//! instead of failing, and the files are its own: the daemon neither makes nor removes them. A socket
//! is known by its address, so that there are no names to keep in step. One that the configuration
//! does not name is an error: its callers would wait for ever.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::net::{SocketAddrAny, SocketAddrUnix, SocketType, getsockname, sockopt};

use crate::config::ConfigError;
use crate::engine::OpenError;

/// What has not been asked for yet.
pub(crate) struct Handed(Vec<(Address, OwnedFd)>);

#[derive(PartialEq)]
enum Address {
    Unix(PathBuf, SocketType),
    Tcp(SocketAddr),
}

impl Address {
    /// Whether they are in one place; what is spoken there may differ.
    fn is_where(&self, other: &Address) -> bool {
        match (self, other) {
            (Address::Unix(one, _), Address::Unix(two, _)) => one == two,
            _ => self == other,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path, SocketType::SEQPACKET) => {
                write!(to, "{} (sequential packets)", path.display())
            }
            Address::Unix(path, _) => write!(to, "{} (a stream)", path.display()),
            Address::Tcp(address) => address.fmt(to),
        }
    }
}

impl Handed {
    /// Takes what was handed to this process; nothing where nobody did.
    pub(crate) fn take() -> Result<Handed, OpenError> {
        let taken = bursar_lease::handed::take().and_then(|sockets| {
            sockets.into_iter().map(|socket| Ok((address_of(&socket)?, socket))).collect()
        });
        let what = || "a socket that the service manager hands over".into();
        taken.map(Handed).map_err(|error| OpenError::Io(what(), error))
    }

    /// The daemon's own socket.
    pub(crate) fn unix(
        &mut self,
        path: &Path,
    ) -> Result<Option<std::os::unix::net::UnixListener>, OpenError> {
        Ok(self.find(&Address::Unix(real(path), SocketType::STREAM))?.map(Into::into))
    }

    /// The lease socket.
    pub(crate) fn lease(&mut self, path: &Path) -> Result<Option<OwnedFd>, OpenError> {
        self.find(&Address::Unix(real(path), SocketType::SEQPACKET))
    }

    pub(crate) fn tcp(
        &mut self,
        address: SocketAddr,
    ) -> Result<Option<std::net::TcpListener>, OpenError> {
        Ok(self.find(&Address::Tcp(address))?.map(Into::into))
    }

    /// Refuses what nobody has asked for.
    pub(crate) fn nothing_is_left(self) -> Result<(), OpenError> {
        let Some((address, _)) = self.0.first() else { return Ok(()) };
        let message = format!(
            "the service manager listens on {address}, which the configuration does not name: take \
             it out of the .socket unit, or set server.socket, server.tcp, proxy.listen or \
             dashboard.listen to it (leases have ListenSequentialPacket= and server.socket with \
             \".lease\" behind it)"
        );
        Err(ConfigError::new(message).into())
    }

    fn find(&mut self, address: &Address) -> Result<Option<OwnedFd>, OpenError> {
        let Some(at) = self.0.iter().position(|(one, _)| one.is_where(address)) else {
            return Ok(None);
        };
        if self.0[at].0 != *address {
            let message = format!("the service manager hands over {}, not {address}", self.0[at].0);
            return Err(ConfigError::new(message).into());
        }
        let (_, socket) = self.0.swap_remove(at);
        let ready = rustix::io::ioctl_fionbio(&socket, true);
        ready
            .map_err(|error| OpenError::Io(format!("cannot listen on {address}"), error.into()))?;
        Ok(Some(socket))
    }
}

fn address_of(socket: &OwnedFd) -> io::Result<Address> {
    let kind = sockopt::socket_type(socket)?;
    if !sockopt::socket_acceptconn(socket)? {
        let message = "it does not listen; write ListenStream= or ListenSequentialPacket=, and \
                       leave Accept=no as it is";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let name: SocketAddrAny = getsockname(socket)?;
    if let Ok(address) = SocketAddr::try_from(name.clone()) {
        return Ok(Address::Tcp(address));
    }
    let unix = SocketAddrUnix::try_from(name)?;
    let path = unix.path_bytes().map(|bytes| PathBuf::from(std::ffi::OsStr::from_bytes(bytes)));
    let message = "it has no path; write ListenStream=/run/bursar/bursar.sock";
    let path = path.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, message))?;
    Ok(Address::Unix(real(&path), kind))
}

/// The same for every name of a file: /var/run is mostly another one of /run.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
