//! Who is at the other end of a connection, as the kernel or TLS says.
//!
//! Never says what anybody may do: that is `access`.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use bursar_lease::peer::Peer as Credentials;
use bursar_ledger::Owner;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::certificate::Certificate;
use crate::owner;

/// What a connection tells of its other end; nothing by TCP without a certificate.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peer {
    /// The process, where the socket tells it (see `owner`).
    pub(crate) owner: Option<Owner>,
    pub(crate) local: Option<Local>,
    pub(crate) certificate: Option<Arc<Certificate>>,
    /// How many calls its user or address has under way.
    pub(crate) calls: Arc<AtomicUsize>,
}

/// A process on this host, by the Unix socket.
#[derive(Debug, Clone)]
pub(crate) struct Local {
    pub(crate) uid: u32,
    pub(crate) groups: Arc<[u32]>,
    /// What its calls go by.
    pub(crate) name: Arc<str>,
    /// The path of its control group when it connected, where that was asked for.
    pub(crate) cgroup: Option<Arc<str>>,
}

impl Local {
    pub(crate) fn new(uid: u32, groups: &[u32], cgroup: Option<Arc<str>>) -> Local {
        Local { uid, groups: groups.into(), name: format!("user {uid}").into(), cgroup }
    }
}

impl Peer {
    /// The peer of a Unix socket.
    pub(crate) fn of(socket: impl AsFd, with_cgroup: bool) -> Peer {
        match Credentials::of(socket) {
            Ok(credentials) => Peer::from_credentials(&credentials, with_cgroup),
            Err(_) => Peer::default(),
        }
    }

    pub(crate) fn from_credentials(credentials: &Credentials, with_cgroup: bool) -> Peer {
        let Credentials { pid, uid, .. } = *credentials;
        let cgroup = || cgroup(pid?, credentials.exact_pidfd()?);
        // As long as it lives its pid is its own: what was read before it was seen alive is of it.
        let seen = pid.and_then(|pid| owner::identify(pid, uid));
        let is_it = |_: &Owner| credentials.exact_pidfd().is_none_or(lives);
        Peer {
            owner: seen.filter(is_it),
            local: Some(Local::new(uid, &credentials.groups, with_cgroup.then(cgroup).flatten())),
            ..Peer::default()
        }
    }
}

/// Whether this kernel tells surely which process has connected.
pub(crate) fn knows_cgroups() -> bool {
    let pair = std::os::unix::net::UnixStream::pair();
    let peer = pair.and_then(|(one, _other)| Credentials::of(&one));
    peer.is_ok_and(|peer| peer.exact_pidfd().is_some())
}

/// The control group (version 2) of a process that has not ended.
fn cgroup(pid: i32, pidfd: BorrowedFd<'_>) -> Option<Arc<str>> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).filter(|_| lives(pidfd)).map(Arc::from)
}

fn lives(pidfd: BorrowedFd<'_>) -> bool {
    let mut ended = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut ended, Some(&at_once)).is_ok_and(|count| count == 0)
}

/// Whether a control group is another, or below it.
pub(crate) fn is_in_cgroup(cgroup: &str, ancestor: &str) -> bool {
    let rest = cgroup.strip_prefix(ancestor.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_in_its_own_control_group_and_those_above() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let peer = Peer::of(&one, true);
        let own = fs::read_to_string("/proc/self/cgroup").expect("Linux");
        let own = own.lines().find_map(|line| line.strip_prefix("0::")).map(Arc::from);
        assert_eq!(peer.local.and_then(|local| local.cgroup), own);
        assert_eq!(Peer::of(&one, false).local.and_then(|local| local.cgroup), None);
        for (cgroup, ancestor, is) in [
            ("/a.slice/b", "/a.slice", true),
            ("/a.slice", "/a.slice", true),
            ("/a.slice", "/a.slice/", true),
            ("/a.slice", "/", true),
            ("/a.slices", "/a.slice", false),
            ("/a", "/a.slice", false),
            ("/../a.slice", "/a.slice", false),
        ] {
            assert_eq!(is_in_cgroup(cgroup, ancestor), is, "{cgroup} in {ancestor}");
        }
    }
}
