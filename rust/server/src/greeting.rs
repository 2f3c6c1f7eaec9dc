//! How long a connection may say nothing: its first words are awaited for a while, then it is closed.
//!
//! Whoever has said what every HTTP/2 client says first is asked for signs of life from then on; this
//! is for those who have not, and would keep a place for ever.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

/// HTTP/2's preface and the header of the first frame.
const LENGTH: usize = 24 + 9;
const PATIENCE: Duration = Duration::from_secs(10);

/// The first bytes of a connection.
#[derive(Debug, Default)]
pub(crate) struct Greeting {
    heard: usize,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Greeting {
    /// After a read: fails it once the greeting has taken too long.
    pub(crate) fn check(
        &mut self,
        context: &mut Context<'_>,
        read: Poll<io::Result<()>>,
        bytes: usize,
    ) -> Poll<io::Result<()>> {
        if self.heard >= LENGTH {
            return read;
        }
        self.heard += bytes;
        if self.heard >= LENGTH {
            self.deadline = None;
        }
        if read.is_ready() {
            return read;
        }
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
        deadline.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}
