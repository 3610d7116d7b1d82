//! What the streamers of a run used, how late their pictures were and what they lost, over time.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::probe::Unit;
use super::process::Sample;
use super::suite::Row;

/// Of one scenario, streamer after streamer.
#[derive(Debug, Clone, Default)]
pub struct Timeline(pub Vec<Point>);

/// A tenth of a second.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    pub at: Instant,
    pub resident_kib: u64,
    pub descriptors: u64,
    pub threads: u64,
    /// From capture to the last packet: the slowest picture since the point before.
    pub latency: Option<Duration>,
    /// Frames and units that were dropped. All of a streamer's stand at its last point: its report says no more.
    pub lost: u64,
}

/// Later than this is a capture time that lies, as in `clock_jumps`.
const BELIEVED: Duration = Duration::from_secs(60);

pub const CSV_HEAD: &str = "seconds,scenario,resident_kib,descriptors,threads,latency_ms,lost\n";

impl Timeline {
    /// A streamer from its first sample to its last, with what the probe has received of it.
    pub fn add(&mut self, samples: &[Sample], units: &[Unit], lost: u64) {
        let mut units = units.iter().peekable();
        for sample in samples {
            let mut latency: Option<Duration> = None;
            while let Some(unit) = units.next_if(|unit| unit.at <= sample.at) {
                latency = latency.max(unit.latency.filter(|latency| *latency < BELIEVED));
            }
            self.0.push(Point {
                at: sample.at,
                resident_kib: sample.resident_kib,
                descriptors: sample.descriptors,
                threads: sample.threads,
                latency,
                lost: 0,
            });
        }
        if let Some(last) = self.0.last_mut() {
            last.lost += lost;
        }
    }
}

/// The points of a row, a line each; seconds since `start`.
pub fn csv(row: &Row, start: Instant) -> String {
    let mut lines = String::new();
    for point in &row.timeline.0 {
        let latency = point.latency.map(|latency| latency.as_secs_f64() * 1e3);
        let _ = writeln!(
            lines,
            "{:.2},{},{},{},{},{},{}",
            point.at.saturating_duration_since(start).as_secs_f64(),
            row.name,
            point.resident_kib,
            point.descriptors,
            point.threads,
            latency.map_or_else(String::new, |ms| format!("{ms:.1}")),
            point.lost,
        );
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_point_has_the_slowest_picture_since_the_one_before() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let sample = |ms| Sample {
            at: at(ms),
            resident_kib: 5,
            peak_kib: 6,
            descriptors: 7,
            threads: 8,
        };
        let unit = |ms, latency| Unit {
            at: at(ms),
            id: None,
            key: false,
            latency: Some(Duration::from_millis(latency)),
        };
        let units = [
            unit(10, 3),
            unit(90, 9),
            unit(100, 4),
            unit(150, 3_600_000),
            unit(350, 1),
        ];
        let mut timeline = Timeline::default();
        timeline.add(&[sample(100), sample(200), sample(300)], &units, 12);
        let latencies: Vec<_> = timeline.0.iter().map(|point| point.latency).collect();
        assert_eq!(latencies, [Some(Duration::from_millis(9)), None, None]);
        assert_eq!(timeline.0.iter().map(|point| point.lost).sum::<u64>(), 12);
        timeline.add(&[], &[], 3);
        assert_eq!(timeline.0[2].lost, 15);
    }
}
