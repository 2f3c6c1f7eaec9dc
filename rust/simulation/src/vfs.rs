//! SQLite on the simulated disk.
//!
//! A shim in front of SQLite's own VFS for Unix: contents, lengths, syncs and names of the database,
//! its WAL and its journal are the disk's; locks, shared memory and temporary files stay with the
//! real one, so SQLite runs as it ships. Registered as the default, so the store opens its database
//! as always. Where no disk is installed everything is passed through.
//!
//! JUSTIFICATION for unsafe: SQLite's interface is C, and the crates that wrap it ask for a whole
//! VFS, locks and shared memory included, where 9 calls are to be changed. Only tests link this.
//! SAFETY, for all of the file: SQLite calls a method with the `sqlite3_file` that `x_open` has
//! filled, in `szOsFile` bytes of its own that are zeroed and aligned to 8, from `x_open` to
//! `x_close`, and with buffers as long as it says. A `Shim` is the first part of those bytes and the
//! real file the rest. The real VFS and its methods are static.
#![allow(clippy::undocumented_unsafe_blocks, reason = "one argument holds for all: see above")]
#![allow(unsafe_code, reason = "see above")]
#![allow(clippy::cast_ptr_alignment, reason = "SQLite aligns its files to 8")]

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::io;
use std::mem::size_of;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::slice;
use std::sync::{Arc, Once, OnceLock};

use rusqlite::ffi;

use crate::disk::{Disk, current};

/// The real VFS, which lives as long as the process.
struct Real(*mut ffi::sqlite3_vfs);

unsafe impl Send for Real {}
unsafe impl Sync for Real {}

static REAL: OnceLock<Real> = OnceLock::new();
static REGISTERED: Once = Once::new();

fn real_vfs() -> *mut ffi::sqlite3_vfs {
    REAL.get().expect("it is registered").0
}

/// What is in front of the real file.
#[repr(C)]
struct Shim {
    base: ffi::sqlite3_file,
    /// Null for a file that is passed through.
    on_disk: *mut OnDisk,
}

struct OnDisk {
    disk: Arc<Disk>,
    path: PathBuf,
    /// Whether its name is made durable with its first sync, as SQLite does for journals.
    journal: bool,
}

unsafe fn on_disk<'a>(file: *mut ffi::sqlite3_file) -> Option<&'a OnDisk> {
    unsafe { (*file.cast::<Shim>()).on_disk.as_ref() }
}

unsafe fn real(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    unsafe { file.cast::<Shim>().add(1).cast() }
}

/// Calls a method of the real file.
macro_rules! pass {
    ($file:expr, $method:ident $(, $arg:expr)*) => {{
        let real = real($file);
        match (*(*real).pMethods).$method {
            Some(method) => method(real $(, $arg)*),
            None => ffi::SQLITE_IOERR,
        }
    }};
}

/// Makes the shim the default VFS of the process. Once is enough.
pub fn register() {
    REGISTERED.call_once(|| unsafe {
        let found = ffi::sqlite3_vfs_find(ptr::null());
        assert!(!found.is_null(), "SQLite has a VFS");
        let mut shim = ptr::read(found);
        let _first = REAL.set(Real(found));
        shim.szOsFile += c_int::try_from(size_of::<Shim>()).expect("small");
        shim.zName = c"bursar-simulation".as_ptr();
        shim.pNext = ptr::null_mut();
        shim.xOpen = Some(x_open);
        shim.xDelete = Some(x_delete);
        shim.xRandomness = Some(x_randomness);
        let shim = Box::leak(Box::new(shim));
        assert_eq!(ffi::sqlite3_vfs_register(shim, 1), ffi::SQLITE_OK);
    });
}

/// Has SQLite's random numbers begin anew, with those of the disk that is in use.
pub fn reseed() {
    unsafe { ffi::sqlite3_randomness(0, ptr::null_mut()) };
}

unsafe fn path<'a>(name: *const c_char) -> &'a Path {
    Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes()))
}

