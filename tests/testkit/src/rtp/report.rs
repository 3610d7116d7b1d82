//! What the RTP referee counts and measures, and how it is told.

use hdrhistogram::Histogram;
use serde::Serialize;

use super::assemble::AccessUnit;
use super::receiver::Receiver;
use crate::findings::Findings;
use crate::stamp::Stamp;

#[derive(Debug, Clone, Default, Serialize)]
pub struct Counters {
    pub packets: u64,
    /// Whole RTP packets, headers included.
    pub packet_bytes: u64,
    pub malformed: u64,
    /// Overtaken by a later packet; not taken.
    pub late: u64,
    pub repeated: u64,
    pub gaps: u64,
    pub sources: u64,
    /// Whole access units.
    pub frames: u64,
    /// Access units with something missing.
    pub damaged_frames: u64,
    pub key_frames: u64,
    pub frames_before_key_frame: u64,
    pub key_frames_without_parameter_sets: u64,
    /// Bytes of their NAL units.
    pub media_bytes: u64,
    pub largest_frame: u64,
    pub times_going_back: u64,
    pub rtcp_packets: u64,
    pub sender_reports: u64,
    pub reports_of_others: u64,
    /// Packets sent so far, by the last sender report.
    pub reported_packets: u64,
    pub byes: u64,
    #[serde(skip)]
    pub lost_before: u64,
    #[serde(skip)]
    span: Span,
}

/// RTP time from the lowest to the highest, without wrap.
#[derive(Debug, Clone, Copy, Default)]
struct Span {
    last: Option<u32>,
    position: i64,
    lowest: i64,
    highest: i64,
}

impl Counters {
    pub(super) fn packet(&mut self, bytes: usize) {
        self.packets += 1;
        self.packet_bytes += bytes as u64;
    }

    pub(super) fn frame(&mut self, unit: &AccessUnit) {
        self.frames += 1;
        let bytes = unit.bytes() as u64;
        self.media_bytes += bytes;
        self.largest_frame = self.largest_frame.max(bytes);
        let span = &mut self.span;
        if let Some(last) = span.last {
            span.position += i64::from(unit.timestamp.wrapping_sub(last) as i32);
        }
        span.last = Some(unit.timestamp);
        span.lowest = span.lowest.min(span.position);
        span.highest = span.highest.max(span.position);
    }

    /// Seconds that the frames last by their RTP times, the last frame's own included.
    pub fn seconds(&self) -> Option<f64> {
        let span = (self.span.highest - self.span.lowest) as f64 / 90_000.0;
        let steps = self
            .frames
            .checked_sub(1)
            .filter(|&steps| steps > 0 && span > 0.0)?;
        Some(span * self.frames as f64 / steps as f64)
    }
}

/// Percentiles in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Percentiles {
    pub count: u64,
    pub min: f64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

/// All latencies that the stream made measurable.
#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    /// From the capture time in the stream to the arrival of the frame's last packet.
    pub capture_to_last_packet: Option<Percentiles>,
    pub capture_to_first_packet: Option<Percentiles>,
    /// From the end of encoding, as the stream says, to the last packet.
    pub encoded_to_last_packet: Option<Percentiles>,
    /// From the wall clock that the sender reports give the RTP time to the last packet.
    pub report_clock_to_last_packet: Option<Percentiles>,
    /// Wall clock by sender report less capture time in the stream: 0 if reports come from the capture clock. The worst, ms.
    pub report_clock_error_ms: Option<f64>,
    /// The sender's clock in its reports less our clock at their arrival, the last, ms.
    pub report_clock_offset_ms: Option<f64>,
    /// Times that lay in the future; they are counted as 0.
    pub negative: u64,
    pub frame_ids: Option<FrameIds>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct FrameIds {
    pub first: u32,
    pub last: u32,
    /// Ids skipped between neighbours.
    pub missing: u64,
    pub going_back: u64,
}

