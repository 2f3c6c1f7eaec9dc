//! The log's folder and the few file operations that it needs.
//!
//! `ledger.db` has its log in `ledger.db-log/`: segments named by their first sequence, and `lock`.
//! Files are 0600, folders 0700. What changes the log goes through [`Files`], so that tests can make
//! it fail, or end the process there.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{At, StoreError};

/// A segment as those who change it see it.
pub trait LogFile: Send + Sync {
    /// Writes at most these bytes and returns how many.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Cuts it, or makes it longer.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Returns once what was written is on the disk.
    fn sync_data(&self) -> io::Result<()>;
}

impl LogFile for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }
}

/// What changes the files of the log and their names.
#[derive(Debug, Clone, Copy)]
pub struct Files {
    /// Makes an empty segment.
    pub create: fn(&Path) -> io::Result<Box<dyn LogFile>>,
    /// Opens a segment that is there, to be changed.
    pub open: fn(&Path) -> io::Result<Box<dyn LogFile>>,
    /// Deletes a file.
    pub remove: fn(&Path) -> io::Result<()>,
    /// Returns once what was made and deleted in a folder is on the disk.
    pub sync_folder: fn(&Path) -> io::Result<()>,
    /// Whether all of this is where its names say, so that what somebody takes away is missed.
    pub named: bool,
}

/// The real files.
pub(crate) const FILES: Files = Files {
    create: |path| Ok(Box::new(private().create(true).truncate(true).open(path)?)),
    open: |path| Ok(Box::new(OpenOptions::new().write(true).open(path)?)),
    remove: |path| std::fs::remove_file(path),
    sync_folder: |folder| File::open(folder)?.sync_all(),
    named: true,
};

impl Files {
    /// Makes creations and deletions in a folder durable.
    pub(crate) fn sync_folder(&self, folder: &Path) -> Result<(), StoreError> {
        (self.sync_folder)(folder).at("sync the folder", folder)
    }

    /// Deletes segments, oldest first, each for good before the next: a power cut leaves no hole
    /// between those that are left.
    pub(crate) fn remove_in_order<'a>(
        &self,
        folder: &Path,
        segments: impl Iterator<Item = &'a Path>,
    ) -> Result<(), StoreError> {
        for path in segments {
            match (self.remove)(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("delete", path, &error));
                }
                _ => self.sync_folder(folder)?,
            }
        }
        Ok(())
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

/// Writes all of `bytes`, however short the single writes are.
pub(crate) fn write_all_at(file: &dyn LogFile, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.write_at(&bytes[done..], offset + done as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => done += written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The folder of a store's log.
pub(crate) fn log_folder(store: &Path) -> PathBuf {
    let mut name = store.as_os_str().to_owned();
    name.push("-log");
    PathBuf::from(name)
}

/// The file that tells who has the store open.
pub(crate) fn lock_path(folder: &Path) -> PathBuf {
    folder.join("lock")
}

/// The file of the segment that begins with a sequence.
pub(crate) fn segment_path(folder: &Path, first: u64) -> PathBuf {
    folder.join(format!("{first:020}.log"))
}

/// The segments of a folder, ascending; none when there is no folder.
pub(crate) fn segments(folder: &Path) -> Result<Vec<(u64, PathBuf)>, StoreError> {
    let entries = match folder.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::io("read the folder", folder, &error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.at("read the folder", folder)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let first = name.and_then(|name| name.strip_suffix(".log")).filter(|n| n.len() == 20);
        if let Some(first) = first.and_then(|first| first.parse().ok()) {
            found.push((first, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Creates the folder and those above it, where they are missing.
pub(crate) fn create_folder(folder: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).at("create the folder", folder)
}

/// Creates the database file, before SQLite would with wider rights. Its WAL will have the same.
pub(crate) fn create_file(store: &Path) -> Result<(), StoreError> {
    private().create(true).truncate(false).open(store).at("create", store).map(|_| ())
}

/// The folder that a file is in.
pub fn parent(file: &Path) -> &Path {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Held while the store is open; the system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    /// Locked as well: a file can be deleted while somebody has it.
    folder: File,
    /// Who has it; a forked child only has its file.
    pid: u32,
}

impl Lock {
    /// Takes the lock or says who has it.
    pub(crate) fn take(store: &Path, folder: &Path) -> Result<Lock, StoreError> {
        let path = lock_path(folder);
        let file = private().create(true).truncate(false).open(&path).at("open the lock", &path)?;
        let within = File::open(folder).at("open the folder", folder)?;
        for (locked, path) in [(&file, path.as_path()), (&within, folder)] {
            match locked.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let pid = holder(&file).unwrap_or_else(|| "?".into());
                    return Err(StoreError::InUse { store: store.to_owned(), pid });
                }
                Err(TryLockError::Error(error)) => {
                    return Err(StoreError::io("lock", path, &error));
                }
            }
        }
        let pid = std::process::id();
        let named = file.set_len(0).and_then(|()| write!(&file, "{pid}"));
        named.at("write the lock", &path)?;
        Ok(Lock { file, folder: within, pid })
    }

    /// Who has the store open, if anybody has.
    pub(crate) fn held_by(folder: &Path) -> Option<String> {
        let file = File::open(lock_path(folder)).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => Some(holder(&file).unwrap_or_else(|| "?".into())),
            _ => None,
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough: a child that another thread is about to start has a copy of
        // it until it runs its program.
        if self.pid == std::process::id() {
            let _ = self.file.unlock();
            let _ = self.folder.unlock();
        }
    }
}

fn holder(file: &File) -> Option<String> {
    let mut text = String::new();
    file.take(20).read_to_string(&mut text).ok()?;
    text.parse::<u32>().ok().map(|pid| pid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_the_lock_s_file_holds_nothing_once_the_lock_is_dropped() {
        let folder = tempfile::tempdir().expect("a folder");
        let take = || Lock::take(Path::new("ledger.db"), folder.path());
        let lock = take().expect("free");
        assert!(matches!(take(), Err(StoreError::InUse { .. })));
        let copy = lock.file.try_clone().expect("as a child has it that is about to start");
        drop(lock);
        let again = take().expect("free again");
        drop(copy);
        assert!(matches!(take(), Err(StoreError::InUse { .. })));
        drop(again);
    }

    #[test]
    fn the_folder_of_a_bare_name_is_the_one_that_we_are_in() {
        let folders = ["/a/b.db", "a/b.db", "b.db"].map(|path| parent(Path::new(path)));
        assert_eq!(folders, ["/a", "a", "."].map(Path::new));
    }
}
