//! Producer, streamer and receiver together, and what holds for every fault: the streamer ends when it is told to,
//! neither its memory nor its descriptors grow, and every picture that came shows its own number.

use std::collections::HashSet;
use std::error::Error;
use std::ffi::OsString;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::case::Case;
use super::feed::{Feed, Writes};
use super::probe::{Counts, Probe, Verified};
use super::process::{Sample, Streamer};

pub type Fail = Box<dyn Error>;

/// How a rig is set up.
#[derive(Debug, Clone)]
pub struct Setup {
    pub width: u16,
    pub height: u16,
    pub fps: u32,
    /// Further flags of the streamer.
    pub flags: Vec<String>,
    /// In place of the suite's.
    pub encoder: Option<&'static str>,
    /// Added to the streamer's.
    pub environment: Vec<(String, OsString)>,
    /// Where the streamer sends, if not straight to the probe.
    pub via: Option<u16>,
    pub first_id: u32,
    /// Of files and exit codes, where a case has several.
    pub tag: String,
    /// How far its memory may grow meanwhile, MiB.
    pub growth_mib: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            width: 640,
            height: 360,
            fps: 30,
            flags: Vec::new(),
            encoder: None,
            environment: Vec::new(),
            via: None,
            first_id: 0,
            tag: "streamer".to_owned(),
            growth_mib: MOST_GROWTH_MIB,
        }
    }
}

impl Setup {
    pub fn with(flags: &[&str]) -> Self {
        Setup {
            flags: flags.iter().map(ToString::to_string).collect(),
            ..Setup::default()
        }
    }

    /// For bytes from somebody who means ill: half the growth is allowed.
    pub fn hostile(self) -> Self {
        Setup {
            growth_mib: MOST_GROWTH_MIB / 2,
            ..self
        }
    }
}

pub struct Rig {
    pub feed: Option<Feed>,
    /// Of every producer of this segment.
    pub writes: Writes,
    pub probe: Probe,
    pub streamer: Streamer,
    pub setup: Setup,
    /// The streamer when the stream ran.
    before: Option<Sample>,
}

/// What a rig has seen at its end.
pub struct Outcome {
    pub counts: Counts,
    pub verified: Verified,
    pub report: Value,
    /// Of the units, in the order they came.
    pub ids: Vec<u32>,
}

/// Which pictures may be missing or broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pictures {
    /// None.
    All,
    /// The network has lost packets, and what came whole may lack its reference; the last second is right.
    AfterLoss,
    /// Not looked at.
    Any,
}

impl Rig {
    /// Starts all three and feeds until the stream has run for a second.
    ///
    /// # Errors
    ///
    /// If one does not start, or no stream comes within 20 s.
    pub fn start(case: &mut Case, setup: Setup) -> Result<Self, Fail> {
        Self::start_as(case, setup, |_| {})
    }

    /// As [`Rig::start`], with a change to the producer first.
    ///
    /// # Errors
    ///
    /// As [`Rig::start`].
    pub fn start_as(
        case: &mut Case,
        setup: Setup,
        prepare: impl FnOnce(&mut Feed),
    ) -> Result<Self, Fail> {
        let probe = Probe::start(0, case.path(&format!("{}.h264", setup.tag)))?;
        Self::start_at(case, setup, probe, prepare)
    }

    /// As [`Rig::start_as`], with a receiver that is there already.
    ///
    /// # Errors
    ///
    /// As [`Rig::start`].
    pub fn start_at(
        case: &mut Case,
        setup: Setup,
        probe: Probe,
        prepare: impl FnOnce(&mut Feed),
    ) -> Result<Self, Fail> {
        let writes = Writes::default();
        let mut feed = Feed::open(&case.names, setup.width, setup.height, &writes)?;
        feed.id = setup.first_id;
        prepare(&mut feed);
        let endpoint = format!("127.0.0.1:{}", setup.via.unwrap_or(probe.port));
        let mut arguments = stream_flags(case, setup.encoder);
        arguments.extend(["--rtp".to_owned(), "--rtp-endpoint".to_owned(), endpoint]);
        arguments.extend(setup.flags.iter().cloned());
        let mut streamer = Streamer::start(case, &setup.tag, &arguments, &setup.environment)?;
        let limit = Duration::from_secs(20);
        if !feed.run_until(setup.fps, limit, |_| probe.count() > 0)? {
            let ended = streamer.process.wait(Duration::ZERO).map(|e| e.code());
            return Err(format!("no stream within {limit:?} (streamer exit {ended:?})").into());
        }
        feed.run(setup.fps, Duration::from_secs(1))?;
        Ok(Rig {
            feed: Some(feed),
            writes,
            probe,
            before: streamer.vitals.forget_peak(),
            streamer,
            setup,
        })
    }

