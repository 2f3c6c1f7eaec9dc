//! Leases: a reservation debited by shared memory, in nanoseconds and to the exact token.
//!
//! **This crate contains the project's only `unsafe` code**, in four small files: `map` (memfd and
//! mmap), `peer` (socket options that the safe wrappers lack), `fork` (one libc registration) and
//! `handed` (descriptors by number).
//! Each block says why it is there (JUSTIFICATION) and what it relies on (SAFETY). All else, the
//! protocol on the words included, is safe code over atomics.
//!
//! Miri (`make test-miri`) checks what it can: the protocol on both pages and the frames, on ordinary
//! memory. It knows neither memfd nor Unix sockets nor `pthread_atfork`, so the four files themselves
//! run against the real kernel only.
//!
//! `layout` is the manual for other languages. `word` is the protocol on one lease's two words, `pages`
//! the two pages with both sides' views of them, `frame` and `channel` the lease socket, `peer` who is
//! at its other end, `client` the whole client: attach, debit, and attach again when the daemon is new.
#![deny(unsafe_op_in_unsafe_fn)]

#[cfg(not(bursar_loom))]
pub mod channel;
#[cfg(not(bursar_loom))]
pub mod client;
#[cfg(not(bursar_loom))]
mod connection;
#[cfg(not(bursar_loom))]
mod fork;
#[cfg(not(bursar_loom))]
pub mod frame;
#[cfg(not(bursar_loom))]
pub mod handed;
pub mod layout;
#[cfg(all(test, bursar_loom))]
mod loom_word;
#[cfg(not(bursar_loom))]
mod map;
#[cfg(not(bursar_loom))]
pub mod pages;
#[cfg(not(bursar_loom))]
pub mod peer;
mod sync;
pub mod word;
