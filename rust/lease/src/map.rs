//! One page of shared memory: made and sealed by the daemon, mapped by both sides.
//!
//! Owns the mapping and gives out its words as atomics. Contains `unsafe`: see the two blocks.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{NonNull, null_mut};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::layout::PAGE_BYTES;
use crate::sync::AtomicU64;

/// A page of shared memory, mapped.
#[derive(Debug)]
pub(crate) struct Map {
    at: NonNull<AtomicU64>,
}

// SAFETY: a map owns its mapping and gives out nothing but shared references to atomics.
#[expect(unsafe_code, reason = "the pointer is to memory that any thread may use")]
unsafe impl Send for Map {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "the pointer is to memory that any thread may use")]
unsafe impl Sync for Map {}

impl Map {
    /// Makes a page, maps it for writing, and seals it: nobody can resize it, so nobody who maps it can
    /// be killed by a read beyond its end. With `read_only_for_others` nobody can map it for writing
    /// after us.
    pub(crate) fn create(read_only_for_others: bool) -> io::Result<(Map, OwnedFd)> {
        let fd = memfd_create("bursar-lease", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, PAGE_BYTES as u64)?;
        let map = Map::new(&fd, ProtFlags::READ | ProtFlags::WRITE)?;
        let mut seals = SealFlags::SHRINK | SealFlags::GROW;
        if read_only_for_others {
            seals |= SealFlags::FUTURE_WRITE;
        }
        fcntl_add_seals(&fd, seals | SealFlags::SEAL)?;
        Ok((map, fd))
    }

    /// Maps a page that came from a daemon.
    pub(crate) fn open(fd: &OwnedFd, write: bool) -> io::Result<Map> {
        if fstat(fd)?.st_size != i64::try_from(PAGE_BYTES).unwrap_or(0) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a page of a lease"));
        }
        let write = if write { ProtFlags::WRITE } else { ProtFlags::empty() };
        Map::new(fd, ProtFlags::READ | write)
    }

    #[expect(
        unsafe_code,
        reason = "JUSTIFICATION: a step by shared memory takes 5 ns, a call 25,000"
    )]
    fn new(fd: impl AsFd, protection: ProtFlags) -> io::Result<Map> {
        // SAFETY: the kernel chooses the address, so no memory of ours is mapped over; the length is
        // the file's, which is sealed or was checked, and the mapping is ours alone to end (`drop`).
        let at = unsafe { mmap(null_mut(), PAGE_BYTES, protection, MapFlags::SHARED, fd, 0)? };
        let at = NonNull::new(at.cast::<AtomicU64>());
        Ok(Map { at: at.ok_or(io::ErrorKind::OutOfMemory)? })
    }

    /// The word at this offset, which is a multiple of 8 within the page. Of a page that is mapped for
    /// reading only, relaxed loads alone are defined.
    #[inline]
    pub(crate) fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset < PAGE_BYTES && offset.is_multiple_of(8), "a word within the page");
        #[expect(unsafe_code, reason = "JUSTIFICATION: as for the mapping itself")]
        // SAFETY: the assertion keeps it within the mapping and aligned; the mapping lives as long as
        // `self`; the other process accesses these words as atomics or its values are garbage, which
        // every reader takes for a claim.
        unsafe {
            self.at.add(offset / 8).as_ref()
        }
    }
}

/// For Miri, which knows no memory that has a descriptor: the same page twice, never to be dropped.
#[cfg(all(test, miri))]
pub(crate) fn leaked() -> [Map; 2] {
    let words = Box::leak(Box::new([const { AtomicU64::new(0) }; PAGE_BYTES / 8]));
    let at = NonNull::from(words).cast::<AtomicU64>();
    [Map { at }, Map { at }]
}

impl Drop for Map {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "JUSTIFICATION: as for the mapping itself")]
        // SAFETY: mapped in `new` with this length, and no reference into it outlives `self`.
        let ended = unsafe { munmap(self.at.as_ptr().cast(), PAGE_BYTES) };
        debug_assert!(ended.is_ok(), "it is mapped");
    }
}