unsafe extern "C" fn x_open(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let journals = ffi::SQLITE_OPEN_WAL | ffi::SQLITE_OPEN_MAIN_JOURNAL;
    let kept = flags & (journals | ffi::SQLITE_OPEN_MAIN_DB) != 0 && !name.is_null();
    unsafe {
        let shim = file.cast::<Shim>();
        (*shim).base.pMethods = ptr::null();
        (*shim).on_disk = ptr::null_mut();
        let disk = current().filter(|_| kept);
        if let Some(disk) = &disk
            && disk.open(path(name), flags & ffi::SQLITE_OPEN_CREATE != 0, false).is_err()
        {
            return ffi::SQLITE_CANTOPEN;
        }
        let open = (*real_vfs()).xOpen.expect("a VFS opens");
        (*real(file)).pMethods = ptr::null();
        let opened = open(real_vfs(), name, real(file), flags, out_flags);
        if opened != ffi::SQLITE_OK {
            // SQLite closes what has methods, and nothing else.
            if !(*real(file)).pMethods.is_null() {
                pass!(file, xClose);
            }
            return opened;
        }
        if let Some(disk) = disk {
            let journal = flags & journals != 0;
            let on_disk = OnDisk { disk, path: path(name).to_owned(), journal };
            (*shim).on_disk = Box::into_raw(Box::new(on_disk));
        }
        (*shim).base.pMethods = &raw const METHODS;
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn x_delete(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    sync_folder: c_int,
) -> c_int {
    unsafe {
        let Some(disk) = current() else {
            let delete = (*real_vfs()).xDelete.expect("a VFS deletes");
            return delete(real_vfs(), name, sync_folder);
        };
        let path = path(name);
        match disk.remove(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return ffi::SQLITE_IOERR_DELETE_NOENT;
            }
            Err(_) => return ffi::SQLITE_IOERR_DELETE,
            Ok(()) => {}
        }
        let folder = path.parent().filter(|_| sync_folder != 0);
        match folder.map(|folder| disk.sync_folder(folder)) {
            Some(Err(_)) => ffi::SQLITE_IOERR_DIR_FSYNC,
            _ => ffi::SQLITE_OK,
        }
    }
}

/// No chance but the seed's.
unsafe extern "C" fn x_randomness(_: *mut ffi::sqlite3_vfs, len: c_int, out: *mut c_char) -> c_int {
    unsafe {
        let Some(disk) = current() else {
            let randomness = (*real_vfs()).xRandomness.expect("a VFS has randomness");
            return randomness(real_vfs(), len, out);
        };
        disk.fill_randomly(slice::from_raw_parts_mut(out.cast::<u8>(), bytes(len)));
    }
    len
}

unsafe extern "C" fn x_close(file: *mut ffi::sqlite3_file) -> c_int {
    unsafe {
        let on_disk = std::mem::replace(&mut (*file.cast::<Shim>()).on_disk, ptr::null_mut());
        if !on_disk.is_null() {
            drop(Box::from_raw(on_disk));
        }
        pass!(file, xClose)
    }
}

/// A place in a file, or a length. SQLite has none below 0.
fn at(number: ffi::sqlite3_int64) -> usize {
    usize::try_from(number).unwrap_or(0)
}

fn bytes(len: c_int) -> usize {
    usize::try_from(len).unwrap_or(0)
}

unsafe extern "C" fn x_read(
    file: *mut ffi::sqlite3_file,
    buf: *mut c_void,
    len: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    unsafe {
        let Some(on_disk) = on_disk(file) else { return pass!(file, xRead, buf, len, offset) };
        let buf = slice::from_raw_parts_mut(buf.cast::<u8>(), bytes(len));
        let read = on_disk.disk.read(&on_disk.path, buf, at(offset));
        buf[read..].fill(0);
        if read == buf.len() { ffi::SQLITE_OK } else { ffi::SQLITE_IOERR_SHORT_READ }
    }
}

unsafe extern "C" fn x_write(
    file: *mut ffi::sqlite3_file,
    buf: *const c_void,
    len: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    unsafe {
        let Some(on_disk) = on_disk(file) else { return pass!(file, xWrite, buf, len, offset) };
        let buf = slice::from_raw_parts(buf.cast::<u8>(), bytes(len));
        match on_disk.disk.write(&on_disk.path, buf, at(offset)) {
            Ok(written) if written == buf.len() => ffi::SQLITE_OK,
            Err(error) if error.kind() != io::ErrorKind::StorageFull => ffi::SQLITE_IOERR_WRITE,
            Ok(_) | Err(_) => ffi::SQLITE_FULL,
        }
    }
}

unsafe extern "C" fn x_truncate(file: *mut ffi::sqlite3_file, len: ffi::sqlite3_int64) -> c_int {
    unsafe {
        let Some(on_disk) = on_disk(file) else { return pass!(file, xTruncate, len) };
        let done = on_disk.disk.set_len(&on_disk.path, at(len), false);
        if done.is_ok() { ffi::SQLITE_OK } else { ffi::SQLITE_IOERR_TRUNCATE }
    }
}

unsafe extern "C" fn x_sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    unsafe {
        let Some(OnDisk { disk, path, journal }) = on_disk(file) else {
            return pass!(file, xSync, flags);
        };
        if disk.sync(path).is_err() {
            return ffi::SQLITE_IOERR_FSYNC;
        }
        let folder = path.parent().filter(|_| *journal && !disk.is_named(path));
        match folder.map(|folder| disk.sync_folder(folder)) {
            Some(Err(_)) => ffi::SQLITE_IOERR_DIR_FSYNC,
            _ => ffi::SQLITE_OK,
        }
    }
}

