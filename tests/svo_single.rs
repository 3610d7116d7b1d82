//! `zed_svo_to_mp4` as a program: what it writes, what it says, how it ends and what memory it takes.

#[path = "common/svo.rs"]
mod common;
#[path = "common/svo_writer.rs"]
mod svo_writer;

use std::path::Path;
use std::process::{Command, Stdio};

use common::*;
use svo_writer::{SvoOptions, write_svo};

#[test]
fn each_kind_of_recording_becomes_an_mp4_with_its_frames() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("a.mp4");
    // Name, size of an eye, first frame that is clean, number in its bar code less its index.
    for (name, width, height, frames, clean, offset) in [
        ("h265_svga.svo2", 960, 600, 24, 0, 0),
        ("h264_svga.svo2", 960, 600, 24, 0, 0),
        // Its first picture cannot be decoded by anyone without the ones before it.
        ("h264_intra_refresh_no_idr.svo2", 672, 376, 59, 34, 5),
        ("h265_mid_gop_start.svo2", 672, 376, 30, 7, 5),
        ("jpeg_strips_vga.svo2", 672, 376, 2, 0, 0),
    ] {
        let run = convert(&fixture(name), &output, &["--view", "left-raw"]);
        assert_eq!(run.code, Some(0), "{name}: {}", run.stderr);
        let start = format!(
            "{}: {frames} frames, {width} x {height}, h264, software (",
            output.display()
        );
        assert!(run.stdout.starts_with(&start), "{}", run.stdout);
        assert_eq!(names(dir.path()), ["a.mp4"]);
        if !has_ffmpeg() {
            continue;
        }
        // Every frame without a warning, the first one at once.
        let times = probe(&output, "frame=pts");
        assert_eq!((times.len(), times[0].as_str()), (frames, "0"), "{name}");
        let colours = match name.starts_with("jpeg") {
            true => "smpte170m",
            false => "bt709",
        };
        let stream = "stream=codec_tag_string,color_range,color_space,start_pts";
        assert_eq!(
            probe(&output, stream),
            [format!("avc1,tv,{colours},0")],
            "{name}"
        );
        let pictures = luma(&output, width, height);
        assert_eq!(pictures.len(), frames, "{name}");
        let total = if name.contains("no_idr") { 60 } else { frames };
        for index in clean..total {
            let picture = &pictures[index + frames - total];
            assert_eq!(
                barcode(picture, width, (64, 0), 16) as usize,
                index + offset,
                "{name}"
            );
        }
    }
}

#[test]
fn the_mp4_has_the_recordings_times_its_tag_and_its_colours() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("a.mp4");
    // The third camera lacks six frames: a gap that the times must show.
    let input = fixture("2026-03-18T11-59-41/2026-03-18T11-59-41_zed3.svo2");
    let run = convert(&input, &output, &["--view", "left-raw"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    if !has_ffmpeg() {
        return;
    }
    let times =
        &manifest()["files"]["2026-03-18T11-59-41/2026-03-18T11-59-41_zed3.svo2"]["timestamps_ns"];
    let times: Vec<u64> = serde_json::from_value(times.clone()).unwrap();
    let expected: Vec<String> = times
        .iter()
        .map(|time| (((time - times[0]) as f64 * 90_000.0 / 1e9).round() as u64).to_string())
        .collect();
    assert_eq!(probe(&output, "packet=pts"), expected);
    assert_eq!(
        probe(
            &output,
            "stream=codec_tag_string,color_range,color_space,start_pts"
        ),
        ["avc1,tv,bt709,0"]
    );

    let run = convert(
        &input,
        &output,
        &["--timing", "constant", "--view", "left-raw"],
    );
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let expected: Vec<String> = (0..times.len()).map(|n| (n * 3000).to_string()).collect();
    assert_eq!(probe(&output, "packet=pts"), expected);
}

#[cfg(feature = "x265")]
#[test]
fn h265_is_tagged_hvc1_plays_from_the_first_frame_and_seeks() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("a.mp4");
    for b_frames in ["0", "2"] {
        let run = run(single()
            .arg("--input")
            .arg(fixture("h265_mid_gop_start.svo2"))
            .arg("--output")
            .arg(&output)
            .args([
                "--encoder-device",
                "software",
                "--preset",
                "fast",
                "--gop",
                "10",
            ])
            .args([
                "--b-frames",
                b_frames,
                "--start-frame",
                "7",
                "--view",
                "left-raw",
            ]));
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert!(
            run.stdout
                .contains("23 frames, 672 x 376, h265, software (x265)"),
            "{}",
            run.stdout
        );
        if !has_ffmpeg() {
            return;
        }
        assert_eq!(
            probe(&output, "stream=codec_tag_string,nb_frames"),
            ["hvc1,23"]
        );
        // Every frame, no warning; the times of those shown are even.
        let mut shown: Vec<u64> = probe(&output, "frame=pts")
            .iter()
            .map(|pts| pts.parse().unwrap())
            .collect();
        assert_eq!(shown.len(), 23);
        assert!(shown.is_sorted());
        assert_eq!((shown.remove(0), shown.remove(0)), (0, 3000));
        let keys = probe(&output, "packet=flags");
        let keys: Vec<_> = keys
            .iter()
            .enumerate()
            .filter(|(_, f)| f.contains('K'))
            .map(|(n, _)| n)
            .collect();
        assert_eq!(keys, [0, 10, 20]);
        // 0.34 s is behind frame 10 at 0.333: the next is 11, frame 18 of the recording.
        assert_eq!(barcode(&sought(&output, "0.34"), 672, (64, 0), 16), 18 + 5);
    }
}

