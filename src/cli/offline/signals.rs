//! Ctrl-C and SIGTERM: the first ends the run in good order, the second at once.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use crate::offline::error::exit;
use crate::pipeline::stop::{StopReason, StopToken};

/// A token that the first signal sets. A file that grows past its limit (`ulimit -f`) is an error
/// of the write from here on and not the end of the process, which would leave an unfinished file.
///
/// # Errors
///
/// If the process has no handle or thread left for it.
pub fn stop_on_signals() -> std::io::Result<StopToken> {
    let stop = StopToken::new();
    let (mut signals, sender) = UnixStream::pair()?;
    pipe::register(SIGINT, sender.try_clone()?)?;
    pipe::register(SIGTERM, sender)?;
    signal_hook::flag::register(libc::SIGXFSZ, Arc::default())?;
    let token = stop.clone();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut byte = [0];
            while signals.read_exact(&mut byte).is_ok() {
                if token.is_stopped() {
                    std::process::exit(i32::from(exit::INTERRUPTED));
                }
                token.stop(StopReason::Signal);
            }
        })?;
    Ok(stop)
}
