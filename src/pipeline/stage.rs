//! The one place that starts a thread of the pipeline.

use std::thread::{Scope, ScopedJoinHandle};

use super::stop::{StopReason, StopToken};

/// Starts a stage under its name (at most 15 bytes reach `ps -T`).
///
/// A panic inside is a defect of ours: it stops the run, so that the other stages end in order, and
/// comes back from the handle's `join`.
///
/// # Errors
///
/// If the system has no thread left.
pub fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    stop: &'scope StopToken,
    work: impl FnOnce() -> T + Send + 'scope,
) -> std::io::Result<ScopedJoinHandle<'scope, T>> {
    let work = move || {
        let _guard = StopOnPanic(stop);
        work()
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn_scoped(scope, work)
}

struct StopOnPanic<'a>(&'a StopToken);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop(StopReason::Error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_panics_stops_the_run() {
        let stop = StopToken::new();
        std::thread::scope(|scope| {
            let fine = spawn(scope, "fine", &stop, || 7).unwrap();
            assert_eq!(fine.join().unwrap(), 7);
            assert!(!stop.is_stopped());
            let stage = spawn(scope, "stage", &stop, || panic!("by order")).unwrap();
            assert!(stage.join().is_err());
            assert!(stop.is_stopped());
        });
    }
}
