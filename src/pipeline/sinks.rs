//! The loop of a sink's thread: its queue, its housekeeping, its goodbye.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::queue::{GopReceiver, Popped};
use crate::sink::{Sent, Sink, SinkContext, SinkError, SinkStats};

use super::stop::StopReason;

/// Access units that may wait for a sink: enough to bridge a hiccup of its thread, few enough that
/// latency never hides here.
pub const QUEUE: usize = 8;

/// A receiver that lost its reference asks for a key frame at most this often.
const KEY_FRAME_PAUSE: Duration = Duration::from_millis(500);

/// Runs until the fan-out has closed the queue and it is drained, or the sink is lost.
///
/// `alive` counts the sinks that still run: the last one that is lost ends the pipeline.
///
/// # Errors
///
/// What ended the sink early.
pub fn run(
    mut sink: Box<dyn Sink>,
    queue: GopReceiver,
    context: &SinkContext,
    alive: &AtomicUsize,
) -> Result<(), SinkError> {
    let result = drive(sink.as_mut(), &queue, context);
    match &result {
        Ok(()) => sink.close(),
        Err(error) => {
            log::error!("{error}");
            // AcqRel: the last one has to see that all others are gone.
            if alive.fetch_sub(1, Ordering::AcqRel) == 1 {
                context.stop.stop(StopReason::Error);
            }
        }
    }
    result
}

fn drive(sink: &mut dyn Sink, queue: &GopReceiver, context: &SinkContext) -> Result<(), SinkError> {
    let mut next_poll = Instant::now();
    let mut last_ask: Option<Instant> = None;
    loop {
        match queue.pop(next_poll) {
            Popped::Item(unit) => {
                if sink.send(&unit)? == Sent::GivenUp {
                    let dropped = queue.restart_at_key_frame();
                    SinkStats::add(&context.stats.given_up, dropped as u64);
                }
            }
            Popped::Closed => return Ok(()),
            Popped::TimedOut | Popped::Nudged => {}
        }
        let now = Instant::now();
        if queue.is_starved() && last_ask.is_none_or(|at| now - at >= KEY_FRAME_PAUSE) {
            last_ask = Some(now);
            context.key_frames.ask();
        }
        if now >= next_poll {
            next_poll = now + sink.poll()?.min(Duration::from_secs(1));
        }
    }
}
