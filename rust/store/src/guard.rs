//! Whether the store's files are what they are taken for: planted by nobody, and still there.
//!
//! Looks at names, owners and sizes only. Called before the store is opened, and every now and then
//! while it is open.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{At, StoreError};
use crate::files::{lock_path, parent};
use crate::shared::Shared;

const WRITABLE_BY_ALL: u32 = 0o002;

/// Refuses what others may have put in the store's place, where everybody may write: links, and
/// files that are not ours.
pub(crate) fn refuse_planted(store: &Path) -> Result<(), StoreError> {
    let folder = parent(store);
    let writable = |found: Metadata| found.mode() & WRITABLE_BY_ALL != 0;
    // A folder that is not there yet will be ours.
    if !fs::metadata(folder).is_ok_and(writable) {
        return Ok(());
    }
    let name = store.file_name().unwrap_or_default().as_encoded_bytes();
    let us = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(folder).at("read the folder", folder)? {
        let entry = entry.at("read the folder", folder)?;
        if !entry.file_name().as_encoded_bytes().starts_with(name) {
            continue;
        }
        let path = entry.path();
        let found = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            found => found.at("look at", &path)?,
        };
        let what = if found.is_symlink() {
            "is a link".to_owned()
        } else if found.uid() != us {
            format!("belongs to user {}", found.uid())
        } else if found.is_file() && found.nlink() > 1 {
            "has another name as well".to_owned()
        } else {
            continue;
        };
        return Err(StoreError::Planted { path, what });
    }
    Ok(())
}

/// The names under which the files of an open store have to be found.
#[derive(Debug)]
pub(crate) struct Present {
    /// Database and lock, each as it was opened.
    names: Vec<(PathBuf, Identity)>,
}

/// Device and number.
type Identity = (u64, u64);

fn identity(path: &Path) -> io::Result<Identity> {
    fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

impl Present {
    /// What is there now.
    pub(crate) fn of(store: &Path, folder: &Path) -> Result<Present, StoreError> {
        let names = [store.to_owned(), lock_path(folder)].into_iter().map(|path| {
            let found = identity(&path).at("look at", &path)?;
            Ok((path, found))
        });
        Ok(Present { names: names.collect::<Result<_, StoreError>>()? })
    }

    /// Fails when somebody has taken a file away, put another in its place or cut it: what is
    /// written now would be found by nobody.
    pub(crate) fn check(&self, shared: &Shared) -> Result<(), StoreError> {
        let gone = |path: &Path| Err(StoreError::Gone { path: path.to_owned() });
        for (path, opened) in &self.names {
            match identity(path) {
                Ok(found) if found == *opened => {}
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("look at", path, &error));
                }
                _ => return gone(path),
            }
        }
        let (store, _) = &self.names[0];
        if fs::metadata(store).at("look at", store)?.len() == 0 {
            return gone(store);
        }
        let mark = shared.log.mark();
        let last = mark.segments.last().expect("there is always one");
        match fs::metadata(&last.path) {
            Ok(found) if found.len() >= mark.offset => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("look at", &last.path, &error))
            }
            _ => gone(&last.path),
        }
    }
}
