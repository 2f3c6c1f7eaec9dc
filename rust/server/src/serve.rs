//! Sockets, threads and the drain.
//!
//! The data plane is thread-per-core: the first runtime thread accepts, hands each connection to the
//! thread that has the fewest, and that one keeps it; the threads share nothing but the engine. (Were
//! all to accept, the one that is awake would take nearly everything.)

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::access::Access;
use crate::config::{Config, ConfigError, Listen};
use crate::engine::{Engine, OpenError};
use crate::envoy::{self, EnvoySection, RateLimitServiceServer, RateLimits};
use crate::grpc::Api;
use crate::handed::Handed;
use crate::health;
use crate::intake::{Bounded, Room};
use crate::lease::Desk;
use crate::listen::{Accepted, Door, Guard, Lane, Listeners, adopted, until};
use crate::metrics::{Counted, Descriptors, Receivers, Timed};
use crate::others::{Addresses, Others};
use crate::places::Places;
use crate::process::Processes;
use crate::tls::Tls;
use crate::v1::access_service_server::AccessServiceServer;
use crate::v1::account_service_server::AccountServiceServer;
use crate::v1::ledger_service_server::LedgerServiceServer;
use crate::v1::process_service_server::ProcessServiceServer;

/// A silent connection is asked for a sign of life this often, and closed without one.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// Descriptors that connections leave to the store, the runtime and the sockets.
const OWN_DESCRIPTORS: usize = 128;
/// How long what a token holds outlives it, at the most and about.
const END_RESERVED: Duration = Duration::from_millis(500);
/// Threads for calls that read the disk, walk the accounts or count tokens, of each kind two at a time,
/// and for those that do something.
const ASIDE_THREADS: usize = 8;
/// How far the data plane goes before other programs, where the system allows it: who waits for a
/// decision waits for nothing else.
const AHEAD: i32 = 10;

/// A daemon that runs.
#[derive(Debug)]
pub struct Running {
    engine: Arc<Engine>,
    desk: Option<Desk>,
    processes: Arc<Processes>,
    places: Arc<Places>,
    addresses: Vec<String>,
    others: Addresses,
    /// The socket's file, where it was made here.
    unix: Option<PathBuf>,
    tls: Option<Arc<Tls>>,
    /// What is told of descriptors that no rule fits, if there are rules.
    descriptors: Option<Arc<Descriptors>>,
    receivers: Arc<Receivers>,
    drain: watch::Sender<bool>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    drain_timeout: Duration,
}

/// Opens the engine and serves it until [`Running::shutdown`].
pub fn serve(config: Config) -> Result<Running, OpenError> {
    let listen = config.listen.clone();
    let listen = listen.ok_or_else(|| ConfigError::new("listen: is missing"))?;
    refuse_core_files();
    // Who first touches a huge page waits while it is cleared, milliseconds where memory is slow.
    let _where_there_are_any = rustix::thread::disable_transparent_huge_pages(true);
    let tls = listen.tls.as_ref().map(Tls::open).transpose()?;
    let guard = Guard { tls: tls.clone(), enforces: config.access.enforces() };
    let mut handed = Handed::take()?;
    let listeners = Listeners::bind(&listen, &guard, &mut handed)?;
    let others = Others::bind(&config, &guard, &mut handed)?;
    let (connections, lease_connections) =
        within_descriptors(listen.max_connections, others.descriptors());
    let rules = config.envoy.as_ref().map(EnvoySection::rules).transpose()?;
    let access = Arc::new(Access::open(config.access.clone(), config.store.path.clone())?);
    let engine = Engine::open(config)?;
    access.recall_reserved(&engine);
    let desk = Desk::open(&engine, &access, &listen, lease_connections, &mut handed)?;
    handed.nothing_is_left()?;
    let (drain, draining) = watch::channel(false);
    let places = Places::new(connections);
    let (unix, addresses) = (listeners.made.clone(), listeners.addresses());
    let (lanes, incoming): (Vec<_>, Vec<_>) =
        (0..listen.runtime_threads.max(1)).map(|_| Lane::new()).unzip();
    let with_cgroups = access.knows_cgroups();
    let (of_door, of_tls) = (Arc::clone(&places), tls.clone());
    let mut door = Some(Door { listeners, lanes, places: of_door, tls: of_tls, with_cgroups });
    let mut threads = Vec::new();
    let room = Room::new(listen.max_message_bytes);
    let api = Api::new(&engine, access, draining);
    let rate_limits = rules.map(|rules| RateLimits::new(&api, rules));
    let mut counted = Counted {
        connections: vec![("grpc", Arc::clone(&places) as _)],
        leases: desk.as_ref().map(Desk::figures),
        descriptors: rate_limits.as_ref().map(|served| Arc::clone(&served.counts)),
        ..Counted::default()
    };
    let (descriptors, receivers) = (counted.descriptors.clone(), Arc::clone(&counted.receivers));
    for (number, incoming) in incoming.into_iter().enumerate() {
        let (api, rate_limits) = (api.clone(), rate_limits.clone());
        let (listen, door) = (listen.clone(), door.take());
        let timed = Timed(others.has_metrics().then(|| counted.calls.shard()));
        let layers = (timed, Bounded(Arc::clone(&room)));
        let runtime = runtime(ASIDE_THREADS)?;
        let run = serve_thread(door, incoming, api, rate_limits, layers, listen);
        let run = move || {
            go_ahead();
            runtime.block_on(run);
        };
        threads.push(thread(format!("bursar-{number}"), run)?);
    }
    let of_others = others.addresses();
    threads.extend(others.start(&api, tls.as_ref(), counted)?);
    Ok(Running {
        engine,
        desk,
        processes: Arc::clone(&api.processes),
        places,
        addresses,
        others: of_others,
        unix,
        tls,
        descriptors,
        receivers,
        drain,
        threads: Mutex::new(threads),
        drain_timeout: Duration::from_millis(listen.drain_timeout_ms),
    })
}

