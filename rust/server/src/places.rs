//! Places of which there are only so many: connections, calls, reads of the store.
//!
//! Who has more than half of them does not get the last ones, so that the others, an operator among
//! them, still find one. Nobody waits here for a place, but for a turn.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bursar_ledger::path;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use crate::access::Caller;

/// Who has a place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    /// A user of this host.
    User(Option<u32>),
    /// An address; in IPv6 a network, which one host may have all of.
    Address(IpAddr),
    /// An account with those below it.
    Account(Arc<str>),
    /// Who cannot be told from others: has as many as there are.
    Anybody,
}

impl Holder {
    pub(crate) fn at(address: SocketAddr) -> Holder {
        Holder::Address(match address.ip().to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
            address @ IpAddr::V4(_) => address,
        })
    }

    /// As `at`, where all programs of this host come by its own address.
    pub(crate) fn elsewhere(address: SocketAddr) -> Holder {
        let is_here = address.ip().to_canonical().is_loopback();
        if is_here { Holder::Anybody } else { Holder::at(address) }
    }

    /// The accounts that share with `account`: the one below its root, with all below that. A root is
    /// anybody: it may be everybody's.
    pub(crate) fn sharing(account: &str) -> Holder {
        path::below_root(account).map_or(Holder::Anybody, |shared| Holder::Account(shared.into()))
    }
}

/// The places that there may be.
#[derive(Debug)]
pub(crate) struct Places {
    most: usize,
    /// How many the last ones are.
    spare: usize,
    taken: Mutex<(usize, HashMap<Holder, Own>)>,
    turned_away: AtomicU64,
}

/// What one holder has.
#[derive(Debug, Default)]
struct Own {
    places: usize,
    calls: Arc<AtomicUsize>,
}

impl Places {
    pub(crate) fn new(most: usize) -> Arc<Places> {
        let (spare, taken) = (spare(most), Mutex::default());
        Arc::new(Places { most, spare, taken, turned_away: AtomicU64::new(0) })
    }

    /// How many are taken.
    pub(crate) fn open(&self) -> usize {
        self.taken.lock().0
    }

    /// How many found none.
    pub(crate) fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    pub(crate) fn take(self: &Arc<Places>, holder: Holder) -> Option<Taken> {
        let mut taken = self.taken.lock();
        let (all, by) = &mut *taken;
        let own = by.get(&holder).map_or(0, |own| own.places);
        let has_most = own > self.most / 2 && holder != Holder::Anybody;
        if *all + if has_most { self.spare } else { 0 } >= self.most {
            self.turned_away.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        *all += 1;
        let own = by.entry(holder.clone()).or_default();
        own.places += 1;
        Some(Taken { places: Arc::clone(self), holder, calls: Arc::clone(&own.calls) })
    }

    /// Waits until none is taken.
    pub(crate) async fn all_free(&self) {
        while self.open() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The last ones of so many.
pub(crate) fn spare(most: usize) -> usize {
    const SPARE_MAX: usize = 64;
    (most / 16).min(SPARE_MAX)
}

/// One of the places, until it is dropped.
#[derive(Debug)]
pub(crate) struct Taken {
    places: Arc<Places>,
    holder: Holder,
    /// What the holder has under way by all its places.
    pub(crate) calls: Arc<AtomicUsize>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        let (all, by) = &mut *taken;
        *all -= 1;
        if let Some(own) = by.get_mut(&self.holder) {
            own.places -= 1;
            if own.places == 0 {
                by.remove(&self.holder);
            }
        }
    }
}

/// Turns of calls of one kind: how many may wait for one, and how many have one at a time, so that
/// other calls find threads as well.
#[derive(Debug)]
pub(crate) struct Turns {
    places: Arc<Places>,
    turns: Arc<Semaphore>,
}

/// Kept until the call is over, also when its caller has gone.
pub(crate) struct Turn {
    _place: Taken,
    _turn: OwnedSemaphorePermit,
}

impl Turns {
    const MOST: usize = 256;
    const AT_A_TIME: usize = 2;

    /// So many have one at a time.
    pub(crate) fn of(at_a_time: usize) -> Turns {
        let turns = Arc::new(Semaphore::new(at_a_time));
        Turns { places: Places::new(Self::MOST), turns }
    }

    /// Waits for a caller's turn, if not too many do.
    pub(crate) async fn turn(&self, caller: &Caller) -> Result<Turn, Status> {
        let place = self.places.take(Holder::sharing(caller.account())).ok_or_else(|| {
            let message = format!("{} calls of this kind wait, the most: try again", Self::MOST);
            Status::unavailable(message)
        })?;
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let turn = turn.map_err(|_| Status::internal("nobody has a turn"))?;
        Ok(Turn { _place: place, _turn: turn })
    }
}

impl Default for Turns {
    fn default() -> Turns {
        Turns::of(Self::AT_A_TIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_most_places_leaves_the_last_ones_to_others() {
        let places = Places::new(32);
        let crowd = Holder::at("[2001:db8::7]:1".parse().expect("an address"));
        let neighbour = Holder::at("[2001:db8::8]:1".parse().expect("an address"));
        assert_eq!(crowd, neighbour, "one network");
        let mut held: Vec<Taken> = std::iter::from_fn(|| places.take(crowd.clone())).collect();
        assert_eq!((held.len(), places.turned_away()), (30, 1));
        let other = Holder::at("127.0.0.1:1".parse().expect("an address"));
        let operator = places.take(Holder::User(Some(0))).expect("a place is left");
        let _last = places.take(other.clone()).expect("and another");
        assert!(places.take(other).is_none(), "no more than there are");
        drop(operator);
        assert!(places.take(crowd.clone()).is_none());
        held.truncate(15);
        assert!(places.take(crowd.clone()).is_some());
        held.clear();
        assert_eq!(places.taken.lock().1.len(), 1, "who has none is forgotten");
    }
    #[test]
    fn accounts_share_below_their_root_and_who_is_anybody_has_all() {
        let places = Places::new(32);
        let sharing = Holder::sharing("acme/a/agent-1");
        assert_eq!(sharing, Holder::sharing("acme/a"));
        assert_ne!(sharing, Holder::sharing("acme/ab"));
        assert_eq!(Holder::sharing("acme"), Holder::Anybody);
        let held: Vec<Taken> = std::iter::from_fn(|| places.take(sharing.clone())).collect();
        assert_eq!(held.len(), 30);
        assert!(places.take(Holder::sharing("acme/b")).is_some());
        drop(held);
        let here = Holder::elsewhere("[::1]:1".parse().expect("an address"));
        let held: Vec<Taken> = std::iter::from_fn(|| places.take(here.clone())).collect();
        assert_eq!(held.len(), 32);
    }
}
