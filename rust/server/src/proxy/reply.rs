//! The bodies of answers: whole, or parts as they come.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

/// A body.
#[derive(Debug)]
pub(crate) enum Reply {
    Whole(Option<Bytes>),
    Parts(mpsc::Receiver<Bytes>),
}

impl Reply {
    pub(crate) fn whole(bytes: Bytes) -> Reply {
        Reply::Whole(Some(bytes))
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match &mut *self {
            Reply::Whole(bytes) => Poll::Ready(bytes.take()),
            Reply::Parts(receiver) => receiver.poll_recv(context),
        };
        bytes.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Reply::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Reply::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Reply::Parts(_) => SizeHint::default(),
        }
    }
}
