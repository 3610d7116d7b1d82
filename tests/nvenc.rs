//! NVENC on the emulator: the backend and the fallback around it, as child processes that find
//! `tests/nvenc-emu` where they look for the driver's libraries. Every scenario ends with no violation
//! of either class and, where the driver lets go, with no leak.
//!
//! None of this has met an encode engine.

#![cfg(feature = "nvenc")]

mod common;
#[allow(dead_code)] // its main is the example's
#[path = "gpu/nvenc_drive.rs"]
mod nvenc_drive;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Not a test of its own: what the others start.
#[test]
fn drive_child() {
    if let Ok(arguments) = std::env::var("NVENC_DRIVE") {
        let arguments = ["nvenc_drive"]
            .into_iter()
            .chain(arguments.split_whitespace());
        let _ = nvenc_drive::drive::main(arguments.map(str::to_owned));
        // Not a return: the handlers of the emulator run at exit, and threads may hang on purpose.
        std::process::exit(0);
    }
}

/// The acceptance rows run in real time; nothing else of this file may take the machine meanwhile.
static MACHINE: RwLock<()> = RwLock::new(());

/// The emulator in place of the driver's libraries.
struct Emulator {
    folder: tempfile::TempDir,
}

struct Outcome {
    report: Value,
    stats: Value,
    log: String,
}

impl Emulator {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let library = std::env::current_exe()
            .unwrap()
            .with_file_name("libnvenc_emu.so");
        assert!(
            library.is_file(),
            "{} is built with the tests",
            library.display()
        );
        // One file under three names: the loader maps it once, and both fakes share their state.
        for name in ["libcuda.so", "libcuda.so.1", "libnvidia-encode.so.1"] {
            std::os::unix::fs::symlink(&library, folder.path().join(name)).unwrap();
        }
        Self { folder }
    }

    fn without(self, library: &str) -> Self {
        std::fs::remove_file(self.folder.path().join(library)).unwrap();
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, program: &Path, stats: &str, switches: &[(&str, &str)]) -> Command {
        let mut command = Command::new(program);
        command
            .env("LD_LIBRARY_PATH", self.folder.path())
            .env("NVENC_EMU_STATS", self.path(stats))
            .env("NVENC_EMU_LOCKS", self.folder.path())
            .env("RUST_LOG", "info")
            .stdin(Stdio::null());
        for (name, value) in switches {
            command.env(format!("NVENC_EMU_{name}"), value);
        }
        command
    }

    fn drive_command(&self, arguments: &str, stats: &str, switches: &[(&str, &str)]) -> Command {
        let mut command = self.command(&std::env::current_exe().unwrap(), stats, switches);
        command
            .args(["--exact", "drive_child", "--nocapture"])
            .env("NVENC_DRIVE", arguments);
        command
    }

    fn drive(&self, arguments: &str, switches: &[(&str, &str)]) -> Outcome {
        let _shared = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
        let output = self
            .drive_command(arguments, "stats.json", switches)
            .output()
            .unwrap();
        self.outcome(&output, "stats.json")
    }

    fn outcome(&self, output: &std::process::Output, stats: &str) -> Outcome {
        let text = String::from_utf8_lossy(&output.stdout);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let report = text
            .lines()
            .find_map(|line| line.strip_prefix(nvenc_drive::drive::MARK))
            .unwrap_or_else(|| panic!("no report\n{text}\n{log}"));
        Outcome {
            report: serde_json::from_str(report).unwrap(),
            stats: self.stats(stats).unwrap_or(Value::Null),
            log,
        }
    }

    fn stats(&self, name: &str) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.path(name)).ok()?).ok()
    }
}

impl Outcome {
    #[track_caller]
    fn clean(self) -> Self {
        assert_eq!(
            self.stats["violations"],
            Value::Array(vec![]),
            "{}",
            self.log
        );
        self
    }

    #[track_caller]
    fn no_leak(self) -> Self {
        assert_eq!(self.stats["leaks"], Value::Array(vec![]), "{}", self.log);
        assert_eq!(self.stats["finished"], true, "{}", self.log);
        self
    }

    #[track_caller]
    fn succeeded(self) -> Self {
        assert_eq!(self.report["error"], Value::Null, "{}", self.log);
        self
    }

    fn number(&self, name: &str) -> u64 {
        self.report[name].as_u64().unwrap()
    }

