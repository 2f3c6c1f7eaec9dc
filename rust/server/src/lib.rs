//! The daemon's inside: the ledger with its store behind gRPC.
//!
//! `engine` joins ledger, rates and store and speaks protobuf messages; `grpc` puts it on the wire;
//! `access` says who may call; `lease` hands out shared memory; `proxy` answers OpenAI's and
//! Anthropic's clients; `dashboard` shows it in a browser; `metrics` is what Prometheus reads; `envoy`
//! is Envoy's rate limit service; `process` carries the calls that the watchdog answers; `serve` owns
//! sockets, threads and the drain. Nothing here knows Python.
#![forbid(unsafe_code)]

mod access;
mod admin;
mod calls;
mod certificate;
mod clock;
pub mod config;
mod connection;
mod convert;
mod dashboard;
mod durable;
mod embedded;
mod engine;
mod envoy;
pub mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod greeting;
mod grpc;
mod handed;
mod health;
mod history;
mod intake;
mod lease;
mod listen;
mod maker;
mod meter;
mod meters;
mod metrics;
mod others;
mod owner;
mod panics;
mod peer;
mod places;
mod process;
pub mod prompt;
mod proxy;
mod serve;
pub mod tls;
pub mod tokens;
mod web;

/// What one thread allocates another frees here, call by call: with the system's allocator half of the
/// calls a second are lost.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub use embedded::AccountWatch;
pub use engine::{Engine, OpenError};
pub use error::ApiError;
pub use panics::tell_panics;
pub use process::{ProcessCall, Processes};
pub use serve::{Running, serve};

/// The wire types, generated from `proto/bursar/v1`.
#[allow(
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unreachable_pub,
    reason = "generated code; the proto files are its documentation"
)]
pub mod v1 {
    tonic::include_proto!("bursar.v1");
    /// The compiled proto files, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
