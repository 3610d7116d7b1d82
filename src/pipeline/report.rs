//! Counters and latency at the end, as text and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::Ordering;

use serde::Serialize;

use crate::config::{Input, StreamerConfig};
use crate::control::words::SourceInfo;
use crate::sink::{SinkLatencyReport, SinkStats};
use crate::trace::Percentiles;

use super::Stats;
use super::encode::{EncoderReport, StageLatencyReport};
use super::stop::StopReason;

/// What a run did. `version` of the layout grows when a field changes its meaning.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub layout: u32,
    pub program: &'static str,
    /// `None`: the run goes on.
    pub reason: Option<StopReason>,
    pub seconds: f64,
    pub input: String,
    /// Where its producer stands.
    pub producer: ProducerState,
    /// Every counter of the source, by name.
    pub source: BTreeMap<&'static str, u64>,
    pub frames: u64,
    /// Frames that newer ones pushed out of the queue before the encoder.
    pub evicted: u64,
    pub encoder: Option<EncoderReport>,
    pub encode: EncodeReport,
    pub latency: StageLatencyReport,
    pub sinks: Vec<SinkReport>,
    /// `None`: NATS is not used.
    pub control: Option<ControlReport>,
    pub process: ProcessReport,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProducerState {
    /// No frame so far, or none any more.
    Waiting,
    Streaming,
    /// It was a recording, as it says itself, and is over.
    Ended,
}

