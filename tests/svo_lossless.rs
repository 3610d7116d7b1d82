//! Lossless H.264 (High 4:4:4 Predictive), which an `ffmpeg` process decodes.

#[path = "common/svo.rs"]
mod common;
#[path = "common/svo_writer.rs"]
mod svo_writer;

use std::process::Command;

use common::*;
use svo_writer::{SvoOptions, write_svo};

const WIDTH: usize = 672;
const HEIGHT: usize = 376;
const FRAMES: usize = 12;

/// Both eyes of the pattern, in the format that `more` asks for.
fn pattern(more: &[&str]) -> Vec<u8> {
    let source = format!(
        "testsrc2=size={}x{HEIGHT}:rate=30,format=yuv420p",
        2 * WIDTH
    );
    let output = Command::new("ffmpeg")
        .args(["-nostdin", "-v", "error", "-f", "lavfi", "-i", &source])
        .args(["-frames:v", &FRAMES.to_string()])
        .args(more)
        .arg("pipe:1")
        .output()
        .expect("ffmpeg is there");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    output.stdout
}

fn recording() -> Vec<u8> {
    let stream = pattern(
        &"-c:v libx264 -qp 0 -preset ultrafast -g 6 -bf 0 -x264-params aud=1 -f h264"
            .split(' ')
            .collect::<Vec<_>>(),
    );
    // profile_idc 244 is High 4:4:4 Predictive (H.264 A.2.7): lossless is no part of any other.
    let sps = stream.windows(5).find(|w| w[..4] == [0, 0, 1, 0x67]);
    assert_eq!(sps.map(|w| w[4]), Some(244));
    // An access unit begins with its delimiter (NAL unit type 9).
    let starts: Vec<usize> = stream
        .windows(5)
        .enumerate()
        .filter(|(_, w)| w[..4] == [0, 0, 0, 1] && w[4] & 31 == 9)
        .map(|(at, _)| at)
        .chain([stream.len()])
        .collect();
    let units: Vec<&[u8]> = starts.windows(2).map(|w| &stream[w[0]..w[1]]).collect();
    assert_eq!(units.len(), FRAMES);
    let frames = units.iter().enumerate().map(|(n, unit)| {
        (
            1_773_806_381_000_000_000 + n as u64 * 33_333_333,
            *unit,
            n % 6 == 0,
        )
    });
    write_svo(&SvoOptions::default(), frames)
}

#[test]
fn a_lossless_recording_becomes_an_mp4_of_its_left_pictures() {
    if !has_ffmpeg() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.svo2"), dir.path().join("out.mp4"));
    std::fs::write(&input, recording()).unwrap();
    let run = convert(&input, &output, &["--view", "left-raw"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(names(dir.path()), ["in.svo2", "out.mp4"]);

    let pictures = luma(&output, WIDTH, HEIGHT);
    let whole = pattern(&["-f", "rawvideo"]);
    let sources: Vec<_> = whole.chunks(2 * WIDTH * HEIGHT * 3 / 2).collect();
    assert_eq!((pictures.len(), sources.len()), (FRAMES, FRAMES));
    for (n, (picture, source)) in pictures.iter().zip(&sources).enumerate() {
        let rows = picture.chunks(WIDTH).zip(source.chunks(2 * WIDTH));
        let total: u64 = rows
            .flat_map(|(row, both)| row.iter().zip(both))
            .map(|(a, b)| u64::from(a.abs_diff(*b)))
            .sum();
        let mean = total as f64 / (WIDTH * HEIGHT) as f64;
        assert!(mean < 2.0, "frame {n}: {mean:.2} levels off its source");
    }
}

#[test]
fn without_ffmpeg_a_lossless_recording_is_refused_by_name() {
    if !has_ffmpeg() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.svo2"), dir.path().join("out.mp4"));
    std::fs::write(&input, recording()).unwrap();
    let run = run(single()
        .env("PATH", dir.path())
        .arg("--input")
        .arg(&input)
        .arg("--output")
        .arg(&output)
        .args(["--encoder-device", "software"]));
    assert_ne!(run.code, Some(0));
    assert!(
        run.stderr.contains("needs the program ffmpeg on PATH"),
        "{}",
        run.stderr
    );
    assert_eq!(names(dir.path()), ["in.svo2"]);
}