    /// Frames that may be torn, since the writer stood still behind them. None in a control: what it publishes torn has
    /// to be seen, however busy the machine is.
    pub fn held(&self, case: &Case) -> HashSet<u32> {
        match case.is_control() {
            true => HashSet::new(),
            false => self.writes.held(),
        }
    }

    /// What the streamer may take is counted from here on.
    pub fn measure_from_now(&mut self) {
        self.before = self.streamer.vitals.forget_peak();
    }

    /// The producer; there is one unless the scenario took it away.
    ///
    /// # Errors
    ///
    /// If the scenario did.
    pub fn feed(&mut self) -> Result<&mut Feed, Fail> {
        self.feed.as_mut().ok_or_else(|| "no producer now".into())
    }

    /// Publishes at the usual rate for `seconds`.
    ///
    /// # Errors
    ///
    /// The producer's.
    pub fn run(&mut self, seconds: f64) -> Result<(), Fail> {
        let fps = self.setup.fps;
        Ok(self.feed()?.run(fps, Duration::from_secs_f64(seconds))?)
    }

    /// Stops the streamer for 2.5 s while frames go on: what the gap of a control has to show.
    ///
    /// # Errors
    ///
    /// The producer's.
    pub fn freeze(&mut self) -> Result<(), Fail> {
        self.streamer.process.signal(Signal::STOP);
        let fed = self.run(2.5);
        self.streamer.process.signal(Signal::CONT);
        fed
    }

    /// Checks the longest gap from `from` to now.
    pub fn check_gap(&self, case: &mut Case, from: Instant, limit: Duration) {
        let gap = self.probe.longest_gap(from, Instant::now());
        case.number("longest_gap_ms", gap.as_millis() as u64);
        case.check(
            "gap",
            gap <= limit,
            format!("longest gap of the RTP stream {gap:.0?}, at most {limit:.0?}"),
        );
    }

    /// Feeds until a unit comes that was sent after `fault`, and checks how long that took.
    ///
    /// # Errors
    ///
    /// The producer's.
    pub fn check_recovery(
        &mut self,
        case: &mut Case,
        fault: Instant,
        limit: Duration,
    ) -> Result<(), Fail> {
        let (fps, probe) = (self.setup.fps, &self.probe);
        if let Some(feed) = &mut self.feed {
            feed.run_until(fps, limit * 2, |_| probe.recovery_after(fault).is_some())?;
        } else {
            std::thread::sleep(limit);
        }
        let took = self.probe.recovery_after(fault);
        if let Some(took) = took {
            case.number("recovery_ms", took.as_millis() as u64);
        }
        let text = match took {
            Some(took) => format!("the stream was back after {took:.0?}, at most {limit:.0?}"),
            None => format!("the stream was not back within {:.0?}", limit * 2),
        };
        case.check("recovered", took.is_some_and(|took| took <= limit), text);
        Ok(())
    }

