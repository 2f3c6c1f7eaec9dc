//! Fuzz targets: each takes any bytes, reads them as a peer's, and panics where what has to hold does
//! not. Two drivers run them: `tests/replay.rs` on a stable toolchain, for some seconds and always,
//! and libFuzzer (`libfuzzer/`, a workspace of its own), for as long as one likes: `make fuzz`.
//!
//! Targets that need what is private to a crate live there, behind its feature `fuzzing`. `corpus/` has
//! a few inputs for each target to begin with; what was once found wrong is among them, named so.
#![forbid(unsafe_code)]

mod engine;
mod frames;
pub mod mutate;
mod paths;
mod records;

/// A target.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 15] = [
    ("access", bursar_server::fuzzing::access),
    ("answer", bursar_server::fuzzing::answer),
    ("engine", engine::run),
    ("envoy", engine::envoy),
    ("lease_frames", frames::run),
    ("lease_pages", bursar_server::fuzzing::lease_pages),
    ("log", bursar_store::fuzzing::log),
    ("paths", paths::run),
    ("process_name", bursar_server::fuzzing::process_name),
    ("prompt", bursar_server::fuzzing::prompt),
    ("records", records::run),
    ("request", bursar_server::fuzzing::request),
    ("route", bursar_server::fuzzing::route),
    ("stream", bursar_server::fuzzing::stream),
    ("token_file", bursar_server::fuzzing::token_file),
];

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|(known, _)| *known == name).map(|(_, target)| target)
}
