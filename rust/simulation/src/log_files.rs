//! The store's log on the simulated disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bursar_store::{Files, LogFile};

use crate::disk::{Disk, current};

/// The log's files are the disk's.
pub(crate) const LOG_FILES: Files = Files {
    create: |path| open(path, true),
    open: |path| open(path, false),
    remove: |path| disk()?.remove(path),
    sync_folder: |folder| disk()?.sync_folder(folder),
    named: false,
};

struct Segment(Arc<Disk>, PathBuf);

fn disk() -> io::Result<Arc<Disk>> {
    current().ok_or_else(|| io::Error::other("no disk is installed"))
}

fn open(path: &Path, create: bool) -> io::Result<Box<dyn LogFile>> {
    let disk = disk()?;
    disk.open(path, create, create)?;
    Ok(Box::new(Segment(disk, path.to_owned())))
}

fn at(number: u64) -> usize {
    usize::try_from(number).expect("a usize has 64 bits")
}

impl LogFile for Segment {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.0.write(&self.1, bytes, at(offset))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(&self.1, at(len), true)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync(&self.1)
    }
}