    fn keys(&self) -> Vec<u64> {
        let units = self.report["units"].as_array().unwrap();
        units
            .iter()
            .filter(|unit| unit[3] == true)
            .map(|unit| unit[0].as_u64().unwrap())
            .collect()
    }
}

#[test]
fn whatever_is_refused_at_open_is_one_line_that_says_what_would_help() {
    let rows: [(&[(&str, &str)], &str); 12] = [
        (
            &[("MAX_VERSION", "0xA0")],
            "driver too old: needs NVENC API 11.1 (driver 470.57.02 or newer), found 10.0",
        ),
        (
            &[("HIDE", "symbol:nvEncInitializeEncoder")],
            "function list has no nvEncInitializeEncoder",
        ),
        (&[("OPEN_STATUS", "1")], "has no encoder"),
        (&[("OPEN_STATUS", "2")], "has no encoder"),
        (&[("CAPS", "none")], "has no encoder"),
        (&[("OPEN_STATUS", "10")], "all encoder sessions are in use"),
        (&[("OPEN_STATUS", "21")], "all encoder sessions are in use"),
        (&[("OPEN_STATUS", "15")], "INVALID_VERSION (15)"),
        (&[("DEVICES", "0")], "sees no GPU"),
        (&[("INIT_STATUS", "20")], "GENERIC (20)"),
        (
            &[("REGISTER_STATUS", "23")],
            "RESOURCE_REGISTER_FAILED (23)",
        ),
        (
            &[("MIN", "700x400")],
            "this GPU codes 700x400 to 4096x4096, the picture is 640x360",
        ),
    ];
    for (switches, words) in rows {
        // The header that this was built with decides the number in the first row.
        if words.contains("11.1") && nvenc_sys::API_VERSION.to_string() != "11.1" {
            eprintln!("row left out: built with header {}", nvenc_sys::API_VERSION);
            continue;
        }
        let outcome = Emulator::new()
            .drive("--frames 3", switches)
            .clean()
            .no_leak();
        let error = outcome.report["error"].as_str().unwrap().to_owned();
        assert!(error.contains(words), "{switches:?}: {error}");
        assert!(!error.contains('\n'));
    }
}

#[test]
fn a_missing_library_names_itself_and_the_way_out() {
    for (library, words) in [
        ("libcuda.so.1", "no NVIDIA driver here"),
        (
            "libnvidia-encode.so.1",
            "NVIDIA_DRIVER_CAPABILITIES to include video",
        ),
    ] {
        let outcome = Emulator::new().without(library).drive("--frames 1", &[]);
        let error = outcome.report["error"].as_str().unwrap();
        assert!(error.contains(library) && error.contains(words), "{error}");
    }
}

#[test]
fn without_b_frames_each_access_unit_is_out_before_the_next_picture_goes_in() {
    for codec in ["h264", "h265"] {
        let arguments = format!("--codec {codec} --frames 60");
        let outcome = Emulator::new()
            .drive(&arguments, &[])
            .succeeded()
            .clean()
            .no_leak();
        assert_eq!((outcome.number("late"), outcome.number("pinned")), (0, 60));
        assert_eq!(outcome.keys(), [0]);
        assert_eq!(outcome.stats["threads_per_session"], 1);
        assert_eq!(outcome.stats["ring_peak"], 1);
    }
}

#[test]
fn after_warm_up_nothing_is_allocated_by_either_upload_path() {
    for path in ["", "--no-mapping"] {
        let arguments = format!("--frames 60 {path}");
        let outcome = Emulator::new().drive(&arguments, &[]).succeeded().clean();
        assert_eq!(outcome.number("allocations_after_warm_up"), 0, "{path}");
    }
}

#[test]
fn key_frames_come_when_asked_for_and_restart_the_gop() {
    let outcome = Emulator::new().drive("--frames 60 --gop 30 --key-at 7,20", &[]);
    let outcome = outcome.succeeded().clean().no_leak();
    assert_eq!(outcome.keys(), [0, 7, 20, 50]);
}

