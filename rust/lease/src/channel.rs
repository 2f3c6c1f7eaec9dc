//! The lease socket: a Unix socket of type SEQPACKET, one frame a message, descriptors beside it.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, chmod, fchmod, unlink};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::layout::SOCKET_SUFFIX;

/// How many connections wait to be accepted.
const BACKLOG: i32 = 128;
/// The most descriptors that one message carries.
const FDS: usize = 2;

/// The lease socket's path beside the daemon's own.
pub fn path_beside(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(SOCKET_SUFFIX);
    name.into()
}

fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Listens; a socket that is at the path is replaced. The mode is never wider than `mode`, at no
/// moment.
pub fn listen(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let listener = socket(SocketFlags::NONBLOCK)?;
    let mode = Mode::from_raw_mode(mode);
    fchmod(&listener, mode)?;
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => unlink(path)?,
        Ok(_) => {
            let message = "a file is in the way that is not a socket";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    rustix::net::bind(&listener, &SocketAddrUnix::new(path)?)?;
    chmod(path, mode)?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// The next connection; none waiting is `WouldBlock`.
pub fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::accept_with(listener, flags)?)
}

/// Connects; blocks on sends and receives.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let connection = socket(SocketFlags::empty())?;
    rustix::net::connect(&connection, &SocketAddrUnix::new(path)?)?;
    Ok(connection)
}

/// Sends one frame, with descriptors or without.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        let fits = beside.push(SendAncillaryMessage::ScmRights(fds));
        debug_assert!(fits, "at most {FDS} descriptors");
    }
    let parts = [io::IoSlice::new(bytes)];
    let sent = rustix::net::sendmsg(socket, &parts, &mut beside, SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives one frame into `bytes`; 0: the other end is gone. Descriptors come back in their order;
/// those that are not expected are closed.
pub fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [io::IoSliceMut::new(bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket.as_fd(), &mut parts, &mut beside, flags)
    })?;
    let fds = beside.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = fds.flatten().collect();
    Ok((received.bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_descriptors_arrive_in_one_piece() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = path_beside(&folder.path().join("bursar.sock"));
        let listener = listen(&path, 0o600).expect("a socket");
        assert_eq!(accept(&listener).expect_err("nobody").kind(), io::ErrorKind::WouldBlock);
        let client = connect(&path).expect("it listens");
        let server = accept(&listener).expect("somebody");
        send(&server, b"two words", &[client.as_fd(), server.as_fd()]).expect("sent");
        let mut bytes = [0; 64];
        let (length, fds) = receive(&client, &mut bytes).expect("received");
        assert_eq!((&bytes[..length], fds.len()), (&b"two words"[..], 2));
        drop((server, fds));
        assert_eq!(receive(&client, &mut bytes).expect("the end").0, 0);
    }

    #[test]
    fn a_socket_that_nobody_listens_on_is_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        drop(listen(&path, 0o600).expect("a socket"));
        let _again = listen(&path, 0o600).expect("replaced");
        assert!(connect(&path).is_ok());
    }
}
