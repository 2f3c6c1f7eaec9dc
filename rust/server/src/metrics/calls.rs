//! Calls by method: how many ended how, and how long they took.
//!
//! Each data-plane thread counts in a shard of its own, as a layer around all services; a page adds
//! them up. A call begins when its head is there and ends with the head of its answer, which waits
//! until the answer is durable; a stream counts when it is opened, and its length is no latency.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::{Code, Status};
use tower_layer::Layer;

use super::counts::{Histogram, Spread};
use crate::clock::Began;

/// The packages of the paths.
const PACKAGES: [&str; 2] = ["/bursar.v1.", "/envoy.service.ratelimit.v3."];
/// Every method; the most frequent first, since the search begins there.
pub(super) const METHODS: [&str; 29] = [
    "LedgerService/Reserve",
    "LedgerService/Commit",
    "LedgerService/Debit",
    "LedgerService/Release",
    "LedgerService/Extend",
    "LedgerService/Record",
    "LedgerService/Check",
    "RateLimitService/ShouldRateLimit",
    "LedgerService/GetReservation",
    "LedgerService/CountTokens",
    "LedgerService/ListReservations",
    "AccountService/SetBudget",
    "AccountService/GetAccount",
    "AccountService/ListAccounts",
    "AccountService/Freeze",
    "AccountService/Unfreeze",
    "AccountService/RetireAccount",
    "AccountService/ListEntries",
    "AccessService/WhoAmI",
    "AccessService/CreateToken",
    "AccessService/ListTokens",
    "AccessService/RevokeToken",
    "ProcessService/RegisterProcess",
    "ProcessService/ListProcesses",
    "ProcessService/KillProcess",
    "ProcessService/ListIncidents",
    "LedgerService/Meter",
    "AccountService/WatchAccounts",
    "ProcessService/WatchProcesses",
];
/// How many of them are no streams; those come first.
pub(super) const UNARY: usize = METHODS.len() - 3;
/// gRPC's codes, by number.
pub(super) const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The calls of one thread.
#[derive(Debug, Default)]
pub(crate) struct Shard([Counted; METHODS.len()]);

#[derive(Debug, Default)]
struct Counted {
    by_code: [AtomicU64; CODES.len()],
    latency: Histogram,
}

/// The calls of all threads.
#[derive(Debug, Default)]
pub(crate) struct Calls(Vec<Arc<Shard>>);

impl Calls {
    /// A shard for one more thread.
    pub(crate) fn shard(&mut self) -> Arc<Shard> {
        let shard = Arc::<Shard>::default();
        self.0.push(Arc::clone(&shard));
        shard
    }

    /// How many calls of a method (by its place in `METHODS`) ended with each code.
    pub(super) fn by_code(&self, method: usize) -> [u64; CODES.len()] {
        let mut sums = [0; CODES.len()];
        for shard in &self.0 {
            for (sum, count) in sums.iter_mut().zip(&shard.0[method].by_code) {
                *sum += count.load(Ordering::Relaxed);
            }
        }
        sums
    }

    /// How long the calls of a method took.
    pub(super) fn latency(&self, method: usize) -> Spread {
        let mut spread = Spread::default();
        self.0.iter().for_each(|shard| shard.0[method].latency.add_to(&mut spread));
        spread
    }
}

/// Counts every call; nothing without a shard.
#[derive(Debug, Clone)]
pub(crate) struct Timed(pub(crate) Option<Arc<Shard>>);

impl<S> Layer<S> for Timed {
    type Service = TimedService<S>;

    fn layer(&self, inner: S) -> TimedService<S> {
        TimedService { shard: self.0.clone(), inner }
    }
}

/// A service whose calls are counted.
#[derive(Debug, Clone)]
pub(crate) struct TimedService<S> {
    shard: Option<Arc<Shard>>,
    inner: S,
}

impl<S, B> Service<http::Request<Body>> for TimedService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<B>, Future: Unpin>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = TimedCall<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let open = self.shard.as_ref().and_then(|shard| Open::begin(shard, request.uri().path()));
        TimedCall { open, inner: self.inner.call(request) }
    }
}

/// A call under way.
#[derive(Debug)]
struct Open {
    shard: Arc<Shard>,
    method: usize,
    began: Began,
}

impl Open {
    fn begin(shard: &Arc<Shard>, path: &str) -> Option<Open> {
        let name = PACKAGES.iter().find_map(|package| path.strip_prefix(package))?;
        let method = METHODS.iter().position(|method| *method == name)?;
        Some(Open { shard: Arc::clone(shard), method, began: Began::now() })
    }

    fn end(self, code: Code) {
        let counted = &self.shard.0[self.method];
        if let Some(count) = counted.by_code.get(code as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if self.method < UNARY {
            counted.latency.record(self.began.took_ns());
        }
    }
}

/// A call that is counted once its answer begins, or once nobody waits for it any more.
#[derive(Debug)]
pub(crate) struct TimedCall<F> {
    open: Option<Open>,
    inner: F,
}

impl<F, B, E> Future for TimedCall<F>
where
    F: Future<Output = Result<http::Response<B>, E>> + Unpin,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let polled = Pin::new(&mut self.inner).poll(context);
        if let Poll::Ready(answer) = &polled
            && let Some(open) = self.open.take()
        {
            let status = answer.as_ref().map(|head| Status::from_header_map(head.headers()));
            open.end(match status {
                Ok(status) => status.map_or(Code::Ok, |status| status.code()),
                Err(_) => Code::Unknown,
            });
        }
        polled
    }
}

impl<F> Drop for TimedCall<F> {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            open.end(Code::Cancelled);
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_method_of_the_wire_is_counted_and_streams_are_known() {
        let sets = [crate::v1::DESCRIPTORS, crate::envoy::DESCRIPTORS];
        let files = sets.map(|set| FileDescriptorSet::decode(set).expect("descriptors").file);
        let services = files.iter().flatten().flat_map(|file| &file.service);
        let mut wire: Vec<(String, bool)> = services
            .flat_map(|service| {
                service.method.iter().map(move |method| {
                    let is_stream = method.server_streaming() || method.client_streaming();
                    (format!("{}/{}", service.name(), method.name()), is_stream)
                })
            })
            .collect();
        let numbered = METHODS.iter().enumerate();
        let mut counted: Vec<(String, bool)> =
            numbered.map(|(index, method)| ((*method).to_owned(), index >= UNARY)).collect();
        wire.sort();
        counted.sort();
        assert_eq!(counted, wire);
    }

    #[test]
    fn a_code_is_counted_at_its_number_and_a_call_that_is_dropped_as_cancelled() {
        let mut calls = Calls::default();
        let shard = calls.shard();
        calls.shard();
        for number in 0..17 {
            let code = Code::from_i32(number);
            let open = Open::begin(&shard, "/bursar.v1.LedgerService/Check").expect("a method");
            open.end(code);
        }
        let open = Open::begin(&shard, "/bursar.v1.LedgerService/Check");
        drop(TimedCall { open, inner: std::future::pending::<()>() });
        let index = METHODS.iter().position(|name| *name == "LedgerService/Check").expect("there");
        let counts = calls.by_code(index);
        assert_eq!((counts[0], counts[1], counts[16]), (1, 2, 1));
        assert_eq!(calls.latency(index).buckets.iter().sum::<u64>(), 18);
        let rate_limit = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
        assert!(Open::begin(&shard, rate_limit).is_some());
        assert!(Open::begin(&shard, "/grpc.health.v1.Health/Check").is_none());
    }
}
