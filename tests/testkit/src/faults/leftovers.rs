//! What a suite that is told to end must not leave behind: children, segments, the folder of sockets.

use std::io;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Something that is removed when this is dropped, and on a signal.
#[derive(Debug)]
pub struct Leftover(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Child(u32),
    Segment(String),
    Folder(PathBuf),
}

impl Leftover {
    /// Starts a child. Its owner kills it: this is for signals only.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn spawn(command: &mut Command) -> io::Result<(Child, Self)> {
        // Held meanwhile: a signal finds it noted, or not started.
        let mut all = all();
        let child = command.spawn()?;
        let kind = Kind::Child(child.id());
        all.push(kind.clone());
        Ok((child, Leftover(kind)))
    }

    /// A POSIX shared memory segment.
    pub fn segment(name: &str) -> Self {
        Self::note(Kind::Segment(name.to_owned()))
    }

    pub fn folder(path: PathBuf) -> Self {
        Self::note(Kind::Folder(path))
    }

    fn note(kind: Kind) -> Self {
        all().push(kind.clone());
        Leftover(kind)
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        let mut all = all();
        if let Some(at) = all.iter().position(|kind| *kind == self.0) {
            all.swap_remove(at);
        }
        // A child's number may be another process's by now.
        if !matches!(self.0, Kind::Child(_)) {
            remove(&self.0);
        }
    }
}

/// On SIGINT, SIGTERM or SIGHUP: removes everything and ends the process as shells expect it.
///
/// # Errors
///
/// The system's.
pub fn remove_on_signals() -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // Held to the end: nothing is added meanwhile. Children first, since they make the rest.
            let all = all();
            let children = all.iter().filter(|kind| matches!(kind, Kind::Child(_)));
            children.for_each(remove);
            all.iter().for_each(remove);
            eprintln!("error: ended by signal {signal}");
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

fn remove(kind: &Kind) {
    match kind {
        Kind::Child(pid) => {
            let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw);
            if let Some(pid) = pid {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        Kind::Segment(name) => {
            let _ = rustix::shm::unlink(name.as_str());
        }
        Kind::Folder(path) => {
            let _ = std::fs::remove_dir_all(path);
        }
    }
}

fn all() -> MutexGuard<'static, Vec<Kind>> {
    static ALL: Mutex<Vec<Kind>> = Mutex::new(Vec::new());
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_with_its_note() {
        let path = std::env::temp_dir().join(format!("leftover{}", std::process::id()));
        std::fs::create_dir_all(path.join("deep")).expect("a folder");
        let leftover = Leftover::folder(path.clone());
        assert!(all().contains(&Kind::Folder(path.clone())));
        drop(leftover);
        assert!(!path.exists() && !all().contains(&Kind::Folder(path)));
    }
}
