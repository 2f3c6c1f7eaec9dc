//! What requests may take of the memory before they are answered, and answers before they are sent.
//!
//! A call that has announced a large message is given room for it; all that are under way share one
//! bound, across connections. A message that was begun has to be complete in time, so that nobody sits
//! on what is shared. So does a large answer until it is sent. Small messages need no room. Never looks
//! into a message.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tower_layer::Layer;

use crate::peer::Peer;
use crate::places::spare;

/// What a message takes without asking: nearly all are smaller.
const SMALL_BYTES: usize = 16 << 10;
/// How many of the largest messages there is room for.
const LARGE_MESSAGES: usize = 32;
/// How many calls there may be under way, across connections: each takes some kilobytes.
const CALLS_MAX: usize = 65_536;
/// How long a message may take to arrive, once it was begun or is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// A compression flag and a length.
const HEADER_BYTES: usize = 5;
/// Calls whose client may have nothing to say for long.
const CONVERSATIONS: [&str; 2] = ["/Meter", "/ServerReflectionInfo"];

/// The room that is left, in bytes; shared by all threads.
#[derive(Debug)]
pub(crate) struct Room {
    left: AtomicUsize,
    calls: AtomicUsize,
    all: usize,
    largest: usize,
}

impl Room {
    /// Room for so many messages of the largest size.
    pub(crate) fn new(largest: usize) -> Arc<Room> {
        let all = largest.saturating_mul(LARGE_MESSAGES);
        Arc::new(Room { left: AtomicUsize::new(all), calls: AtomicUsize::new(0), all, largest })
    }

    fn take(&self, bytes: usize) -> bool {
        let take = |left: usize| left.checked_sub(bytes);
        self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok()
    }
}

/// What one call has of the room; it goes back when the call has its answer.
#[derive(Debug)]
pub(crate) struct Share {
    room: Arc<Room>,
    /// How many calls its peer has under way.
    own: Arc<AtomicUsize>,
    bytes: AtomicUsize,
    /// Whether there was room for one more call.
    fits: bool,
}

impl Share {
    fn of(room: &Arc<Room>, own: Arc<AtomicUsize>) -> Share {
        let has_most = own.fetch_add(1, Ordering::AcqRel) > CALLS_MAX / 2;
        let spare = if has_most { spare(CALLS_MAX) } else { 0 };
        let fits = room.calls.fetch_add(1, Ordering::AcqRel) + spare < CALLS_MAX;
        Share { room: Arc::clone(room), own, bytes: AtomicUsize::new(0), fits }
    }

    /// A message of that length is coming, and the one before it is no more.
    fn expect(&self, length: usize) -> Result<(), Status> {
        self.give_back();
        // A longer one is refused before any of it is read.
        let bytes = length.min(self.room.largest);
        if bytes <= SMALL_BYTES {
            return Ok(());
        }
        if !self.room.take(bytes) {
            let all = self.room.all >> 20;
            let message = format!("messages of {all} MiB are under way, the most: try again");
            return Err(Status::unavailable(message));
        }
        self.bytes.store(bytes, Ordering::Release);
        Ok(())
    }

