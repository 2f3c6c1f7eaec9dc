//! The closed loop: each worker sends its next call when the last one is answered.
//!
//! One thread, so that the client costs no more than it must; up to eight connections. What a worker
//! reserves is released after the measured time, so that a run leaves nothing behind.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::calls::{self, Reserves};
use crate::wire::Raw;
use crate::{Failure, connect, now};

/// The most connections.
const CONNECTIONS_MAX: usize = 8;
/// How many workers end what a run has left open.
const RELEASERS: usize = 64;
/// The longest latency that is told apart.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// Which calls are sent and timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The empty server's one call.
    Echo,
    /// Reserve, each with a fresh key.
    Reserve,
    /// Reserve, then Commit, of which Commit is timed.
    Commit,
    /// Debit on one reservation per worker, one unit more each time.
    Debit,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(name: &str) -> Result<Mode, String> {
        match name {
            "echo" => Ok(Mode::Echo),
            "reserve" => Ok(Mode::Reserve),
            "commit" => Ok(Mode::Commit),
            "debit" => Ok(Mode::Debit),
            _ => Err("one of echo, reserve, commit, debit".to_owned()),
        }
    }
}

/// One run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What to send.
    pub mode: Mode,
    /// How many workers.
    pub concurrency: usize,
    /// For how long before measuring.
    pub warm_up: Duration,
    /// For how long measured.
    pub measured: Duration,
    /// Stop after so many timed calls, if that is earlier.
    pub calls: Option<u64>,
    /// Leave open what was reserved.
    pub keep: bool,
    /// How long a request to the echo is.
    pub request_bytes: usize,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// Latencies of the timed calls within the measured time, in nanoseconds.
    pub latencies: Histogram<u64>,
    /// Answers that were errors or did not say OK, and the first of them.
    pub failed: u64,
    /// See `failed`.
    pub first_failure: Option<String>,
    /// How long the timed requests were at most.
    pub request_bytes: usize,
    /// How long the timed answers were: least, most, and in all.
    pub response_bytes: (usize, usize, usize),
    /// How many timed answers there were, the warm-up included.
    pub answers: usize,
    /// Reservations to release, each followed by a line feed.
    open: String,
}

impl Report {
    fn new() -> Result<Report, Failure> {
        Ok(Report {
            latencies: Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)?,
            failed: 0,
            first_failure: None,
            request_bytes: 0,
            response_bytes: (usize::MAX, 0, 0),
            answers: 0,
            open: String::new(),
        })
    }

    fn add(&mut self, other: Report) -> Result<(), Failure> {
        self.latencies.add(other.latencies)?;
        self.failed += other.failed;
        self.first_failure = self.first_failure.take().or(other.first_failure);
        self.request_bytes = self.request_bytes.max(other.request_bytes);
        let (least, most, sum) = self.response_bytes;
        let (other_least, other_most, other_sum) = other.response_bytes;
        self.response_bytes = (least.min(other_least), most.max(other_most), sum + other_sum);
        self.answers += other.answers;
        self.open.push_str(&other.open);
        Ok(())
    }

    fn fail(&mut self, why: impl FnOnce() -> String) {
        self.failed += 1;
        self.first_failure.get_or_insert_with(why);
    }

    fn answered(&mut self, length: usize) {
        let (least, most, sum) = self.response_bytes;
        self.response_bytes = (least.min(length), most.max(length), sum + length);
        self.answers += 1;
    }
}

/// The method's path on the wire.
fn path(method: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(match method {
        "Echo" => "/bursar.bench.EchoService/Echo",
        "Reserve" => "/bursar.v1.LedgerService/Reserve",
        "Commit" => "/bursar.v1.LedgerService/Commit",
        "Debit" => "/bursar.v1.LedgerService/Debit",
        _ => "/bursar.v1.LedgerService/Release",
    })
}

async fn call(
    client: &mut Grpc<Channel>,
    path: &PathAndQuery,
    message: Bytes,
) -> Result<Bytes, Status> {
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let answer = client.unary(Request::new(message), path.clone(), Raw).await?;
    Ok(answer.into_inner())
}

/// Runs it to its end.
pub async fn run(socket: &Path, plan: Plan) -> Result<Report, Failure> {
    let mut channels = Vec::new();
    for _ in 0..plan.concurrency.clamp(1, CONNECTIONS_MAX) {
        channels.push(connect(socket).await?);
    }
    let begin = now() + plan.warm_up;
    let times = (begin, begin + plan.measured);
    let plan = Arc::new(plan);
    let workers = (0..plan.concurrency).map(|number| {
        let channel = channels[number % channels.len()].clone();
        tokio::spawn(Worker::new(channel, number, times, Arc::clone(&plan)).run())
    });
    let workers: Vec<_> = workers.collect();
    let mut report = Report::new()?;
    for worker in workers {
        report.add(worker.await?.map_err(|error| error.to_string())?)?;
    }
    if !plan.keep {
        release(&channels, &std::mem::take(&mut report.open)).await?;
    }
    Ok(report)
}