impl ProducerState {
    fn of(stats: &Stats) -> Self {
        let ingest = &stats.ingest;
        // Relaxed: read for reports only.
        if ingest.ended.load(Ordering::Relaxed) {
            Self::Ended
        } else if ingest.offline.load(Ordering::Relaxed)
            || ingest.frames.load(Ordering::Relaxed) == 0
        {
            Self::Waiting
        } else {
            Self::Streaming
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct EncodeReport {
    pub access_units: u64,
    pub key_frames: u64,
    pub bytes: u64,
    pub largest_access_unit: u64,
    /// Over the whole run.
    pub bits_per_second: f64,
    pub stale: u64,
    pub left_out: u64,
    pub lost: u64,
    pub refused: u64,
    pub encoders_opened: u64,
    pub fallbacks: u64,
    pub key_frame_requests: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct SinkReport {
    pub name: String,
    pub access_units: u64,
    pub packets: u64,
    pub bytes: u64,
    pub given_up: u64,
    pub gated: u64,
    pub errors: u64,
    pub reconnects: u64,
    pub key_frame_requests: u64,
    pub latency: SinkLatencyReport,
}

/// What came over NATS.
#[derive(Debug, Clone, Serialize)]
pub struct ControlReport {
    /// What the producer says of itself.
    pub source: Option<SourceInfo>,
    pub counters: BTreeMap<&'static str, u64>,
    pub bodies: BodyReport,
}

/// What became of the bodies behind their parser.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct BodyReport {
    /// Went with the picture of the same capture time.
    pub exact: u64,
    /// Went with a later picture.
    pub earlier: u64,
    /// Found no picture.
    pub unpaired: u64,
    pub overflows: u64,
    /// Single bodies beyond what one record holds.
    pub cut: u64,
    pub lines_written: u64,
    pub lines_failed: u64,
    pub lines_overflows: u64,
}

#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct ProcessReport {
    /// Largest resident memory; 0 where the system does not tell.
    pub peak_rss_kib: u64,
    pub resident_kib: u64,
    pub cpu_seconds: f64,
}

/// The report of a run that goes on: its `reason` is null.
pub fn live(config: &StreamerConfig, stats: &Stats) -> serde_json::Value {
    serde_json::to_value(Report::new(config, stats, None)).unwrap_or_default()
}

/// What was lost, and where; names of the counters that are not zero.
pub fn drops(stats: &Stats) -> Vec<(&'static str, u64)> {
    const NOT_LOST: [&str; 8] = [
        "notices",
        "frames",
        "duplicates",
        "not_ready",
        "epochs",
        "reopens",
        "resubscribed",
        "sentinel_lines",
    ];
    let mut drops: Vec<_> = stats
        .source
        .values()
        .filter(|(name, _)| !NOT_LOST.contains(name))
        .collect();
    drops.push(("evicted", stats.ingest.evicted.load(Ordering::Relaxed)));
    drops.push(("stale", stats.encode.stale.load(Ordering::Relaxed)));
    drops.push(("left out", stats.encode.left_out.load(Ordering::Relaxed)));
    drops.push(("lost", stats.encode.lost.load(Ordering::Relaxed)));
    drops.push(("refused", stats.encode.refused.load(Ordering::Relaxed)));
    let sinks = |counter: fn(&SinkStats) -> &std::sync::atomic::AtomicU64| {
        let each = stats.sinks.iter();
        each.map(|(_, stats)| counter(stats).load(Ordering::Relaxed))
            .sum()
    };
    drops.push(("gated", sinks(|stats| &stats.gated)));
    drops.push(("given up", sinks(|stats| &stats.given_up)));
    drops.retain(|(_, count)| *count > 0);
    drops
}

impl Report {
    pub fn new(config: &StreamerConfig, stats: &Stats, reason: Option<StopReason>) -> Self {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let seconds = stats.started.elapsed().as_secs_f64();
        let bytes = load(&stats.encode.bytes);
        Self {
            layout: 1,
            program: concat!("cvmmap_streamer ", env!("CARGO_PKG_VERSION")),
            reason,
            seconds,
            input: match &config.input {
                Input::Discover => "discover".to_owned(),
                Input::Cvmmap(names) => format!("cvmmap {}", names.shm_name),
                Input::Dummy(names, _) => format!("dummy {}", names.shm_name),
                Input::Annexb { path, .. } => format!("annexb {}", path.display()),
            },
            producer: ProducerState::of(stats),
            source: stats.source.values().collect(),
            frames: load(&stats.ingest.frames),
            evicted: load(&stats.ingest.evicted),
            encoder: stats.encode.encoder(),
            encode: EncodeReport {
                access_units: load(&stats.encode.units),
                key_frames: load(&stats.encode.key_frames),
                bytes,
                largest_access_unit: load(&stats.encode.largest),
                bits_per_second: if seconds > 0.0 {
                    bytes as f64 * 8.0 / seconds
                } else {
                    0.0
                },
                stale: load(&stats.encode.stale),
                left_out: load(&stats.encode.left_out),
                lost: load(&stats.encode.lost),
                refused: load(&stats.encode.refused),
                encoders_opened: load(&stats.encode.opened),
                fallbacks: load(&stats.encode.fallbacks),
                key_frame_requests: stats.key_frames.asked(),
            },
            latency: stats.encode.latency(),
            sinks: stats
                .sinks
                .iter()
                .map(|(name, stats)| SinkReport {
                    name: name.clone(),
                    access_units: load(&stats.units),
                    packets: load(&stats.packets),
                    bytes: load(&stats.bytes),
                    given_up: load(&stats.given_up),
                    gated: load(&stats.gated),
                    errors: load(&stats.errors),
                    reconnects: load(&stats.reconnects),
                    key_frame_requests: load(&stats.key_frame_requests),
                    latency: stats.latency(),
                })
                .collect(),
            control: stats.control.plane.as_ref().map(|plane| {
                let (poses, jsonl) = (&stats.control.poses, &stats.control.jsonl);
                ControlReport {
                    source: plane.source(),
                    counters: plane.values().collect(),
                    bodies: BodyReport {
                        exact: load(&poses.exact),
                        earlier: load(&poses.earlier),
                        unpaired: load(&poses.unpaired),
                        overflows: load(&poses.overflows),
                        cut: load(&poses.cut),
                        lines_written: load(&jsonl.written),
                        lines_failed: load(&jsonl.failed),
                        lines_overflows: load(&jsonl.overflows),
                    },
                }
            }),
            process: ProcessReport::read(),
        }
    }

    /// Writes the report as JSON; a reader never sees half of it.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn write_json(&self, path: &Path) -> std::io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        crate::replace::replace(path, ".report-", &text)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.reason {
            None => "not yet",
            Some(StopReason::Signal) => "signal",
            Some(StopReason::SourceEnded) => "source ended",
            Some(StopReason::MaxFrames) => "frame limit reached",
            Some(StopReason::Idle) => "idle",
            Some(StopReason::Error) => "error",
        };
        writeln!(
            f,
            "report: {} for {:.2} s, ended: {reason}",
            self.input, self.seconds
        )?;
        let counter = |name| self.source.get(name).copied().unwrap_or(0);
        writeln!(
            f,
            "  source   {} notices, {} frames, {} skipped, {} epochs, {} evicted before the encoder",
            counter("notices"),
            self.frames,
            counter("skipped"),
            counter("epochs"),
            self.evicted,
        )?;
        let refused: Vec<String> = self
            .source
            .iter()
            .filter(|(name, count)| {
                **count > 0
                    && !["notices", "frames", "skipped", "epochs", "sentinel_lines"].contains(name)
            })
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        if !refused.is_empty() {
            writeln!(f, "           {}", refused.join(", "))?;
        }
        if let Some(encoder) = &self.encoder {
            writeln!(
                f,
                "  encoder  {}: {} access units, {} key frames, {:.3} Mbit/s, largest {} bytes, {} B-frames{}",
                encoder.name,
                self.encode.access_units,
                self.encode.key_frames,
                self.encode.bits_per_second / 1e6,
                self.encode.largest_access_unit,
                encoder.b_frames,
                if encoder.intra_refresh {
                    ", intra refresh"
                } else {
                    ""
                },
            )?;
            let encode = &self.encode;
            if encode.fallbacks + encode.stale + encode.left_out + encode.lost + encode.refused > 0
            {
                writeln!(
                    f,
                    "           {} fallbacks, {} stale, {} left out, {} lost, {} refused",
                    encode.fallbacks, encode.stale, encode.left_out, encode.lost, encode.refused
                )?;
            }
        }
        if self.latency.notice_to_encoded.count > 0 {
            writeln!(
                f,
                "  latency        p50        p90        p99        max   (microseconds)"
            )?;
            let rows = [
                ("to read", self.latency.notice_to_read),
                ("read", self.latency.snapshot),
                ("queued", self.latency.queued),
                ("encode", self.latency.encode),
                ("sum", self.latency.notice_to_encoded),
            ];
            for (name, row) in rows {
                percentiles(f, name, row)?;
            }
        }
        for sink in &self.sinks {
            writeln!(
                f,
                "  sink     {}: {} access units, {} packets, {} bytes, {} given up, {} gated, {} errors, {} reconnects",
                sink.name,
                sink.access_units,
                sink.packets,
                sink.bytes,
                sink.given_up,
                sink.gated,
                sink.errors,
                sink.reconnects
            )?;
            if sink.latency.notice_to_last_packet.count > 0 {
                percentiles(f, "1st packet", sink.latency.notice_to_first_packet)?;
                percentiles(f, "last packet", sink.latency.notice_to_last_packet)?;
            }
        }
        if let Some(control) = &self.control {
            let happened = control.counters.iter().filter(|(_, count)| **count > 0);
            let happened: Vec<String> = happened
                .map(|(name, count)| format!("{name} {count}"))
                .collect();
            let summary = control.source.as_ref().map(SourceInfo::summary);
            writeln!(
                f,
                "  control  {}{}{}",
                summary.as_deref().unwrap_or(""),
                if summary.is_some() { ": " } else { "" },
                if happened.is_empty() {
                    "no NATS server was there".to_owned()
                } else {
                    happened.join(", ")
                }
            )?;
            let bodies = &control.bodies;
            if control
                .counters
                .get("bodies")
                .is_some_and(|count| *count > 0)
            {
                writeln!(
                    f,
                    "           bodies: {} with their picture, {} with a later one, {} with none, {} dropped, {} lines, {} lines failed",
                    bodies.exact,
                    bodies.earlier,
                    bodies.unpaired,
                    bodies.overflows + bodies.lines_overflows,
                    bodies.lines_written,
                    bodies.lines_failed
                )?;
            }
        }
        write!(
            f,
            "  process  {:.1} MiB peak, {:.2} s CPU",
            self.process.peak_rss_kib as f64 / 1024.0,
            self.process.cpu_seconds
        )
    }
}

fn percentiles(f: &mut fmt::Formatter<'_>, name: &str, row: Percentiles) -> fmt::Result {
    writeln!(
        f,
        "    {name:<11}{:>7}    {:>7}    {:>7}    {:>7}",
        row.p50_us, row.p90_us, row.p99_us, row.max_us
    )
}

impl ProcessReport {
    /// From the proc file system; zeros where it is not there.
    pub fn read() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .and_then(|rest| rest.split_whitespace().next())
                .and_then(|number| number.parse().ok())
                .unwrap_or(0)
        };
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Self {
            peak_rss_kib: field("VmHWM:"),
            resident_kib: field("VmRSS:"),
            cpu_seconds: used.tv_sec as f64 + used.tv_nsec as f64 / 1e9,
        }
    }
}