#[test]
fn h264_plays_from_the_first_frame_and_seeks() {
    if !has_ffmpeg() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("a.mp4");
    let more = ["--gop", "10", "--view", "left-raw"];
    let run = convert(&fixture("h265_svga.svo2"), &output, &more);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let flags = probe(&output, "packet=flags").into_iter().enumerate();
    let keys: Vec<_> = flags
        .filter(|(_, flags)| flags.contains('K'))
        .map(|(at, _)| at)
        .collect();
    assert_eq!(keys, [0, 10, 20]);
    let frames = probe(&output, "frame=pts");
    assert_eq!((frames.len(), frames[0].as_str()), (24, "0"));
    // In front of, on and behind key frames 10 and 20, which are shown at 0.333 and 0.667 s.
    for (seconds, frame) in [
        ("0", 0),
        ("0.30", 9),
        ("0.32", 10),
        ("0.40", 12),
        ("0.75", 23),
    ] {
        let picture = sought(&output, seconds);
        assert_eq!(barcode(&picture, 960, (64, 0), 16), frame, "{seconds} s");
    }
}

#[test]
fn start_and_end_frame_are_exact_and_the_end_is_included() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("a.mp4");
    for name in ["h265_svga.svo2", "h264_svga.svo2"] {
        let input = fixture(name);
        let run = convert(
            &input,
            &output,
            &[
                "--start-frame",
                "5",
                "--end-frame",
                "14",
                "--view",
                "right-raw",
            ],
        );
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert!(run.stdout.contains(": 10 frames"), "{}", run.stdout);
        if has_ffmpeg() {
            let pictures = luma(&output, 960, 600);
            let shown: Vec<_> = pictures
                .iter()
                .map(|p| barcode(p, 960, (64, 0), 16))
                .collect();
            assert_eq!(shown, (5..15).collect::<Vec<_>>());
        }
        let run = convert(
            &input,
            &output,
            &[
                "--start-frame",
                "20",
                "--end-frame",
                "99",
                "--view",
                "left-raw",
            ],
        );
        assert_eq!(run.code, Some(0));
        assert!(run.stdout.contains(": 4 frames"), "{}", run.stdout);
        assert!(
            run.stderr
                .contains("--end-frame 99 is past the end; taken as 23"),
            "{}",
            run.stderr
        );
        for bad in [
            ["--start-frame", "24", "--end-frame", "30"],
            ["--start-frame", "9", "--end-frame", "8"],
        ] {
            assert_eq!(convert(&input, &output, &bad).code, Some(2));
        }
    }
}

