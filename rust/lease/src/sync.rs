//! The primitives that loom replaces when the crate is built with `--cfg bursar_loom`.

#[cfg(bursar_loom)]
pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(bursar_loom))]
pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
