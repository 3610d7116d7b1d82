//! The ingest stage: frames from the source into the queue, and the reasons to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::frame::Snapshot;
use crate::queue::LatestQueue;
use crate::source::{FrameSource, SourceError, SourceEvent, SurfaceSource};

use super::stop::{StopReason, StopToken};

/// What the stage has to know beside its source.
#[derive(Debug, Clone, Copy)]
pub struct IngestLimits {
    pub max_frames: Option<u64>,
    pub idle_timeout: Option<Duration>,
    /// The source is a file and can wait: nothing is evicted.
    pub lossless: bool,
}

/// What the stage shows while it runs.
#[derive(Debug, Default)]
pub struct IngestState {
    /// Snapshots handed to the queue.
    pub frames: AtomicU64,
    /// Snapshots that a newer one pushed out of the queue.
    pub evicted: AtomicU64,
    /// The producer is not there, or silent.
    pub offline: AtomicBool,
    /// It was a recording, and is over.
    pub ended: AtomicBool,
}

/// Until the encoder has caught up with its start.
const FIRST_FRAMES: u64 = 8;
/// Often enough to see the stop and the idle timeout, seldom enough to cost nothing.
const LONGEST_WAIT: Duration = Duration::from_millis(100);
/// After that a producer that has not said OFFLINE is taken for gone.
const SILENCE: Duration = Duration::from_secs(3);

/// Runs until the source ends, a limit is reached, or `stop`. Closes `queue` at the end.
///
/// # Errors
///
/// If the source can never work.
pub fn run(
    source: &mut dyn FrameSource,
    surfaces: &mut dyn SurfaceSource,
    queue: Option<&LatestQueue<Snapshot>>,
    limits: IngestLimits,
    state: &Arc<IngestState>,
    stop: &StopToken,
) -> Result<(), SourceError> {
    let result = ingest(source, surfaces, queue, limits, state, stop);
    if let Some(queue) = queue {
        queue.close();
    }
    if result.is_err() {
        stop.stop(StopReason::Error);
    }
    result
}

fn ingest(
    source: &mut dyn FrameSource,
    surfaces: &mut dyn SurfaceSource,
    queue: Option<&LatestQueue<Snapshot>>,
    limits: IngestLimits,
    state: &IngestState,
    stop: &StopToken,
) -> Result<(), SourceError> {
    let mut last_frame = Instant::now();
    let mut taken = 0_u64;
    while !stop.is_stopped() {
        let now = Instant::now();
        let mut deadline = now + LONGEST_WAIT;
        if let Some(timeout) = limits.idle_timeout {
            let end = last_frame + timeout;
            if now >= end {
                stop.stop(StopReason::Idle);
                break;
            }
            deadline = deadline.min(end);
        }
        match source.next(deadline, surfaces)? {
            SourceEvent::Frame(snapshot) => {
                last_frame = Instant::now();
                taken += 1;
                set(&state.offline, false);
                set(&state.ended, false);
                // Relaxed: read for the status line and the report only.
                state.frames.fetch_add(1, Ordering::Relaxed);
                let back = match queue {
                    None => None,
                    // The encoder opens, and codes its first pictures, more slowly than it goes on:
                    // the first frames wait for their place instead of taking another's.
                    Some(queue) if limits.lossless || taken <= FIRST_FRAMES => {
                        queue.push_waiting(snapshot, stop)
                    }
                    Some(queue) => queue.push(snapshot),
                };
                if back.is_some() {
                    state.evicted.fetch_add(1, Ordering::Relaxed);
                }
                if limits.max_frames.is_some_and(|max| taken >= max) {
                    stop.stop(StopReason::MaxFrames);
                    break;
                }
            }
            SourceEvent::Reset => log::info!("the producer's stream starts anew"),
            SourceEvent::Offline => {
                if !state.offline.load(Ordering::Relaxed) {
                    set(&state.offline, true);
                    if ends(source, state) {
                        log::info!("the producer's recording is over; waiting for another");
                    } else {
                        log::info!("the producer is offline; waiting for it");
                    }
                }
            }
            SourceEvent::Idle => {
                // A producer that was killed says nothing and leaves its segment as it is.
                if taken > 0
                    && last_frame.elapsed() >= SILENCE
                    && !state.offline.load(Ordering::Relaxed)
                {
                    set(&state.offline, true);
                    if ends(source, state) {
                        log::info!(
                            "the producer's recording is over, though its segment is there; \
                             waiting for another"
                        );
                        continue;
                    }
                    log::info!(
                        "no frame for {} s: the producer is silent, though its segment is there; \
                         waiting for it",
                        SILENCE.as_secs()
                    );
                }
            }
            SourceEvent::End => {
                stop.stop(StopReason::SourceEnded);
                break;
            }
        }
    }
    Ok(())
}

/// Whether what went silent is a recording that is over.
fn ends(source: &dyn FrameSource, state: &IngestState) -> bool {
    let ended = source.at_end();
    set(&state.ended, ended);
    ended
}

/// Stores only what is new: the line stays shared between the cores that read it.
fn set(flag: &AtomicBool, to: bool) {
    if flag.load(Ordering::Relaxed) != to {
        flag.store(to, Ordering::Relaxed);
    }
}
