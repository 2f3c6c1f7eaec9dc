//! Who reserves: a process, known by pid, start time and boot (R9).
//!
//! A pid alone proves nothing, since pids are reused; with its start time and the boot it names one
//! process for good.

use std::fs;
use std::sync::OnceLock;

use bursar_ledger::Owner;
use xxhash_rust::xxh3::xxh3_64;

/// The process behind a pid, or `None` when it cannot be seen.
pub(crate) fn identify(pid: i32, uid: u32) -> Option<Owner> {
    let (boot, start_ticks) = (boot()?, start_ticks(pid)?);
    Some(Owner { pid: u32::try_from(pid).ok()?, start_ticks, boot, uid })
}

/// Whether the process that `identify` named still lives.
pub(crate) fn is_alive(owner: &Owner) -> bool {
    let ticks = i32::try_from(owner.pid).ok().and_then(start_ticks);
    boot() == Some(owner.boot) && ticks == Some(owner.start_ticks)
}

fn boot() -> Option<u64> {
    static BOOT: OnceLock<Option<u64>> = OnceLock::new();
    let read = || fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
    *BOOT.get_or_init(|| read().map(|id| xxh3_64(id.trim().as_bytes())))
}

/// Field 22 of /proc/PID/stat (proc(5)); a zombie counts as gone.
fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in brackets, which may itself hold brackets and blanks.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
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
}
