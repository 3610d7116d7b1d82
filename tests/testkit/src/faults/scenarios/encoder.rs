//! Encoders that break: NVENC, with the emulator of its driver (`tests/nvenc-emu`) in the driver's place.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::faults::case::Case;
use crate::faults::process::Process;
use crate::faults::rig::{Fail, GAP, Outcome, Pictures, Rig, Setup};
use crate::faults::suite::Scenario;

pub const ENCODER_FAILS: Scenario = Scenario {
    name: "encoder_fails",
    promise: "an encoder that is refused, fails at picture 17 or gives nothing for 60 pictures is left for software, \
              with a key frame; --encoder nvenc exits 5",
    play: encoder_fails,
    control_fails: &[
        "at_open",
        "took_over",
        "lost",
        "recovered",
        "not_again",
        "exit_5",
        "driver",
    ],
};

/// Built by `cargo build -p nvenc-emu`, which `scripts/fault_suite.sh` does.
const EMULATOR: &str = "libnvenc_emu.so";

/// A run that goes on for longer hangs.
const END: Duration = Duration::from_secs(30);

fn encoder_fails(case: &mut Case) -> Result<(), Fail> {
    if !case.binary(EMULATOR).is_file() {
        case.skipped = Some(format!(
            "no {EMULATOR} beside the streamer: cargo build -p nvenc-emu makes it"
        ));
        return Ok(());
    }
    at_open(case)?;
    // From the failure to the next unit: one picture, or sixty at the pace of a busy machine's camera.
    breaks(case, "failed", ("ENCODE_STATUS", "20@17"), 1, GAP)?;
    // One run shows for both that what they look at is of the fault's making.
    if !case.is_control() {
        let silence = Duration::from_secs(2) * 3 + GAP;
        breaks(case, "silent", ("SILENT", "zero"), 60, silence)?;
    }
    resized(case)?;
    nvenc_or_nothing(case)
}

/// The emulator where one streamer looks for the driver's libraries.
struct Emulator {
    folder: PathBuf,
}

impl Emulator {
    fn new(case: &Case, tag: &str) -> Result<Self, Fail> {
        let folder = case.path(&format!("{tag}-driver"));
        std::fs::create_dir_all(&folder)?;
        let library = case.binary(EMULATOR).canonicalize()?;
        // One file under three names: the loader maps it once, and both fakes share their state.
        for name in ["libcuda.so", "libcuda.so.1", "libnvidia-encode.so.1"] {
            symlink(&library, folder.join(name))?;
        }
        Ok(Emulator {
            folder: folder.canonicalize()?,
        })
    }

