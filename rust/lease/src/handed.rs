//! Sockets that a service manager listens on and hands over: the protocol of `sd_listen_fds(3)`.
//!
//! Contains `unsafe`: descriptors that are known by their numbers only become owned.

use std::env::VarError;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first one; the others follow.
const FIRST: RawFd = 3;
/// The most that are taken: a daemon has a handful of listeners.
const MOST: i32 = 64;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// What was handed to this process, none twice; nothing where no service manager started it.
pub fn take() -> io::Result<Vec<OwnedFd>> {
    let read = |name| match std::env::var(name) {
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(wrong(format!("{name} is no text"))),
        Ok(text) => Ok(Some(text)),
    };
    let count = count(read("LISTEN_PID")?, read("LISTEN_FDS")?, std::process::id())?;
    if count == 0 || TAKEN.swap(true, Ordering::AcqRel) {
        return Ok(Vec::new());
    }
    (FIRST..FIRST + count).map(own).collect()
}

/// How many there are for the process `own`. The variables of a parent are inherited, its
/// descriptors are not: they name it by its pid.
fn count(pid: Option<String>, fds: Option<String>, own: u32) -> io::Result<i32> {
    let (Some(pid), Some(fds)) = (pid, fds) else { return Ok(0) };
    if pid.parse::<u32>().map_err(|_| wrong(format!("LISTEN_PID is no pid: {pid:?}")))? != own {
        return Ok(0);
    }
    let count = fds.parse().ok().filter(|count| (0..=MOST).contains(count));
    count.ok_or_else(|| wrong(format!("LISTEN_FDS is no number from 0 to {MOST}: {fds:?}")))
}

fn wrong(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// Owns a descriptor, and keeps it from the programs that this process starts.
fn own(number: RawFd) -> io::Result<OwnedFd> {
    #[expect(unsafe_code, reason = "JUSTIFICATION: the protocol names descriptors by number")]
    // SAFETY: a flag of a number that is no open descriptor fails, and changes nothing.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    #[expect(unsafe_code, reason = "JUSTIFICATION: as above")]
    // SAFETY: it is open, this process was told that it is its own, and it is taken once: `TAKEN`.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(pid: &str, fds: &str) -> io::Result<i32> {
        count(Some(pid.into()), Some(fds.into()), 7)
    }

    #[test]
    fn only_what_is_for_this_process_counts() {
        assert_eq!(counted("7", "2").expect("right"), 2);
        assert_eq!(counted("8", "2").expect("a parent's"), 0);
        assert_eq!(count(None, Some("2".into()), 7).expect("nobody's"), 0);
        assert_eq!(count(Some("7".into()), None, 7).expect("none"), 0);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (pid, fds, said) in [
            ("x", "1", "LISTEN_PID"),
            ("7", "-1", "LISTEN_FDS"),
            ("7", "65", "LISTEN_FDS"),
            ("7", "", "LISTEN_FDS"),
        ] {
            let error = counted(pid, fds).expect_err("nonsense").to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn what_is_not_open_cannot_be_owned() {
        assert!(own(1 << 20).is_err());
    }
}
