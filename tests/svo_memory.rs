//! Peak memory of the recording tools does not grow with the length of a recording.

#[path = "common/svo.rs"]
mod common;
#[path = "common/svo_writer.rs"]
mod svo_writer;

use std::path::Path;
use std::process::Command;

use common::*;
use svo_writer::{SvoOptions, write_svo};

/// The pictures of a fixture over and over, `frames` of them.
fn recording(path: &Path, fixture: &str, frames: usize) {
    let pictures = payloads(fixture);
    let listed = (0..frames).map(|n| {
        let time = 1_773_806_381_000_000_000 + n as u64 * 33_333_333;
        let payload = &pictures[n % pictures.len()];
        (time, &payload[..], n.is_multiple_of(12))
    });
    std::fs::write(path, write_svo(&SvoOptions::default(), listed)).unwrap();
}

/// Runs a program to its end; the most memory that it had, in KiB.
#[track_caller]
fn peak(command: &mut Command) -> u64 {
    let mut child = Program::start(command);
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    let ended = loop {
        // `VmHWM` is the peak up to now: the last look before the end has it.
        if let Some(peak) = std::fs::read_to_string(&status).ok().and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("VmHWM:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        }) {
            most = peak;
        }
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    assert!(ended.success(), "{command:?}");
    most
}

/// 1,200 frames and 120: what is kept of each is its place in the index and in the tables of the MP4, under 100 bytes
/// together. The limit is that of 14 KiB for each, far below what a picture or an access unit takes, and above what
/// allocators and encoders do of themselves (2 to 5 MiB were seen).
#[test]
fn a_recording_of_ten_times_the_length_takes_no_more_memory() {
    let dir = tempfile::tempdir().unwrap();
    let of = |frames: usize| {
        let input = dir.path().join(format!("{frames}.svo2"));
        recording(
            &input,
            "2026-03-18T11-59-41/2026-03-18T11-59-41_zed1.svo2",
            frames,
        );
        let output = dir.path().join("out.mp4");
        let peak = peak(
            single()
                .arg("--input")
                .arg(&input)
                .arg("--output")
                .arg(&output)
                .args("--codec h264 --encoder-device software --preset fastest".split(' '))
                .args("--view left-raw --progress never".split(' ')),
        );
        if has_ffmpeg() {
            assert_eq!(probe(&output, "packet=pts").len(), frames);
        }
        peak
    };
    let (short, long) = (of(120), of(1200));
    eprintln!("peak {short} KiB with 120 frames, {long} KiB with 1200");
    assert!(short > 8 << 10, "{short} KiB are not those of a conversion");
    assert!(long < short + (14 * 1080), "{short} KiB, then {long} KiB");
}
