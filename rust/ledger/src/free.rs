//! The slots that are free, as a stack of links: the one freed last is used first, while it is still in
//! the caches. Owns no slot; each slot carries a [`Link`].

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU64, Ordering};

/// The stack. One word: the index of the top plus one (0: empty), and above it a turn that every change
/// raises, so that a top that was taken and freed again meanwhile is not mistaken for itself.
#[derive(Debug)]
pub(crate) struct FreeList {
    head: CachePadded<AtomicU64>,
}

/// What a free slot knows: the next one below it (as in the head), and above that how many there are
/// from it downwards.
#[derive(Debug)]
pub(crate) struct Link(AtomicU64);

const LOW: u64 = 0xffff_ffff;

fn join(high: u64, low: u64) -> u64 {
    high << 32 | low
}

/// (high, low)
fn split(word: u64) -> (u64, u64) {
    (word >> 32, word & LOW)
}

/// The index of a top.
fn index(top: u64) -> Option<u32> {
    u32::try_from(top.checked_sub(1)?).ok()
}

impl Link {
    pub(crate) fn new() -> Link {
        Link(AtomicU64::new(0))
    }
}

impl FreeList {
    pub(crate) fn new() -> FreeList {
        FreeList { head: CachePadded::new(AtomicU64::new(0)) }
    }

    /// Takes the slot that was freed last; it is the caller's until it is pushed.
    #[inline]
    pub(crate) fn pop<'a>(&self, link: impl Fn(u32) -> &'a Link) -> Option<u32> {
        // Acquire pairs with `push`: who sees a top sees its link. A link newer than this top comes
        // with a newer turn, and the swap fails.
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let (turn, top) = split(head);
            let index = index(top)?;
            let (_, next) = split(link(index).0.load(Ordering::Relaxed));
            match self.swap(head, join((turn + 1) & LOW, next)) {
                Ok(_) => return Some(index),
                Err(present) => head = present,
            }
        }
    }

    /// Frees a slot.
    pub(crate) fn push<'a>(&self, freed: u32, link: impl Fn(u32) -> &'a Link) {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let (turn, top) = split(head);
            let below = index(top).map_or(0, |top| split(link(top).0.load(Ordering::Relaxed)).0);
            link(freed).0.store(join(below + 1, top), Ordering::Relaxed);
            match self.swap(head, join((turn + 1) & LOW, u64::from(freed) + 1)) {
                Ok(_) => return,
                Err(present) => head = present,
            }
        }
    }

    fn swap(&self, head: u64, new: u64) -> Result<u64, u64> {
        self.head.compare_exchange(head, new, Ordering::AcqRel, Ordering::Acquire)
    }

    /// How many are free; while others push and pop, about so many, and at least one if there is one.
    pub(crate) fn len<'a>(&self, link: impl Fn(u32) -> &'a Link) -> usize {
        let (_, top) = split(self.head.load(Ordering::Acquire));
        let count = index(top).map_or(0, |top| split(link(top).0.load(Ordering::Relaxed)).0);
        usize::try_from(count).expect("32 bits")
    }
}

#[cfg(all(test, not(bursar_loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_change_raises_the_turn_and_a_turn_that_wraps_leaves_the_index_alone() {
        let (free, links) = (FreeList::new(), [Link::new(), Link::new()]);
        let link = |index: u32| &links[index as usize];
        let head = || split(free.head.load(Ordering::SeqCst));
        free.push(0, link);
        assert_eq!(head(), (1, 1));
        free.push(1, link);
        assert_eq!(head(), (2, 2));
        assert_eq!(free.pop(link), Some(1));
        assert_eq!(head(), (3, 1));
        for top in [1, 0] {
            free.head.store(join(LOW, top), Ordering::SeqCst);
            free.push(1, link);
            assert_eq!((head(), free.len(link)), ((0, 2), 1 + usize::from(top == 1)));
            free.head.store(join(LOW, 2), Ordering::SeqCst);
            assert_eq!(free.pop(link), Some(1));
            assert_eq!(head(), (0, top));
        }
    }
}