unsafe extern "C" fn x_file_size(
    file: *mut ffi::sqlite3_file,
    len: *mut ffi::sqlite3_int64,
) -> c_int {
    unsafe {
        let Some(on_disk) = on_disk(file) else { return pass!(file, xFileSize, len) };
        *len = i64::try_from(on_disk.disk.len(&on_disk.path)).expect("small");
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn x_lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    unsafe { pass!(file, xLock, level) }
}

unsafe extern "C" fn x_unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    unsafe { pass!(file, xUnlock, level) }
}

unsafe extern "C" fn x_check_lock(file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    unsafe { pass!(file, xCheckReservedLock, out) }
}

unsafe extern "C" fn x_control(file: *mut ffi::sqlite3_file, op: c_int, arg: *mut c_void) -> c_int {
    unsafe { pass!(file, xFileControl, op, arg) }
}

unsafe extern "C" fn x_sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    unsafe { pass!(file, xSectorSize) }
}

unsafe extern "C" fn x_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    unsafe { pass!(file, xDeviceCharacteristics) }
}

unsafe extern "C" fn x_shm_map(
    file: *mut ffi::sqlite3_file,
    page: c_int,
    size: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    unsafe { pass!(file, xShmMap, page, size, extend, out) }
}

unsafe extern "C" fn x_shm_lock(
    file: *mut ffi::sqlite3_file,
    offset: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    unsafe { pass!(file, xShmLock, offset, count, flags) }
}

unsafe extern "C" fn x_shm_barrier(file: *mut ffi::sqlite3_file) {
    unsafe {
        let real = real(file);
        if let Some(barrier) = (*(*real).pMethods).xShmBarrier {
            barrier(real);
        }
    }
}

unsafe extern "C" fn x_shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    unsafe { pass!(file, xShmUnmap, delete) }
}

/// Version 2: shared memory, and no mapping of the file itself.
static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(x_close),
    xRead: Some(x_read),
    xWrite: Some(x_write),
    xTruncate: Some(x_truncate),
    xSync: Some(x_sync),
    xFileSize: Some(x_file_size),
    xLock: Some(x_lock),
    xUnlock: Some(x_unlock),
    xCheckReservedLock: Some(x_check_lock),
    xFileControl: Some(x_control),
    xSectorSize: Some(x_sector_size),
    xDeviceCharacteristics: Some(x_characteristics),
    xShmMap: Some(x_shm_map),
    xShmLock: Some(x_shm_lock),
    xShmBarrier: Some(x_shm_barrier),
    xShmUnmap: Some(x_shm_unmap),
    xFetch: None,
    xUnfetch: None,
};
