//! The signal "stop", from anyone to everyone.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Why the run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum StopReason {
    /// Ctrl-C or SIGTERM.
    Signal = 1,
    /// The source has no more frames.
    SourceEnded = 2,
    /// `--ingest-max-frames`.
    MaxFrames = 3,
    /// `--ingest-idle-timeout-ms`.
    Idle = 4,
    /// An error, which the pipeline reports.
    Error = 5,
}

impl StopReason {
    fn from_code(code: u8) -> Option<Self> {
        [
            Self::Signal,
            Self::SourceEnded,
            Self::MaxFrames,
            Self::Idle,
            Self::Error,
        ]
        .into_iter()
        .find(|reason| *reason as u8 == code)
    }
}

/// Set once, seen by all; cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct StopToken(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    reason: AtomicU8,
    lock: Mutex<()>,
    wake: Condvar,
}

impl StopToken {
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everyone to stop. The first reason stays.
    pub fn stop(&self, reason: StopReason) {
        // Relaxed would do for the flag alone; the lock below orders it against `wait`.
        let _ =
            self.0
                .reason
                .compare_exchange(0, reason as u8, Ordering::AcqRel, Ordering::Acquire);
        let _guard = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.wake.notify_all();
    }

    pub fn reason(&self) -> Option<StopReason> {
        StopReason::from_code(self.0.reason.load(Ordering::Acquire))
    }

    pub fn is_stopped(&self) -> bool {
        self.0.reason.load(Ordering::Acquire) != 0
    }

    /// Sleeps for `time` or until the stop; true if it was the stop.
    pub fn wait(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut guard = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.is_stopped() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            guard = self
                .0
                .wake
                .wait_timeout(guard, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stays_and_waiters_wake() {
        let token = StopToken::new();
        assert!(!token.wait(Duration::from_millis(1)));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| token.wait(Duration::from_secs(60)));
            token.stop(StopReason::MaxFrames);
            token.stop(StopReason::Signal);
            assert!(waiter.join().unwrap());
        });
        assert_eq!(token.reason(), Some(StopReason::MaxFrames));
    }
}
