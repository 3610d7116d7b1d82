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

/// The access units of the pattern, a key frame each six.
fn units() -> Vec<Vec<u8>> {
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
    let units: Vec<_> = starts
        .windows(2)
        .map(|w| stream[w[0]..w[1]].to_vec())
        .collect();
    assert_eq!(units.len(), FRAMES);
    units
}

fn recording() -> Vec<u8> {
    recording_of(&units())
}

fn recording_of(units: &[Vec<u8>]) -> Vec<u8> {
    let frames = units.iter().enumerate().map(|(n, unit)| {
        (
            1_773_806_381_000_000_000 + n as u64 * 33_333_333,
            &unit[..],
            n % 6 == 0,
        )
    });
    // A chunk for each, so that the checksum of one says which frame is bad.
    let options = SvoOptions {
        chunk_size: 1,
        ..SvoOptions::default()
    };
    write_svo(&options, frames)
}

/// Which frame of the pattern each picture shows: the one it differs least from.
fn frames_shown(output: &std::path::Path) -> Vec<usize> {
    let whole = pattern(&["-f", "rawvideo"]);
    let sources: Vec<_> = whole.chunks(2 * WIDTH * HEIGHT * 3 / 2).collect();
    assert_eq!(sources.len(), FRAMES);
    let distance = |picture: &[u8], source: &[u8]| -> u64 {
        let rows = picture.chunks(WIDTH).zip(source.chunks(2 * WIDTH));
        rows.flat_map(|(row, both)| row.iter().zip(both))
            .map(|(a, b)| u64::from(a.abs_diff(*b)))
            .sum()
    };
    let nearest = |picture: &Vec<u8>| {
        let all = sources.iter().map(|source| distance(picture, source));
        let (at, least) = all.enumerate().min_by_key(|(_, sum)| *sum).unwrap();
        let mean = least as f64 / (WIDTH * HEIGHT) as f64;
        assert!(mean < 2.0, "{mean:.2} levels off frame {at}");
        at
    };
    luma(output, WIDTH, HEIGHT).iter().map(nearest).collect()
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

    assert_eq!(frames_shown(&output), (0..FRAMES).collect::<Vec<_>>());
}

/// The process that decodes ends with what it has; the next key frame has one of its own. In front of that the
/// parameter sets are missing here, as some writers leave them out.
#[test]
fn damage_costs_a_lossless_recording_frames_up_to_its_next_key_frame() {
    if !has_ffmpeg() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.svo2"), dir.path().join("out.mp4"));
    let mut units = units();
    let whole = recording_of(&units);
    let sets: Vec<usize> = memchr::memmem::find_iter(&units[6], &[0, 0, 1, 0x67]).collect();
    assert_eq!(sets.len(), 1);
    let slice = memchr::memmem::find(&units[6], &[0, 0, 1, 0x65]).unwrap();
    units[6].drain(sets[0]..slice);
    for bytes in [whole, recording_of(&units)] {
        let mut flipped = bytes.clone();
        let at = memchr::memmem::find(&bytes, &units[2]).unwrap();
        flipped[at + units[2].len() / 2] ^= 0x10;
        std::fs::write(&input, &flipped).unwrap();
        let run = convert(&input, &output, &["--view", "left-raw"]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let said = run.stderr.contains("4 frames could not be read or decoded");
        assert!(said, "{}", run.stderr);
        let shown = frames_shown(&output);
        assert_eq!(shown, (0..2).chain(6..FRAMES).collect::<Vec<_>>());
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
