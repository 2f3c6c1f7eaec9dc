//! The lease socket: who may have a lease, and what becomes of it when its process is gone.
//!
//! One thread waits for connections, requests, and the ends of processes, and runs the pump between.
//! Everything that a client sends is bounded and checked; a frame that is none ends its connection.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bursar_lease::channel::{accept, listen, path_beside, receive, send};
use bursar_lease::frame::{Answer, Attach, Counts, REQUEST_BYTES, Request};
use bursar_lease::peer::Peer as Credentials;
use bursar_ledger::lease::Counts as Counted;
use bursar_ledger::rates::Usage;
use bursar_ledger::{Channel, Observer, Owner, ReservationId, State, Unit};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use super::pump::{Pump, ROUND_MS};
use super::shared::SharedPages;
use crate::access::Access;
use crate::access::Act::Spend;
use crate::config::Listen;
use crate::convert;
use crate::engine::{Engine, OpenError};
use crate::error::ApiError;
use crate::handed::Handed;
use crate::metrics::Histogram;
use crate::peer::Peer;
use crate::places::{Holder, Places};
use crate::v1::ErrorReason;

/// What an event is about: the listener, the bell, else two numbers for each connection.
const LISTENER: u64 = 0;
const BELL: u64 = 1;
/// How long a connection that is closed waits for the end of its process, which mostly closed it.
const GRACE_MS: i64 = 1_000;
/// How much is done for one connection, and how many are accepted, before others have their turn.
const FRAMES: usize = 4;
const ACCEPTS: usize = 16;

/// The thread, and how to end it.
#[derive(Debug)]
pub(crate) struct Desk {
    /// The socket's file, where it was made here.
    made: Option<PathBuf>,
    bell: Arc<Bell>,
    figures: Arc<Figures>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the desk tells of itself.
#[derive(Debug)]
pub(crate) struct Figures {
    /// Leases that have not ended.
    pub(crate) open: Arc<Places>,
    pub(crate) connections: AtomicUsize,
    /// When the pump's next round is due, on the monotonic clock; `i64::MAX`: none is.
    pub(crate) due_ms: AtomicI64,
    /// How late its rounds began.
    pub(crate) lag: Histogram,
}

impl Desk {
    /// Opens the lease socket beside the daemon's own, or takes the one that was handed over.
    pub(crate) fn open(
        engine: &Arc<Engine>,
        access: &Arc<Access>,
        listen_on: &Listen,
        max_connections: usize,
        handed: &mut Handed,
    ) -> Result<Option<Desk>, OpenError> {
        let Some(path) = listen_on.unix.as_deref().map(path_beside) else { return Ok(None) };
        let given = handed.lease(&path)?;
        let made = given.is_none().then(|| path.clone());
        let run = || -> io::Result<Desk> {
            let listener = given.map_or_else(|| listen(&path, listen_on.unix_mode), Ok)?;
            let bell = Arc::new(Bell::new()?);
            let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            let figures = Arc::new(Figures {
                open: Places::new(engine.max_leases),
                connections: AtomicUsize::new(0),
                due_ms: AtomicI64::new(i64::MAX),
                lag: Histogram::default(),
            });
            let inside = Inside {
                engine: Arc::clone(engine),
                access: Arc::clone(access),
                pump: Pump::default(),
                figures: Arc::clone(&figures),
                connections: HashMap::new(),
                parted: VecDeque::new(),
                bell: Arc::clone(&bell),
                events,
                listener,
                next: 1,
                max_connections,
            };
            inside.watch(&inside.listener, LISTENER)?;
            inside.watch(&bell.fd, BELL)?;
            engine.ledger.observe(Arc::clone(&bell) as Arc<dyn Observer>);
            let thread = std::thread::Builder::new().name("bursar-lease".into());
            let thread = thread.spawn(move || inside.run())?;
            Ok(Desk { made, bell, figures, thread: Mutex::new(Some(thread)) })
        };
        let what = || format!("cannot listen on {}", path.display());
        run().map(Some).map_err(|error| OpenError::Io(what(), error))
    }

    /// What it tells of itself.
    pub(crate) fn figures(&self) -> Arc<Figures> {
        Arc::clone(&self.figures)
    }

