//! The one place that starts a thread of the pipeline.

use std::thread::{Scope, ScopedJoinHandle};

/// Starts a stage under its name (at most 15 bytes reach `ps -T`).
///
/// A panic inside is a defect of ours; it comes back from the handle's `join`, so that the other
/// stages are stopped in order instead of being left behind.
///
/// # Errors
///
/// If the system has no thread left.
pub fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> std::io::Result<ScopedJoinHandle<'scope, T>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn_scoped(scope, work)
}
