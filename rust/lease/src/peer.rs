//! Who is at the other end of a Unix socket, as the kernel says.
//!
//! Contains `unsafe`: `getsockopt` for three options. (rustix has no `SO_PEERPIDFD` and no
//! `SO_PEERGROUPS`, and its `SO_PEERCRED` cannot say that the peer's pid is invisible.)

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The process that connected.
#[derive(Debug)]
pub struct Peer {
    /// Its pid; absent where it lives in a pid namespace that we cannot see into.
    pub pid: Option<i32>,
    /// Its user.
    pub uid: u32,
    /// Its groups, the primary one first.
    pub groups: Vec<u32>,
    /// Becomes readable when it ends; absent without a pid.
    pub pidfd: Option<OwnedFd>,
    /// Whether the socket itself gave the pidfd.
    is_exact: bool,
}

impl Peer {
    /// The peer of a connected socket.
    pub fn of(socket: impl AsFd) -> io::Result<Peer> {
        let socket = socket.as_fd();
        let credentials: libc::ucred = option(socket, libc::SO_PEERCRED)?;
        let pid = Some(credentials.pid).filter(|pid| *pid > 0);
        let exact = pid.and_then(|_| exact_pidfd(socket));
        let is_exact = exact.is_some();
        let pidfd = exact.or_else(|| pidfd_open(Pid::from_raw(pid?)?, PidfdFlags::empty()).ok());
        let mut groups = vec![credentials.gid];
        groups.extend(supplementary_groups(socket).unwrap_or_default());
        Ok(Peer { pid, uid: credentials.uid, groups, pidfd, is_exact })
    }

    /// Its pidfd, where it surely is of the process that connected (Linux 6.5). Elsewhere it was made
    /// of the pid, which may by then be another process: its start time tells (see the callers).
    pub fn exact_pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().filter(|_| self.is_exact).map(OwnedFd::as_fd)
    }
}

/// The peer's pidfd, from the socket itself.
fn exact_pidfd(socket: BorrowedFd<'_>) -> Option<OwnedFd> {
    let raw = option::<libc::c_int>(socket, libc::SO_PEERPIDFD).ok()?;
    #[expect(unsafe_code, reason = "JUSTIFICATION: the option's value is a descriptor")]
    // SAFETY: the kernel has just made the descriptor for us, and nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(raw) };
    Some(pidfd)
}

/// The peer's groups beside its primary one (Linux 4.13).
fn supplementary_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 32];
    loop {
        let bytes = size_of_val(groups.as_slice());
        let mut length = libc::socklen_t::try_from(bytes).expect("the kernel has 65,536 at most");
        let (raw, at) = (socket.as_raw_fd(), groups.as_mut_ptr().cast());
        #[expect(unsafe_code, reason = "JUSTIFICATION: no safe wrapper has this option")]
        // SAFETY: `at` and `length` are those of `groups`, which outlives the call; any bytes are ids.
        let failed = unsafe {
            libc::getsockopt(raw, libc::SOL_SOCKET, libc::SO_PEERGROUPS, at, &raw mut length) != 0
        };
        let error = io::Error::last_os_error();
        if failed && error.raw_os_error() != Some(libc::ERANGE) {
            return Err(error);
        }
        // How many there are, also where they did not fit.
        groups.resize(usize::try_from(length).unwrap_or(0) / size_of::<u32>(), 0);
        if !failed {
            return Ok(groups);
        }
    }
}

/// The types that the options used here have: any bytes are values of them.
trait Plain: Copy {}
impl Plain for libc::c_int {}
impl Plain for libc::ucred {}

fn option<T: Plain>(socket: BorrowedFd<'_>, name: libc::c_int) -> io::Result<T> {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<T>()).expect("a few bytes");
    let (raw, at) = (socket.as_raw_fd(), value.as_mut_ptr().cast());
    #[expect(unsafe_code, reason = "JUSTIFICATION: no safe wrapper has these options")]
    // SAFETY: `at` and `length` are those of `value`, which outlives the call; all zero bytes are a
    // value of a `Plain` type, and so is whatever the kernel writes.
    let value = unsafe {
        if libc::getsockopt(raw, libc::SOL_SOCKET, name, at, &raw mut length) != 0 {
            return Err(io::Error::last_os_error());
        }
        value.assume_init()
    };
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_in_this_process_is_this_process() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let peer = Peer::of(&one).expect("a Unix socket has a peer");
        assert_eq!(peer.pid.map(i32::unsigned_abs), Some(std::process::id()));
        assert_eq!(peer.uid, rustix::process::getuid().as_raw());
        let own = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let own = own.lines().find_map(|line| line.strip_prefix("Groups:")).expect("its groups");
        let own = own.split_whitespace().map(|group| group.parse().expect("an id"));
        let primary = rustix::process::getgid().as_raw();
        assert_eq!(peer.groups, [primary].into_iter().chain(own).collect::<Vec<u32>>());
        assert!(peer.pidfd.is_some());
    }
}