#[test]
fn decoding_times_never_lie_behind_presentation_and_only_grow() {
    for b_frames in 1..=3_u64 {
        let arguments = format!("--frames 61 --b-frames {b_frames}");
        let outcome = Emulator::new()
            .drive(&arguments, &[])
            .succeeded()
            .clean()
            .no_leak();
        let units = outcome.report["units"].as_array().unwrap();
        assert_eq!(units.len(), 61);
        let time = |unit: &Value, at: usize| unit[at].as_i64().unwrap();
        assert!(units.iter().all(|unit| time(unit, 2) <= time(unit, 1)));
        assert!(
            units
                .windows(2)
                .all(|pair| time(&pair[0], 2) < time(&pair[1], 2))
        );
        // The first lies as many frame periods before zero as there are B-frames.
        let first = -(b_frames as i64 * (1_000_000_000 / 30));
        assert_eq!(time(&units[0], 2), first);
        let mut shown: Vec<_> = units.iter().map(|unit| time(unit, 0)).collect();
        shown.sort_unstable();
        assert_eq!(shown, (0..61).collect::<Vec<_>>());
    }
}

#[test]
fn a_gpu_without_b_frames_for_a_codec_gets_none_and_the_log_says_so() {
    let outcome = Emulator::new().drive("--codec h265 --b-frames 3", &[("CAPS", "pascal")]);
    let outcome = outcome.succeeded().clean().no_leak();
    assert_eq!(outcome.number("late"), 0);
    assert!(
        outcome.log.contains("--b-frames 3 becomes 0"),
        "{}",
        outcome.log
    );
}

#[test]
fn an_old_chip_that_refuses_multi_pass_is_asked_again_without() {
    let outcome = Emulator::new().drive("--frames 5", &[("MULTIPASS_STATUS", "8")]);
    let outcome = outcome.succeeded().clean().no_leak();
    assert!(
        outcome
            .log
            .contains("again without the quarter-resolution pass"),
        "{}",
        outcome.log
    );
}

#[test]
fn without_stream_ordering_uploads_are_waited_for() {
    let hidden = [
        ("HIDE", "symbol:nvEncSetIOCudaStreams"),
        ("COPY_DELAY_US", "2000"),
    ];
    let outcome = Emulator::new()
        .drive("--frames 20", &hidden)
        .succeeded()
        .clean()
        .no_leak();
    assert_eq!(outcome.report["units"].as_array().unwrap().len(), 20);
}

#[test]
fn ten_thousand_changes_of_the_bit_rate_leave_the_stream_alone() {
    let outcome = Emulator::new().drive("--frames 20 --bitrate-changes 500", &[]);
    let outcome = outcome.succeeded().clean().no_leak();
    assert_eq!(outcome.stats["reconfigured"], 10_000);
    assert_eq!(outcome.keys(), [0]);
}

#[test]
fn a_thousand_sessions_leave_nothing_behind() {
    let arguments = "--sessions 1000 --frames 1 --width 160 --height 160";
    let outcome = Emulator::new()
        .drive(arguments, &[])
        .succeeded()
        .clean()
        .no_leak();
    assert_eq!(outcome.stats["sessions_opened"], 1000);
    assert_eq!(outcome.stats["sessions_peak"], 1);
}

#[test]
fn busy_is_asked_again_and_too_busy_is_an_error() {
    let outcome = Emulator::new()
        .drive("--frames 20", &[("BUSY", "3@7")])
        .succeeded()
        .clean();
    assert_eq!(outcome.report["units"].as_array().unwrap().len(), 20);
    let outcome = Emulator::new()
        .drive("--frames 20", &[("BUSY", "1000@7")])
        .clean()
        .no_leak();
    let error = outcome.report["error"].as_str().unwrap();
    assert!(error.contains("still busy after 100 attempts"), "{error}");
}

#[test]
fn the_drivers_words_are_used_only_where_they_are_words() {
    let failing = ("ENCODE_STATUS", "20@3");
    let words = |kind| {
        let outcome = Emulator::new()
            .drive("--frames 5", &[failing, ("LASTERROR", kind)])
            .clean();
        outcome.report["error"].as_str().unwrap().to_owned()
    };
    assert!(words("text").contains("GENERIC (20): the driver's own words;"));
    for kind in ["null", "invalid-utf8"] {
        let text = words(kind);
        assert!(text.contains("GENERIC (20); the driver failed"), "{text}");
    }
}

