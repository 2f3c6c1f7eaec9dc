//! A disk that knows what of each file is certain: what was written before its last sync. The rest
//! may be there after a power cut, sector by sector, or not; so may names that were made or deleted
//! since their folder was synced.
//!
//! It stands in front of real files, below the store's log and SQLite alike. In the simulation it
//! writes through to them, so that whoever reads them sees what is written, and a power cut rewrites
//! them (`power_cut`). As a write-back cache it keeps what is written to itself until it is synced, so
//! that a kill -9 of the process is the power cut.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::plan::{Op, Outcome, Plan};
use crate::random::Random;

pub(crate) const SECTOR: usize = 512;
/// So few bytes are written whole or not at all.
const ATOMIC_BYTES: usize = 64;

thread_local! {
    static OWN: std::cell::RefCell<Option<Arc<Disk>>> = const { std::cell::RefCell::new(None) };
}
static SHARED: OnceLock<Arc<Disk>> = OnceLock::new();

/// The disk of this thread, or of the process; `None`: the real one.
pub(crate) fn current() -> Option<Arc<Disk>> {
    OWN.with_borrow(Clone::clone).or_else(|| SHARED.get().cloned())
}

/// A change that is not synced.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

impl Change {
    pub(crate) fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Change::Write(offset, bytes) => put(content, *offset, bytes),
            Change::SetLen(len) => content.resize(*len, 0),
        }
    }
}

/// Writes into a content, which grows as a file does.
pub(crate) fn put(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

/// One file.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) file: File,
    pub(crate) now: Vec<u8>,
    pub(crate) durable: Vec<u8>,
    pub(crate) unsynced: Vec<Change>,
    /// Whether its name outlives a power cut.
    pub(crate) named: bool,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) files: BTreeMap<PathBuf, Held>,
    /// Deleted files whose names may come back.
    pub(crate) ghosts: Vec<(PathBuf, Vec<u8>)>,
    pub(crate) random: Random,
    pub(crate) plan: Plan,
    write_back: bool,
}

/// The disk.
#[derive(Debug)]
pub struct Disk(pub(crate) Mutex<State>);

impl Disk {
    fn new(mut random: Random, write_back: bool) -> Arc<Disk> {
        let plan = Plan::new(random.fork());
        let (files, ghosts) = (BTreeMap::new(), Vec::new());
        Arc::new(Disk(Mutex::new(State { files, ghosts, random, plan, write_back })))
    }

    /// A disk for this thread, until the next one.
    pub fn install(random: Random) -> Arc<Disk> {
        let disk = Disk::new(random, false);
        OWN.set(Some(Arc::clone(&disk)));
        disk
    }

    /// A write-back cache for the whole process, for good.
    pub fn install_write_back(random: Random) {
        SHARED.get_or_init(|| Disk::new(random, true));
    }

    /// Does something with the plan.
    pub fn plan<T>(&self, f: impl FnOnce(&mut Plan) -> T) -> T {
        f(&mut self.0.lock().plan)
    }

    /// Opens a file, and makes it or empties it.
    pub(crate) fn open(&self, path: &Path, create: bool, truncate: bool) -> io::Result<()> {
        let mut state = self.0.lock();
        let there = state.files.contains_key(path) || path.exists();
        let fresh = create && !there;
        let failure = if fresh || truncate { state.step(Op::Create)? } else { None };
        state.hold(path, fresh)?;
        if truncate {
            state.set_len(path, 0)?;
        }
        failure.map_or(Ok(()), Err)
    }

    pub(crate) fn read(&self, path: &Path, buf: &mut [u8], offset: usize) -> usize {
        let state = self.0.lock();
        let now = state.files.get(path).map_or(&[][..], |held| &held.now);
        let part = now.get(offset..).unwrap_or_default();
        let len = part.len().min(buf.len());
        buf[..len].copy_from_slice(&part[..len]);
        len
    }

    pub(crate) fn len(&self, path: &Path) -> usize {
        self.0.lock().files.get(path).map_or(0, |held| held.now.len())
    }

