//! The real-time scheduler (`--realtime`).

use std::io;

/// Puts the calling thread, and all that it starts from here on, under SCHED_FIFO: ZeroMQ's, the
/// stages and an encoder's own.
///
/// Whole process rather than single stages: a frame waits for each of them in turn, the encoder's
/// threads take most of its time, and a stage of high priority that waits for a thread of low
/// priority gains nothing. The kernel keeps a twentieth of each second for others
/// (`sched_rt_runtime_us`).
///
/// # Errors
///
/// The system's; `PermissionDenied` without CAP_SYS_NICE and with a limit (RLIMIT_RTPRIO) below
/// `priority`.
pub fn enter(priority: u8) -> io::Result<()> {
    let parameters = libc::sched_param {
        sched_priority: priority.into(),
    };
    // SAFETY: the parameters live through the call, which keeps no pointer to them.
    let status = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