#[test]
fn a_driver_that_hangs_is_left_behind_with_the_name_of_the_call() {
    for (hang, call) in [
        ("lock@17", "nvEncLockBitstream"),
        ("encode@17", "nvEncEncodePicture"),
    ] {
        let outcome = Emulator::new()
            .drive("--call-limit-ms 500", &[("HANG", hang)])
            .clean();
        let error = outcome.report["error"].as_str().unwrap();
        assert!(
            error.contains(call) && error.contains("the driver hangs"),
            "{error}"
        );
        assert_eq!(
            (
                outcome.number("submitted"),
                outcome.report["units"].as_array().unwrap().len()
            ),
            (18, 17)
        );
    }
    // In teardown nobody waits for it either; the stream is complete by then.
    let outcome = Emulator::new().drive("--frames 5 --call-limit-ms 500", &[("HANG", "destroy")]);
    let outcome = outcome.succeeded().clean();
    assert!(
        outcome.log.contains("nvEncDestroyEncoder does not return"),
        "{}",
        outcome.log
    );
}

/// At picture 17 the driver fails in each way that a running one can.
#[test]
fn every_loss_while_running_leads_once_to_software_with_a_key_frame() {
    let rows: [(&str, &str, u64); 6] = [
        ("ENCODE_STATUS", "20@17", 17),
        ("DEVICE_LOST", "17", 17),
        ("HANG", "lock@17", 17),
        ("HANG", "encode@17", 17),
        // Sixty pictures, not one more and not one less.
        ("SILENT", "zero", 59),
        ("SILENT", "needmore", 59),
    ];
    for (codec, software) in [("h264", "openh264"), ("h265", "x265")] {
        for (switch, value, at) in rows {
            let arguments = format!("--through auto --codec {codec} --frames 100");
            let outcome = Emulator::new()
                .drive(&arguments, &[(switch, value)])
                .succeeded()
                .clean();
            let outcome = if switch == "HANG" {
                outcome
            } else {
                outcome.no_leak()
            };
            let what = format!("{codec} {switch}={value}\n{}", outcome.log);
            assert_eq!(outcome.report["opened"], software, "{what}");
            assert_eq!(
                outcome.report["replaced_at"],
                serde_json::json!([at]),
                "{what}"
            );
            let keys = outcome.keys();
            assert_eq!(keys.last(), Some(&(at + 1)), "{what}");
            // The lost picture, and those before it that a silent driver kept.
            let units = outcome.report["units"].as_array().unwrap().len() as u64;
            let lost = if switch == "SILENT" { 60 } else { 1 };
            assert_eq!(units, 100 - lost, "{what}");
        }
    }
}

#[test]
fn nvenc_or_nothing_does_not_fall_back() {
    let outcome = Emulator::new()
        .drive("--through nvenc", &[("ENCODE_STATUS", "20@17")])
        .clean();
    assert!(
        outcome.report["error"]
            .as_str()
            .unwrap()
            .contains("nvEncEncodePicture")
    );
    assert_eq!(outcome.report["units"].as_array().unwrap().len(), 17);
    let outcome = Emulator::new()
        .drive("--through nvenc", &[("OPEN_STATUS", "2")])
        .clean();
    assert!(
        outcome.report["error"]
            .as_str()
            .unwrap()
            .contains("has no encoder")
    );
}

#[test]
fn a_second_streamer_beyond_the_session_limit_is_told_so() {
    let emulator = Emulator::new();
    let limit = [("SESSIONS", "1"), ("ENCODE_MS", "20")];
    let mut first = emulator
        .drive_command("--frames 2000", "first.json", &limit)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let taken = || {
        let stats = emulator.stats("first.json");
        stats.is_some_and(|stats| stats["sessions_open"] == 1)
    };
    while !taken() {
        assert!(Instant::now() < end, "the first one opens within a minute");
        std::thread::yield_now();
    }
    let output = emulator
        .drive_command("--frames 1", "second.json", &limit)
        .output()
        .unwrap();
    let second = emulator.outcome(&output, "second.json").clean().no_leak();
    first.kill().unwrap();
    first.wait().unwrap();
    let error = second.report["error"].as_str().unwrap();
    assert!(error.contains("all encoder sessions are in use"), "{error}");
}

#[test]
fn a_delayed_copy_is_waited_for_before_the_frame_counts_as_read() {
    let outcome = Emulator::new().drive("--frames 30 --remap-each 3", &[("COPY_DELAY_US", "3000")]);
    let outcome = outcome.succeeded().clean().no_leak();
    assert_eq!(outcome.number("pinned"), 30);
    assert_eq!(outcome.stats["uploads_pageable"], 0);
}