    /// Counts everything once more and ends the thread. Clients go on within their grants.
    pub(crate) fn close(&self) {
        self.bell.closing.store(true, Ordering::Release);
        self.bell.ring();
        if let Some(thread) = self.thread.lock().take() {
            let _ended = thread.join();
            if let Some(path) = &self.made {
                let _removed = std::fs::remove_file(path);
            }
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.close();
    }
}

/// Wakes the thread while it waits for long.
#[derive(Debug)]
struct Bell {
    fd: OwnedFd,
    /// Whether a change of verdicts rings it.
    listens: AtomicBool,
    closing: AtomicBool,
}

impl Bell {
    fn new() -> io::Result<Bell> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Bell { fd, listens: AtomicBool::new(false), closing: AtomicBool::new(false) })
    }

    fn ring(&self) {
        let _rung = rustix::io::write(&self.fd, &1_u64.to_ne_bytes());
    }

    fn heard(&self) {
        let _count = rustix::io::read(&self.fd, &mut [0; 8]);
    }
}

impl Observer for Bell {
    fn verdicts_changed(&self) {
        if self.listens.swap(false, Ordering::AcqRel) {
            self.ring();
        }
    }

    fn ended(&self, _: Channel, _: ReservationId, _: State) {}
}

/// A client.
#[derive(Debug)]
struct Connection {
    /// Absent once it is closed.
    fd: Option<OwnedFd>,
    /// Whose it is.
    peer: Arc<Peer>,
    /// Readable when the process is gone.
    pidfd: Option<OwnedFd>,
    /// Its leases by number.
    leases: HashMap<u64, Held>,
}

/// A lease of a connection.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) reservation: ReservationId,
    /// Which of the reservation's leases it is.
    number: u32,
    pub(super) pages: Arc<SharedPages>,
}

struct Inside {
    engine: Arc<Engine>,
    access: Arc<Access>,
    pump: Pump,
    figures: Arc<Figures>,
    bell: Arc<Bell>,
    connections: HashMap<u64, Connection>,
    /// Those that are closed, with when they are forgotten.
    parted: VecDeque<(u64, i64)>,
    events: OwnedFd,
    listener: OwnedFd,
    /// The next number of a connection or a lease.
    next: u64,
    max_connections: usize,
}

impl Inside {
    fn watch(&self, fd: impl AsFd, what: u64) -> io::Result<()> {
        let data = epoll::EventData::new_u64(what);
        Ok(epoll::add(&self.events, fd, data, epoll::EventFlags::IN)?)
    }

    fn run(mut self) {
        let mut buffer = Vec::with_capacity(64);
        let mut last = self.engine.now().mono_ms;
        // What is left when a round is due is told again by the next wait.
        let is_due = |inside: &Inside, last: i64| {
            inside.pace_ms().is_some_and(|pace| inside.engine.now().mono_ms >= last + pace)
        };
        loop {
            let due_ms = self.pace_ms().map(|pace| last + pace);
            self.figures.due_ms.store(due_ms.unwrap_or(i64::MAX), Ordering::Relaxed);
            self.figures.connections.store(self.connections.len(), Ordering::Relaxed);
            let wait_ms = due_ms.map(|due| (due - self.engine.now().mono_ms).max(0));
            let timeout = wait_ms.map(|ms| Timespec { tv_sec: 0, tv_nsec: ms * 1_000_000 });
            buffer.clear();
            let room = rustix::buffer::spare_capacity(&mut buffer);
            let waited = epoll::wait(&self.events, room, timeout.as_ref());
            if waited.is_err_and(|error| error != rustix::io::Errno::INTR) {
                return;
            }
            for event in &buffer {
                match event.data.u64() {
                    LISTENER => self.accept(),
                    BELL => self.bell.heard(),
                    number if number % 2 == 0 => self.serve(number / 2),
                    number => self.process_gone(number / 2),
                }
                if is_due(&self, last) {
                    break;
                }
            }
            let is_closing = self.bell.closing.load(Ordering::Acquire);
            if is_closing || is_due(&self, last) {
                last = self.engine.now().mono_ms;
                let late_ms = due_ms.map_or(0, |due| (last - due).max(0).unsigned_abs());
                self.figures.lag.record(late_ms * 1_000_000);
                self.pump.round(&self.engine);
                self.forget_parted();
            }
            if is_closing {
                return;
            }
        }
    }

