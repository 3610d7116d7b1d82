//! Whatever a driver may answer when NVENC is opened: one line that says what was found and what would help, and software
//! in its place. On the emulator; none of this has met an encode engine.

#![cfg(feature = "nvenc")]

mod common;
#[path = "nvenc_support/drive.rs"]
mod drive;
mod nvenc_support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{LIMIT, Program, Scene, expect_exit, finish, free_port_pair};
use nvenc_support::Emulator;
use serde_json::Value;

/// Opens NVENC alone, and the encoder that falls back; both say `words`, the latter codes in software.
#[track_caller]
fn refused(switches: &[(&str, &str)], words: &str) {
    let outcome = Emulator::new()
        .drive("--frames 3", switches)
        .clean()
        .no_leak();
    let error = outcome.report["error"].as_str().unwrap().to_owned();
    assert!(error.contains(words), "{switches:?}: {error}");
    assert!(!error.contains('\n'), "{error}");
    let outcome = Emulator::new()
        .drive("--through auto --frames 3", switches)
        .succeeded()
        .clean()
        .no_leak();
    assert_eq!(outcome.report["opened"], "openh264", "{switches:?}");
    // One line: the reason, what helps, what is done.
    let parts = [words, "gpu-info", "using openh264 from here on"];
    let told = |line: &str| parts.iter().all(|part| line.contains(part));
    let lines = outcome.log.lines().filter(|line| told(line)).count();
    assert_eq!(lines, 1, "{switches:?}: {}", outcome.log);
    assert_eq!(outcome.keys(), [0], "{switches:?}");
}

/// Every status of `nvEncodeAPI.h` that is a refusal, and a number that it does not know, as the answer to the first
/// call of a session. Names and numbers are the header's.
#[test]
fn every_status_at_open_is_named_and_leads_to_software() {
    let rows: [(&str, &str); 24] = [
        ("1", "has no encoder"),
        ("2", "has no encoder"),
        ("3", "INVALID_ENCODERDEVICE (3)"),
        ("4", "INVALID_DEVICE (4)"),
        ("5", "DEVICE_NOT_EXIST (5)"),
        ("6", "INVALID_PTR (6)"),
        ("7", "INVALID_EVENT (7)"),
        ("8", "INVALID_PARAM (8)"),
        ("9", "INVALID_CALL (9)"),
        ("10", "all encoder sessions are in use"),
        ("11", "ENCODER_NOT_INITIALIZED (11)"),
        ("12", "UNSUPPORTED_PARAM (12)"),
        ("13", "LOCK_BUSY (13)"),
        ("14", "NOT_ENOUGH_BUFFER (14)"),
        ("15", "INVALID_VERSION (15)"),
        ("16", "MAP_FAILED (16)"),
        ("18", "ENCODER_BUSY (18)"),
        ("19", "EVENT_NOT_REGISTERD (19)"),
        ("20", "GENERIC (20)"),
        ("21", "all encoder sessions are in use"),
        ("22", "UNIMPLEMENTED (22)"),
        ("23", "RESOURCE_REGISTER_FAILED (23)"),
        ("26", "NEED_MORE_OUTPUT (26)"),
        ("4242", "UNKNOWN (4242)"),
    ];
    for (status, words) in rows {
        refused(&[("OPEN_STATUS", status)], words);
    }
}

#[test]
fn whatever_else_is_refused_at_open_says_what_would_help() {
    let rows: [(&[(&str, &str)], &str); 12] = [
        (
            &[("MAX_VERSION", "0xA0")],
            "driver too old: needs NVENC API 11.1 (driver 470.57.02 or newer), found 10.0",
        ),
        (
            &[("HIDE", "symbol:nvEncInitializeEncoder")],
            "function list has no nvEncInitializeEncoder",
        ),
        (&[("CAPS", "none")], "has no encoder"),
        (&[("DEVICES", "0")], "sees no GPU"),
        (
            &[("MIN", "700x400")],
            "this GPU codes 700x400 to 4096x4096, the picture is 640x360",
        ),
        // Asked again with less first.
        (&[("INIT_STATUS", "8")], "INVALID_PARAM (8)"),
        (&[("INIT_STATUS", "12")], "UNSUPPORTED_PARAM (12)"),
        (&[("INIT_STATUS", "10")], "all encoder sessions are in use"),
        (&[("INIT_STATUS", "15")], "INVALID_VERSION (15)"),
        (&[("INIT_STATUS", "20")], "GENERIC (20)"),
        (
            &[("REGISTER_STATUS", "23")],
            "RESOURCE_REGISTER_FAILED (23)",
        ),
        (&[("ALLOC_FAIL_AT", "0")], "CUDA_ERROR_OUT_OF_MEMORY (2)"),
    ];
    for (switches, words) in rows {
        // The header that this was built with decides the number in the first row.
        if words.contains("11.1") && nvenc_sys::API_VERSION.to_string() != "11.1" {
            eprintln!("row left out: built with header {}", nvenc_sys::API_VERSION);
            continue;
        }
        refused(switches, words);
    }
}