    /// Ends all three and checks what holds for every fault.
    ///
    /// # Errors
    ///
    /// If the decoder cannot be run.
    pub fn finish(mut self, case: &mut Case, pictures: Pictures) -> Result<Outcome, Fail> {
        let after = self.streamer.vitals.look();
        let limit = Duration::from_secs(5);
        let running = self.streamer.process.is_running();
        let ended = self.streamer.terminate(limit);
        let code = ended.map(|ended| ended.code());
        case.exit_codes.insert(self.setup.tag.clone(), json!(code));
        case.check(
            "exit",
            running && code == Some(0),
            match (ended, running) {
                (Some(e), true) => format!("ended {:.0?} after SIGTERM with {}", e.took, e.code()),
                (Some(e), false) => format!("had ended by itself with {}", e.code()),
                (None, _) => format!("does not end within {limit:.0?} of SIGTERM"),
            },
        );
        let counts = self.probe.stop()?;
        let report = self.streamer.report();
        let units = self.probe.units();
        let samples = self.streamer.vitals.all();
        case.timeline.add(&samples, &units, frames_lost(&report));
        if let (Some(before), Some(after)) = (self.before, after) {
            check_vitals(case, before, after, self.setup.growth_mib);
        }
        case.number(
            "published",
            self.feed.as_ref().map_or(0, |feed| feed.published),
        );
        case.number("received", counts.units);
        case.number("drops", drops(&report));
        note_latency(case, &report);
        let verified = match pictures {
            Pictures::Any => Verified::default(),
            _ => self
                .probe
                .verify(self.setup.width.into(), self.setup.height.into())?,
        };
        if pictures != Pictures::Any {
            let held = self.held(case);
            check_pictures(case, pictures, &verified, &held);
        }
        if pictures == Pictures::All {
            case.check(
                "wire",
                counts.violations.is_empty() && counts.times_going_back == 0,
                format!(
                    "{} RTP violations, {} times going back, {} packets lost, {} at the probe's own socket {}",
                    counts.violations.len(),
                    counts.times_going_back,
                    counts.lost,
                    counts.overflows,
                    counts.violations.join("; ")
                ),
            );
        }
        Ok(Outcome {
            ids: units.iter().filter_map(|u| u.id).collect(),
            counts,
            verified,
            report,
        })
    }
}

/// The flags that say which producer and how to encode.
pub fn stream_flags(case: &Case, encoder: Option<&str>) -> Vec<String> {
    let (label, prefix) = (&case.names.label, case.settings.sockets.display());
    let uri = format!("cvmmap://{label}@{prefix}");
    [
        "--input-uri",
        &uri,
        "--codec",
        "h264",
        "--encoder",
        encoder.unwrap_or(&case.settings.encoder),
        "--embed-timestamps",
    ]
    .map(ToOwned::to_owned)
    .to_vec()
}

/// Checks that a process took no more between two looks than it may.
pub fn check_vitals(case: &mut Case, before: Sample, after: Sample, most_mib: u64) {
    let growth = Growth::between(before, after);
    case.number("memory_before_kib", before.resident_kib);
    case.number("memory_peak_kib", after.peak_kib);
    case.number("memory_after_kib", after.resident_kib);
    case.check(
        "memory",
        growth.is_within(most_mib),
        format!(
            "resident {} KiB before, {} KiB at most meanwhile and {} KiB after: {} MiB more are allowed meanwhile, {} in the end",
            before.resident_kib,
            after.peak_kib,
            after.resident_kib,
            most_mib,
            most_mib.min(MOST_GROWTH_MIB),
        ),
    );
    case.check(
        "descriptors",
        after.descriptors <= before.descriptors + 4 && after.threads <= before.threads + 2,
        format!(
            "{} descriptors and {} threads before, {} and {} after",
            before.descriptors, before.threads, after.descriptors, after.threads
        ),
    );
}

/// How far resident memory grew, KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Growth {
    /// At any moment between.
    peak: u64,
    end: u64,
}

impl Growth {
    fn between(before: Sample, after: Sample) -> Self {
        let since = |kib: u64| kib.saturating_sub(before.resident_kib);
        Growth {
            peak: since(after.peak_kib),
            end: since(after.resident_kib),
        }
    }

    /// What is taken for a while may be more than [`MOST_GROWTH_MIB`], what is kept may not.
    fn is_within(self, most_mib: u64) -> bool {
        self.peak <= most_mib * 1024 && self.end <= most_mib.min(MOST_GROWTH_MIB) * 1024
    }
}

/// `held`: frames behind which the writer stood still, which no reader can see (docs/threat-model.md).
fn check_pictures(case: &mut Case, pictures: Pictures, verified: &Verified, held: &HashSet<u32>) {
    let Verified {
        right,
        torn,
        wrong,
        unreadable,
        undecoded,
        complaints,
        ..
    } = verified;
    let (unseen, torn): (Vec<_>, Vec<_>) = torn.iter().partition(|mixed| held.contains(&mixed.id));
    let whole = torn.is_empty() && *wrong == 0 && *unreadable == 0;
    let ok = *right > 0
        && match pictures {
            Pictures::All => whole && *undecoded == 0 && *complaints == 0,
            _ => verified.last_right >= 30,
        };
    case.check(
        "pictures",
        ok,
        format!(
            "{right} decoded pictures show their own number in every row; {} torn, {} by a writer that stood still, {wrong} wrong, \
             {unreadable} unreadable, {undecoded} units without a picture, {complaints} complaints of the decoder; {} right at the end",
            torn.len(),
            unseen.len(),
            verified.last_right
        ),
    );
    for line in torn.iter().take(8) {
        case.say(format!("     torn: {}", line.text));
    }
}

