//! The closed loop over gRPC: each worker sends its next call when the last one is answered.
//!
//! One thread, so that the client costs no more than it must; a few connections. What a worker
//! reserves is released after the measured time, so that a run leaves nothing behind. The ledger,
//! the empty server and other rate limiters are called by the same code.

use std::collections::VecDeque;
use std::str::FromStr;
use std::time::Instant;

use bytes::Bytes;
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::calls::{self, Reserves};
use crate::plan::{Plan, Span};
use crate::report::Report;
use crate::wire::Raw;
use crate::{Address, Failure, connect, now, peers};

/// How many workers end what a run has left open.
const RELEASERS: usize = 64;

/// Which calls are sent and timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The empty server's one call.
    Echo,
    /// Reserve, each with a fresh key.
    Reserve,
    /// Reserve, then Commit, of which Commit is timed.
    Commit,
    /// Reserve, then Commit, timed together and each.
    Pair,
    /// Debit on one reservation per worker, one unit more each time.
    Debit,
    /// Debits on one reservation per worker and stream, as many under way as the window says.
    Meter,
    /// The one call of Envoy's protocol.
    RateLimit,
    /// The one call of Gubernator's.
    Hits,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(name: &str) -> Result<Mode, String> {
        match name {
            "echo" => Ok(Mode::Echo),
            "reserve" => Ok(Mode::Reserve),
            "commit" => Ok(Mode::Commit),
            "pair" => Ok(Mode::Pair),
            "debit" => Ok(Mode::Debit),
            "meter" => Ok(Mode::Meter),
            "rate-limit" => Ok(Mode::RateLimit),
            "hits" => Ok(Mode::Hits),
            _ => {
                Err("one of echo, reserve, commit, pair, debit, meter, rate-limit, hits".to_owned())
            }
        }
    }
}

impl Mode {
    /// The parts of what is timed.
    fn halves(self) -> Option<[&'static str; 2]> {
        (self == Mode::Pair).then_some(["reserve", "commit"])
    }

    /// What an answer has to say.
    fn check(self) -> fn(&[u8]) -> bool {
        match self {
            Mode::Echo => |_| true,
            Mode::Reserve | Mode::Commit | Mode::Pair | Mode::Debit => calls::is_ok,
            Mode::Meter => calls::is_metered,
            Mode::RateLimit => peers::rate_limit_is_ok,
            Mode::Hits => peers::hits_are_ok,
        }
    }
}

