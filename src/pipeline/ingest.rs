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
    /// Snapshots that a newer one pushed out of the queue, or that came as the run stopped.
    pub evicted: AtomicU64,
    /// The producer is not there, or silent.
    pub offline: AtomicBool,
    /// It was a recording, and is over.
    pub ended: AtomicBool,
}

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
    let never = AtomicBool::new(false);
    run_until(source, surfaces, queue, limits, state, stop, &never)
}

/// As [`run`], until this thread was `given_up`: then it ends and touches nothing that others go on with.
///
/// # Errors
///
/// As [`run`].
pub fn run_until(
    source: &mut dyn FrameSource,
    surfaces: &mut dyn SurfaceSource,
    queue: Option<&LatestQueue<Snapshot>>,
    limits: IngestLimits,
    state: &Arc<IngestState>,
    stop: &StopToken,
    given_up: &AtomicBool,
) -> Result<(), SourceError> {
    let _closed = CloseAtEnd { queue, given_up };
    let result = ingest(source, surfaces, queue, limits, state, stop, given_up);
    if result.is_err() && !given_up.load(Ordering::Acquire) {
        stop.stop(StopReason::Error);
    }
    result
}

/// The encode stage ends with the queue, also when this one has panicked.
struct CloseAtEnd<'a> {
    queue: Option<&'a LatestQueue<Snapshot>>,
    given_up: &'a AtomicBool,
}

impl Drop for CloseAtEnd<'_> {
    fn drop(&mut self) {
        if let Some(queue) = self.queue
            && !self.given_up.load(Ordering::Acquire)
        {
            queue.close();
        }
    }
}

fn ingest(
    source: &mut dyn FrameSource,
    surfaces: &mut dyn SurfaceSource,
    queue: Option<&LatestQueue<Snapshot>>,
    limits: IngestLimits,
    state: &IngestState,
    stop: &StopToken,
    given_up: &AtomicBool,
) -> Result<(), SourceError> {
    let mut last_frame = Instant::now();
    // Those that another thread took before count too.
    let mut taken = state.frames.load(Ordering::Relaxed);
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
        let event = source.next(deadline, surfaces)?;
        if given_up.load(Ordering::Acquire) {
            log::info!("the thread that was given up has come back, and ends");
            break;
        }
        match event {
            SourceEvent::Frame(snapshot) => {
                taken += 1;
                set(&state.offline, false);
                set(&state.ended, false);
                // Relaxed: read for the status line and the report only.
                state.frames.fetch_add(1, Ordering::Relaxed);
                let back = match queue {
                    None => None,
                    // Until the encoder has found its pace frames wait for their place instead of
                    // taking another's.
                    Some(queue) if limits.lossless || surfaces.is_starting() => {
                        queue.push_waiting(snapshot, stop)
                    }
                    Some(queue) => queue.push(snapshot),
                };
                // Waiting for the encoder is no silence of the producer's.
                last_frame = Instant::now();
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
                // A producer that was killed says nothing and leaves its segment as it is. One whose
                // frames are left out, as they come late or torn, is there.
                let heard = source
                    .last_heard()
                    .map_or(last_frame, |at| at.max(last_frame));
                if taken > 0 && heard.elapsed() >= SILENCE && !state.offline.load(Ordering::Relaxed)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{
        FrameInfo, PictureShape, PixelFormat, PlaneLayout, SurfaceLease, SurfacePool,
    };
    use crate::queue::Popped;
    use crate::source::SourceCounters;
    use crate::time::MediaTime;
    use crate::trace::FrameTrace;

    /// As many frames as it is told, at once, and its end.
    struct Burst {
        next: u32,
        frames: u32,
        counters: Arc<SourceCounters>,
    }

    impl FrameSource for Burst {
        fn next(
            &mut self,
            _deadline: Instant,
            surfaces: &mut dyn SurfaceSource,
        ) -> Result<SourceEvent, SourceError> {
            if self.next == self.frames {
                return Ok(SourceEvent::End);
            }
            let left = PlaneLayout {
                width: 16,
                height: 16,
                stride: 16,
                offset: 0,
                size: 256,
            };
            let info = FrameInfo {
                frame_id: self.next,
                capture_ts_ns: 0,
                format: PixelFormat::Gray,
                left,
                encoded: None,
                frame_rate: None,
                payload_size: left.size,
            };
            self.next += 1;
            Ok(SourceEvent::Frame(Snapshot {
                info,
                surface: surfaces.surface_for(&info).expect("a surface is free"),
                epoch: 0,
                gap: false,
                time: MediaTime::ZERO,
                trace: FrameTrace::default(),
            }))
        }

        fn counters(&self) -> &Arc<SourceCounters> {
            &self.counters
        }
    }

    struct Surfaces {
        pool: SurfacePool,
        starting: bool,
    }

    impl SurfaceSource for Surfaces {
        fn surface_for(&mut self, _info: &FrameInfo) -> Option<SurfaceLease> {
            self.pool.take()
        }

        fn is_starting(&self) -> bool {
            self.starting
        }
    }

    /// Ids that the encoder gets of five frames, where it takes the first one only when all have
    /// come or, if they wait, `later`; and how many were evicted.
    fn five_frames(starting: bool) -> (Vec<u32>, u64) {
        let queue = LatestQueue::new(1);
        let (stop, state) = (StopToken::new(), Arc::new(IngestState::default()));
        let shape = PictureShape {
            width: 16,
            height: 16,
            format: PixelFormat::Gray,
            encoded: None,
        };
        let mut surfaces = Surfaces {
            pool: SurfacePool::on_host(shape, 5),
            starting,
        };
        let mut source = Burst {
            next: 0,
            frames: 5,
            counters: Arc::default(),
        };
        let limits = IngestLimits {
            max_frames: None,
            // Far shorter than the wait for the encoder below: that is no idleness.
            idle_timeout: Some(Duration::from_millis(1)),
            lossless: false,
        };
        let seen = std::thread::scope(|scope| {
            let ingest = scope.spawn(|| {
                run(
                    &mut source,
                    &mut surfaces,
                    Some(&queue),
                    limits,
                    &state,
                    &stop,
                )
                .unwrap();
            });
            if starting {
                // The second frame is read and waits.
                while state.frames.load(Ordering::Relaxed) < 2 {
                    std::thread::yield_now();
                }
                std::thread::sleep(Duration::from_millis(20));
            } else {
                ingest.join().unwrap();
            }
            let mut seen = Vec::new();
            while let Popped::Item(snapshot) = queue.pop(Instant::now() + SILENCE) {
                seen.push(snapshot.info.frame_id);
            }
            seen
        });
        (seen, state.evicted.load(Ordering::Relaxed))
    }

    #[test]
    fn frames_wait_for_an_encoder_that_starts_and_push_each_other_out_of_a_late_one() {
        assert_eq!(five_frames(true), (vec![0, 1, 2, 3, 4], 0));
        assert_eq!(five_frames(false), (vec![4], 4));
    }
}
