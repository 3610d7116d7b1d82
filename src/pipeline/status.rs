//! The live line on a terminal, and the log that does not tear it.

use std::io::{IsTerminal, Write};
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::config::StreamerConfig;

use super::Stats;
use super::stop::StopToken;

/// One for the process: log lines go through it so that they and the status line take turns.
static LINES: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));

/// Where the logger writes.
#[derive(Debug, Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LINES.suspend(|| std::io::stderr().write(bytes))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

const EVERY: Duration = Duration::from_millis(500);

/// Shows what goes on until the run stops. Without a terminal it only waits.
pub fn show_until(stop: &StopToken, config: &StreamerConfig, stats: &Stats) {
    if !config.status_line || !std::io::stderr().is_terminal() {
        while !stop.wait(Duration::from_secs(3600)) {}
        return;
    }
    let line = LINES.add(ProgressBar::new_spinner());
    line.set_style(
        ProgressStyle::with_template("{spinner} {wide_msg}").expect("a fixed template parses"),
    );
    let mut last = Sample::take(stats);
    while !stop.wait(EVERY) {
        let now = Sample::take(stats);
        line.set_message(now.describe(&last, stats));
        line.tick();
        last = now;
    }
    line.finish_and_clear();
    LINES.remove(&line);
}

/// The counters at one instant.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    frames: u64,
    units: u64,
    bytes: u64,
}

impl Sample {
    fn take(stats: &Stats) -> Self {
        Self {
            at: Instant::now(),
            frames: stats.ingest.frames.load(Ordering::Relaxed),
            units: stats.encode.units.load(Ordering::Relaxed),
            bytes: stats.encode.bytes.load(Ordering::Relaxed),
        }
    }

    fn describe(&self, last: &Self, stats: &Stats) -> String {
        let seconds = (self.at - last.at).as_secs_f64().max(1e-3);
        let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        if stats.ingest.ended.load(Ordering::Relaxed) {
            let frames = self.frames;
            return format!("the recording is over ({frames} frames); waiting for another");
        }
        if stats.ingest.offline.load(Ordering::Relaxed) {
            return format!("waiting for the producer ({} frames so far)", self.frames);
        }
        let latency = stats.encode.latency().notice_to_encoded;
        let mut text = format!(
            "in {:.1} fps  out {:.1} fps  {:.2} Mbit/s  frame to access unit p50 {:.1} ms p99 {:.1} ms",
            rate(self.frames, last.frames),
            rate(self.units, last.units),
            rate(self.bytes, last.bytes) * 8.0 / 1e6,
            latency.p50_us as f64 / 1e3,
            latency.p99_us as f64 / 1e3,
        );
        for (name, dropped) in super::report::drops(stats) {
            text.push_str(&format!("  {name} {dropped}"));
        }
        text
    }
}