/// The rectified view is compared with a remap of the raw picture done here, pixel by pixel,
/// with the golden map points of the fixture.
#[test]
fn the_left_view_is_rectified_where_a_calibration_is_found() {
    if !has_ffmpeg() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (raw, rectified) = (dir.path().join("raw.mp4"), dir.path().join("rectified.mp4"));
    let input = fixture("h265_svga.svo2");
    let folder = fixture("calib");
    let calibration = ["--calibration", folder.to_str().unwrap()];
    assert_eq!(
        convert(&input, &raw, &["--view", "left-raw", "--end-frame", "0"]).code,
        Some(0)
    );
    let run = convert(
        &input,
        &rectified,
        &[&calibration[..], &["--end-frame", "0"]].concat(),
    );
    assert_eq!(
        (run.code, run.stderr.contains("warning")),
        (Some(0), false),
        "{}",
        run.stderr
    );
    let (raw, rectified) = (&luma(&raw, 960, 600)[0], &luma(&rectified, 960, 600)[0]);
    let golden = std::fs::read(fixture("calib/rectify_golden.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
    let mut compared = 0;
    for point in golden["cases"][0]["map"].as_array().unwrap() {
        let number = |key: &str| point[key].as_f64().unwrap();
        let (u, v) = (number("u") as usize, number("v") as usize);
        let (x, y) = (number("src_x"), number("src_y"));
        let at = |x: f64, y: f64| f64::from(raw[y as usize * 960 + x as usize]);
        if !(2.0..957.0).contains(&x) || !(2.0..597.0).contains(&y) {
            continue;
        }
        let around = [
            at(x, y),
            at(x + 1.0, y),
            at(x, y + 1.0),
            at(x + 1.0, y + 1.0),
        ];
        let (low, high) = around
            .iter()
            .fold((255.0_f64, 0.0_f64), |(l, h), p| (l.min(*p), h.max(*p)));
        let shown = f64::from(rectified[v * 960 + u]);
        // Both were coded; on smooth ground they agree within the coding noise.
        assert!(
            shown >= low - 6.0 && shown <= high + 6.0,
            "({u}, {v}): {shown} of {around:?}"
        );
        compared += 1;
    }
    assert!(compared > 15, "{compared} points");
    let shifted = (0..960 * 600)
        .filter(|at| raw[*at].abs_diff(rectified[*at]) > 20)
        .count();
    assert!(shifted > 1000, "the two views are the same");

    let other = fixture("h265_mid_gop_start.svo2");
    let output = dir.path().join("a.mp4");
    let run = convert(&other, &output, &["--end-frame", "0"]);
    assert_eq!(run.code, Some(0));
    assert!(
        run.stderr.contains("SN40735598.conf") && run.stderr.contains("not rectified"),
        "{}",
        run.stderr
    );
    let run = convert(&other, &output, &["--view", "left-rectified"]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
}

#[test]
fn the_colours_of_jpeg_strips_are_those_of_sd_video() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("a.mp4");
    for codec in ["h264", "h265"] {
        if codec == "h265" && !cfg!(feature = "x265") {
            eprintln!("NOT CHECKED: h265, the feature x265 is off");
            continue;
        }
        let run = run(single()
            .arg("--input")
            .arg(fixture("jpeg_strips_vga.svo2"))
            .arg("--output")
            .arg(&output)
            .args([
                "--codec",
                codec,
                "--encoder-device",
                "software",
                "--preset",
                "fast",
            ]));
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        if has_ffmpeg() {
            let entries = "stream=color_range,color_space,color_transfer,color_primaries";
            assert_eq!(
                probe(&output, entries),
                ["tv,smpte170m,smpte170m,smpte170m"],
                "{codec}"
            );
        }
    }
}

#[test]
fn an_encoder_that_is_not_there_is_exit_code_5() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.mp4");
    let run = run(single()
        .arg("--input")
        .arg(fixture("h264_svga.svo2"))
        .arg("--output")
        .arg(&output)
        .args(["--codec", "h264", "--encoder-device", "nvidia"])
        .env("CUDA_VISIBLE_DEVICES", ""));
    assert_eq!(run.code, Some(5), "{}", run.stderr);
    assert!(names(dir.path()).is_empty());
}

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

#[test]
fn ctrl_c_leaves_a_playable_partial_file_and_a_second_tool_is_refused_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("long.svo2");
    recording(&input, "h264_svga.svo2", 2400);
    let output = dir.path().join("long.mp4");
    let mut child = Program::start(
        single()
            .arg("--input")
            .arg(&input)
            .args("--codec h264 --encoder-device software --progress always".split(' '))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    let mut bar = Bar::of(&mut child);
    bar.wait_past(20);
    let second = convert(&fixture("h264_svga.svo2"), &output, &[]);
    assert_eq!(second.code, Some(1), "{}", second.stderr);
    assert!(
        second.stderr.contains("another process is writing it"),
        "{}",
        second.stderr
    );

    interrupt(&child);
    let output: Run = finish_child(child).into();
    let shown = bar.all();
    assert_eq!(output.code, Some(130), "{shown}");
    assert_eq!(names(dir.path()), ["long.partial.mp4", "long.svo2"]);
    assert!(
        shown.contains("long.svo2:   ") && shown.contains("frame/s]"),
        "{shown}"
    );
    if has_ffmpeg() {
        let frames = probe(&dir.path().join("long.partial.mp4"), "frame=pts").len();
        assert!(frames > 20 && frames < 2400, "{frames}");
        assert!(
            output
                .stdout
                .contains(&format!("long.partial.mp4: {frames} frames")),
            "{}",
            output.stdout
        );
    }
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
