//! The body of a request: all of it, within its bounds, and taken apart.
//!
//! The large ones that are under way share one room, so that no crowd of them takes the host's memory,
//! and taking one apart holds nobody up.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::failure::Failure;
use super::request::Call;
use super::route::Endpoint;
use super::settings::ProxySection;

/// What a body takes without asking for room, and is taken apart between other calls: nearly all are
/// smaller.
pub(crate) const SMALL_BYTES: usize = 32 << 10;
/// How many of the largest there is room for.
const LARGE_BODIES: usize = 16;
/// What room is told in: a semaphore tells at most 2^32 at a time.
const KIB: usize = 1 << 10;

/// The room that large bodies share.
#[derive(Debug)]
pub(crate) struct Room(Arc<Semaphore>);

/// What one body has of it, until its call is answered.
#[derive(Debug, Default)]
pub(crate) struct Share(Option<OwnedSemaphorePermit>);

impl Room {
    pub(crate) fn new(settings: &ProxySection) -> Room {
        let bytes = settings.max_body_bytes.saturating_mul(LARGE_BODIES);
        Room(Arc::new(Semaphore::new(bytes / KIB)))
    }

    /// All of a request.
    pub(crate) async fn read(
        &self,
        settings: &ProxySection,
        mut body: Incoming,
    ) -> Result<(Bytes, Share), Failure> {
        let most = settings.max_body_bytes;
        let (mut whole, mut share) = (BytesMut::new(), Share::default());
        let reading = async {
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|_| Failure::invalid("the request broke off"))?;
                let Some(data) = frame.data_ref() else { continue };
                let length = whole.len() + data.len();
                if length > most {
                    return Err(Failure::too_large(most));
                }
                self.widen(&mut share, length)?;
                whole.extend_from_slice(data);
            }
            Ok(())
        };
        timeout(settings.client_timeout, reading).await.map_err(|_| Failure::slow())??;
        Ok((whole.freeze(), share))
    }

    /// Makes a share that of a body so long.
    fn widen(&self, share: &mut Share, length: usize) -> Result<(), Failure> {
        if length <= SMALL_BYTES {
            return Ok(());
        }
        let has = share.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = u32::try_from(length.div_ceil(KIB) - has).unwrap_or(u32::MAX);
        let more = Arc::clone(&self.0).try_acquire_many_owned(more).map_err(|_| {
            let message = format!(
                "requests as long as {LARGE_BODIES} of proxy.max_body_bytes are under way: try again"
            );
            Failure::busy(message)
        })?;
        match &mut share.0 {
            Some(permit) => permit.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

/// The call that a body is.
pub(crate) async fn parse(endpoint: Endpoint, body: &Bytes) -> Result<Call, Failure> {
    if body.len() <= SMALL_BYTES {
        return Call::parse(endpoint, body);
    }
    let body = body.clone();
    let parsed = tokio::task::spawn_blocking(move || Call::parse(endpoint, &body)).await;
    parsed.unwrap_or_else(|_| Err(Failure::invalid("the body is not a call")))
}
