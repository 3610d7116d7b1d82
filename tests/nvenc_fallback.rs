//! A stream by NVENC on the emulator, watched by an RTP receiver and an RTMP server, while the driver breaks: the
//! stream goes on from software, and both see one continuous stream. With `--encoder nvenc` it ends instead.
//!
//! The driver breaks when both have pictures, at so many pictures from there (`NVENC_EMU_AFTER`).

#![cfg(feature = "nvenc")]

mod common;
mod nvenc_support;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use base64::Engine;
use common::{LIMIT, Program, Scene, expect_exit, finish, finish_child, free_port_pair, testkit};
use nvenc_support::{Emulator, have};
use serde_json::Value;

#[test]
fn a_fatal_status_is_seen_by_both_receivers_as_a_key_frame_with_new_parameter_sets() {
    goes_on("h264", "h264", ("ENCODE_STATUS", "20@17"), 1);
}

#[test]
fn a_lost_device_is_seen_by_both_receivers_as_a_key_frame_with_new_parameter_sets() {
    goes_on("h265", "h265-enhanced", ("DEVICE_LOST", "17"), 1);
}

#[test]
fn a_driver_that_hangs_is_seen_by_both_receivers_as_a_key_frame_with_new_parameter_sets() {
    goes_on("h264", "h264", ("HANG", "lock@17"), 1);
}

/// In the middle of reading a frame. Another thread reads on, of the same producer; nothing was given to the encoder.
#[test]
fn a_driver_that_keeps_the_thread_that_reads_is_left_with_it_and_both_receivers_go_on() {
    goes_on("h264", "h264", ("UPLOAD_MS", "600000@17"), 0);
}

/// One signal is enough, and both receivers are told goodbye.
#[test]
fn a_streamer_whose_reading_thread_is_kept_ends_at_the_first_signal() {
    if !have("ffmpeg") {
        return;
    }
    let mut stream = Stream::start("h264", "h264", "auto", &[("UPLOAD_MS", "600000@0")]);
    stream.break_driver();
    // The emulator writes them where it opens a session, and again as it keeps the thread.
    until("the thread is in the driver", || {
        let stats = stream.emulator.stats("stats.json");
        stats.is_some_and(|stats| stats["pictures_in"] != 0)
    });
    stream.signal("TERM");
    let seen = stream.finish(0);
    assert!(seen.rtp["byes"].as_u64() >= Some(1), "{}", seen.said);
}

#[test]
fn a_silent_driver_is_left_after_exactly_sixty_pictures_and_both_receivers_go_on() {
    goes_on("h264", "h264", ("SILENT", "zero"), 60);
    goes_on("h265", "h265-domestic", ("SILENT", "needmore"), 60);
}

/// Faults that keep a thread.
const HANGS: [&str; 2] = ["HANG", "UPLOAD_MS"];

