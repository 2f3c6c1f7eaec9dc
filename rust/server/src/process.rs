//! Carries the calls of `ProcessService` to the watchdog, and its answers and events back.
//!
//! The watchdog takes the calls one by one, with who made them, from a thread of its own outside of
//! this crate. What a job is, and who may be stopped, is decided there: nothing here knows what a call
//! means, and no thread of the data plane waits for the watchdog. All is bounded: how many calls wait,
//! for how long, and how far a watcher may fall behind.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bursar_ledger::{Owner, path};
use parking_lot::{Condvar, Mutex};
use prost::Message;
use tokio::sync::{broadcast, oneshot};
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::access::{Act, Caller};
use crate::convert;
use crate::engine::Answer;
use crate::error::ApiError;
use crate::grpc::{Answered, Api};
use crate::peer::Peer;
use crate::v1::process_service_server::ProcessService;
use crate::v1::{self, ErrorReason};

/// The most calls that wait for the watchdog, those that it has taken included, and how many of them
/// are for those that do something: who only reads takes no place from them.
const MAX_CALLS: usize = 64;
const MAX_READS: usize = 56;
/// Which calls do nothing.
const READS: [&str; 3] =
    ["ProcessService/ListProcesses", "ProcessService/ListIncidents", "Figures"];
/// How long a call waits for it.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How many events a watcher may fall behind.
const MAX_BEHIND: usize = 1024;

/// A call for the watchdog.
#[derive(Debug)]
pub struct ProcessCall {
    /// Names the call in the answer.
    pub id: u64,
    /// As in `ProcessService/ListProcesses`; `Figures` is the daemon's own (see `Processes::figures`).
    pub method: &'static str,
    /// The encoded request.
    pub request: Vec<u8>,
    /// Who made it, where the socket tells.
    pub caller: Option<Owner>,
    /// What the caller is called.
    pub by: Arc<str>,
    /// It may change nothing but of this account and those below it; empty: all.
    pub within: Arc<str>,
}

type Event = Arc<v1::WatchProcessesResponse>;
pub(crate) type Reply = Result<Vec<u8>, ApiError>;

/// What lies between the service and the watchdog.
#[derive(Debug, Default)]
pub struct Processes {
    state: Mutex<State>,
    /// There is a call to take, or it is over.
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    /// The number of the latest call.
    latest: u64,
    /// Whose callers wait; the oldest first.
    calls: BTreeMap<u64, Waiting>,
}

#[derive(Debug, Default)]
enum Phase {
    /// No watchdog.
    #[default]
    Off,
    /// A watchdog, and the way of its events.
    Attached(broadcast::Sender<Event>),
    /// The daemon drains.
    Closed,
}

#[derive(Debug)]
struct Waiting {
    /// Until the watchdog takes it.
    call: Option<ProcessCall>,
    reply: oneshot::Sender<Reply>,
}