/// Mapping comes with the first picture: a fallback in mid-run, before anything was coded.
#[test]
fn an_input_that_cannot_be_mapped_leads_to_software_with_the_next_picture() {
    let outcome = Emulator::new().drive("--through auto --frames 3", &[("MAP_STATUS", "16")]);
    let outcome = outcome.succeeded().clean().no_leak();
    assert!(outcome.log.contains("MAP_FAILED (16)"), "{}", outcome.log);
    assert_eq!(outcome.report["opened"], "openh264");
    assert_eq!(outcome.keys(), [1]);
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

/// Libraries that are some other driver's, without what is called: named, and never called.
#[test]
fn a_library_without_its_functions_names_the_first_that_is_missing() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let stranger = maps
        .lines()
        .find_map(|line| {
            line.split_whitespace()
                .nth(5)
                .filter(|p| p.contains("libc.so"))
        })
        .expect("this program uses the C library");
    for (library, function) in [
        ("libcuda.so.1", "cuInit"),
        ("libnvidia-encode.so.1", "NvEncodeAPI"),
    ] {
        let emulator = Emulator::new().without(library);
        std::os::unix::fs::symlink(stranger, emulator.path(library)).unwrap();
        let outcome = emulator.drive("--through auto --frames 1", &[]).succeeded();
        assert_eq!(outcome.report["opened"], "openh264");
        let line = outcome.log.lines().find(|line| line.contains(function));
        assert!(
            line.is_some_and(|line| line.contains(library) && line.contains("using openh264")),
            "{}",
            outcome.log
        );
    }
}

/// A streamer that is its own producer, of so many frames; 0: endless.
fn streamer(
    emulator: &Emulator,
    scene: &Scene,
    name: &str,
    encoder: &str,
    frames: &str,
) -> Command {
    // Counted over all processes, as that of consumer GPUs is.
    let limit = [("SESSIONS", "1")];
    let program = Path::new(env!("CARGO_BIN_EXE_cvmmap_streamer"));
    let mut command = emulator.command(program, &format!("{name}.json"), &limit);
    command
        .args(scene.names())
        .args("--input-mode dummy --dummy-width 320 --dummy-height 180 --no-nats".split(' '))
        .args(["--dummy-frames", frames, "--codec", "h264"])
        .args(["--encoder", encoder, "--rtp", "--rtp-endpoint"])
        .arg(format!("127.0.0.1:{}", free_port_pair()))
        .arg("--report-json")
        .arg(scene.path("report.json"));
    command
}

#[test]
fn streamers_beyond_the_session_limit_code_in_software_or_exit_5_and_the_first_one_goes_on() {
    let emulator = Emulator::new();
    let [first, second, third] = [Scene::new(), Scene::new(), Scene::new()];
    let mut running = Program::start(
        streamer(&emulator, &first, "first", "nvenc", "0")
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    );
    let end = Instant::now() + LIMIT;
    let taken = || {
        let stats = emulator.stats("first.json");
        stats.is_some_and(|stats| stats["sessions_open"] == 1)
    };
    while !taken() {
        assert!(Instant::now() < end, "the first one does not open");
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = finish(&mut streamer(&emulator, &second, "second", "auto", "10"));
    let text = expect_exit(&output, 0);
    let words = "all encoder sessions are in use (other programs count too)";
    assert!(text.contains(words), "{text}");
    assert!(text.contains("using openh264 from here on"), "{text}");
    let output = finish(&mut streamer(&emulator, &third, "third", "nvenc", "10"));
    let text = expect_exit(&output, 5);
    assert!(text.contains(words), "{text}");
    for name in ["second.json", "third.json"] {
        let stats = emulator.stats(name).unwrap();
        assert_eq!(stats["violations"], Value::Array(vec![]), "{name}");
        assert_eq!(stats["leaks"], Value::Array(vec![]), "{name}");
        assert_eq!(stats["sessions_opened"], 0, "{name}");
    }
    assert!(running.try_wait().unwrap().is_none(), "the first one ended");
}