/// Breaks the driver; `lost` pictures may go with it.
fn goes_on(codec: &str, mode: &str, fault: (&str, &str), lost: u64) {
    if !have("ffmpeg") {
        return;
    }
    let mut stream = Stream::start(codec, mode, "auto", &[fault]);
    let first = stream.description().expect("there before any picture");
    assert_eq!(first.version, 1);
    stream.break_driver();
    let what = format!("{fault:?}: a new description, and pictures after it");
    let mut from = None;
    until(&what, || {
        // The dump first: what has been received was described before it was sent.
        let renewed = announcements(&stream.rtp_dump(), codec).len() > 1;
        let description = stream.description().expect("never taken away");
        assert!(description.version == 2 || !renewed, "{description:?}");
        if description.version == 1 {
            return false;
        }
        let have = stream.received();
        let from = *from.get_or_insert(have);
        have.0 > from.0 + 60_000 && have.1 > from.1 + 60_000
    });
    let second = stream.description().unwrap();
    stream.signal("INT");
    let seen = stream.finish(0);

    let software = if codec == "h264" { "openh264" } else { "x265" };
    let said = format!("using {software} from here on");
    assert_eq!(seen.log.matches(&said).count(), 1, "{}", seen.log);
    let encode = &seen.report["encode"];
    assert_eq!(encode["fallbacks"], 1, "{}", seen.log);
    assert_eq!(encode["lost"], lost, "{}", seen.log);
    assert_eq!(encode["encoders_opened"], 1, "{}", seen.log);
    assert_eq!(seen.report["encoder"]["name"], software);
    for sink in seen.report["sinks"].as_array().unwrap() {
        assert_eq!(
            (&sink["errors"], &sink["reconnects"]),
            (&0.into(), &0.into())
        );
    }
    // One more sequence header, in front of a key frame: the referee refuses it elsewhere.
    assert_eq!(seen.rtmp["sequence_headers"], 2, "{}", seen.said);
    assert_ne!(first.sets, second.sets);
    for (name, dump) in &seen.dumps {
        // Both descriptions are what came, and with this GOP nothing but the change asks for a key frame in the middle:
        // the sets stand in front of one.
        let announced = announcements(dump, codec);
        let told = [&first, &second].map(|told| told.sets.iter().map(Vec::as_slice));
        let sets: Vec<_> = announced.iter().map(|(sets, _)| sets).collect();
        assert!(sets.len() == 2, "{name}: {sets:?}\n{}", seen.log);
        for (announced, told) in announced.iter().zip(told) {
            assert!(
                announced.0.iter().copied().eq(told),
                "{name}: {announced:?}"
            );
            assert!(is_key(announced.1, codec), "{name}");
        }
    }
    let stats = stream_stats(&seen);
    assert_eq!(stats["violations"], Value::Array(vec![]), "{}", seen.log);
    // A thread that hangs inside the driver keeps what it has.
    if !HANGS.contains(&fault.0) {
        assert_eq!(stats["leaks"], Value::Array(vec![]), "{}", seen.log);
        assert_eq!(stats["finished"], true);
    }
}

#[test]
fn nvenc_or_nothing_ends_both_streams_whole_and_exits_5() {
    if !have("ffmpeg") {
        return;
    }
    for (codec, mode, fault, words) in [
        (
            "h264",
            "h264",
            ("ENCODE_STATUS", "20@17"),
            "nvEncEncodePicture failed with 20: GENERIC (20)",
        ),
        (
            "h265",
            "h265-enhanced",
            ("SILENT", "zero"),
            "60 pictures went in and nothing came out",
        ),
        (
            "h264",
            "h264",
            ("UPLOAD_MS", "600000@17"),
            "cuMemcpy2DAsync failed with -1: did not return, and keeps the thread that reads frames",
        ),
    ] {
        let mut stream = Stream::start(codec, mode, "nvenc", &[fault]);
        stream.break_driver();
        let seen = stream.finish(5);
        assert!(seen.log.contains(words), "{}", seen.log);
        assert!(!seen.log.contains("from here on"), "{}", seen.log);
        assert_eq!(seen.rtmp["sequence_headers"], 1);
        // RTCP BYE: the stream was ended, not cut.
        assert!(seen.rtp["byes"].as_u64() >= Some(1), "{}", seen.said);
        let stats = stream_stats(&seen);
        assert_eq!(stats["violations"], Value::Array(vec![]), "{}", seen.log);
        if !HANGS.contains(&fault.0) {
            assert_eq!(stats["leaks"], Value::Array(vec![]), "{}", seen.log);
        }
    }
}

