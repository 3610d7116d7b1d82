//! 8. The only sockets: where access units leave the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::bitstream::AccessUnit;
use crate::pipeline::keyframe::KeyFrameRequests;
use crate::pipeline::stop::StopToken;
use crate::trace::{LatencyHistogram, Percentiles};

pub mod gather;
pub mod rtmp;
pub mod rtp;
#[allow(unsafe_code)] // batched sends and control messages: socket2 and std have none of them
pub mod udp;

/// A destination of the stream, driven by its own thread.
pub trait Sink: Send {
    /// As the report and the log name it; holds no secrets.
    fn name(&self) -> &str;

    /// Sends one access unit, blocking at most up to the sink's own deadline. What cannot be sent
    /// is counted in its [`SinkStats`] and the rest of the group of pictures is given up.
    ///
    /// # Errors
    ///
    /// Only if the sink cannot go on at all; the stream and the other sinks do.
    fn send(&mut self, unit: &AccessUnit) -> Result<Sent, SinkError>;

    /// Housekeeping between access units: feedback from receivers, reports that are due,
    /// reconnecting. Gives the longest time until it wants to be called again.
    ///
    /// # Errors
    ///
    /// As [`Sink::send`].
    fn poll(&mut self) -> Result<Duration, SinkError>;

    /// Says goodbye to the peer, within a short deadline.
    fn close(&mut self);
}

/// What became of an access unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It is with the kernel.
    All,
    /// It was given up, in part or as a whole, and counted: the stream of this sink goes on at
    /// the next key frame, so its queue is to be emptied. The sink has asked for one already.
    GivenUp,
}

/// What a sink gets from the pipeline.
#[derive(Debug, Clone)]
pub struct SinkContext {
    pub key_frames: KeyFrameRequests,
    pub stop: StopToken,
    pub stats: Arc<SinkStats>,
}

/// What every sink counts.
#[derive(Debug, Default)]
pub struct SinkStats {
    /// Access units that were sent whole.
    pub units: AtomicU64,
    /// Packets (RTP) or messages (RTMP).
    pub packets: AtomicU64,
    /// Bytes handed to the kernel, headers included.
    pub bytes: AtomicU64,
    /// Units that the sink gave up, in part or as a whole.
    pub given_up: AtomicU64,
    /// Units that the fan-out did not hand over because the queue was full or its gate closed.
    pub gated: AtomicU64,
    /// Refused datagrams, lost connections and the like.
    pub errors: AtomicU64,
    /// Connections made after the first.
    pub reconnects: AtomicU64,
    /// Key frames that receivers asked for.
    pub key_frame_requests: AtomicU64,
    latency: Mutex<SinkLatency>,
}

#[derive(Debug, Default, Clone)]
struct SinkLatency {
    first_packet: LatencyHistogram,
    last_packet: LatencyHistogram,
    send: LatencyHistogram,
}

/// Microseconds of the last leg, as a report shows them.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct SinkLatencyReport {
    /// From the notice to the first packet with the kernel.
    pub notice_to_first_packet: Percentiles,
    /// From the notice to the last packet with the kernel.
    pub notice_to_last_packet: Percentiles,
    /// From the encoder's end to the last packet with the kernel.
    pub encoded_to_last_packet: Percentiles,
}

impl SinkStats {
    pub fn add(counter: &AtomicU64, n: u64) {
        // Relaxed: counters are read for reports only, nothing is ordered by them.
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// Records when the first and the last packet of `unit` were with the kernel.
    pub fn record_sent(
        &self,
        unit: &AccessUnit,
        first: std::time::Instant,
        last: std::time::Instant,
    ) {
        use crate::trace::Stage;
        let since = |stage, at: std::time::Instant| {
            let from = unit.trace.at(stage)?;
            Some(at.saturating_duration_since(from).as_micros() as u64)
        };
        let mut latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(micros) = since(Stage::Notice, first) {
            latency.first_packet.record(micros);
        }
        if let Some(micros) = since(Stage::Notice, last) {
            latency.last_packet.record(micros);
        }
        if let Some(micros) = since(Stage::Encoded, last) {
            latency.send.record(micros);
        }
    }

    pub fn latency(&self) -> SinkLatencyReport {
        let latency = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        SinkLatencyReport {
            notice_to_first_packet: latency.first_packet.percentiles(),
            notice_to_last_packet: latency.last_packet.percentiles(),
            encoded_to_last_packet: latency.send.percentiles(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Cannot be opened: an endpoint that does not resolve, a folder that is not there.
    #[error("{sink}: {reason}")]
    Open { sink: String, reason: String },
    /// Gone for good: retries used up, or refused by the peer in its own words.
    #[error("{sink}: given up: {reason}")]
    Lost { sink: String, reason: String },
    /// The peer broke its protocol.
    #[error("{sink}: protocol violation by the peer: {reason}")]
    Protocol { sink: String, reason: String },
}