    /// How long after the last round the next one is due.
    fn pace_ms(&self) -> Option<i64> {
        let pace = self.pump.pace_ms();
        // Asked before the pump is: who changes a verdict after that rings.
        self.bell.listens.swap(pace.is_some_and(|pace| pace > ROUND_MS), Ordering::AcqRel);
        let hurries =
            !self.parted.is_empty() || pace.is_some() && self.pump.is_behind(&self.engine);
        if hurries { Some(ROUND_MS) } else { pace }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            let fd = match accept(&self.listener) {
                Ok(fd) => fd,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Out of descriptors, most likely: the next try has to wait until some are closed.
                Err(_) => {
                    return std::thread::sleep(Duration::from_millis(ROUND_MS.unsigned_abs()));
                }
            };
            let Ok(credentials) = Credentials::of(&fd) else { continue };
            if self.connections.len() >= self.max_connections && !self.make_room() {
                continue;
            }
            let peer = Peer::from_credentials(&credentials, self.access.knows_cgroups());
            let number = self.next;
            self.next += 1;
            let watched = self.watch(&fd, number * 2);
            let watched = match &credentials.pidfd {
                Some(pidfd) => watched.and_then(|()| self.watch(pidfd, number * 2 + 1)),
                None => watched,
            };
            if watched.is_ok() {
                let (peer, pidfd) = (Arc::new(peer), credentials.pidfd);
                let connection = Connection { fd: Some(fd), peer, pidfd, leases: HashMap::new() };
                self.connections.insert(number, connection);
            }
        }
    }

    /// Closes the connection that has been without a lease for longest, if there is one: nobody keeps
    /// others out by saying nothing.
    fn make_room(&mut self) -> bool {
        let idle = self.connections.iter().filter(|(_, one)| one.leases.is_empty());
        let oldest = idle.map(|(number, _)| *number).min();
        oldest.is_some_and(|number| self.connections.remove(&number).is_some())
    }

    /// Answers what a connection has sent.
    fn serve(&mut self, number: u64) {
        for _ in 0..FRAMES {
            let connection = self.connections.get(&number);
            let Some(fd) = connection.and_then(|connection| connection.fd.as_ref()) else { return };
            let mut bytes = [0; REQUEST_BYTES + 1];
            let received = match receive(fd, &mut bytes) {
                Ok((length, _closed)) => Request::decode(&bytes[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.part(number),
            };
            let Ok((request, tag)) = received else { return self.part(number) };
            let sent = match request {
                Request::Attach(attach) => self.attach(number, &attach, tag),
                Request::Detach { lease } => self.detach(number, lease, tag),
            };
            if sent.is_err() {
                return self.part(number);
            }
        }
    }

    fn attach(&mut self, number: u64, attach: &Attach, tag: u64) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
        let Some(fd) = &connection.fd else { return Ok(()) };
        let lease = self.next;
        let (engine, access) = (&self.engine, &self.access);
        let peer = Arc::clone(&connection.peer);
        let may_use = || {
            let caller = access.by_peer(&peer, engine.now().wall_ms)?;
            caller.may_use(Spend, engine, &attach.reservation)
        };
        let opened = open(engine, &self.figures.open, peer.owner, attach, may_use);
        let (answer, opened) = match opened {
            Ok(opened) => (Answer { lease, ..opened.answer.clone() }, Some(opened)),
            Err(error) => (refusal(&error), None),
        };
        let fds =
            opened.as_ref().map(|opened| [opened.fds.usage.as_fd(), opened.fds.control.as_fd()]);
        let fds = fds.as_ref().map_or(&[][..], |fds| &fds[..]);
        let sent = send(fd, &answer.encode(tag), fds);
        if let Some(opened) = opened {
            self.next += 1;
            // Now and then, so that what has ended takes no room.
            if connection.leases.len() == connection.leases.capacity() {
                connection.leases.retain(|_, held| !held.pages.has_ended());
            }
            self.pump.add(opened.held.reservation, Arc::clone(&opened.held.pages));
            connection.leases.insert(lease, opened.held);
        }
        sent
    }

    fn detach(&mut self, number: u64, lease: u64, tag: u64) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(&number) else { return Ok(()) };
        let Some(fd) = &connection.fd else { return Ok(()) };
        let mut answer = Answer::default();
        if let Some(held) = connection.leases.remove(&lease)
            && !held.pages.has_ended()
        {
            let detached = self.engine.ledger.detach(held.reservation, self.engine.now());
            answer.used = bursar_lease::pages::count(detached.ok().flatten().unwrap_or(0));
            self.engine.write();
        }
        send(fd, &answer.encode(tag), &[])
    }

    /// A connection is closed: its leases end at what they counted, and their reservations wait for
    /// the end of the process or of their time to live.
    fn part(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.fd = None;
        for held in connection.leases.values().filter(|held| !held.pages.has_ended()) {
            let _used = self.engine.ledger.detach(held.reservation, self.engine.now());
        }
        if connection.leases.is_empty() || connection.pidfd.is_none() {
            self.connections.remove(&number);
        } else {
            self.parted.push_back((number, self.engine.now().mono_ms + GRACE_MS));
        }
    }

    /// A process is gone: what it has leased is settled at what it has used (R7, R9).
    fn process_gone(&mut self, number: u64) {
        let Some(connection) = self.connections.remove(&number) else { return };
        for Held { reservation, number, .. } in connection.leases.into_values() {
            let _settled = self.engine.ledger.abandon(reservation, number, self.engine.now());
        }
        self.engine.write();
    }

    fn forget_parted(&mut self) {
        let now_ms = self.engine.now().mono_ms;
        while let Some((number, until)) = self.parted.front()
            && *until <= now_ms
        {
            self.connections.remove(number);
            self.parted.pop_front();
        }
    }
}