/// A GPU that is slower than its camera: the oldest frames are dropped and each is counted. How many is the machine's
/// business.
#[test]
fn nvenc_slower_than_the_source_drops_the_oldest_frames_and_counts_each() {
    let (emulator, scene) = (Emulator::new(), Scene::new());
    let slow = [("ENCODE_MS", "150")];
    let program = Path::new(env!("CARGO_BIN_EXE_cvmmap_streamer"));
    let output = finish(
        emulator
            .command(program, "stats.json", &slow)
            .args(scene.names())
            .args(
                "--input-mode dummy --dummy-frames 180 --dummy-width 320 --dummy-height 180"
                    .split(' '),
            )
            .args("--no-nats --codec h264 --encoder nvenc --rtp --rtp-endpoint".split(' '))
            .arg(format!("127.0.0.1:{}", free_port_pair()))
            .arg("--report-json")
            .arg(scene.path("report.json")),
    );
    let log = expect_exit(&output, 0);
    let report = json(&scene.path("report.json"));
    let count = |value: &Value| value.as_u64().unwrap();
    let (frames, units) = (
        count(&report["frames"]),
        count(&report["encode"]["access_units"]),
    );
    let evicted = count(&report["evicted"]);
    assert!(units > 0 && evicted > 0, "{report}\n{log}");
    assert_eq!(frames, units + evicted, "{report}\n{log}");
    let stats = emulator.stats("stats.json").unwrap();
    assert_eq!(stats["violations"], Value::Array(vec![]), "{log}");
    assert_eq!(stats["leaks"], Value::Array(vec![]), "{log}");
    assert_eq!(stats["access_units_out"], units, "{log}");
}

/// The streamer between its own producer and both referees.
struct Stream {
    codec: String,
    emulator: Emulator,
    scene: Scene,
    streamer: Program,
    rtp: Referee,
    rtmp: Referee,
}