#[derive(Debug)]
pub(super) struct LatencyMeter {
    last: Meter,
    first: Meter,
    encoded: Meter,
    report: Meter,
    clock_error_ms: Option<f64>,
    clock_offset_ms: Option<f64>,
    negative: u64,
    ids: Option<FrameIds>,
}

impl Default for LatencyMeter {
    fn default() -> Self {
        LatencyMeter {
            last: Meter::new(),
            first: Meter::new(),
            encoded: Meter::new(),
            report: Meter::new(),
            clock_error_ms: None,
            clock_offset_ms: None,
            negative: 0,
            ids: None,
        }
    }
}

impl LatencyMeter {
    pub(super) fn unit(&mut self, unit: &AccessUnit, stamp: Option<Stamp>, mapped_ns: Option<u64>) {
        if let Some(mapped) = mapped_ns {
            self.negative += u64::from(!self.report.record(mapped, unit.last_arrival_ns));
        }
        let Some(stamp) = stamp else { return };
        self.note_id(stamp.frame_id);
        self.negative += u64::from(!self.encoded.record(stamp.encoded_ns, unit.last_arrival_ns));
        let Some(capture) = stamp.capture_ns else {
            return;
        };
        self.negative += u64::from(!self.last.record(capture, unit.last_arrival_ns));
        self.first.record(capture, unit.first_arrival_ns);
        if let Some(mapped) = mapped_ns {
            let error = mapped as f64 / 1e6 - capture as f64 / 1e6;
            if self
                .clock_error_ms
                .is_none_or(|worst| worst.abs() < error.abs())
            {
                self.clock_error_ms = Some(error);
            }
        }
    }

    pub(super) fn sender_report(&mut self, report_ns: u64, arrival_ns: u64) {
        self.clock_offset_ms = Some((i128::from(report_ns) - i128::from(arrival_ns)) as f64 / 1e6);
    }

    pub(super) fn summary(&self) -> Latency {
        Latency {
            capture_to_last_packet: self.last.percentiles(),
            capture_to_first_packet: self.first.percentiles(),
            encoded_to_last_packet: self.encoded.percentiles(),
            report_clock_to_last_packet: self.report.percentiles(),
            report_clock_error_ms: self.clock_error_ms,
            report_clock_offset_ms: self.clock_offset_ms,
            negative: self.negative,
            frame_ids: self.ids,
        }
    }

    fn note_id(&mut self, id: u32) {
        let Some(ids) = &mut self.ids else {
            self.ids = Some(FrameIds {
                first: id,
                last: id,
                missing: 0,
                going_back: 0,
            });
            return;
        };
        match id.wrapping_sub(ids.last) as i32 {
            step @ 1.. => ids.missing += step as u64 - 1,
            _ => ids.going_back += 1,
        }
        ids.last = id;
    }
}

#[derive(Debug)]
struct Meter(Histogram<u64>);

impl Meter {
    /// Microseconds up to ten minutes, three digits.
    fn new() -> Self {
        Meter(
            Histogram::new_with_bounds(1, 600_000_000, 3)
                .expect("bounds in order, at most five digits"),
        )
    }

    /// False if `from` lies after `to`.
    fn record(&mut self, from_ns: u64, to_ns: u64) -> bool {
        self.0
            .saturating_record(to_ns.saturating_sub(from_ns) / 1000);
        from_ns <= to_ns
    }

    fn percentiles(&self) -> Option<Percentiles> {
        if self.0.is_empty() {
            return None;
        }
        let ms = |us: u64| us as f64 / 1000.0;
        Some(Percentiles {
            count: self.0.len(),
            min: ms(self.0.min()),
            mean: self.0.mean() / 1000.0,
            p50: ms(self.0.value_at_quantile(0.50)),
            p90: ms(self.0.value_at_quantile(0.90)),
            p95: ms(self.0.value_at_quantile(0.95)),
            p99: ms(self.0.value_at_quantile(0.99)),
            max: ms(self.0.max()),
        })
    }
}

