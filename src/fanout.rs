//! 6. One access unit, every sink.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bitstream::AccessUnit;
use crate::pipeline::keyframe::KeyFrameRequests;
use crate::pipeline::stop::StopToken;
use crate::queue::{GopSender, Offer};
use crate::sink::SinkStats;

/// Hands each access unit to the queue of every sink. Never waits for one, unless the source is a
/// file that can wait itself.
#[derive(Debug)]
pub struct Fanout {
    outputs: Vec<Output>,
    key_frames: KeyFrameRequests,
    /// A recorded file loses nothing: its reader waits for the slowest sink.
    lossless: Option<StopToken>,
}

#[derive(Debug)]
struct Output {
    queue: GopSender,
    stats: Arc<SinkStats>,
    gone: AtomicBool,
}

impl Fanout {
    pub fn new(key_frames: KeyFrameRequests) -> Self {
        Self {
            outputs: Vec::new(),
            key_frames,
            lossless: None,
        }
    }

    /// Waits for room instead of closing a gate, until `stop`.
    #[must_use]
    pub fn lossless(mut self, stop: StopToken) -> Self {
        self.lossless = Some(stop);
        self
    }

    pub fn add(&mut self, queue: GopSender, stats: Arc<SinkStats>) {
        self.outputs.push(Output {
            queue,
            stats,
            gone: AtomicBool::new(false),
        });
    }

    /// A queue that is full closes its gate until the next key frame, which is asked for here.
    pub fn send(&self, unit: &Arc<AccessUnit>) {
        for output in &self.outputs {
            let offer = match &self.lossless {
                Some(stop) => output.queue.offer_waiting(unit, stop),
                None => output.queue.offer(unit),
            };
            match offer {
                Offer::Taken | Offer::NotStarted => {}
                Offer::GateClosed => {
                    SinkStats::add(&output.stats.gated, 1);
                    self.key_frames.ask();
                }
                Offer::Gated => SinkStats::add(&output.stats.gated, 1),
                // Relaxed: read by nobody but this thread.
                Offer::Gone => output.gone.store(true, Ordering::Relaxed),
            }
        }
    }
}