fn note_latency(case: &mut Case, report: &Value) {
    let sent = &report["sinks"][0]["latency"]["notice_to_last_packet"];
    if !sent.is_null() {
        case.number("latency_us", sent.clone());
    }
}

/// Every counter of the report that means a frame or a unit less.
pub fn drops(report: &Value) -> Value {
    let not_lost = [
        "notices",
        "frames",
        "sentinel_lines",
        "epochs",
        "reopens",
        "resubscribed",
    ];
    let mut all: serde_json::Map<String, Value> = report["source"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, count)| !not_lost.contains(&name.as_str()) && **count != json!(0))
        .map(|(name, count)| (name.clone(), count.clone()))
        .collect();
    let mut add = |name: String, count: &Value| {
        if count.as_u64().is_some_and(|count| count > 0) {
            all.insert(name, count.clone());
        }
    };
    add("evicted".into(), &report["evicted"]);
    for name in ["stale", "left_out", "lost", "refused"] {
        add(name.into(), &report["encode"][name]);
    }
    for (n, sink) in report["sinks"].as_array().into_iter().flatten().enumerate() {
        for name in ["given_up", "gated", "errors"] {
            add(format!("sink{n}_{name}"), &sink[name]);
        }
    }
    all.into()
}

/// A counter of the report's source; 0 if it is not there.
pub fn source_count(report: &Value, name: &str) -> u64 {
    report["source"][name].as_u64().unwrap_or(0)
}

/// Those of [`drops`] that are frames, and not messages about none.
fn frames_lost(report: &Value) -> u64 {
    let messages = ["bad_notices", "foreign_labels", "duplicates"];
    let drops = drops(report);
    let counts = drops.as_object().into_iter().flatten();
    let frames = counts.filter(|(name, _)| !messages.contains(&name.as_str()));
    frames.filter_map(|(_, count)| count.as_u64()).sum()
}

/// Longest gap of a stream that no fault may hold up. Not a measure of speed: a busy machine alone makes gaps of most
/// of a second, and what is to be seen lasts for seconds.
pub const GAP: Duration = Duration::from_millis(1500);

const MOST_GROWTH_MIB: u64 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(resident_mib: u64, peak_mib: u64) -> Sample {
        Sample {
            at: Instant::now(),
            resident_kib: resident_mib * 1024,
            peak_kib: peak_mib * 1024,
            descriptors: 10,
            threads: 5,
        }
    }

    #[test]
    fn memory_that_was_given_back_counts_by_its_peak_and_what_is_kept_by_the_end() {
        let before = sample(40, 40);
        for (after, most_mib, ok) in [
            (sample(40, 40), 16, true),
            (sample(56, 56), 16, true),
            (sample(57, 57), 16, false),
            // Gone again before the end.
            (sample(40, 57), 16, false),
            (sample(40, 49), 8, false),
            (sample(48, 48), 8, true),
            // A working set that was announced, and not given back.
            (sample(40, 100), 64, true),
            (sample(57, 100), 64, false),
            // Less than before.
            (sample(30, 40), 8, true),
        ] {
            let growth = Growth::between(before, after);
            assert_eq!(
                growth.is_within(most_mib),
                ok,
                "{growth:?} of {most_mib} MiB"
            );
        }
    }

    #[test]
    fn lost_frames_are_counted_without_messages_that_announce_none() {
        let report = json!({
            "source": { "notices": 900, "frames": 90, "bad_notices": 800, "skipped": 3, "too_late": 2 },
            "evicted": 4,
            "encode": { "stale": 1 },
            "sinks": [{ "given_up": 5, "gated": 0 }],
        });
        assert_eq!(frames_lost(&report), 15);
    }
}