/// A lease that was opened.
pub(super) struct Opened {
    pub(super) answer: Answer,
    pub(super) held: Held,
    pub(super) fds: bursar_lease::pages::PageFds,
}

pub(super) fn open(
    engine: &Engine,
    open: &Arc<Places>,
    owner: Option<Owner>,
    attach: &Attach,
    may_use: impl FnOnce() -> Result<(), ApiError>,
) -> Result<Opened, ApiError> {
    engine.check_open()?;
    let reservation = convert::parse_reservation_id(engine.store_id, &attach.reservation)?;
    if !engine.ledger.may_attach(reservation, owner)? {
        may_use()?;
    }
    let no_memory = |error| ApiError::new(ErrorReason::LeaseLimitReached, format!("{error}"));
    let (account, _) = engine.ledger.account_and_label(reservation, "")?;
    let place = open.take(Holder::sharing(&account)).ok_or_else(|| {
        let message = format!("the maximum of {} leases is reached", engine.max_leases);
        let error = ApiError::new(ErrorReason::LeaseLimitReached, message);
        error.with("max", engine.max_leases.to_string())
    })?;
    let (pages, fds) = SharedPages::create(place).map_err(no_memory)?;
    let pages = Arc::new(pages);
    let ask = bursar_ledger::lease::Attach {
        pages: Arc::clone(&pages) as _,
        counts: counts(&attach.counts)?,
        claim: i64::try_from(attach.claim).unwrap_or(i64::MAX),
        ahead: attach.ahead.max(0),
        at_most: attach.at_most.max(0),
        owner,
    };
    let leased = engine.ledger.attach(reservation, ask, engine.now())?;
    let count = bursar_lease::pages::count;
    let answer =
        Answer { used: count(leased.used), granted: count(leased.granted), ..Answer::default() };
    let held = Held { reservation, number: leased.number, pages };
    Ok(Opened { answer, held, fds })
}

fn counts(counts: &Counts) -> Result<Counted, ApiError> {
    match *counts {
        Counts::Output { input_tokens, cached_input_tokens, cache_write_tokens, gpu_ms } => {
            Ok(Counted::Output(Usage {
                input_tokens,
                cached_input_tokens,
                cache_write_tokens,
                output_tokens: 0,
                gpu_ms,
                calls: 1,
            }))
        }
        Counts::Unit(index) => {
            let unit = Unit::ALL.get(usize::from(index)).filter(|unit| !unit.is_capacity());
            let message = "is not the index of a unit that is spent";
            unit.map(|unit| Counted::Unit(*unit)).ok_or_else(|| ApiError::field("unit", message))
        }
    }
}

fn refusal(error: &ApiError) -> Answer {
    let status = u16::try_from(i32::from(error.reason)).unwrap_or(u16::MAX);
    Answer { status, message: error.message.clone(), ..Answer::default() }
}