    /// Writes; how much, it says.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8], offset: usize) -> io::Result<usize> {
        let mut state = self.0.lock();
        match state.plan.step(Op::Write, false) {
            Outcome::Done => state.write(path, bytes, offset).map(|()| bytes.len()),
            Outcome::Refused(error) => Err(error),
            Outcome::Short => {
                let len = bytes.len();
                let part = if len <= ATOMIC_BYTES { len } else { state.part(len).max(1) };
                state.write(path, &bytes[..part], offset).map(|()| part)
            }
            Outcome::Partly(error) => {
                let part = state.part(bytes.len());
                state.write(path, &bytes[..part], offset)?;
                Err(error)
            }
        }
    }

    /// `vital`: the caller would rather die than go on without it.
    pub(crate) fn set_len(&self, path: &Path, len: usize, vital: bool) -> io::Result<()> {
        let mut state = self.0.lock();
        match state.plan.step(Op::SetLen, vital) {
            Outcome::Done | Outcome::Short => state.set_len(path, len),
            // A process that is dead aborts no more.
            Outcome::Refused(_) if vital => Ok(()),
            Outcome::Refused(error) => Err(error),
            Outcome::Partly(error) => {
                state.set_len(path, len)?;
                if vital { Ok(()) } else { Err(error) }
            }
        }
    }

    pub(crate) fn sync(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let failure = state.step(Op::Sync)?;
        state.sync(path)?;
        failure.map_or(Ok(()), Err)
    }

    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let failure = state.step(Op::Remove)?;
        let held = state.files.remove(path);
        fs::remove_file(path)?;
        if let Some(held) = held.filter(|held| held.named) {
            state.ghosts.push((path.to_owned(), held.durable));
        }
        failure.map_or(Ok(()), Err)
    }

    pub(crate) fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let failure = state.step(Op::SyncFolder)?;
        state.ghosts.retain(|(path, _)| path.parent() != Some(folder));
        let inside = state.files.iter_mut().filter(|(path, _)| path.parent() == Some(folder));
        inside.for_each(|(_, held)| held.named = true);
        failure.map_or(Ok(()), Err)
    }

    pub(crate) fn fill_randomly(&self, buf: &mut [u8]) {
        let random = &mut self.0.lock().random;
        buf.fill_with(|| random.number().to_le_bytes()[0]);
    }

    pub(crate) fn is_named(&self, path: &Path) -> bool {
        self.0.lock().files.get(path).is_some_and(|held| held.named)
    }
}

impl State {
    /// How a step without parts goes: not at all, or done, though it may say that it failed.
    fn step(&mut self, op: Op) -> io::Result<Option<io::Error>> {
        match self.plan.step(op, false) {
            Outcome::Done | Outcome::Short => Ok(None),
            Outcome::Partly(error) => Ok(Some(error)),
            Outcome::Refused(error) => Err(error),
        }
    }

    /// How much of a write is done that is not done whole.
    fn part(&mut self, len: usize) -> usize {
        if len <= ATOMIC_BYTES { 0 } else { self.random.index(len + 1) }
    }

    fn hold(&mut self, path: &Path, fresh: bool) -> io::Result<()> {
        if self.files.contains_key(path) {
            return Ok(());
        }
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(fresh).truncate(false).mode(0o600);
        let file = options.open(path)?;
        let now = fs::read(path)?;
        // An empty file was made a moment ago, by whoever.
        let named = !now.is_empty();
        let held = Held { file, durable: now.clone(), now, unsynced: Vec::new(), named };
        self.files.insert(path.to_owned(), held);
        Ok(())
    }

    fn held(&mut self, path: &Path) -> io::Result<&mut Held> {
        self.files.get_mut(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn write(&mut self, path: &Path, bytes: &[u8], offset: usize) -> io::Result<()> {
        let write_back = self.write_back;
        let held = self.held(path)?;
        put(&mut held.now, offset, bytes);
        if write_back {
            held.unsynced.push(Change::Write(offset, bytes.to_vec()));
            return self.flush_early(path);
        }
        held.file.write_all_at(bytes, offset as u64)?;
        held.unsynced.push(Change::Write(offset, bytes.to_vec()));
        Ok(())
    }

    fn set_len(&mut self, path: &Path, len: usize) -> io::Result<()> {
        let write_back = self.write_back;
        let held = self.held(path)?;
        held.now.resize(len, 0);
        held.unsynced.push(Change::SetLen(len));
        if write_back { Ok(()) } else { held.file.set_len(len as u64) }
    }

    fn sync(&mut self, path: &Path) -> io::Result<()> {
        if self.write_back {
            self.flush(path)?;
        }
        let held = self.held(path)?;
        for change in std::mem::take(&mut held.unsynced) {
            change.apply(&mut held.durable);
        }
        Ok(())
    }

    /// Brings what is not synced to the real file, in any order.
    fn flush(&mut self, path: &Path) -> io::Result<()> {
        let mut random = self.random.fork();
        let held = self.held(path)?;
        let mut sectors: Vec<usize> = held.unsynced.iter().flat_map(sectors).collect();
        sectors.sort_unstable();
        sectors.dedup();
        for last in (1..sectors.len()).rev() {
            sectors.swap(last, random.index(last + 1));
        }
        held.file.set_len(held.now.len() as u64)?;
        sectors.into_iter().try_for_each(|sector| held.flush_sector(sector))
    }

    /// Now and then the system writes something back by itself.
    fn flush_early(&mut self, path: &Path) -> io::Result<()> {
        if !self.random.percent(20) {
            return Ok(());
        }
        let mut random = self.random.fork();
        let held = self.held(path)?;
        let change = random.index(held.unsynced.len());
        let sectors: Vec<usize> = sectors(&held.unsynced[change]).collect();
        if sectors.is_empty() { Ok(()) } else { held.flush_sector(random.pick(&sectors)) }
    }
}

impl Held {
    fn flush_sector(&mut self, sector: usize) -> io::Result<()> {
        let start = sector * SECTOR;
        let end = (start + SECTOR).min(self.now.len());
        let part = self.now.get(start..end).unwrap_or_default();
        self.file.write_all_at(part, start as u64)
    }
}

/// The sectors that a change touches.
pub(crate) fn sectors(change: &Change) -> std::ops::Range<usize> {
    match change {
        Change::Write(offset, bytes) => offset / SECTOR..(offset + bytes.len()).div_ceil(SECTOR),
        Change::SetLen(_) => 0..0,
    }
}
