//! The program that is measured: started, watched, ended, and what it used.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::worker::Worker;

/// As much as an unprivileged pipe may hold (`/proc/sys/fs/pipe-max-size`): a reader that is ready
/// takes most of a frame while the pacer writes it.
const PIPE_BYTES: i32 = 1 << 20;

/// Killed when this is dropped, and when its time is over: one that does not take its pictures holds up whoever
/// gives them.
#[derive(Debug)]
pub struct Program {
    id: u32,
    child: Arc<Mutex<Child>>,
    started: Instant,
    limit: Duration,
    /// Gives whether it had to kill.
    watchdog: Option<Worker<bool>>,
}

/// What a program used from its start to its end.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub status: ExitStatus,
    pub cpu_seconds: f64,
    pub seconds: f64,
    /// It was killed for running longer than it may.
    pub overran: bool,
}

impl Program {
    /// Starts it, for `limit` at most.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start(command: &[String], log: &Path, pipe: bool, limit: Duration) -> io::Result<Self> {
        let (name, arguments) = command
            .split_first()
            .ok_or_else(|| io::Error::other("no program is given"))?;
        let log = File::create(log)?;
        let child = Command::new(name)
            .args(arguments)
            .stdin(if pipe { Stdio::piped() } else { Stdio::null() })
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|e| io::Error::new(e.kind(), format!("{name}: {e}")))?;
        if let Some(stdin) = &child.stdin {
            // Refused on a system with a smaller limit: the pipe stays as it is.
            let _ = fcntl(stdin.as_fd(), FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        }
        let (id, started) = (child.id(), Instant::now());
        let child = Arc::new(Mutex::new(child));
        let watchdog = Worker::start({
            let child = Arc::clone(&child);
            move |stop| {
                // Relaxed: the flag guards no other data.
                while !stop.load(Ordering::Relaxed) {
                    if started.elapsed() >= limit {
                        let mut child = lock(&child);
                        return matches!(child.try_wait(), Ok(None)) && child.kill().is_ok();
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                false
            }
        });
        Ok(Program {
            id,
            child,
            started,
            limit,
            watchdog: Some(watchdog),
        })
    }

    /// Its standard input, once, if that is a pipe.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        lock(&self.child).stdin.take()
    }

    pub fn has_ended(&mut self) -> bool {
        !matches!(lock(&self.child).try_wait(), Ok(None))
    }

    /// The largest resident memory so far. Not from `wait`, whose figure begins with the memory of
    /// the process that forked.
    pub fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id));
        status
            .unwrap_or_default()
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    }

    pub fn interrupt(&self) {
        if let Ok(pid) = i32::try_from(self.id) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        }
    }

    /// Waits for its end, at most `limit`, then kills it.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn finish(mut self, limit: Duration) -> io::Result<Usage> {
        let deadline = Instant::now() + limit;
        let mut overran = false;
        while !self.has_ended() {
            if Instant::now() >= deadline {
                let _ = lock(&self.child).kill();
                overran = self.started.elapsed() >= self.limit;
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let status = lock(&self.child).wait()?;
        let seconds = self.started.elapsed().as_secs_f64();
        overran |= matches!(self.watchdog.take().map(Worker::end), Some(Ok(true)));
        // The only child that this process ever has.
        let used = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(io::Error::from)?;
        let in_seconds = |time: nix::sys::time::TimeVal| {
            time.tv_sec() as f64 + f64::from(time.tv_usec() as i32) / 1e6
        };
        Ok(Usage {
            status,
            cpu_seconds: in_seconds(used.user_time()) + in_seconds(used.system_time()),
            seconds,
            overran,
        })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_program_that_takes_nothing_from_its_pipe_ends_at_the_limit() {
        let log = std::env::temp_dir().join(format!("bench_child_{}", std::process::id()));
        let command = ["sleep", "1000"].map(str::to_owned);
        let limit = Duration::from_millis(200);
        let mut program = Program::start(&command, &log, true, limit).expect("sleep starts");
        let mut pipe = program.take_stdin().expect("a pipe was asked for");
        // More than any pipe holds: without the watchdog this stands still for ever.
        let given = pipe.write_all(&vec![0; 4 << 20]);
        assert_eq!(
            given.expect_err("nobody reads").kind(),
            io::ErrorKind::BrokenPipe
        );
        let usage = program.finish(Duration::from_secs(10)).expect("its end");
        assert!(usage.overran && !usage.status.success());
        let _ = std::fs::remove_file(log);
    }
}
