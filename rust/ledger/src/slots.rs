//! Where reservations live: slots that are reused, found by index, bounded in number.
//!
//! Each slot has a lock of its own, held for well under a microsecond; two reservations share none.
//! Chunks of slots carry the earliest deadline among them, so that looking for what is due costs next
//! to nothing when nothing is.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use parking_lot::Mutex;

use crate::free::{FreeList, Link};
use crate::reservation::Reservation;

/// How many slots share an earliest deadline.
const CHUNK: usize = 1024;
/// The deadline of a slot that is free.
pub(crate) const NEVER: i64 = i64::MAX;

/// One place for a reservation.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) body: Mutex<Option<Reservation>>,
    /// When it expires (pending) or is forgotten (ended), on the monotonic clock.
    deadline_ms: AtomicI64,
    /// Its place among the free ones.
    link: Link,
}

impl Slot {
    /// Whether it is due; meaningful under its lock.
    pub(crate) fn is_due(&self, now_ms: i64) -> bool {
        self.deadline_ms.load(Ordering::Acquire) <= now_ms
    }
}

#[derive(Debug)]
struct Chunk {
    /// No slot of the chunk is due before this.
    earliest_ms: AtomicI64,
    /// Whether a reservation in it was debited since the last look.
    debited: AtomicBool,
}

/// All slots.
#[derive(Debug)]
pub(crate) struct Slots {
    all: boxcar::Vec<Slot>,
    chunks: boxcar::Vec<Chunk>,
    free: FreeList,
    /// Held while slots and chunks are added.
    growing: Mutex<()>,
    max: usize,
}

impl Slots {
    pub(crate) fn new(max: usize) -> Slots {
        Slots {
            all: boxcar::Vec::new(),
            chunks: boxcar::Vec::new(),
            free: FreeList::new(),
            growing: Mutex::new(()),
            max,
        }
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// How many are taken.
    pub(crate) fn taken(&self) -> usize {
        self.all.count() - self.free.len(|index| self.link(index)).min(self.all.count())
    }

    /// A free slot, or `None` at the maximum. It is the caller's until it is freed.
    #[inline]
    pub(crate) fn take(&self) -> Option<u32> {
        // There are no more slots than the maximum, unless it was higher before a restart.
        if self.taken() >= self.max {
            return None;
        }
        self.free.pop(|index| self.link(index)).or_else(|| self.grow_within(self.max))
    }

    fn link(&self, index: u32) -> &Link {
        &self.at(index).link
    }

    /// A new slot, as long as there are fewer than `max`.
    fn grow_within(&self, max: usize) -> Option<u32> {
        // A push that is under way elsewhere is counted before it can be read: one at a time.
        let _growing = self.growing.lock();
        if self.all.count() >= max {
            return self.free.pop(|index| self.link(index));
        }
        let link = Link::new();
        let slot = Slot { body: Mutex::new(None), deadline_ms: AtomicI64::new(NEVER), link };
        let index = self.all.push(slot);
        while self.chunks.count() <= index / CHUNK {
            let (earliest_ms, debited) = (AtomicI64::new(NEVER), AtomicBool::new(false));
            self.chunks.push(Chunk { earliest_ms, debited });
        }
        Some(u32::try_from(index).expect("the maximum of reservations fits u32"))
    }

    /// Gives a slot back whose body is empty.
    pub(crate) fn free(&self, index: u32) {
        self.free.push(index, |index| self.link(index));
    }

    /// Takes this very slot (recovery, before anything else runs; `settle_recovered` follows).
    pub(crate) fn take_at(&self, index: u32) {
        while self.all.count() <= index as usize {
            self.grow_within(usize::MAX);
        }
    }

    /// Offers what recovery has not filled.
    pub(crate) fn settle_recovered(&self) {
        for (index, slot) in &self.all {
            if slot.body.lock().is_none() {
                self.free(u32::try_from(index).expect("the maximum fits u32"));
            }
        }
    }

    /// A slot that was taken.
    #[inline]
    pub(crate) fn at(&self, index: u32) -> &Slot {
        self.get(index).expect("a slot that was taken exists")
    }

    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&Slot> {
        self.all.get(index as usize)
    }

    /// Sets when a slot is due; called under its lock.
    #[inline]
    pub(crate) fn set_deadline(&self, index: u32, deadline_ms: i64) {
        let index = index as usize;
        let (Some(slot), Some(chunk)) = (self.all.get(index), self.chunks.get(index / CHUNK))
        else {
            return;
        };
        // SeqCst pairs with `each_due`: it sees this deadline, or we see its cleared `earliest_ms`.
        slot.deadline_ms.store(deadline_ms, Ordering::SeqCst);
        if deadline_ms < chunk.earliest_ms.load(Ordering::SeqCst) {
            chunk.earliest_ms.fetch_min(deadline_ms, Ordering::AcqRel);
        }
    }

    /// Notes that a reservation was debited; called under its lock.
    #[inline]
    pub(crate) fn set_debited(&self, index: u32) {
        if let Some(chunk) = self.chunks.get(index as usize / CHUNK)
            && !chunk.debited.load(Ordering::Relaxed)
        {
            chunk.debited.store(true, Ordering::Release);
        }
    }

    /// Calls `f` with each slot that is due.
    pub(crate) fn each_due(&self, now_ms: i64, mut f: impl FnMut(u32, &Slot)) {
        for (number, chunk) in &self.chunks {
            if chunk.earliest_ms.load(Ordering::Acquire) > now_ms {
                continue;
            }
            // Cleared first: a deadline that is set while we look lowers it again.
            chunk.earliest_ms.store(NEVER, Ordering::SeqCst);
            for (index, slot) in self.in_chunk(number) {
                if slot.deadline_ms.load(Ordering::Acquire) <= now_ms {
                    f(index, slot);
                }
                let deadline_ms = slot.deadline_ms.load(Ordering::SeqCst);
                chunk.earliest_ms.fetch_min(deadline_ms, Ordering::AcqRel);
            }
        }
    }

    /// Calls `f` with each slot of the chunks that were debited since the last call.
    pub(crate) fn each_debited(&self, mut f: impl FnMut(u32, &Slot)) {
        for (number, chunk) in &self.chunks {
            if chunk.debited.swap(false, Ordering::AcqRel) {
                self.in_chunk(number).for_each(|(index, slot)| f(index, slot));
            }
        }
    }

    /// Every slot there is.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.all.iter().map(|(_, slot)| slot)
    }