/// Ends what is open.
async fn release(channels: &[Channel], open: &str) -> Result<(), Failure> {
    let ids: Vec<String> = open.lines().map(str::to_owned).collect();
    let share = ids.len().div_ceil(RELEASERS).max(1);
    let releasers = ids.chunks(share).enumerate().map(|(number, ids)| {
        let mut client = Grpc::new(channels[number % channels.len()].clone());
        let ids = ids.to_vec();
        tokio::spawn(async move {
            let path = path("Release");
            for id in ids {
                call(&mut client, &path, calls::release(&id)).await?;
            }
            Ok::<_, Status>(())
        })
    });
    let releasers: Vec<_> = releasers.collect();
    for releaser in releasers {
        releaser.await??;
    }
    Ok(())
}

/// Errors of a worker: they cross threads as far as the compiler knows.
type WorkerFailure = Box<dyn std::error::Error + Send + Sync>;

struct Worker {
    client: Grpc<Channel>,
    reserves: Reserves,
    begin: Instant,
    end: Instant,
    calls_left: u64,
    plan: Arc<Plan>,
}

impl Worker {
    fn new(
        channel: Channel,
        number: usize,
        (begin, end): (Instant, Instant),
        plan: Arc<Plan>,
    ) -> Worker {
        let hold = if plan.mode == Mode::Debit { calls::LARGE_HOLD } else { calls::HOLD };
        let workers = u64::try_from(plan.concurrency).unwrap_or(u64::MAX);
        let calls_left = plan.calls.map_or(u64::MAX, |calls| calls.div_ceil(workers));
        let (client, reserves) = (Grpc::new(channel), Reserves::new(number, hold));
        Worker { client, reserves, begin, end, calls_left, plan }
    }

    async fn run(mut self) -> Result<Report, WorkerFailure> {
        let mut report = Report::new().map_err(|error| error.to_string())?;
        match self.plan.mode {
            Mode::Echo => {
                let (path, message) = (path("Echo"), calls::echo(self.plan.request_bytes));
                while self.has_time() {
                    // A copy, as the Reserve that it stands for is one.
                    let message = Bytes::copy_from_slice(&message);
                    self.timed(&path, message, &mut report).await?;
                }
            }
            Mode::Reserve => {
                let path = path("Reserve");
                while self.has_time() {
                    let message = self.reserves.fresh();
                    let answer = self.timed(&path, message, &mut report).await?;
                    keep(answer.as_deref().and_then(calls::reservation), &mut report);
                }
            }
            Mode::Commit => {
                let path = path("Commit");
                while self.has_time() {
                    let id = self.reserve().await?;
                    self.timed(&path, calls::commit(&id), &mut report).await?;
                }
            }
            Mode::Debit => {
                let (path, id) = (path("Debit"), self.reserve().await?);
                keep(Some(&id), &mut report);
                let mut used = 0;
                while self.has_time() {
                    used += 1;
                    self.timed(&path, calls::debit(&id, used), &mut report).await?;
                }
            }
        }
        Ok(report)
    }

    fn has_time(&mut self) -> bool {
        let has = self.calls_left != 0 && now() < self.end;
        self.calls_left = self.calls_left.saturating_sub(1);
        has
    }

    /// A Reserve that is not timed; its id.
    async fn reserve(&mut self) -> Result<String, WorkerFailure> {
        let message = self.reserves.fresh();
        let answer = call(&mut self.client, &path("Reserve"), message).await?;
        let id = calls::reservation(&answer).filter(|_| calls::is_ok(&answer));
        Ok(id.ok_or("a Reserve was refused")?.to_owned())
    }

    /// A call that is timed and whose answer has to say OK; the answer unless it was an error.
    async fn timed(
        &mut self,
        path: &PathAndQuery,
        message: Bytes,
        report: &mut Report,
    ) -> Result<Option<Bytes>, WorkerFailure> {
        report.request_bytes = report.request_bytes.max(message.len());
        let start = now();
        let answer = call(&mut self.client, path, message).await;
        let end = now();
        if start >= self.begin && end <= self.end {
            let latency = u64::try_from((end - start).as_nanos()).unwrap_or(LATENCY_MAX_NS);
            report.latencies.record(latency)?;
        }
        let answer = match answer {
            Ok(answer) => answer,
            Err(status) => {
                report.fail(|| status.to_string());
                return Ok(None);
            }
        };
        report.answered(answer.len());
        if self.plan.mode != Mode::Echo && !calls::is_ok(&answer) {
            report.fail(|| "an answer does not say OK".to_owned());
        }
        Ok(Some(answer))
    }
}

fn keep(id: Option<&str>, report: &mut Report) {
    if let Some(id) = id {
        report.open.push_str(id);
        report.open.push('\n');
    }
}
