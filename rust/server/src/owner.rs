//! Who reserves: a process, known by pid, start time and boot (R9).
//!
//! A pid alone proves nothing, since pids are reused; with its start time and the boot it names one
//! process for good.

use std::sync::OnceLock;
use std::{fs, io};

use bursar_ledger::Owner;
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_64;

/// The process behind a pid, or `None` when it cannot be seen.
pub(crate) fn identify(pid: i32, uid: u32) -> Option<Owner> {
    let (boot, start_ticks) = (boot()?, start_ticks(pid).ok()??);
    Some(Owner { pid: u32::try_from(pid).ok()?, start_ticks, boot, uid })
}

/// Whether the process that `identify` named still lives. Where that cannot be seen, it does.
pub(crate) fn is_alive(owner: &Owner) -> bool {
    let Ok(pid) = i32::try_from(owner.pid) else { return false };
    let is_it = |ticks: Option<u64>| ticks == Some(owner.start_ticks);
    boot().is_none_or(|boot| boot == owner.boot) && start_ticks(pid).map_or(true, is_it)
}

fn boot() -> Option<u64> {
    static BOOT: OnceLock<Option<u64>> = OnceLock::new();
    let read = || fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    *BOOT.get_or_init(|| read().map(|id| xxh3_64(id.trim().as_bytes())))
}

/// When a process began; `None`: it has ended.
fn start_ticks(pid: i32) -> io::Result<Option<u64>> {
    match fs::read(format!("/proc/{pid}/stat")) {
        Ok(stat) => Ok(started(&stat)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Field 22 of /proc/PID/stat (proc(5)); a zombie counts as gone, unless other threads of it go on.
fn started(stat: &[u8]) -> Option<u64> {
    // The second field is the name in brackets, which may itself hold brackets, blanks, and what is no
    // UTF-8.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(&stat[end + 1..]).ok()?.split_ascii_whitespace();
    let state = fields.next()?;
    let threads: u32 = fields.nth(16)?.parse().ok()?;
    if state == "X" || state == "Z" && threads <= 1 {
        return None;
    }
    fields.nth(1)?.parse().ok()
}

/// Fuzz target: whatever a process calls itself, it is seen.
#[cfg(feature = "fuzzing")]
pub fn process_name(data: &[u8]) {
    let _whatever_it_is = started(data);
    let stat = [b"7 (", data, b") S", " 1".repeat(18).as_bytes(), b" 42 1\n"].concat();
    assert_eq!(started(&stat), Some(42));
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn this_process_is_alive_and_another_start_is_not() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let owner = identify(pid, 0).expect("its own /proc");
        assert!(is_alive(&owner));
        assert!(!is_alive(&Owner { start_ticks: owner.start_ticks + 1, ..owner }));
        assert!(!is_alive(&Owner { boot: owner.boot ^ 1, ..owner }));
        assert!(!is_alive(&Owner { pid: u32::MAX, ..owner }));
    }

    /// Goal: nobody seems to be gone by calling itself something. Method: a real process with a name
    /// that looks like a zombie's and is no text, until it has ended.
    #[test]
    fn a_process_with_a_strange_name_is_alive_until_it_has_ended() {
        let named = r"printf '7) Z \377 (' > /proc/$$/comm; echo; read -r _";
        let mut child = Command::new("bash")
            .args(["-c", named])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash");
        let mut line = String::new();
        let told = child.stdout.take().expect("piped");
        BufReader::new(told).read_line(&mut line).expect("it has its name");
        let owner = identify(i32::try_from(child.id()).expect("a pid"), 0).expect("it is seen");
        assert!(is_alive(&owner));
        child.kill().and_then(|()| child.wait()).expect("it ends");
        assert!(!is_alive(&owner));
    }
}