    /// With faults that count pictures from [`Emulator::break_down`] on.
    fn environment(&self, faults: &[(&str, &str)]) -> Vec<(String, OsString)> {
        let mut libraries = self.folder.clone().into_os_string();
        if let Some(more) = std::env::var_os("LD_LIBRARY_PATH") {
            libraries.push(":");
            libraries.push(more);
        }
        let faults = faults
            .iter()
            .map(|(name, value)| (format!("NVENC_EMU_{name}"), OsString::from(value)));
        [
            ("LD_LIBRARY_PATH", libraries),
            ("NVENC_EMU_STATS", self.folder.join("stats.json").into()),
            ("NVENC_EMU_AFTER", self.folder.join("break").into()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into_iter()
        .chain(faults)
        .collect()
    }

    fn break_down(&self) -> Result<(), Fail> {
        Ok(std::fs::write(self.folder.join("break"), "")?)
    }

    /// What it has seen, of a streamer that has ended.
    fn stats(&self) -> Result<Value, Fail> {
        let bytes = std::fs::read(self.folder.join("stats.json"))?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Checks that the streamer did nothing wrong, and left nothing with a driver that was broken.
    fn check(&self, case: &mut Case) -> Result<Value, Fail> {
        let stats = self.stats()?;
        let none = json!([]);
        let clean = stats["violations"] == none && stats["leaks"] == none;
        case.number("driver_pictures_in", stats["pictures_in"].clone());
        case.number("driver_units_out", stats["access_units_out"].clone());
        case.check(
            "driver",
            clean && stats["finished"] == true,
            format!(
                "the driver saw {} violations and these leaks: {}",
                stats["violation_counts"], stats["leaks"]
            ),
        );
        Ok(stats)
    }
}

/// Software from the first picture on.
fn at_open(case: &mut Case) -> Result<(), Fail> {
    let emulator = Emulator::new(case, "refused")?;
    let refused: &[_] = match case.is_control() {
        true => &[],
        false => &[("OPEN_STATUS", "2")],
    };
    let mut rig = Rig::start(
        case,
        setup("refused", "auto", emulator.environment(refused)),
    )?;
    let from = Instant::now();
    rig.run(0.5)?;
    rig.check_gap(case, from, GAP);
    let log = rig.streamer.log.clone();
    let outcome = rig.finish(case, Pictures::All)?;
    let said = said(&log, &["has no encoder", "gpu-info", "using openh264"])?;
    let name = &outcome.report["encoder"]["name"];
    case.check(
        "at_open",
        name == "openh264" && said,
        format!("coded by {name}; the log says why and what helps: {said}"),
    );
    emulator.check(case)?;
    Ok(())
}

/// Breaks in mid-stream: `lost` pictures go with it, and `limit` may pass without a unit.
fn breaks(
    case: &mut Case,
    tag: &'static str,
    fault: (&str, &str),
    lost: u64,
    limit: Duration,
) -> Result<(), Fail> {
    let emulator = Emulator::new(case, tag)?;
    let faults = match case.is_control() {
        // Nothing breaks, and at the end something is left behind.
        true => ("HANG", "destroy"),
        false => fault,
    };
    let mut rig = Rig::start(case, setup(tag, "auto", emulator.environment(&[faults])))?;
    emulator.break_down()?;
    let took = key_frame(case, &mut rig)?;
    if !case.is_control() {
        // As many as have to be right at the end, and some.
        let (fps, enough) = (rig.setup.fps, rig.probe.count() + 40);
        let Rig { feed, probe, .. } = &mut rig;
        let feed = feed.as_mut().ok_or("a producer")?;
        feed.run_until(fps, END, |_| probe.count() >= enough)?;
    }
    if let Some(took) = took {
        case.number("recovery_ms", took.as_millis() as u64);
    }
    case.check(
        "recovered",
        took.is_some_and(|took| took <= limit),
        match took {
            Some(took) => {
                format!("{took:.0?} from the last unit to a key frame, at most {limit:.0?}")
            }
            None => "no key frame came".to_owned(),
        },
    );
    // Whether a frame is torn is torn_read's to say: the emulator's copies need a core, perhaps the writer's.
    let outcome = rig.finish(case, Pictures::AfterLoss)?;
    check_software(case, &outcome);
    let (counts, verified) = (&outcome.counts, &outcome.verified);
    case.check(
        "whole",
        counts.violations.is_empty()
            && counts.times_going_back == 0
            && verified.undecoded == 0
            && verified.complaints == 0,
        format!(
            "{} units: {} RTP violations, {} times going back, {} without a picture, {} complaints of the decoder",
            counts.units,
            counts.violations.len(),
            counts.times_going_back,
            verified.undecoded,
            verified.complaints
        ),
    );
    let gone = &outcome.report["encode"]["lost"];
    case.check(
        "lost",
        *gone == lost,
        format!("{gone} pictures went with the encoder, exactly {lost} are meant to"),
    );
    emulator.check(case)?;
    Ok(())
}

/// The driver broke: pictures of another size are software's too.
fn resized(case: &mut Case) -> Result<(), Fail> {
    let emulator = Emulator::new(case, "resized")?;
    let faults: &[_] = match case.is_control() {
        true => &[],
        false => &[("ENCODE_STATUS", "20@0")],
    };
    let mut rig = Rig::start(case, setup("resized", "auto", emulator.environment(faults)))?;
    emulator.break_down()?;
    if !case.is_control() {
        key_frame(case, &mut rig)?;
    }
    for (width, height) in [(320, 180), (640, 360)] {
        rig.feed()?.resize(width, height)?;
        key_frame(case, &mut rig)?;
    }
    let outcome = rig.finish(case, Pictures::Any)?;
    let sessions = emulator.check(case)?["sessions_opened"].clone();
    let opened = &outcome.report["encode"]["encoders_opened"];
    let name = &outcome.report["encoder"]["name"];
    case.check(
        "not_again",
        sessions == 1 && *opened == 3 && name == "openh264",
        format!("{opened} encoders for three sizes, of these {sessions} by the driver, the last is {name}"),
    );
    Ok(())
}

/// `--encoder nvenc` is never replaced.
fn nvenc_or_nothing(case: &mut Case) -> Result<(), Fail> {
    let emulator = Emulator::new(case, "strict")?;
    let faults: &[_] = match case.is_control() {
        true => &[],
        false => &[("ENCODE_STATUS", "20@17")],
    };
    let mut rig = Rig::start(case, setup("strict", "nvenc", emulator.environment(faults)))?;
    emulator.break_down()?;
    let limit = if case.is_control() { GAP } else { END };
    let fps = rig.setup.fps;
    let Rig { feed, streamer, .. } = &mut rig;
    let feed = feed.as_mut().ok_or("a producer")?;
    feed.run_until(fps, limit, |_| !streamer.process.is_running())?;
    let code = streamer.process.wait(Duration::ZERO).map(|e| e.code());
    let words = ["nvEncEncodePicture failed"];
    let told = said(&streamer.log, &words)?;
    case.exit_codes.insert("strict".into(), json!(code));
    case.check(
        "exit_5",
        code == Some(5) && told,
        format!("broken in mid-stream: exit {code:?}, the log names the call: {told}"),
    );
    drop(rig);
    if case.is_control() {
        return Ok(());
    }
    emulator.check(case)?;

    let emulator = Emulator::new(case, "strict-open")?;
    let log = case.path("strict-open.log");
    let socket = case.settings.sockets.join("strict");
    let mut process = Process::spawn(
        Command::new(case.binary("cvmmap_streamer"))
            .args(
                "--input-mode dummy --no-nats --no-status --codec h264 --encoder nvenc".split(' '),
            )
            .args(["--rtp", "--rtp-endpoint", "127.0.0.1:9"])
            .args(["--shm-name", &format!("{}_strict", case.names.shm_name)])
            .arg("--zmq-endpoint")
            .arg(format!("ipc://{}", socket.display()))
            .envs(emulator.environment(&[("OPEN_STATUS", "2")]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?),
    )?;
    let code = process.wait(END).map(|ended| ended.code());
    let told = said(&log, &["has no encoder", "nvEncOpenEncodeSessionEx"])?;
    case.exit_codes.insert("strict-open".into(), json!(code));
    case.check(
        "exit_5",
        code == Some(5) && told,
        format!("refused at open: exit {code:?}, the log says why: {told}"),
    );
    emulator.check(case)?;
    Ok(())
}

fn setup(tag: &str, encoder: &'static str, environment: Vec<(String, OsString)>) -> Setup {
    Setup {
        tag: tag.to_owned(),
        encoder: Some(encoder),
        environment,
        // No key frame but those that an encoder begins with.
        ..Setup::with(&["--gop", "100000"])
    }
}

/// Feeds until a key frame comes; gives the time between it and the unit in front of it.
fn key_frame(case: &Case, rig: &mut Rig) -> Result<Option<Duration>, Fail> {
    let (fps, seen) = (rig.setup.fps, rig.probe.count());
    // Where nothing breaks none comes.
    let limit = if case.is_control() { GAP } else { END };
    let probe = &rig.probe;
    let key = || {
        let units = probe.units();
        let at = (seen..units.len()).find(|at| units[*at].key)?;
        let before = at.checked_sub(1)?;
        Some(units[at].at.saturating_duration_since(units[before].at))
    };
    let feed = rig.feed.as_mut().ok_or("a producer")?;
    feed.run_until(fps, limit, |_| key().is_some())?;
    Ok(key())
}

fn check_software(case: &mut Case, outcome: &Outcome) {
    let encode = &outcome.report["encode"];
    let name = &outcome.report["encoder"]["name"];
    let (fallbacks, opened) = (&encode["fallbacks"], &encode["encoders_opened"]);
    case.check(
        "took_over",
        name == "openh264" && *fallbacks == 1 && *opened == 1,
        format!("{fallbacks} fallbacks, coded by {name} at the end"),
    );
}

/// Whether a log has all of these words.
fn said(log: &PathBuf, words: &[&str]) -> Result<bool, Fail> {
    let text = std::fs::read_to_string(log)?;
    Ok(words.iter().all(|word| text.contains(word)))
}
