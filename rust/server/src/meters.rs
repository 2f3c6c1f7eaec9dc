//! The Meter streams that are open, and how each hears of what it did not ask for.
//!
//! The ledger tells of a change under its own locks, from whatever thread made it. All that happens
//! there is a note in the inboxes of those whom it concerns, and a wake-up; the stream looks for itself
//! (`meter`). Without a stream a change costs one look at an empty map.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Waker};

use bursar_ledger::{Channel, Observer, ReservationId, State};
use parking_lot::Mutex;

/// All open streams.
#[derive(Debug, Default)]
pub(crate) struct Meters(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    /// The number of the latest stream.
    latest: u64,
    draining: bool,
    inboxes: HashMap<u64, Arc<Inbox>>,
}

/// What one stream has not heard of yet.
#[derive(Debug, Default)]
struct Inbox(Mutex<(News, Option<Waker>)>);

/// What happened since the last look.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// Some verdict, advice, freeze or limit changed.
    pub(crate) verdicts: bool,
    /// Reservations of this stream that have ended, and how; at most as many as it has.
    pub(crate) ended: Vec<(ReservationId, State)>,
    /// The stream has to end.
    pub(crate) draining: bool,
}

/// A stream's place among the open ones, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    number: u64,
    inbox: Arc<Inbox>,
    meters: Arc<Meters>,
}

impl Meters {
    /// A place for a new stream.
    pub(crate) fn open(self: &Arc<Meters>) -> Place {
        let mut open = self.0.lock();
        open.latest += 1;
        let (number, inbox) = (open.latest, Arc::<Inbox>::default());
        inbox.0.lock().0.draining = open.draining;
        open.inboxes.insert(number, Arc::clone(&inbox));
        Place { number, inbox, meters: Arc::clone(self) }
    }

    /// Ends all streams, also those that are opened later.
    pub(crate) fn drain(&self) {
        self.0.lock().draining = true;
        self.tell_all(|news| news.draining = true);
    }

    fn tell_all(&self, note: impl Fn(&mut News)) {
        let wakers: Vec<Waker> =
            self.0.lock().inboxes.values().filter_map(|inbox| inbox.put(&note)).collect();
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Observer for Meters {
    fn verdicts_changed(&self) {
        self.tell_all(|news| news.verdicts = true);
    }

    fn ended(&self, channel: Channel, id: ReservationId, state: State) {
        let Channel::Meter(number) = channel;
        let waker = {
            let open = self.0.lock();
            open.inboxes
                .get(&number)
                .and_then(|inbox| inbox.put(|news| news.ended.push((id, state))))
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Inbox {
    /// Notes something; returns whom to wake, once no lock is held.
    fn put(&self, note: impl FnOnce(&mut News)) -> Option<Waker> {
        let mut inbox = self.0.lock();
        note(&mut inbox.0);
        inbox.1.take()
    }
}

impl Place {
    /// The channel by which the stream claims reservations.
    pub(crate) fn channel(&self) -> Channel {
        Channel::Meter(self.number)
    }

    /// What is new; wakes the caller when there is more.
    pub(crate) fn look(&self, context: &mut Context<'_>) -> News {
        let mut inbox = self.inbox.0.lock();
        match &mut inbox.1 {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        let draining = inbox.0.draining;
        News { draining, ..std::mem::take(&mut inbox.0) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.meters.0.lock().inboxes.remove(&self.number);
    }
}
