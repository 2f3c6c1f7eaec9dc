//! Which idempotency keys are in use, and for which reservation (R6).
//!
//! Keys come as hashes of account and key. A shard is locked while its call is decided, so that two
//! calls with one key never both reserve; calls with different keys rarely meet.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use parking_lot::{Mutex, MutexGuard};

use crate::fact::ReservationId;

const SHARDS: usize = 64;

/// The keys of one shard.
pub(crate) type Shard = HashMap<u128, ReservationId, BuildHasherDefault<AlreadyHashed>>;

/// All keys.
#[derive(Debug)]
pub(crate) struct Keys {
    shards: Box<[Mutex<Shard>]>,
}

/// Keys are hashes: their low half is as good as any.
#[derive(Debug, Default)]
pub(crate) struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, key: u128) {
        self.0 = u64::try_from(key & u128::from(u64::MAX)).expect("masked to 64 bits");
    }
}

impl Keys {
    pub(crate) fn new() -> Keys {
        Keys { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    /// The shard of a key, locked.
    pub(crate) fn shard(&self, key: u128) -> MutexGuard<'_, Shard> {
        let index = usize::try_from((key >> 64) % SHARDS as u128).expect("a remainder of 64");
        self.shards[index].lock()
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn the_low_half_of_a_key_is_its_hash_and_the_high_half_names_its_shard() {
        let key = 7 << 64 | 5;
        for (key, low) in [(key, 5), (u128::MAX, u64::MAX), (1 << 64, 0)] {
            assert_eq!(BuildHasherDefault::<AlreadyHashed>::default().hash_one(key), low);
        }
        let keys = Keys::new();
        for (key, shard) in [(key, 7), (u128::MAX, 63), (5, 0)] {
            let _held = keys.shard(key);
            assert!(keys.shards[shard].is_locked(), "{key:x}");
        }
    }
}
