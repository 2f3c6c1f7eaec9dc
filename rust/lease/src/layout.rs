//! The layout of the two pages and of the lease socket's frames, version 1: the manual for clients in
//! other languages.
//!
//! All numbers are little-endian and aligned to their size. A page is 4,096 bytes; what is not named
//! here is zero and reserved.
//!
//! # The usage page
//! Written by the client, read by the daemon. What it says is a claim: the daemon takes from it no more
//! than was granted and no less than it has seen.
//!
//! | offset | type | what |
//! |---|---|---|
//! | 0 | u32 | [`MAGIC`] |
//! | 4 | u32 | [`VERSION`] |
//! | 64 | u64 | the usage word: bits 0–47 *used*, 48–62 *epoch*, 63 *closed* |
//!
//! # The control page
//! Written by the daemon; a client can map it for reading only.
//!
//! | offset | type | what |
//! |---|---|---|
//! | 0 | u32 | [`MAGIC`] |
//! | 4 | u32 | [`VERSION`] |
//! | 64 | u64 | the control word: bits 0–47 *granted*, 48–50 *verdict*, 51 *ended* |
//! | 128 | u64 | the advice's sequence: odd while it is written |
//! | 136 | i64 | `max_new_tokens`; negative: leave as it is |
//! | 144 | f64 | `temperature`; NaN: leave as it is |
//! | 152 | f64 | `repetition_penalty`; NaN: leave as it is |
//! | 160 | u64 | the length of `fallback_model`; 0: leave as it is |
//! | 168 | bytes | `fallback_model`, UTF-8, at most [`TEXT_BYTES`] |
//! | 424 | u64 | the length of `notice`; 0: there is none |
//! | 432 | bytes | `notice`, UTF-8, at most [`TEXT_BYTES`] |
//!
//! Verdicts are 0 OK, 1 WARN, 2 DEGRADE, 3 STOP.
//!
//! # A step
//! 1. Load the usage word (acquire). If *closed*: if the control word says *ended*, stop for good; else
//!    the daemon is at work on the lease: wait and load again.
//! 2. Load the control word, after the usage word and not before.
//! 3. If *used* + n passes *granted*: ask for more by `LedgerService.Extend` (with `top_up`), and stop
//!    when that is refused. When its answer arrives, the control page has the new grant. A client that
//!    was granted ahead may wait for the control word to change instead; nobody tells it that no more
//!    comes, so it gives up after a second, say: the daemon looks at a lease that moves every few
//!    milliseconds, and at one that rests a few times a second.
//! 4. Compare-and-swap the usage word from what was loaded to the same with *used* + n (release). If it
//!    failed, start again. If it succeeded, n is debited, and *verdict* says how to go on.
//!
//! A step that finds verdict STOP is debited all the same; stop after it. Both pages are to be mapped
//! `MAP_SHARED`; a process that is forked off inherits them and must not step on them.
//!
//! The daemon sets *closed* before it settles the lease or takes back what was granted, and counts
//! *epoch* up when it opens it again: a step that loaded a grant from before cannot succeed after.
//!
//! # The lease socket
//! A Unix socket of type SEQPACKET beside the daemon's own, with `.lease` behind its name: one
//! request, one answer, each one message of exactly the length below. A message that is none, or of
//! another version, gets no answer: the daemon closes the connection.
//!
//! A lease lives as long as the process that attached it, its connection, and its reservation:
//! - when the reservation ends, by Commit, say, the page is closed first, and then the control
//!   word says *ended*;
//! - after a detach, or the end of the connection, the reservation stays pending at what was debited;
//! - when the process ends with its lease attached, or within a second of the connection's end, the
//!   reservation ends at what was debited;
//! - a frame that is none, and answers that nobody reads, end the connection with all its leases.
//!
//! A reservation that was made over the daemon's Unix socket can be leased only by the process that
//! made it: the same pid and start time, so a program that replaces another by `execve` will do.
//!
//! | offset | request, 144 bytes | type |
//! |---|---|---|
//! | 0 | [`MAGIC`] | u32 |
//! | 4 | [`VERSION`] | u16 |
//! | 6 | 1 attach, 2 detach | u16 |
//! | 8 | tag, comes back in the answer | u64 |
//! | 16 | attach: used so far by an earlier attachment, else 0; detach: the lease's number | u64 |
//! | 24 | attach: grant so much ahead, unasked, 0: never | i64 |
//! | 32 | attach: never grant more than so much in all, 0: no such bound | i64 |
//! | 40 | input tokens of the usage | i64 |
//! | 48 | those of them that are read from a cache | i64 |
//! | 56 | those of them that are written to a cache | i64 |
//! | 64 | GPU time of the usage in milliseconds | i64 |
//! | 72 | what the lease counts: a unit's index, or 255: the output tokens of the usage | u8 |
//! | 73 | length of the reservation's id | u8 |
//! | 80 | the reservation's id, at most [`ID_BYTES`] | bytes |
//!
//! Units are 0 `tokens`, 1 `usd_nanos`, 2 `gpu_ms`, 4 `energy_mj`, 5 `calls`, 7 `vram_mib_s`.
//!
//! | offset | answer, 256 bytes | type |
//! |---|---|---|
//! | 0 | [`MAGIC`] | u32 |
//! | 4 | [`VERSION`] | u16 |
//! | 6 | 0, or the number of an `ErrorReason` | u16 |
//! | 8 | tag | u64 |
//! | 16 | used | u64 |
//! | 24 | granted | u64 |
//! | 32 | the lease's number | u64 |
//! | 40 | length of the message | u16 |
//! | 48 | what went wrong, for a person to read, at most [`MESSAGE_BYTES`] | bytes |
//!
//! The answer to an attach carries two descriptors (`SCM_RIGHTS`): the usage page, the control page.

/// The first four bytes of every page and frame: "BRSL".
pub const MAGIC: u32 = u32::from_le_bytes(*b"BRSL");
/// This layout's version.
pub const VERSION: u32 = 1;
/// The length of a page.
pub const PAGE_BYTES: usize = 4096;
/// Where each page's word is.
pub const WORD: usize = 64;
/// Where the advice begins.
pub const ADVICE: usize = 128;
/// Where the fallback model is: its length, and its name behind that.
pub const MODEL: usize = 160;
/// Where the notice is: its length, and its text behind that.
pub const NOTICE: usize = 424;
/// The longest name of a fallback model, and the longest notice.
pub const TEXT_BYTES: usize = 256;
/// The longest id of a reservation.
pub const ID_BYTES: usize = 64;
/// The longest message of an answer.
pub const MESSAGE_BYTES: usize = 208;
/// The most that one lease can count.
pub const COUNT_MAX: u64 = (1 << 48) - 1;
/// What is behind the daemon's socket's name in the lease socket's.
pub const SOCKET_SUFFIX: &str = ".lease";
