//! The streamer as a child process, and what the system says about it while it runs.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::case::Case;
use super::leftovers::Leftover;
use crate::worker::Worker;

/// A child that does not outlive the suite.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Until its status was taken.
    running: Option<Leftover>,
}

/// How a child ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    pub status: ExitStatus,
    pub took: Duration,
}

impl Ended {
    /// Exit code, or 128 and the signal, as shells count.
    pub fn code(&self) -> i32 {
        let signal = || self.status.signal().map_or(-1, |signal| 128 + signal);
        self.status.code().unwrap_or_else(signal)
    }
}

impl Process {
    /// # Errors
    ///
    /// The system's.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let (child, running) = Leftover::spawn(command)?;
        Ok(Process {
            child,
            running: Some(running),
        })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        // It may have ended: that is found out where its status is asked for.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    pub fn is_running(&mut self) -> bool {
        let running = matches!(self.child.try_wait(), Ok(None));
        if !running {
            self.running = None;
        }
        running
    }

    /// Waits for its end; `None` if it does not come within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<Ended> {
        let start = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                self.running = None;
                return Some(Ended {
                    status,
                    took: start.elapsed(),
                });
            }
            if start.elapsed() >= limit {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One look at a process.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub at: Instant,
    pub resident_kib: u64,
    /// The most so far; since [`Vitals::forget_peak`] where the system allows that.
    pub peak_kib: u64,
    pub descriptors: u64,
    pub threads: u64,
}

/// Looks at a process ten times a second until it is gone or this is dropped.
#[derive(Debug)]
pub struct Vitals {
    pid: u32,
    samples: Arc<Mutex<Vec<Sample>>>,
    _thread: Worker<()>,
}

impl Vitals {
    pub fn of(pid: u32) -> Self {
        let samples = Arc::<Mutex<Vec<Sample>>>::default();
        let thread = Worker::start({
            let samples = Arc::clone(&samples);
            move |stop| {
                // Relaxed: the flag guards no other data.
                while !stop.load(Ordering::Relaxed) {
                    let Some(sample) = look_at(pid) else { return };
                    samples
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(sample);
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        });
        Vitals {
            pid,
            samples,
            _thread: thread,
        }
    }

    /// Counts the peak anew from now on, and takes a sample.
    pub fn forget_peak(&self) -> Option<Sample> {
        // proc_pid_clear_refs(5): 5 resets the peak. Refused, it stands as a peak of the start too.
        let _ = std::fs::write(format!("/proc/{}/clear_refs", self.pid), "5");
        self.look()
    }

    /// A sample of now, beside the others.
    pub fn look(&self) -> Option<Sample> {
        look_at(self.pid)
    }

    pub fn all(&self) -> Vec<Sample> {
        self.samples
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn look_at(pid: u32) -> Option<Sample> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| -> Option<u64> {
        let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
        rest.split_whitespace().next()?.parse().ok()
    };
    Some(Sample {
        at: Instant::now(),
        // A process that has ended and was not waited for has no memory any more.
        resident_kib: field("VmRSS:")?,
        peak_kib: field("VmHWM:")?,
        threads: field("Threads:")?,
        descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64,
    })
}

/// The streamer under test.
#[derive(Debug)]
pub struct Streamer {
    pub process: Process,
    pub vitals: Vitals,
    pub log: PathBuf,
    report: PathBuf,
}

impl Streamer {
    /// Starts it with `arguments` and additions to its environment, its output and report in the folder of `case`.
    ///
    /// # Errors
    ///
    /// The system's.
    pub fn start<A: AsRef<OsStr>>(
        case: &Case,
        tag: &str,
        arguments: impl IntoIterator<Item = A>,
        environment: &[(String, OsString)],
    ) -> io::Result<Self> {
        let log = case.path(&format!("{tag}.log"));
        let report = case.path(&format!("{tag}-report.json"));
        let output = File::create(&log)?;
        let mut command = Command::new(case.binary("cvmmap_streamer"));
        command.args(arguments).envs(environment.iter().cloned());
        if !command.get_args().any(|argument| argument == "--nats-url") {
            command.arg("--no-nats");
        }
        let process = Process::spawn(
            command
                .args(["--no-status", "--report-json"])
                .arg(&report)
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output),
        )?;
        Ok(Streamer {
            vitals: Vitals::of(process.id()),
            process,
            log,
            report,
        })
    }

    /// Asks it to end, and waits.
    pub fn terminate(&mut self, limit: Duration) -> Option<Ended> {
        self.process.signal(Signal::TERM);
        self.process.wait(limit)
    }

    /// Its final report; null without one.
    pub fn report(&self) -> Value {
        std::fs::read(&self.report)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }
}