/// Everything a run has found, as `--json` gives it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub exit_code: u8,
    /// Why the run ended.
    pub ended_by: &'static str,
    pub codec: Option<String>,
    /// The one that is expected.
    pub payload_type: u8,
    /// The other one that came.
    pub foreign_payload_type: Option<u8>,
    pub ssrc: Option<String>,
    #[serde(flatten)]
    pub counters: Counters,
    pub lost: u64,
    /// Datagrams that this machine's kernel dropped for want of buffer space; they are among the lost.
    pub kernel_drops: u64,
    pub jitter_ms: f64,
    pub duration_s: Option<f64>,
    pub frame_rate: Option<f64>,
    /// NAL unit bytes over the time that the frames last.
    pub bitrate_bps: Option<f64>,
    pub feedback_sent: u64,
    pub latency: Latency,
    /// Rules of the documents that receivers rely on.
    pub violations: Findings,
    /// Rules that well-known senders break and receivers live with.
    pub warnings: Findings,
}

impl Report {
    pub fn of(
        receiver: &Receiver,
        payload_type: u8,
        kernel_drops: u64,
        feedback_sent: u64,
    ) -> Self {
        let counters = receiver.counters().clone();
        let duration_s = counters.seconds();
        Report {
            exit_code: 0,
            ended_by: "",
            codec: receiver.codec().map(|codec| codec.to_string()),
            payload_type,
            foreign_payload_type: None,
            ssrc: receiver.ssrc().map(|ssrc| format!("{ssrc:08x}")),
            lost: receiver.lost(),
            kernel_drops,
            jitter_ms: receiver.jitter_ms(),
            duration_s,
            frame_rate: duration_s.map(|s| counters.frames as f64 / s),
            bitrate_bps: duration_s.map(|s| counters.media_bytes as f64 * 8.0 / s),
            feedback_sent,
            latency: receiver.latency(),
            violations: receiver.violations().clone(),
            warnings: receiver.warnings().clone(),
            counters,
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let c = &self.counters;
        writeln!(
            f,
            "codec={} pt={} ssrc={} packets={} lost={} late={} frames={} damaged={} key_frames={}",
            self.codec.as_deref().unwrap_or("unknown"),
            self.payload_type,
            self.ssrc.as_deref().unwrap_or("none"),
            c.packets,
            self.lost,
            c.late,
            c.frames,
            c.damaged_frames,
            c.key_frames
        )?;
        write!(
            f,
            "jitter={:.3}ms bytes={} sender_reports={} byes={}",
            self.jitter_ms, c.media_bytes, c.sender_reports, c.byes
        )?;
        if let (Some(rate), Some(bits)) = (self.frame_rate, self.bitrate_bps) {
            write!(
                f,
                " frame_rate={rate:.2} bitrate={:.0}kbit/s",
                bits / 1000.0
            )?;
        }
        writeln!(f)?;
        for (name, percentiles) in [
            (
                "capture to first packet",
                &self.latency.capture_to_first_packet,
            ),
            (
                "capture to last packet",
                &self.latency.capture_to_last_packet,
            ),
            (
                "encoded to last packet",
                &self.latency.encoded_to_last_packet,
            ),
            (
                "report clock to last packet",
                &self.latency.report_clock_to_last_packet,
            ),
        ] {
            if let Some(p) = percentiles {
                writeln!(
                    f,
                    "latency, {name}: p50={:.3}ms p90={:.3}ms p99={:.3}ms max={:.3}ms of {} frames",
                    p.p50, p.p90, p.p99, p.max, p.count
                )?;
            }
        }
        self.violations.write("violation", f)?;
        self.warnings.write("warning", f)?;
        write!(f, "ended by {}, exit {}", self.ended_by, self.exit_code)
    }
}
