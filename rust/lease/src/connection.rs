//! This process's connection to one daemon's lease socket, shared by all its leases.
//!
//! A thread waits for the daemon's end and then attaches every lease again, as soon as a daemon
//! listens anew. It ends with the last lease.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;
use std::{io, thread};

use parking_lot::{Mutex, MutexGuard};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::Shutdown;

use crate::channel::{connect, receive, send};
use crate::client::{Shared, Unattached};
use crate::fork;
use crate::frame::{ANSWER_BYTES, Answer, Request};
use crate::pages::PageFds;

/// Pauses between attempts to reach a daemon that is away: they double from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));
/// How often a request is sent that the daemon cannot have got, a pause apart.
const SENDS: u32 = 4;
/// How long a daemon may take for one answer.
const ANSWER_WAIT: rustix::time::Timespec = rustix::time::Timespec { tv_sec: 5, tv_nsec: 0 };

/// The connections of this process by fork generation and path: a child makes its own.
static CONNECTIONS: LazyLock<Mutex<Connections>> = LazyLock::new(Mutex::default);

type Connections = HashMap<(u32, PathBuf), Weak<Connection>>;

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    path: PathBuf,
    /// Locked for a request and its answer.
    socket: Mutex<Socket>,
    leases: Mutex<Vec<Weak<Shared>>>,
    /// How many daemons it has reached, one after the other.
    daemons: AtomicU64,
    /// The fork generation that it belongs to.
    generation: u32,
}

#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    /// The number of the daemon at its other end.
    daemon: u64,
    /// Rises with every request, and names its answer.
    tag: u64,
}

impl Connection {
    /// The connection to this socket; made if there is none.
    pub(crate) fn to(path: &Path) -> io::Result<Arc<Connection>> {
        fork::watch();
        let mut connections = CONNECTIONS.lock();
        let generation = fork::generation();
        let name = (generation, path.to_owned());
        if let Some(connection) = connections.get(&name).and_then(Weak::upgrade) {
            return Ok(connection);
        }
        let fd = connect(path)?;
        let watched = fd.try_clone()?;
        let connection = Arc::new(Connection {
            path: path.to_owned(),
            socket: Mutex::new(Socket { fd, daemon: 1, tag: 0 }),
            leases: Mutex::default(),
            daemons: AtomicU64::new(1),
            generation,
        });
        let weak = Arc::downgrade(&connection);
        let watch = thread::Builder::new().name("bursar-lease".into()).stack_size(256 << 10);
        watch.spawn(move || watch_over(watched, &weak))?;
        connections.retain(|_, connection| connection.strong_count() > 0);
        connections.insert(name, Arc::downgrade(&connection));
        Ok(connection)
    }

    /// Attaches `lease` whenever the daemon is new.
    pub(crate) fn add(&self, lease: &Arc<Shared>) {
        let mut leases = self.leases.lock();
        // Now and then, so that a process of many short leases keeps no list of all of them.
        if leases.len() == leases.capacity() {
            leases.retain(|lease| lease.strong_count() > 0);
        }
        leases.push(Arc::downgrade(lease));
    }

    /// Sends a request and returns the answer, with the pages if it brings some, and the number of
    /// the daemon that gave it. `only`: no other daemon is asked.
    pub(crate) fn ask(
        &self,
        request: &Request,
        only: Option<u64>,
    ) -> Result<(Answer, Option<PageFds>, u64), Unattached> {
        let socket = self.send(request, only)?;
        loop {
            let waited = poll(&mut [PollFd::new(&socket.fd, PollFlags::IN)], Some(&ANSWER_WAIT));
            if waited.map_err(|error| Unattached::Away(error.into()))? == 0 {
                return Err(Unattached::Away(io::ErrorKind::TimedOut.into()));
            }
            let mut bytes = [0; ANSWER_BYTES];
            let (length, mut fds) = receive(&socket.fd, &mut bytes).map_err(Unattached::Away)?;
            if length == 0 {
                return Err(Unattached::Away(io::ErrorKind::UnexpectedEof.into()));
            }
            let answer = Answer::decode(&bytes[..length]);
            let (answer, tag) = answer.map_err(|error| Unattached::local(&error))?;
            // An answer that came too late for its own request is not ours.
            if tag == socket.tag {
                let (control, usage) = (fds.pop(), fds.pop());
                let pages = usage.zip(control).map(|(usage, control)| PageFds { usage, control });
                return Ok((answer, pages, socket.daemon));
            }
        }
    }

    /// Sends a request, to the next daemon where the one that was reached has gone: the thread that
    /// watches finds it, and of what could not be sent nothing has arrived.
    fn send(
        &self,
        request: &Request,
        only: Option<u64>,
    ) -> Result<MutexGuard<'_, Socket>, Unattached> {
        let mut tries = if only.is_none() { SENDS } else { 1 };
        loop {
            let mut socket = self.socket.lock();
            if only.is_some_and(|only| only != socket.daemon) {
                return Err(Unattached::Away(io::ErrorKind::NotConnected.into()));
            }
            socket.tag += 1;
            let frame = request.encode(socket.tag).map_err(|error| Unattached::local(&error))?;
            tries -= 1;
            match send(&socket.fd, &frame, &[]) {
                Ok(()) => return Ok(socket),
                Err(error) if tries == 0 => return Err(Unattached::Away(error)),
                Err(_) => {}
            }
            drop(socket);
            thread::sleep(PAUSES.1);
        }
    }

    /// The number of the daemon that it has reached last.
    pub(crate) fn daemon(&self) -> u64 {
        self.daemons.load(Ordering::Acquire)
    }

    /// Attaches every lease to the daemon that listens now.
    fn attach_again(&self, fd: OwnedFd) -> io::Result<OwnedFd> {
        let watched = fd.try_clone()?;
        {
            let mut socket = self.socket.lock();
            (socket.fd, socket.daemon) = (fd, socket.daemon + 1);
            // Before the list is read: a lease that is added after that sees the new number itself.
            self.daemons.store(socket.daemon, Ordering::Release);
        }
        let leases: Vec<_> = self.leases.lock().iter().filter_map(Weak::upgrade).collect();
        for lease in leases {
            while let Err(error) = lease.attach_again(self) {
                if error.kind() != io::ErrorKind::Other {
                    return Err(error);
                }
                // Refused for now. Another connection would end what is attached by this one.
                thread::sleep(PAUSES.1);
            }
        }
        Ok(watched)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Ends the wait of the thread that watches, which finds nobody to attach for. A forked child
        // has the socket as well, and it is not its own to end.
        if self.generation == fork::generation() {
            let _ended = rustix::net::shutdown(&self.socket.get_mut().fd, Shutdown::Both);
        }
    }
}

/// Waits until the daemon is gone, reaches the next one, attaches; until nobody needs it any more.
fn watch_over(mut fd: OwnedFd, connection: &Weak<Connection>) {
    let (first, last) = PAUSES;
    loop {
        let mut gone = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::RDHUP)];
        if poll(&mut gone, None).is_err_and(|error| error != rustix::io::Errno::INTR) {
            return;
        }
        if gone[0].revents().is_empty() {
            continue;
        }
        let mut pause = first;
        loop {
            let Some(connection) = connection.upgrade() else { return };
            let again = connect(&connection.path).and_then(|new| connection.attach_again(new));
            drop(connection);
            match again {
                Ok(watched) => {
                    fd = watched;
                    break;
                }
                Err(_) => thread::sleep(pause),
            }
            pause = (pause * 2).min(last);
        }
    }
}
