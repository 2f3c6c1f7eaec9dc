//! Who holds capacity: a process, known by pid, start time and boot (R9).
//!
//! A pid alone proves nothing, since pids are reused; with its start time and the boot it names one
//! process for good.

use std::fs;

/// The label under which the owner is kept with its reservation.
pub(crate) const LABEL: &str = "bursar.owner";

/// The process behind a pid as text, or `None` when it cannot be seen.
pub(crate) fn identify(pid: i32) -> Option<String> {
    Some(format!("{}:{pid}:{}", boot_id()?, start_ticks(pid)?))
}

/// Whether the process that `identify` named still lives.
pub(crate) fn is_alive(owner: &str) -> bool {
    let mut parts = owner.rsplitn(3, ':');
    let (Some(start), Some(pid), Some(boot)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let ticks = pid.parse().ok().and_then(start_ticks);
    boot_id().as_deref() == Some(boot) && ticks.is_some_and(|ticks| ticks.to_string() == start)
}

fn boot_id() -> Option<String> {
    Some(fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
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
        let owner = identify(pid).expect("its own /proc");
        assert!(is_alive(&owner));
        assert!(!is_alive(&format!("{owner}0")));
        assert!(!is_alive("nonsense"));
    }
}