#[test]
fn copies_that_never_end_lose_the_encoder_and_not_the_ingest_thread() {
    let outcome = Emulator::new()
        .drive("--frames 10", &[("COPY_DELAY_US", "150000")])
        .clean();
    assert_eq!(outcome.report["unfilled"].as_array().unwrap().len(), 2);
    let error = outcome.report["error"].as_str().unwrap();
    assert!(error.contains("3 copies in a row"), "{error}");
}

#[test]
fn where_pinning_is_refused_the_cpu_converts_and_nothing_else_changes() {
    for switch in [
        ("HOSTREG_STATUS", "801"),
        ("HOSTREG_STATUS", "1"),
        ("HOSTREG_RO", "0"),
    ] {
        let outcome = Emulator::new()
            .drive("--frames 20", &[switch])
            .succeeded()
            .clean()
            .no_leak();
        assert_eq!(
            (outcome.number("pinned"), outcome.number("staged")),
            (0, 20)
        );
    }
}

#[test]
fn running_out_of_gpu_memory_at_any_allocation_is_a_refusal_without_a_leak() {
    for at in 0..12 {
        let number = at.to_string();
        let outcome = Emulator::new().drive("--frames 2", &[("ALLOC_FAIL_AT", &number)]);
        let outcome = outcome.clean().no_leak();
        if let Some(error) = outcome.report["error"].as_str() {
            assert!(error.contains("CUDA_ERROR_OUT_OF_MEMORY (2)"), "{error}");
        }
    }
}