    fn give_back(&self) {
        if self.bytes.load(Ordering::Acquire) == 0 {
            return;
        }
        let bytes = self.bytes.swap(0, Ordering::AcqRel);
        self.room.left.fetch_add(bytes, Ordering::AcqRel);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back();
        self.room.calls.fetch_sub(1, Ordering::AcqRel);
        self.own.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The borders of messages in what a call sends.
#[derive(Debug, Default)]
struct Borders {
    header: [u8; HEADER_BYTES],
    have: usize,
    left: usize,
}

impl Borders {
    /// Goes on by these bytes, and tells the length of each message that begins in them.
    fn pass(
        &mut self,
        mut bytes: &[u8],
        mut begins: impl FnMut(usize) -> Result<(), Status>,
    ) -> Result<(), Status> {
        while !bytes.is_empty() {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes.advance(skipped);
            while self.left == 0 && self.have < HEADER_BYTES && !bytes.is_empty() {
                self.header[self.have] = bytes.get_u8();
                self.have += 1;
            }
            if self.have == HEADER_BYTES {
                let [_, length @ ..] = self.header;
                self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                self.have = 0;
                begins(self.left)?;
            }
        }
        Ok(())
    }

    fn is_between(&self) -> bool {
        self.have == 0 && self.left == 0
    }
}

/// The body of a request.
struct Intake {
    body: Body,
    share: Arc<Share>,
    borders: Borders,
    /// Whether its client may be silent between messages.
    converses: bool,
    /// Runs while a message is waited for.
    deadline: Option<Pin<Box<Sleep>>>,
    patience: Duration,
}

impl hyper::body::Body for Intake {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if !this.share.fits {
            let message = format!("{CALLS_MAX} calls are under way, the most: try again");
            return Poll::Ready(Some(Err(Status::unavailable(message))));
        }
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(bytes) = frame.data_ref() {
                    let share = &this.share;
                    if let Err(full) = this.borders.pass(bytes, |length| share.expect(length)) {
                        return Poll::Ready(Some(Err(full)));
                    }
                    if this.borders.is_between() {
                        this.deadline = None;
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(end) => Poll::Ready(end),
            Poll::Pending if this.converses && this.borders.is_between() => Poll::Pending,
            Poll::Pending => {
                let sleep = || Box::pin(tokio::time::sleep(this.patience));
                let deadline = this.deadline.get_or_insert_with(sleep);
                deadline.as_mut().poll(context).map(|()| {
                    let seconds = this.patience.as_secs();
                    let message = format!("the request was not complete within {seconds} s");
                    Some(Err(Status::deadline_exceeded(message)))
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Puts every request under the bound.
#[derive(Debug, Clone)]
pub(crate) struct Bounded(pub(crate) Arc<Room>);

impl<S> Layer<S> for Bounded {
    type Service = BoundedService<S>;

    fn layer(&self, inner: S) -> BoundedService<S> {
        BoundedService { room: Arc::clone(&self.0), inner }
    }
}

/// A service whose requests are.
#[derive(Debug, Clone)]
pub(crate) struct BoundedService<S> {
    room: Arc<Room>,
    inner: S,
}

impl<S> Service<http::Request<Body>> for BoundedService<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Future: Unpin>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoundedCall<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (parts, body) = request.into_parts();
        let own = parts.extensions.get::<Peer>().map(|peer| Arc::clone(&peer.calls));
        let share = Arc::new(Share::of(&self.room, own.unwrap_or_default()));
        let converses = CONVERSATIONS.iter().any(|name| parts.uri.path().ends_with(name));
        let (borders, deadline) = (Borders::default(), None);
        // The body ends when its message is decoded; what a call still works on counts as well.
        let of_body = Arc::clone(&share);
        let intake =
            Intake { body, share: of_body, borders, converses, deadline, patience: PATIENCE };
        let inner = self.inner.call(http::Request::from_parts(parts, Body::new(intake)));
        BoundedCall { share, inner }
    }
}

/// A call under way.
pub(crate) struct BoundedCall<F> {
    share: Arc<Share>,
    inner: F,
}

impl<F, E> Future for BoundedCall<F>
where
    F: Future<Output = Result<http::Response<Body>, E>> + Unpin,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let answered = ready!(Pin::new(&mut self.inner).poll(context));
        Poll::Ready(answered.map(|answer| outgoing(&self.share, answer)))
    }
}

/// In an answer that may be large.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Announced {
    /// How long its only message is.
    Message(usize),
    /// It has many.
    Stream,
}

/// The answer, with what it takes of the room until it is sent; a refusal where there is none.
fn outgoing(share: &Arc<Share>, answer: http::Response<Body>) -> http::Response<Body> {
    let stream = match answer.extensions().get() {
        Some(Announced::Message(length)) if *length > SMALL_BYTES => {
            if let Err(full) = share.expect(*length) {
                return full.into_http();
            }
            false
        }
        Some(Announced::Stream) => true,
        _small => return answer,
    };
    let share = Arc::clone(share);
    let hold = move |frame: Frame<Bytes>| {
        // What comes before it is sent: only then is there more to send.
        let length = frame.data_ref().filter(|_| stream).map(Bytes::len);
        match length.map_or(Ok(()), |length| share.expect(length)) {
            Ok(()) => frame,
            Err(full) => ended(&full),
        }
    };
    answer.map(|body| Body::new(body.map_frame(hold)))
}

/// The end of a stream.
fn ended(by: &Status) -> Frame<Bytes> {
    let mut trailers = http::HeaderMap::new();
    let _all_of_it_is_ascii = by.add_header(&mut trailers);
    Frame::trailers(trailers)
}

#[cfg(test)]
mod tests {
    use http_body_util::channel::{Channel, Sender};

    use super::*;

    fn message(length: usize) -> Bytes {
        let mut bytes = vec![0; HEADER_BYTES + length];
        let announced = u32::try_from(length).expect("small");
        bytes[1..HEADER_BYTES].copy_from_slice(&announced.to_be_bytes());
        bytes.into()
    }

    fn intake(room: &Arc<Room>, converses: bool) -> (Sender<Bytes, Status>, Intake) {
        let (sender, body) = Channel::new(8);
        let share = Arc::new(Share::of(room, Arc::default()));
        let (borders, patience) = (Borders::default(), Duration::from_millis(50));
        let body = Body::new(body);
        (sender, Intake { body, share, borders, converses, deadline: None, patience })
    }

    #[test]
    fn messages_are_told_from_one_another_however_they_are_cut() {
        let all: Vec<u8> = [0, 3, 70_000, 1, 0].into_iter().flat_map(message).collect();
        for piece in [1, 2, 4, 5, 6, 7, 1_000, all.len()] {
            let (mut borders, mut seen) = (Borders::default(), Vec::new());
            for bytes in all.chunks(piece) {
                borders
                    .pass(bytes, |length| {
                        seen.push(length);
                        Ok(())
                    })
                    .expect("nothing is refused");
            }
            assert_eq!(seen, [0, 3, 70_000, 1, 0], "{piece}");
            assert!(borders.is_between());
        }
    }

    #[tokio::test]
    async fn what_is_announced_takes_room_until_the_call_is_over() {
        let room = Room::new(1 << 20);
        let mut open = Vec::new();
        for _ in 0..LARGE_MESSAGES {
            let (mut sender, mut one) = intake(&room, false);
            sender.send_data(message(1 << 20).slice(..9)).await.expect("room");
            one.frame().await.expect("a frame").expect("there is room");
            open.push((sender, one));
        }
        let (mut sender, mut late) = intake(&room, false);
        sender.send_data(message(1 << 20).slice(..9)).await.expect("room");
        let full = late.frame().await.expect("a frame").expect_err("there is no room");
        assert_eq!(full.code(), tonic::Code::Unavailable);
        let (mut sender, mut small) = intake(&room, false);
        sender.send_data(message(SMALL_BYTES)).await.expect("room");
        small.frame().await.expect("a frame").expect("small ones always pass");
        drop(open);
        assert_eq!(room.left.load(Ordering::Acquire), room.all);
    }

    #[tokio::test]
    async fn one_call_too_many_is_refused_until_another_has_ended() {
        let room = Room::new(1 << 20);
        let mut others: Vec<_> = (0..CALLS_MAX).map(|_| Share::of(&room, Arc::default())).collect();
        let (_sender, mut late) = intake(&room, false);
        let full = late.frame().await.expect("a frame").expect_err("there is no room");
        assert_eq!(full.code(), tonic::Code::Unavailable);
        drop((late, others.pop()));
        let (mut sender, mut one) = intake(&room, false);
        sender.send_data(message(4)).await.expect("room");
        one.frame().await.expect("a frame").expect("there is room again");
    }

    #[tokio::test]
    async fn a_large_answer_takes_room_until_it_is_sent() {
        let room = Room::new(1 << 20);
        let answer = |length| {
            let share = Arc::new(Share::of(&room, Arc::default()));
            // One that is not at its end yet.
            let (_sender, body) = Channel::<Bytes, Status>::new(1);
            let mut answer = http::Response::new(Body::new(body));
            answer.extensions_mut().insert(Announced::Message(length));
            outgoing(&share, answer)
        };
        let sent: Vec<_> = (0..LARGE_MESSAGES).map(|_| answer(1 << 20)).collect();
        let code = |answer: &http::Response<Body>| {
            Status::from_header_map(answer.headers()).map(|status| status.code())
        };
        assert!(sent.iter().all(|one| code(one).is_none()));
        assert_eq!(code(&answer(SMALL_BYTES + 1)), Some(tonic::Code::Unavailable));
        assert_eq!(code(&answer(SMALL_BYTES)), None);
        drop(sent);
        assert_eq!(room.left.load(Ordering::Acquire), room.all);
    }

    #[tokio::test]
    async fn a_stream_has_room_for_its_last_message_and_ends_where_there_is_none() {
        let room = Room::new(1 << 20);
        let share = || Arc::new(Share::of(&room, Arc::default()));
        let stream = || {
            let (sender, body) = Channel::<Bytes, Status>::new(8);
            let mut answer = http::Response::new(Body::new(body));
            answer.extensions_mut().insert(Announced::Stream);
            (sender, outgoing(&share(), answer).into_body())
        };
        let others: Vec<_> = (1..LARGE_MESSAGES).map(|_| share()).collect();
        assert!(others.iter().all(|one| one.expect(1 << 20).is_ok()));
        let (mut sender, mut told) = stream();
        for _ in 0..2 {
            sender.send_data(message(1 << 20)).await.expect("room");
            assert!(told.frame().await.expect("a frame").expect("there is room").is_data());
        }
        let (mut other, mut full) = stream();
        other.send_data(message(1 << 20)).await.expect("room");
        let end = full.frame().await.expect("a frame").expect("an end");
        let status = Status::from_header_map(end.trailers_ref().expect("trailers"));
        assert_eq!(status.map(|status| status.code()), Some(tonic::Code::Unavailable));
        drop((told, full, others));
        assert_eq!(room.left.load(Ordering::Acquire), room.all);
    }

    #[test]
    fn who_has_most_calls_leaves_the_last_ones_to_others() {
        let (room, crowd) = (Room::new(1 << 20), Arc::<AtomicUsize>::default());
        let held: Vec<_> = (0..CALLS_MAX).map(|_| Share::of(&room, Arc::clone(&crowd))).collect();
        assert_eq!(held.iter().filter(|share| !share.fits).count(), spare(CALLS_MAX));
        drop(held);
        let held: Vec<_> =
            (0..CALLS_MAX - 1).map(|_| Share::of(&room, Arc::clone(&crowd))).collect();
        assert!(Share::of(&room, Arc::default()).fits, "of another");
        drop(held);
        assert_eq!((room.calls.load(Ordering::Acquire), crowd.load(Ordering::Acquire)), (0, 0));
    }

    #[tokio::test]
    async fn a_message_that_was_begun_ends_in_time_and_a_conversation_may_pause() {
        let room = Room::new(1 << 20);
        for (converses, sent, ends) in
            [(false, 0, true), (true, 0, false), (true, 7, true), (true, 9, false)]
        {
            let (mut sender, mut one) = intake(&room, converses);
            if sent > 0 {
                sender.send_data(message(4).slice(..sent)).await.expect("room");
                one.frame().await.expect("a frame").expect("there is room");
            }
            let waited = tokio::time::timeout(Duration::from_millis(300), one.frame()).await;
            assert_eq!(waited.is_ok(), ends, "{converses} {sent}");
        }
    }
}
