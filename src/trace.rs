//! When a frame passed each stage, and the histograms made of it.

use std::time::Instant;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The places that stamp a frame, in the order in which it passes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Stage {
    /// The sync message arrived.
    Notice,
    /// The first byte of the payload is about to be read.
    SnapshotStart,
    /// The frame is in the encoder's surface and was found coherent.
    SnapshotEnd,
    /// The encode stage has taken it from the queue.
    Dequeued,
    /// The encoder has given the access unit back.
    Encoded,
}

impl Stage {
    pub const COUNT: usize = 5;
}

/// The stamps of one frame. Travels inside the snapshot and the access unit.
#[derive(Debug, Clone, Copy, Default)]
pub struct FrameTrace {
    stamps: [Option<Instant>; Stage::COUNT],
    /// The capture time as nanoseconds since the Unix epoch, where the producer's clock is that.
    pub capture_unix_ns: Option<u64>,
    /// The encoder's end as nanoseconds since the Unix epoch.
    pub encoded_unix_ns: Option<u64>,
}

impl FrameTrace {
    pub fn stamp(&mut self, stage: Stage, now: Instant) {
        self.stamps[stage as usize] = Some(now);
    }

    pub fn at(&self, stage: Stage) -> Option<Instant> {
        self.stamps[stage as usize]
    }

    /// Microseconds from one stage to another; `None` if the frame skipped one of them.
    pub fn micros_between(&self, from: Stage, to: Stage) -> Option<u64> {
        let (from, to) = (self.at(from)?, self.at(to)?);
        Some(to.saturating_duration_since(from).as_micros() as u64)
    }
}

/// Microseconds from 1 us to 60 s in three significant digits; larger values count as 60 s.
///
/// All memory is taken at creation: recording allocates nothing.
#[derive(Debug, Clone)]
pub struct LatencyHistogram(Histogram<u32>);

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, 60_000_000, 2).expect("fixed bounds are in range"))
    }
}

/// What a report shows of a histogram, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    pub count: u64,
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

impl LatencyHistogram {
    pub fn record(&mut self, micros: u64) {
        self.0.saturating_record(micros);
    }

    pub fn percentiles(&self) -> Percentiles {
        Percentiles {
            count: self.0.len(),
            p50_us: self.0.value_at_quantile(0.50),
            p90_us: self.0.value_at_quantile(0.90),
            p99_us: self.0.value_at_quantile(0.99),
            max_us: self.0.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_stage_that_was_skipped_gives_no_difference() {
        let start = Instant::now();
        let mut trace = FrameTrace::default();
        trace.stamp(Stage::Notice, start);
        trace.stamp(Stage::Encoded, start + Duration::from_millis(3));
        assert_eq!(
            trace.micros_between(Stage::Notice, Stage::Encoded),
            Some(3000)
        );
        assert_eq!(trace.micros_between(Stage::Notice, Stage::Dequeued), None);
    }

    #[test]
    fn percentiles_of_a_known_series() {
        let mut histogram = LatencyHistogram::default();
        (1..=100).for_each(|micros| histogram.record(micros));
        let p = histogram.percentiles();
        assert_eq!((p.count, p.p50_us, p.p90_us, p.p99_us), (100, 50, 90, 99));
        histogram.record(u64::MAX);
        assert!(histogram.percentiles().max_us >= 60_000_000);
    }
}