/// The method's path on the wire.
fn path(method: &'static str) -> PathAndQuery {
    PathAndQuery::from_static(match method {
        "Echo" => "/bursar.bench.EchoService/Echo",
        "Reserve" => "/bursar.v1.LedgerService/Reserve",
        "Commit" => "/bursar.v1.LedgerService/Commit",
        "Debit" => "/bursar.v1.LedgerService/Debit",
        "Meter" => "/bursar.v1.LedgerService/Meter",
        "ShouldRateLimit" => "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
        "GetRateLimits" => "/pb.gubernator.V1/GetRateLimits",
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
pub async fn run(address: &Address, mode: Mode, plan: &Plan) -> Result<Report, Failure> {
    if plan.window != 1 && mode != Mode::Meter {
        return Err("unary calls have no window: one call a worker at a time".into());
    }
    let mut channels = Vec::new();
    for _ in 0..plan.connections() {
        channels.push(connect(address).await?);
    }
    let span = plan.span(plan.concurrency);
    let request_bytes = plan.request_bytes;
    let workers = (0..plan.concurrency).map(|number| {
        let debits = matches!(mode, Mode::Debit | Mode::Meter);
        let hold = if debits { calls::LARGE_HOLD } else { calls::HOLD };
        let worker = Worker {
            client: Grpc::new(channels[number % channels.len()].clone()),
            reserves: Reserves::new(number, hold),
            span: span.clone(),
            check: mode.check(),
            window: plan.window,
        };
        tokio::spawn(worker.run(mode, number, request_bytes))
    });
    let workers: Vec<_> = workers.collect();
    let mut report = Report::new(mode.halves())?;
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

/// An answer that says OK, and when it was asked for and had.
struct Answer {
    message: Bytes,
    times: (Instant, Instant),
}

struct Worker {
    client: Grpc<Channel>,
    reserves: Reserves,
    span: Span,
    check: fn(&[u8]) -> bool,
    window: usize,
}

impl Worker {
    async fn run(
        mut self,
        mode: Mode,
        number: usize,
        request_bytes: usize,
    ) -> Result<Report, WorkerFailure> {
        let new = Report::new(mode.halves());
        let mut report = new.map_err(|error| error.to_string())?;
        match mode {
            Mode::Echo => {
                let messages = [calls::echo(request_bytes)];
                self.constants(&path("Echo"), &messages, 0, &mut report).await;
            }
            Mode::RateLimit => {
                let path = path("ShouldRateLimit");
                self.constants(&path, &peers::rate_limits(), number, &mut report).await;
            }
            Mode::Hits => {
                let path = path("GetRateLimits");
                self.constants(&path, &peers::hits(), number, &mut report).await;
            }
            Mode::Reserve => {
                let path = path("Reserve");
                while self.span.has_time() {
                    let message = self.reserves.fresh();
                    let answer = self.timed(&path, message, &mut report).await;
                    let id = answer.as_ref().and_then(|it| calls::reservation(&it.message));
                    report.keep(id);
                }
            }
            Mode::Commit => {
                let path = path("Commit");
                while self.span.has_time() {
                    let id = self.reserve().await?;
                    self.timed(&path, calls::commit(&id), &mut report).await;
                }
            }
            Mode::Pair => self.pairs(&mut report).await,
            Mode::Debit => {
                let (path, id) = (path("Debit"), self.reserve().await?);
                report.keep(Some(&id));
                let mut used = 0;
                while self.span.has_time() {
                    used += 1;
                    self.timed(&path, calls::debit(&id, used), &mut report).await;
                }
            }
            Mode::Meter => self.meter(&mut report).await?,
        }
        Ok(report)
    }

    /// Debits on a stream: the next one is sent when the oldest of the window is answered.
    async fn meter(&mut self, report: &mut Report) -> Result<(), WorkerFailure> {
        let id = self.reserve().await?;
        report.keep(Some(&id));
        let (sender, requests) = tokio::sync::mpsc::channel(self.window);
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        self.client.ready().await?;
        let opened = self.client.streaming(Request::new(requests), path("Meter"), Raw);
        let (mut used, mut under_way, mut opened) = (0, VecDeque::new(), Some(opened));
        let mut answers = None;
        loop {
            while under_way.len() < self.window && self.span.has_time() {
                used += 1;
                let message = calls::meter(&id, used);
                report.asked(message.len());
                under_way.push_back(now());
                sender.send(message).await?;
            }
            // The stream opens with its first request.
            if let Some(opened) = opened.take() {
                answers = Some(opened.await?.into_inner());
            }
            let Some(start) = under_way.pop_front() else { return Ok(()) };
            let answers = answers.as_mut().ok_or("the stream is open")?;
            let message = answers.message().await?.ok_or("the stream has ended")?;
            let end = now();
            report.answered(message.len());
            if !(self.check)(&message) {
                report.fail(|| "an answer does not say OK".to_owned());
            } else if self.span.covers(start, end) {
                report.took(start, end);
            }
        }
    }

    /// Calls that are the same each time, in turn.
    async fn constants(
        &mut self,
        path: &PathAndQuery,
        messages: &[Bytes],
        first: usize,
        report: &mut Report,
    ) {
        for message in messages.iter().cycle().skip(first % messages.len()) {
            if !self.span.has_time() {
                break;
            }
            // A copy, as the Reserve that it is compared with is one.
            self.timed(path, Bytes::copy_from_slice(message), report).await;
        }
    }

    /// Reserve, then Commit.
    async fn pairs(&mut self, report: &mut Report) {
        let paths = (path("Reserve"), path("Commit"));
        while self.span.has_time() {
            let message = self.reserves.fresh();
            let Some(reserved) = self.ask(&paths.0, message, report).await else { continue };
            let Some(id) = calls::reservation(&reserved.message) else {
                report.fail(|| "a Reserve has no reservation".to_owned());
                continue;
            };
            let message = calls::commit(id);
            let Some(committed) = self.ask(&paths.1, message, report).await else { continue };
            if self.span.covers(reserved.times.0, committed.times.1) {
                report.took_pair(reserved.times, committed.times);
            }
        }
    }

    /// A Reserve that is not timed; its id.
    async fn reserve(&mut self) -> Result<String, WorkerFailure> {
        let message = self.reserves.fresh();
        let answer = call(&mut self.client, &path("Reserve"), message).await?;
        let id = calls::reservation(&answer).filter(|_| calls::is_ok(&answer));
        Ok(id.ok_or("a Reserve was refused")?.to_owned())
    }

    /// A call that is timed by itself.
    async fn timed(
        &mut self,
        path: &PathAndQuery,
        message: Bytes,
        report: &mut Report,
    ) -> Option<Answer> {
        let answer = self.ask(path, message, report).await?;
        if self.span.covers(answer.times.0, answer.times.1) {
            report.took(answer.times.0, answer.times.1);
        }
        Some(answer)
    }

    /// A call whose answer has to say OK; nothing if it was an error or says something else.
    async fn ask(
        &mut self,
        path: &PathAndQuery,
        message: Bytes,
        report: &mut Report,
    ) -> Option<Answer> {
        report.asked(message.len());
        let start = now();
        let answer = call(&mut self.client, path, message).await;
        let times = (start, now());
        match answer {
            Err(status) => report.fail(|| status.to_string()),
            Ok(message) => {
                report.answered(message.len());
                if (self.check)(&message) {
                    return Some(Answer { message, times });
                }
                report.fail(|| "an answer does not say OK".to_owned());
            }
        }
        None
    }
}
