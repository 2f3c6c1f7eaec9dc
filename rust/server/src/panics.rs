//! What a panic leaves behind: one line for the daemon's log, instead of several on standard error.
//! One that follows at once may abort the process, and is written here, with the one before it.

use std::cell::RefCell;
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::sync::mpsc;
use std::{panic, thread};

use crate::clock::Began;

/// How long the end of a panicking thread takes at most.
const UNWINDING_NS: u64 = 1_000_000_000;

thread_local! {
    /// The thread's last one, and when.
    static BEFORE: RefCell<Option<(Began, String)>> = const { RefCell::new(None) };
}

/// From now on every panic is told, by a thread of its own: who panics may hold what `tell` waits for.
pub fn tell_panics(mut tell: impl FnMut(String) + Send + 'static) -> io::Result<()> {
    let (sender, panics) = mpsc::channel();
    let run = move || panics.into_iter().for_each(&mut tell);
    thread::Builder::new().name("bursar-panics".into()).spawn(run)?;
    panic::set_hook(Box::new(move |panic| {
        let line = line(panic);
        let before = BEFORE.try_with(|it| it.replace(Some((Began::now(), line.clone()))));
        if let Ok(Some((began, before))) = before
            && began.took_ns() < UNWINDING_NS
        {
            let _unheard = writeln!(io::stderr(), "{before}\n{line}");
        }
        let _ended = sender.send(line);
    }));
    Ok(())
}

fn line(panic: &PanicHookInfo<'_>) -> String {
    let current = thread::current();
    let name = current.name().unwrap_or("without a name");
    format!("thread {name} {}", panic.to_string().replacen('\n', " ", 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_in_one_line_with_its_thread_and_its_place() {
        let before = panic::take_hook();
        let (sender, told) = mpsc::channel();
        tell_panics(move |line| {
            let _over = sender.send(line);
        })
        .expect("a thread");
        let broken = thread::Builder::new().name("bursar-7".into());
        let ended = broken.spawn(|| panic!("broken by {}", "hand")).expect("a thread").join();
        panic::set_hook(before);
        assert!(ended.is_err());
        let ours = |line: &String| line.starts_with("thread bursar-7 panicked at ");
        let line = told.iter().find(ours).expect("it is told");
        assert!(line.contains("panics.rs:") && line.ends_with(": broken by hand"), "{line}");
        assert!(!line.contains('\n'));
    }
}