impl Processes {
    /// There is a watchdog from now on.
    pub fn attach(&self) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Off) {
            state.phase = Phase::Attached(broadcast::channel(MAX_BEHIND).0);
        }
    }

    /// The oldest call that nobody has taken; `None` when none comes in time, or the daemon drains.
    pub fn next(&self, timeout: Duration) -> Option<ProcessCall> {
        let mut state = self.state.lock();
        let nothing = |state: &mut State| {
            !matches!(state.phase, Phase::Closed)
                && state.calls.values().all(|waiting| waiting.call.is_none())
        };
        self.arrived.wait_while_for(&mut state, nothing, timeout);
        state.calls.values_mut().find_map(|waiting| waiting.call.take())
    }

    /// Answers a call, unless its caller no longer waits.
    pub fn answer(&self, id: u64, reply: Result<Vec<u8>, ApiError>) {
        if let Some(waiting) = self.state.lock().calls.remove(&id) {
            let _heard = waiting.reply.send(reply);
        }
    }

    /// Tells those who watch.
    pub fn publish(&self, event: &[u8]) -> Result<(), ApiError> {
        let event = decode::<v1::WatchProcessesResponse>(event)?;
        if let Phase::Attached(events) = &self.state.lock().phase {
            let _watchers = events.send(Arc::new(event));
        }
        Ok(())
    }

    /// Ends all calls and all watching: the daemon drains.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.phase = Phase::Closed;
        state.calls.clear();
        self.arrived.notify_all();
    }

    /// The watchdog's own figures, as OpenMetrics text; `None`: there is no watchdog.
    pub(crate) async fn figures(&self, within: Duration) -> Option<Reply> {
        if matches!(self.state.lock().phase, Phase::Off) {
            return None;
        }
        let (method, request, by) = ("Figures", Vec::new(), "the metrics".into());
        let call = ProcessCall { id: 0, method, request, caller: None, by, within: "".into() };
        Some(self.ask(call, within).await)
    }

    /// Puts a call where the watchdog finds it, and waits for the answer.
    async fn ask(&self, call: ProcessCall, within: Duration) -> Reply {
        let (place, reply) = self.put(call)?;
        let replied = tokio::time::timeout(within, reply).await;
        drop(place);
        match replied {
            Ok(Ok(reply)) => reply,
            Ok(Err(_closed)) => Err(ApiError::shutting_down()),
            Err(_elapsed) => Err(unavailable("the watchdog does not answer: see its log")),
        }
    }

    /// Asks on behalf of the daemon itself, which sees all; who is shown the answer is the asker's
    /// business.
    pub(crate) async fn look<A: Message + Default>(
        &self,
        method: &'static str,
        request: &impl Message,
    ) -> Result<A, ApiError> {
        let by = "the dashboard".into();
        let request = request.encode_to_vec();
        let call = ProcessCall { id: 0, method, request, caller: None, by, within: "".into() };
        decode(&self.ask(call, ANSWER_WITHIN).await?)
    }

    fn put(&self, call: ProcessCall) -> Result<(Place<'_>, oneshot::Receiver<Reply>), ApiError> {
        let mut state = self.state.lock();
        state.events()?;
        let most = if READS.contains(&call.method) { MAX_READS } else { MAX_CALLS };
        if state.calls.len() >= most {
            return Err(unavailable("the watchdog has too many calls waiting: try again later"));
        }
        state.latest += 1;
        let id = state.latest;
        let (sender, reply) = oneshot::channel();
        let call = Some(ProcessCall { id, ..call });
        state.calls.insert(id, Waiting { call, reply: sender });
        self.arrived.notify_one();
        Ok((Place { processes: self, id }, reply))
    }

    /// The events of an account and those below it (empty: all), from now on.
    fn watch(&self, account: String) -> Result<EventStream, ApiError> {
        let events = self.state.lock().events()?.subscribe();
        let stream = BroadcastStream::new(events).filter_map(move |event| match event {
            Ok(event) => {
                let wanted = account.is_empty() || path::is_within(&event.account, &account);
                wanted.then(|| Ok(v1::WatchProcessesResponse::clone(&event)))
            }
            Err(_lagged) => Some(Err(unavailable("the watcher fell behind: watch again").into())),
        });
        Ok(Box::pin(stream))
    }
}

impl State {
    /// The way of the events of the watchdog that is there.
    fn events(&self) -> Result<&broadcast::Sender<Event>, ApiError> {
        match &self.phase {
            Phase::Attached(events) => Ok(events),
            Phase::Off => Err(unavailable("the watchdog is off: set watchdog.mode")),
            Phase::Closed => Err(ApiError::shutting_down()),
        }
    }
}

/// A call's place, until its caller has the answer or gives up: a call that nobody waits for is not
/// begun.
#[derive(Debug)]
struct Place<'a> {
    processes: &'a Processes,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.processes.state.lock().calls.remove(&self.id);
    }
}

pub(crate) fn unavailable(message: &str) -> ApiError {
    ApiError::new(ErrorReason::WatchdogUnavailable, message)
}