pub(crate) fn thread(
    name: String,
    run: impl FnOnce() + Send + 'static,
) -> Result<std::thread::JoinHandle<()>, OpenError> {
    let what = format!("the thread {name}");
    let started = std::thread::Builder::new().name(name).spawn(run);
    started.map_err(|error| OpenError::Io(what, error))
}

/// A core file would hold tokens, keys and prompts. One byte: too small for a file, and what the kernel
/// takes for "none" where a program takes the cores, which zero is not.
fn refuse_core_files() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit { current: Some(1), maximum: Some(1) };
    let _where_it_may = setrlimit(Resource::Core, none);
}

/// Takes as many descriptors as the system gives, and shares them out: how many connections there may
/// be, and how many to the lease socket, so that the store never lacks one. The listeners beside the
/// daemon's own, which may have `others`, leave it half at least.
fn within_descriptors(max: usize, others: usize) -> (usize, usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _as_before = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let all = getrlimit(Resource::Nofile)
        .current
        .map_or(usize::MAX, |all| usize::try_from(all).unwrap_or(usize::MAX));
    let room = all.saturating_sub(OWN_DESCRIPTORS);
    let room = room - others.min(room / 2);
    // A lease's connection has a second one, for its process.
    (max.min(room / 2), max.min(room / 4))
}

impl Running {
    /// Where it listens.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Where the proxy listens, if there is one.
    pub fn proxy_address(&self) -> Option<SocketAddr> {
        self.others.proxy
    }

    /// Where the dashboard listens, if there is one.
    pub fn dashboard_address(&self) -> Option<SocketAddr> {
        self.others.dashboard
    }

    /// Where metrics are served, if they are.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.others.metrics
    }

    /// How many connections found no place.
    pub fn turned_away(&self) -> u64 {
        self.places.turned_away()
    }

    /// How many descriptors of Envoy's were refused since no rule fits them.
    pub fn unmatched_descriptors(&self) -> u64 {
        self.descriptors.as_ref().map_or(0, |descriptors| descriptors.unmatched())
    }

    /// Puts what the receivers of notifications tell of themselves, as OpenMetrics, on the page.
    pub fn set_receiver_figures(&self, families: &str) {
        *self.receivers.lock() = families.into();
    }

    /// Takes over certificates and authorities that have changed. Returns what there is to tell.
    pub fn refresh_tls(&self) -> Option<String> {
        self.tls.as_ref()?.refresh()
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

/// Now and then ends what tokens hold that are good no more.
async fn end_reserved(api: Api) {
    loop {
        tokio::time::sleep(END_RESERVED).await;
        let Api { engine, access, .. } = api.clone();
        let _ended = tokio::task::spawn_blocking(move || access.end_reserved(&engine)).await;
    }
}

/// A runtime for one thread, made before that is: without descriptors for it nothing starts. Its
/// threads for calls aside go no further ahead than this thread, whoever starts them.
pub(crate) fn runtime(aside_threads: usize) -> Result<Runtime, OpenError> {
    use rustix::process::{getpriority_process, setpriority_process};
    let nice = getpriority_process(None).unwrap_or(0);
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(aside_threads)
        .on_thread_start(move || {
            let _may_always_fall_back = setpriority_process(None, nice);
        })
        .build()
        .map_err(|error| OpenError::Io("the runtime of a thread".into(), error))
}

/// This thread goes ahead from now on, where it may.
fn go_ahead() {
    let _as_before = rustix::process::nice(-AHEAD);
}

/// One data-plane thread, from its start to the end of the drain. The first one has the door.
async fn serve_thread(
    door: Option<Door>,
    incoming: mpsc::Receiver<Accepted>,
    api: Api,
    rate_limits: Option<RateLimits>,
    (timed, bounded): (Timed, Bounded),
    listen: Listen,
) {
    let draining = api.draining.clone();
    if let Some(door) = door {
        door.open(&draining);
        tokio::spawn(until(draining.clone(), end_reserved(api.clone())));
    }
    let incoming = ReceiverStream::new(adopted(incoming));
    let health = health::service(&api.engine).await;
    let reflection = || {
        let own = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(crate::v1::DESCRIPTORS);
        match &rate_limits {
            Some(_) => own.register_encoded_file_descriptor_set(envoy::DESCRIPTORS),
            None => own,
        }
    };
    let reflection_v1 = reflection().build_v1().expect("the descriptors are compiled in");
    // What most tools still ask for.
    let reflection_v1alpha = reflection().build_v1alpha().expect("as above");
    let limit = listen.max_message_bytes;
    let rate_limits = rate_limits
        .map(|served| RateLimitServiceServer::new(served).max_decoding_message_size(limit));
    let mut stop = draining.clone();
    let served = tonic::transport::Server::builder()
        .max_concurrent_streams(listen.max_concurrent_calls_per_connection)
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .layer(timed)
        .layer(bounded)
        .add_service(LedgerServiceServer::new(api.clone()).max_decoding_message_size(limit))
        .add_service(AccountServiceServer::new(api.clone()).max_decoding_message_size(limit))
        .add_service(AccessServiceServer::new(api.clone()).max_decoding_message_size(limit))
        .add_service(ProcessServiceServer::new(api).max_decoding_message_size(limit))
        .add_optional_service(rate_limits)
        .add_service(health)
        .add_service(reflection_v1)
        .add_service(reflection_v1alpha)
        .serve_with_incoming_shutdown(incoming.map(io::Result::Ok), async move {
            let _drain = stop.wait_for(|draining| *draining).await;
        });
    let _ended = served.await;
}