/// What all of them have said at the end.
struct Seen {
    emulator: Emulator,
    log: String,
    report: Value,
    said: String,
    rtp: Value,
    rtmp: Value,
    dumps: [(&'static str, Vec<u8>); 2],
}

fn stream_stats(seen: &Seen) -> Value {
    seen.emulator.stats("stats.json").expect("written at exit")
}

/// What a session description says of the stream.
#[derive(Debug, PartialEq)]
struct Description {
    version: u64,
    /// Parameter sets, in the order of the stream.
    sets: Vec<Vec<u8>>,
}

impl Stream {
    /// Starts all three, and waits until both referees have pictures.
    fn start(codec: &str, mode: &str, encoder: &str, fault: &[(&str, &str)]) -> Self {
        let (emulator, scene, port) = (Emulator::new(), Scene::new(), free_port_pair());
        let rtp = Referee::start(
            testkit("rtp_receiver_tester")
                .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
                .args(["--codec", codec, "--dump"])
                .arg(scene.path("rtp.dump"))
                .args(
                    "--strict --monotonic --timeout-ms 110000 --silence-ms 60000 --json".split(' '),
                )
                .arg(scene.path("rtp.json")),
        );
        let rtmp = Referee::start(
            testkit("rtmp_stub_tester")
                .args(["--mode", mode, "--listen-port", "0", "--dump-annexb"])
                .arg(scene.path("rtmp.dump"))
                .args("--strict --timeout-ms 110000 --silence-ms 60000 --json".split(' '))
                .arg(scene.path("rtmp.json")),
        );
        let packaging = if mode == "h265-domestic" {
            "domestic"
        } else {
            "enhanced"
        };
        // A thread is given up after some seconds: no more of its pictures than the reader of their numbers, which are
        // modulo 256, can tell from a step back.
        let fps = if fault.iter().any(|(name, _)| *name == "UPLOAD_MS") {
            "10"
        } else {
            "30"
        };
        let after = emulator.path("break");
        let program = Path::new(env!("CARGO_BIN_EXE_cvmmap_streamer"));
        let mut command = emulator.command(program, "stats.json", fault);
        command
            .env("NVENC_EMU_AFTER", after)
            .args(scene.names())
            .args(
                "--input-mode dummy --dummy-frames 0 --dummy-width 640 --dummy-height 360"
                    .split(' '),
            )
            .args(["--dummy-fps", fps])
            .args("--no-nats --gop 100000 --fps 30 --bitrate 4M --codec".split(' '))
            .args([codec, "--encoder", encoder, "--rtp", "--rtp-endpoint"])
            .arg(format!("127.0.0.1:{port}"))
            .arg("--rtp-sdp")
            .arg(scene.path("stream.sdp"))
            .args(["--rtmp", "--rtmp-mode", packaging, "--rtmp-url"])
            .arg(format!("rtmp://{}/live/nvenc", rtmp.address))
            .arg("--report-json")
            .arg(scene.path("report.json"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let streamer = Program::start(&mut command);
        let codec = codec.to_owned();
        let mut this = Self {
            codec,
            emulator,
            scene,
            streamer,
            rtp,
            rtmp,
        };
        until("pictures at both receivers", || {
            if let Some(status) = this.streamer.try_wait().unwrap() {
                let mut log = String::new();
                let _ = this
                    .streamer
                    .stderr
                    .take()
                    .unwrap()
                    .read_to_string(&mut log);
                panic!("the streamer ended early with {status}: {log}");
            }
            let have = this.received();
            have.0 > 0 && have.1 > 0
        });
        this
    }

    fn break_driver(&mut self) {
        std::fs::write(self.emulator.path("break"), "").unwrap();
    }

    fn received(&self) -> (u64, u64) {
        let len = |name| std::fs::metadata(self.scene.path(name)).map_or(0, |file| file.len());
        (len("rtp.dump"), len("rtmp.dump"))
    }

    fn rtp_dump(&self) -> Vec<u8> {
        std::fs::read(self.scene.path("rtp.dump")).unwrap()
    }

    fn description(&self) -> Option<Description> {
        let text = std::fs::read_to_string(self.scene.path("stream.sdp")).ok()?;
        let origin = text.lines().find(|line| line.starts_with("o="))?;
        let names: &[&str] = match &self.codec[..] {
            "h264" => &["sprop-parameter-sets="],
            _ => &["sprop-vps=", "sprop-sps=", "sprop-pps="],
        };
        let mut sets = Vec::new();
        for name in names {
            let (_, rest) = text.split_once(name)?;
            let rest = rest.split([';', ' ', '\r']).next()?;
            let engine = base64::engine::general_purpose::STANDARD;
            for set in rest.split(',') {
                sets.push(engine.decode(set).ok()?);
            }
        }
        Some(Description {
            version: origin.split(' ').nth(2)?.parse().ok()?,
            sets,
        })
    }

    fn signal(&self, name: &str) {
        let pid = self.streamer.id().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(status.unwrap().success());
    }

    /// Waits for the end of all three. Both referees have found nothing wrong, and what they have received decodes to
    /// the producer's pictures, in order, without a complaint.
    #[track_caller]
    fn finish(self, code: i32) -> Seen {
        let log = expect_exit(&finish_child(self.streamer), code);
        let (rtp, rtp_said) = self.rtp.finish();
        let (rtmp, rtmp_said) = self.rtmp.finish();
        let said = format!("{rtp_said}\n{rtmp_said}\n{log}");
        assert_eq!(
            (rtp.status.code(), rtmp.status.code()),
            (Some(0), Some(0)),
            "{said}"
        );
        let (rtp, rtmp) = (
            json(&self.scene.path("rtp.json")),
            json(&self.scene.path("rtmp.json")),
        );
        assert_eq!(
            (&rtp["damaged_frames"], &rtp["sources"]),
            (&0.into(), &1.into()),
            "{said}"
        );
        assert_eq!(rtmp["connections"].as_array().unwrap().len(), 1, "{said}");
        let dumps = ["rtp", "rtmp"].map(|name| {
            let path = self.scene.path(&format!("{name}.dump"));
            pictures_in_order(&path, &self.codec);
            (name, std::fs::read(path).unwrap())
        });
        Seen {
            emulator: self.emulator,
            log,
            report: json(&self.scene.path("report.json")),
            said,
            rtp,
            rtmp,
            dumps,
        }
    }
}

/// A program of the test kit that listens.
struct Referee {
    child: Program,
    address: String,
    said: JoinHandle<String>,
}

impl Referee {
    fn start(command: &mut Command) -> Self {
        let mut child = Program::start(
            command
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        );
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut text = String::new();
        let address = loop {
            let line = lines
                .next()
                .unwrap_or_else(|| panic!("ended early: {text}"));
            let line = line.expect("readable");
            let found = line.split_once("ing at ").map(|(_, rest)| {
                let end = rest.find([' ', ',']).unwrap_or(rest.len());
                rest[..end].to_owned()
            });
            text.push_str(&line);
            text.push('\n');
            if let Some(address) = found {
                break address;
            }
        };
        let said = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                text.push_str(&line);
                text.push('\n');
            }
            text
        });
        Self {
            child,
            address,
            said,
        }
    }

    fn finish(self) -> (Output, String) {
        let output = finish_child(self.child);
        let said = self.said.join().unwrap();
        let text = format!("{said}{}", common::text(&output));
        (output, text)
    }
}

/// Decodes with an independent decoder and reads the picture numbers.
#[track_caller]
fn pictures_in_order(dump: &PathBuf, codec: &str) {
    let format = if codec == "h264" { "h264" } else { "hevc" };
    let mut decoder = Program::start(
        Command::new("ffmpeg")
            .args(["-nostdin", "-v", "error", "-f", format, "-i"])
            .arg(dump)
            .args("-vsync passthrough -f rawvideo -pix_fmt bgr24 -".split(' '))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    let pictures = decoder.stdout.take().expect("piped");
    let output = testkit("picture_reader")
        .args("--width 640 --height 360 --least 1 --quiet".split(' '))
        .stdin(pictures)
        .output()
        .expect("the reader starts");
    let complaints = finish_child(decoder).stderr;
    assert_eq!(
        String::from_utf8_lossy(&complaints),
        "",
        "{}",
        dump.display()
    );
    expect_exit(&output, 0);
}

/// NAL units of an elementary stream, without start codes.
fn nals(stream: &[u8]) -> Vec<&[u8]> {
    let mut nals = Vec::new();
    let mut start = None;
    let mut at = 0;
    while let Some(found) = stream[at..].windows(3).position(|three| three == [0, 0, 1]) {
        let code = at + found;
        let end = code - usize::from(code > 0 && stream[code - 1] == 0);
        nals.extend(start.map(|start: usize| &stream[start..end.max(start)]));
        at = code + 3;
        start = Some(at);
    }
    nals.extend(start.map(|start| &stream[start..]));
    nals
}

/// Types of NAL units: H.264 table 7-1, H.265 table 7-1.
fn kind(nal: &[u8], codec: &str) -> u8 {
    match (nal.first(), codec) {
        (Some(first), "h264") => first & 0x1F,
        (Some(first), _) => first >> 1 & 0x3F,
        (None, _) => u8::MAX,
    }
}

fn is_set(nal: &[u8], codec: &str) -> bool {
    match codec {
        "h264" => matches!(kind(nal, codec), 7 | 8),
        _ => matches!(kind(nal, codec), 32..=34),
    }
}

fn is_key(nal: &[u8], codec: &str) -> bool {
    match codec {
        "h264" => kind(nal, codec) == 5,
        _ => matches!(kind(nal, codec), 19 | 20),
    }
}

fn is_picture(nal: &[u8], codec: &str) -> bool {
    match codec {
        "h264" => matches!(kind(nal, codec), 1..=5),
        _ => kind(nal, codec) < 32,
    }
}

/// Parameter sets that differ from those before, with the picture that follows them. The last unit of a file that
/// grows may be cut off: it does not count.
fn announcements<'a>(dump: &'a [u8], codec: &str) -> Vec<(Vec<&'a [u8]>, &'a [u8])> {
    let mut units = nals(dump);
    units.pop();
    let mut all: Vec<(Vec<&[u8]>, &[u8])> = Vec::new();
    let mut sets = Vec::new();
    for unit in units {
        if is_set(unit, codec) {
            sets.push(unit);
        } else if is_picture(unit, codec) && !sets.is_empty() {
            let sets = std::mem::take(&mut sets);
            if all.last().is_none_or(|last| last.0 != sets) {
                all.push((sets, unit));
            }
        }
    }
    all
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

/// Waits for a condition from outside; never for a time.
#[track_caller]
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}