/// Decodes a stream to 4:2:0 planes with an independent decoder.
fn decode(file: &Path) -> Vec<u8> {
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(file)
        .args([
            "-frames:v",
            "3",
            "-f",
            "rawvideo",
            "-pix_fmt",
            "yuv420p",
            "-",
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn have(program: &str) -> bool {
    let found = Command::new(program).arg("-version").output().is_ok();
    if !found {
        eprintln!("not run: no {program}");
    }
    found
}

#[test]
fn bars_and_greys_decode_to_bt_709_on_both_upload_paths_in_every_format() {
    if !have("ffmpeg") {
        return;
    }
    // Red, green, blue, white, black in BT.709 limited range (ITU-R BT.709).
    let bars = [
        (63, 102, 240),
        (173, 42, 26),
        (32, 240, 118),
        (235, 128, 128),
        (16, 128, 128),
    ];
    let (width, height) = (640, 360);
    for codec in ["h264", "h265"] {
        for format in 0..4 {
            let mut pictures = Vec::new();
            for path in ["", "--no-mapping"] {
                let emulator = Emulator::new();
                let file = emulator.path("out.bin");
                let arguments = format!(
                    "--bars --frames 3 --bitrate 8000000 --codec {codec} --format {format} {path} --out {}",
                    file.display()
                );
                let _ = emulator.drive(&arguments, &[]).succeeded().clean();
                pictures.push(decode(&file));
            }
            let frame = width * height * 3 / 2;
            assert_eq!(pictures[0].len(), 3 * frame);
            let last = |picture: &[u8]| picture[2 * frame..].to_vec();
            let (pinned, staged) = (last(&pictures[0]), last(&pictures[1]));
            let far = pinned
                .iter()
                .zip(&staged)
                .map(|(a, b)| a.abs_diff(*b))
                .max();
            assert!(far <= Some(4), "{codec} {format}: paths differ by {far:?}");
            for (at, (y, u, v)) in bars.into_iter().enumerate() {
                // The middle of a bar, away from its edges.
                let (x, row) = (width * (2 * at + 1) / 10, height / 4);
                let chroma = width * height + row / 2 * (width / 2) + x / 2;
                let got = (
                    pinned[row * width + x],
                    pinned[chroma],
                    pinned[chroma + frame / 6],
                );
                let near = |a: u8, b: u8| a.abs_diff(b) <= 2;
                assert!(
                    near(got.0, y) && near(got.1, u) && near(got.2, v),
                    "{codec} {format} bar {at}: {got:?}"
                );
            }
            for x in (8..width - 8).step_by(16) {
                let grey = (x * 256 / width) as f64;
                let wanted = 16.0 + grey * 219.0 / 255.0;
                let got = f64::from(pinned[height * 3 / 4 * width + x]);
                assert!(
                    (got - wanted).abs() <= 2.0,
                    "{codec} {format} grey {grey}: {got}, not {wanted}"
                );
            }
        }
    }
}

#[test]
fn odd_sizes_are_coded_as_the_next_even_ones() {
    for size in [
        "--width 641 --height 361",
        "--width 640 --height 361",
        "--width 333 --height 222",
    ] {
        for format in 0..7 {
            let arguments = format!("--frames 3 --format {format} {size}");
            let _ = Emulator::new()
                .drive(&arguments, &[])
                .succeeded()
                .clean()
                .no_leak();
        }
    }
}

#[test]
fn an_independent_client_passes_the_emulator_and_its_output_decodes() {
    if !have("ffmpeg") {
        return;
    }
    for encoder in ["h264_nvenc", "hevc_nvenc"] {
        let emulator = Emulator::new();
        let file = emulator.path("out.mp4");
        let output = emulator
            .command(Path::new("ffmpeg"), "stats.json", &[])
            .args([
                "-v",
                "error",
                "-f",
                "lavfi",
                "-i",
                "testsrc2=size=640x360:rate=30:duration=1",
            ])
            .args(["-pix_fmt", "yuv420p", "-c:v", encoder])
            .arg(&file)
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        if words.contains("Unknown encoder") {
            eprintln!("not run: this ffmpeg was built without {encoder}");
            continue;
        }
        assert!(output.status.success(), "{words}");
        let stats = emulator.stats("stats.json").unwrap();
        let refused = stats["violations"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|v| v["class"] == "E");
        assert_eq!(refused.count(), 0, "{words}");
        assert_eq!(stats["pictures_in"], 30);
        assert!(!decode(&file).is_empty());
    }
}

/// A figure for the report, not a verdict: absolute times belong to the machine.
#[test]
fn cpu_time_of_our_own_is_told() {
    for (width, height) in [(1920, 1080), (3840, 2160)] {
        for path in ["", "--no-mapping"] {
            let arguments = format!("--bars --frames 300 --width {width} --height {height} {path}");
            let idle = [("IDLE", "1")];
            let outcome = Emulator::new()
                .drive(&arguments, &idle)
                .succeeded()
                .clean()
                .no_leak();
            let emulator = outcome.stats["own_cpu_us"].as_u64().unwrap();
            let ours = outcome.number("cpu_us").saturating_sub(emulator);
            println!(
                "{width}x{height}, {}: {} us CPU per frame beside {} us of the emulator's own work; fill {} us, encode {} us",
                if path.is_empty() { "pinned" } else { "staged" },
                ours / 300,
                emulator / 300,
                outcome.report["fill_us_median"],
                outcome.report["encode_us_median"],
            );
        }
    }
}

#[test]
fn gpu_info_says_what_is_there_and_what_would_be_chosen() {
    let program = Path::new(env!("CARGO_BIN_EXE_cvmmap_streamer"));
    let ask = |emulator: &Emulator, switches: &[(&str, &str)]| {
        let output = emulator
            .command(program, "stats.json", switches)
            .arg("gpu-info")
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let text = ask(&Emulator::new(), &[]);
    assert!(
        text.contains("GPU 0: Emulated Turing 0, GPU-e0e0e0e0-"),
        "{text}"
    );
    assert!(
        text.contains("h264 would be encoded by nvenc on GPU 0"),
        "{text}"
    );
    let text = ask(&Emulator::new(), &[("CAPS", "none")]);
    assert!(text.contains("h264 would be encoded by openh264 (software), since nvEncOpenEncodeSessionEx: UNSUPPORTED_DEVICE (2)"), "{text}");
    let text = ask(&Emulator::new().without("libcuda.so.1"), &[]);
    assert!(text.contains("no NVIDIA driver here"), "{text}");
    let text = ask(&Emulator::new(), &[("MAX_VERSION", "0x90")]);
    assert!(text.contains("driver too old"), "{text}");
}

/// The streamer itself, the producer of its own and the referees, all five rows by NVENC.
#[test]
fn the_five_acceptance_rows_pass_by_nvenc_without_violation_or_leak() {
    if !have("ffmpeg") {
        return;
    }
    let _alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    let emulator = Emulator::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let binaries = Path::new(env!("CARGO_BIN_EXE_cvmmap_streamer"))
        .parent()
        .unwrap();
    let evidence = tempfile::tempdir().unwrap();
    let _ = common::testkit("rtp_receiver_tester");
    let output = emulator
        .command(Path::new("bash"), "row-%p.json", &[])
        .arg(root.join("scripts/acceptance_standalone.sh"))
        .current_dir(root)
        .env_remove("RUST_LOG")
        .env("CVMMAP_BIN_DIR", binaries)
        .env("CVMMAP_ENCODER", "nvenc")
        .env("CVMMAP_EVIDENCE_DIR", evidence.path())
        .output()
        .unwrap();
    let text = common::text(&output);
    assert!(output.status.success(), "{text}");
    let last = text.lines().rfind(|line| line.starts_with("total="));
    assert_eq!(last, Some("total=5 pass=5 fail=0 skip=0"), "{text}");
    let rows = std::fs::read_dir(emulator.folder.path()).unwrap().flatten();
    let rows: Vec<_> = rows
        .filter_map(|entry| emulator.stats(entry.file_name().to_str()?))
        // ffmpeg and others of the script load no NVENC; a streamer that was refused neither.
        .filter(|stats| stats["sessions_opened"] != 0)
        .collect();
    assert_eq!(rows.len(), 5, "{text}");
    for stats in rows {
        assert_eq!(stats["violations"], Value::Array(vec![]));
        assert_eq!(stats["leaks"], Value::Array(vec![]));
        assert_eq!(stats["finished"], true);
        assert!(stats["pictures_in"].as_u64() >= Some(80));
        assert_eq!(stats["pictures_in"], stats["access_units_out"]);
        assert!(stats["uploads_pageable"] == 0 && stats["uploads_pinned"].as_u64() >= Some(80));
    }
}

/// The streamer with `--encoder nvenc`: no fallback, exit code 5.
#[test]
fn the_streamer_exits_5_when_nvenc_is_wanted_and_refused_and_falls_back_when_it_is_not() {
    let run = |emulator: &Emulator, encoder: &str, switches: &[(&str, &str)]| {
        let scene = common::Scene::new();
        let port = common::free_port_pair();
        let mut command = emulator.command(
            Path::new(env!("CARGO_BIN_EXE_cvmmap_streamer")),
            "stats.json",
            switches,
        );
        command
            .env_remove("RUST_LOG")
            .args(scene.names())
            .args("--input-mode dummy --dummy-frames 150 --dummy-width 320 --dummy-height 180 --no-nats".split(' '))
            .args("--queue-size 64 --codec h264 --rtp --encoder".split(' '))
            .args([encoder, "--rtp-endpoint", &format!("127.0.0.1:{port}")])
            .arg("--report-json")
            .arg(emulator.path("report.json"));
        common::finish(&mut command)
    };
    let emulator = Emulator::new();
    let output = run(&emulator, "nvenc", &[("OPEN_STATUS", "2")]);
    let text = common::expect_exit(&output, 5);
    assert!(text.contains("has no encoder"), "{text}");
    let output = run(&emulator, "nvenc", &[("ENCODE_STATUS", "20@17")]);
    let text = common::expect_exit(&output, 5);
    assert!(text.contains("nvEncEncodePicture"), "{text}");
    let output = run(&emulator, "auto", &[("OPEN_STATUS", "2")]);
    let text = common::expect_exit(&output, 0);
    assert!(
        text.contains("has no encoder") && text.contains("openh264"),
        "{text}"
    );
    for lost in [
        ("ENCODE_STATUS", "20@17"),
        ("DEVICE_LOST", "17"),
        ("HANG", "lock@17"),
    ] {
        let output = run(&emulator, "auto", &[lost]);
        let text = common::expect_exit(&output, 0);
        assert!(text.contains("using openh264"), "{lost:?}: {text}");
        let report = emulator.stats("report.json").unwrap();
        let units = report["encode"]["access_units"].as_u64();
        // A driver that hangs takes two seconds of five with it.
        assert!(units >= Some(60), "{lost:?}: {units:?} {text}");
        let stats = emulator.stats("stats.json").unwrap();
        assert_eq!(stats["violations"], Value::Array(vec![]), "{lost:?}");
    }
}