fn decode<T: Message + Default>(bytes: &[u8]) -> Result<T, ApiError> {
    T::decode(bytes).map_err(|error| unavailable(&format!("the watchdog sent no message: {error}")))
}

impl Api {
    async fn process<Q: Message, A: Message + Default>(
        &self,
        method: &'static str,
        request: Request<Q>,
        by: Caller,
    ) -> Answered<A> {
        let caller = request.extensions().get::<Peer>().and_then(|peer| peer.owner);
        let request = request.into_inner().encode_to_vec();
        let (by, within) = (Arc::clone(&by.name), by.account().into());
        let call = ProcessCall { id: 0, method, request, caller, by, within };
        let reply = self.processes.ask(call, ANSWER_WITHIN).await?;
        Ok(Response::new(decode(&reply)?))
    }
}

type EventStream = Pin<Box<dyn Stream<Item = Result<v1::WatchProcessesResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ProcessService for Api {
    async fn register_process(
        &self,
        request: Request<v1::RegisterProcessRequest>,
    ) -> Answered<v1::RegisterProcessResponse> {
        let caller = self.caller(&request)?;
        caller.may(Act::Spend, &request.get_ref().account)?;
        self.process("ProcessService/RegisterProcess", request, caller).await
    }

    async fn list_processes(
        &self,
        mut request: Request<v1::ListProcessesRequest>,
    ) -> Answered<v1::ListProcessesResponse> {
        let caller = self.caller(&request)?;
        request.get_mut().account = caller.narrow(&request.get_ref().account)?;
        self.process("ProcessService/ListProcesses", request, caller).await
    }

    async fn kill_process(
        &self,
        request: Request<v1::KillProcessRequest>,
    ) -> Answered<v1::KillProcessResponse> {
        let caller = self.caller(&request)?;
        caller.may_act(Act::Manage)?;
        let (by, reason) = (caller.clone(), convert::cut(&request.get_ref().reason));
        let killed = self.process("ProcessService/KillProcess", request, caller).await?;
        let body: v1::KillProcessResponse = killed.into_inner();
        self.answer(|engine| {
            let incident = body.incident.clone().unwrap_or_default();
            let what =
                format!("stopped the job {} ({}): {reason}", incident.job, incident.job_name);
            let ticket = engine.note(&by, &incident.account, what.trim_end_matches(": "));
            Ok(Answer::new(body, ticket))
        })
        .await
    }

    async fn list_incidents(
        &self,
        mut request: Request<v1::ListIncidentsRequest>,
    ) -> Answered<v1::ListIncidentsResponse> {
        let caller = self.caller(&request)?;
        request.get_mut().account = caller.narrow(&request.get_ref().account)?;
        self.process("ProcessService/ListIncidents", request, caller).await
    }

    type WatchProcessesStream = EventStream;

    async fn watch_processes(
        &self,
        request: Request<v1::WatchProcessesRequest>,
    ) -> Answered<EventStream> {
        let caller = self.caller(&request)?;
        let account = caller.narrow(convert::within(&request.get_ref().account)?)?;
        let (engine, access) = (Arc::clone(&self.engine), Arc::clone(&self.access));
        let events = self.processes.watch(account)?;
        let checked = events.map(move |event| {
            access.check(&caller, engine.now().wall_ms)?;
            event
        });
        Ok(Response::new(Box::pin(checked)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(30);

    fn call() -> ProcessCall {
        let method = "ProcessService/ListProcesses";
        ProcessCall {
            id: 0,
            method,
            request: vec![7],
            caller: None,
            by: "".into(),
            within: "".into(),
        }
    }

    fn attached() -> Arc<Processes> {
        let processes = Arc::<Processes>::default();
        processes.attach();
        processes
    }

    fn run<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(test)
    }

    fn reason(reply: &Reply) -> ErrorReason {
        reply.as_ref().expect_err("a failure").reason
    }

    #[test]
    fn without_a_watchdog_a_call_fails_at_once() {
        let reply = run(Processes::default().ask(call(), LONG));
        assert_eq!(reason(&reply), ErrorReason::WatchdogUnavailable);
    }

    #[test]
    fn a_call_is_answered_by_another_thread() {
        let processes = attached();
        let watchdog = Arc::clone(&processes);
        let thread = std::thread::spawn(move || {
            let call = watchdog.next(LONG).expect("a call");
            watchdog.answer(call.id, Ok([call.request, vec![8]].concat()));
        });
        assert_eq!(run(processes.ask(call(), LONG)), Ok(vec![7, 8]));
        thread.join().expect("no panic");
        assert!(processes.next(Duration::ZERO).is_none());
    }

    #[test]
    fn a_call_that_is_not_answered_in_time_fails_and_leaves_its_place() {
        let processes = attached();
        let reply = run(processes.ask(call(), SHORT));
        assert_eq!(reason(&reply), ErrorReason::WatchdogUnavailable);
        assert!(processes.next(Duration::ZERO).is_none(), "nobody waits for it");
        processes.answer(1, Ok(Vec::new()));
    }

    #[test]
    fn one_call_too_many_is_refused() {
        let processes = attached();
        let mut places: Vec<_> =
            (0..MAX_READS).map(|_| processes.put(call()).expect("a place")).collect();
        processes.put(call()).expect_err("the rest are not for who only reads");
        let kill = || ProcessCall { method: "ProcessService/KillProcess", ..call() };
        let spare = MAX_READS..MAX_CALLS;
        places.extend(spare.map(|_| processes.put(kill()).expect("a place")));
        processes.put(kill()).expect_err("all are taken");
        let taken = processes.next(Duration::ZERO).expect("a call");
        let refused = processes.put(kill()).expect_err("taken is not answered");
        assert!(refused.message.contains("too many calls"), "{refused}");
        processes.answer(taken.id, Ok(Vec::new()));
        places.push(processes.put(kill()).expect("a place is free again"));
    }

    #[test]
    fn the_drain_ends_calls_and_watchers_and_the_wait_of_the_watchdog() {
        run(async {
            let processes = attached();
            let mut watcher = processes.watch(String::new()).expect("a stream");
            let (_place, reply) = processes.put(call()).expect("a place");
            processes.close();
            assert!(reply.await.is_err());
            assert!(watcher.next().await.is_none());
            assert!(processes.next(LONG).is_none());
            let reply = processes.ask(call(), LONG).await;
            assert_eq!(reason(&reply), ErrorReason::ShuttingDown);
            processes.attach();
            assert!(processes.watch(String::new()).is_err(), "it stays closed");
        });
    }

    fn event(account: &str) -> Vec<u8> {
        let account = account.to_owned();
        v1::WatchProcessesResponse { account, ..Default::default() }.encode_to_vec()
    }

    #[test]
    fn a_watcher_hears_of_its_account_and_those_below_it() {
        run(async {
            let processes = attached();
            let mut all = processes.watch(String::new()).expect("a stream");
            let mut some = processes.watch("acme/a".to_owned()).expect("a stream");
            for account in ["acme", "", "acme/ab", "acme/a/b", "acme/a"] {
                processes.publish(&event(account)).expect("a message");
            }
            processes.close();
            let mut heard = Vec::new();
            while let Some(event) = some.next().await {
                heard.push(event.expect("no lag").account);
            }
            assert_eq!(heard, ["acme/a/b", "acme/a"]);
            assert_eq!(all.next().await.expect("five").expect("no lag").account, "acme");
        });
    }

    #[test]
    fn a_watcher_that_falls_behind_is_told() {
        run(async {
            let processes = attached();
            let mut watcher = processes.watch("other".to_owned()).expect("a stream");
            for _ in 0..=MAX_BEHIND {
                processes.publish(&event("acme")).expect("a message");
            }
            let told = watcher.next().await.expect("an end").expect_err("events are missing");
            assert_eq!(told.code(), tonic::Code::Unavailable);
            assert!(processes.publish(&[0xff]).is_err(), "not a message");
        });
    }
}
