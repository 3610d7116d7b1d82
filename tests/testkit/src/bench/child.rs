//! The program that is measured: started, watched, ended, and what it used.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// As much as an unprivileged pipe may hold (`/proc/sys/fs/pipe-max-size`): a reader that is ready
/// takes most of a frame while the pacer writes it.
const PIPE_BYTES: i32 = 1 << 20;

#[derive(Debug)]
pub struct Program {
    pub child: Child,
    started: Instant,
}

/// What a program used from its start to its end.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub status: ExitStatus,
    pub cpu_seconds: f64,
    pub seconds: f64,
}

impl Program {
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start(command: &[String], log: &Path, pipe: bool) -> io::Result<Self> {
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
        Ok(Program {
            child,
            started: Instant::now(),
        })
    }

    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// The largest resident memory so far. Not from `wait`, whose figure begins with the memory of
    /// the process that forked.
    pub fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        status
            .unwrap_or_default()
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    }

    pub fn interrupt(&self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
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
        while !self.has_ended() {
            if Instant::now() >= deadline {
                let _ = self.child.kill();
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let status = self.child.wait()?;
        let seconds = self.started.elapsed().as_secs_f64();
        // The only child that this process ever has.
        let used = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(io::Error::from)?;
        let in_seconds = |time: nix::sys::time::TimeVal| {
            time.tv_sec() as f64 + f64::from(time.tv_usec() as i32) / 1e6
        };
        Ok(Usage {
            status,
            cpu_seconds: in_seconds(used.user_time()) + in_seconds(used.system_time()),
            seconds,
        })
    }
}
