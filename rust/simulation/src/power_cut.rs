//! What a power cut leaves on the disk.
//!
//! Of each write since the last sync, every sector is there by chance; a file may be as long as a
//! write made it and hold zeros there. A file whose name was never synced may be gone, a deleted one
//! may be back.

use std::fs;
use std::io;

use crate::disk::{Change, Disk, Held, SECTOR, State, put};
use crate::random::Random;

impl Disk {
    /// The power goes, and comes back: the real files become what is left. Nobody has them open.
    pub fn cut_power(&self) -> io::Result<()> {
        let state = &mut *self.0.lock();
        let State { files, ghosts, random, plan, .. } = state;
        // Of some cuts little survives, of some nearly all.
        let share = random.pick(&[0, 10, 50, 90, 100]);
        for (path, mut held) in std::mem::take(files) {
            if !held.named && random.percent(50) {
                fs::remove_file(&path)?;
                continue;
            }
            let left = survives(&mut held, share, random);
            fs::write(&path, &left)?;
            let (now, durable) = (left.clone(), left);
            let held = Held { now, durable, unsynced: Vec::new(), named: true, file: held.file };
            files.insert(path, held);
        }
        for (path, content) in ghosts.drain(..) {
            if random.percent(50) && !path.exists() {
                fs::write(&path, content)?;
            }
        }
        plan.heal();
        Ok(())
    }

    /// The process dies and the system stays: what is written is there.
    pub fn kill(&self) {
        self.0.lock().plan.heal();
    }
}

fn survives(held: &mut Held, share: u64, random: &mut Random) -> Vec<u8> {
    let mut left = std::mem::take(&mut held.durable);
    for change in &held.unsynced {
        match change {
            Change::SetLen(len) => {
                if random.percent(share) {
                    left.resize(*len, 0);
                }
            }
            Change::Write(offset, bytes) => {
                let end = offset + bytes.len();
                let mut at = *offset;
                while at < end {
                    let next = ((at / SECTOR + 1) * SECTOR).min(end);
                    if random.percent(share) {
                        put(&mut left, at, &bytes[at - offset..next - offset]);
                    }
                    at = next;
                }
                if left.len() < end && random.percent(share) {
                    left.resize(end, 0);
                }
            }
        }
    }
    left
}