    /// Every slot there is, with its index.
    pub(crate) fn numbered(&self) -> impl Iterator<Item = (u32, &Slot)> {
        self.all.iter().filter_map(|(index, slot)| Some((u32::try_from(index).ok()?, slot)))
    }

    fn in_chunk(&self, number: usize) -> impl Iterator<Item = (u32, &Slot)> {
        let first = number * CHUNK;
        (first..first + CHUNK)
            .map_while(|index| Some((u32::try_from(index).ok()?, self.all.get(index)?)))
    }
}

#[cfg(all(test, not(bursar_loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_slot_belongs_to_the_chunk_of_its_index_and_there_are_no_more_chunks() {
        let slots = Slots::new(usize::MAX);
        let last = 2 * CHUNK;
        let indices: Vec<_> = (0..=last).filter_map(|_| slots.take()).collect();
        assert_eq!((indices.len(), slots.chunks.count()), (last + 1, 3));
        for index in [0, CHUNK - 1, CHUNK, last] {
            let index = u32::try_from(index).expect("small");
            slots.set_deadline(index, 5);
            slots.set_debited(index);
            let (mut due, mut debited) = (Vec::new(), 0);
            slots.each_due(4, |index, _| due.push(index));
            assert_eq!(due, [], "none is due yet");
            slots.each_due(5, |index, _| due.push(index));
            assert_eq!(due, [index]);
            slots.each_debited(|index, slot| {
                debited += u32::from(slot.is_due(5)) * (index + 1);
            });
            assert_eq!(debited, index + 1, "the only one of its chunk that is due");
            slots.set_deadline(index, NEVER);
        }
    }
}
