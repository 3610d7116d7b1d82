//! The recording tools with NVENC on the emulator: whole files by it, and whole files without it where it breaks.

#![cfg(all(feature = "nvenc", feature = "x265"))]

#[path = "common/svo.rs"]
mod common;
mod nvenc_support;

use std::path::Path;

use common::*;
use nvenc_support::Emulator;
use serde_json::Value;

const SINGLE: &str = env!("CARGO_BIN_EXE_zed_svo_to_mp4");
const GRID: &str = env!("CARGO_BIN_EXE_zed_svo_grid_to_mp4");
const SEGMENT: &str = "2026-03-18T11-59-41";

/// 24 frames of the fixture, read back by their bar codes.
fn convert_with(
    emulator: &Emulator,
    switches: &[(&str, &str)],
    codec: &str,
    device: &str,
    output: &Path,
) -> Run {
    run(emulator
        .command(Path::new(SINGLE), "stats.json", switches)
        .env_remove("RUST_LOG")
        .arg("--input")
        .arg(fixture("h265_svga.svo2"))
        .arg("--output")
        .arg(output)
        .args(["--codec", codec, "--encoder-device", device])
        .args("--view left-raw --quality 12 --preset fastest --progress never".split(' ')))
}

#[track_caller]
fn has_all_frames(output: &Path, tag: &str) {
    if !has_ffmpeg() {
        return;
    }
    let stream = "stream=codec_tag_string,color_range,color_space,start_pts,nb_frames";
    assert_eq!(probe(output, stream), [format!("{tag},tv,bt709,0,24")]);
    assert_eq!(probe(output, "frame=pts").len(), 24);
    let shown: Vec<u32> = luma(output, 960, 600)
        .iter()
        .map(|picture| barcode(picture, 960, (64, 0), 16))
        .collect();
    assert_eq!(shown, (0..24).collect::<Vec<_>>());
}

#[track_caller]
fn is_clean(emulator: &Emulator) -> Value {
    let stats = emulator.stats("stats.json").expect("the emulator was used");
    assert_eq!(stats["violations"], Value::Array(vec![]));
    assert_eq!(stats["leaks"], Value::Array(vec![]));
    stats
}

#[test]
fn both_codecs_are_whole_by_nvenc() {
    for (codec, tag) in [("h264", "avc1"), ("h265", "hvc1")] {
        let (emulator, dir) = (Emulator::new(), tempfile::tempdir().unwrap());
        let output = dir.path().join("a.mp4");
        let run = convert_with(&emulator, &[], codec, "nvidia", &output);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let said = format!("24 frames, 960 x 600, {codec}, nvidia (nvenc), ");
        assert!(run.stdout.contains(&said), "{}", run.stdout);
        let stats = is_clean(&emulator);
        assert_eq!(stats["pictures_in"], 24);
        assert_eq!(stats["access_units_out"], 24);
        has_all_frames(&output, tag);
        assert_eq!(names(dir.path()), ["a.mp4"]);
    }
}

/// Whatever breaks, and wherever: with `auto` the file is whole and made in software, with `nvidia` there is none.
#[test]
fn a_driver_that_breaks_costs_no_frame() {
    let faults = [
        // A fatal status at picture 7, and at the last one.
        ("h264", "ENCODE_STATUS", "20@7"),
        ("h265", "ENCODE_STATUS", "20@23"),
        ("h264", "DEVICE_LOST", "5"),
        // Pictures go in and nothing comes out, which shows at the end only.
        ("h264", "SILENT", "zero"),
        ("h264", "HANG", "lock@9"),
        // Every copy takes longer than any should.
        ("h264", "COPY_DELAY_US", "400000"),
    ];
    for (codec, switch, value) in faults {
        let (emulator, dir) = (Emulator::new(), tempfile::tempdir().unwrap());
        let output = dir.path().join("a.mp4");
        let run = convert_with(&emulator, &[(switch, value)], codec, "auto", &output);
        assert_eq!(run.code, Some(0), "{switch}={value}: {}", run.stderr);
        let said = format!("24 frames, 960 x 600, {codec}, software (");
        assert!(
            run.stdout.contains(&said),
            "{switch}={value}: {}{}",
            run.stdout,
            run.stderr
        );
        let said = run.stderr.contains("starting again in software");
        assert!(said, "{switch}={value}: {}", run.stderr);
        has_all_frames(&output, if codec == "h264" { "avc1" } else { "hvc1" });
        assert_eq!(names(dir.path()), ["a.mp4"], "{switch}={value}");

        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("a.mp4");
        let run = convert_with(&emulator, &[(switch, value)], codec, "nvidia", &output);
        assert_eq!(run.code, Some(1), "{switch}={value}: {}", run.stderr);
        let said = run.stderr.contains("the encoder broke after ");
        assert!(said, "{switch}={value}: {}", run.stderr);
        assert!(names(dir.path()).is_empty(), "{switch}={value}");
    }
}

#[test]
fn what_cannot_be_opened_is_software_or_exit_code_5() {
    let (emulator, dir) = (Emulator::new(), tempfile::tempdir().unwrap());
    let output = dir.path().join("a.mp4");
    let refused = [("OPEN_STATUS", "2")];
    let run = convert_with(&emulator, &refused, "h264", "nvidia", &output);
    assert_eq!(run.code, Some(5), "{}", run.stderr);
    assert!(names(dir.path()).is_empty());
    let run = convert_with(&emulator, &refused, "h264", "auto", &output);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stdout.contains("software (openh264)"), "{}", run.stdout);
}

#[test]
fn a_grid_is_whole_by_nvenc_and_without_it() {
    let manifest = manifest();
    let tiles = &manifest["segment"]["frame_index_per_tile"];
    for (switches, device, maker) in [
        (&[][..], "nvidia", "nvidia (nvenc)"),
        (
            &[("ENCODE_STATUS", "20@11")][..],
            "auto",
            "software (openh264)",
        ),
        (
            &[("COPY_DELAY_US", "400000")][..],
            "auto",
            "software (openh264)",
        ),
    ] {
        let (emulator, dir) = (Emulator::new(), tempfile::tempdir().unwrap());
        let output = dir.path().join("grid.mp4");
        let run = run(emulator
            .command(Path::new(GRID), "stats.json", switches)
            .env_remove("RUST_LOG")
            .arg("--segment-dir")
            .arg(fixture(SEGMENT))
            .arg("--output")
            .arg(&output)
            .args(["--codec", "h264", "--encoder-device", device])
            .args("--view left-raw --quality 8 --tile-scale 1 --progress never".split(' ')));
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let said = format!("39 frames, 1344 x 752, h264, {maker}, ");
        assert!(run.stdout.contains(&said), "{}{}", run.stdout, run.stderr);
        if device == "nvidia" {
            is_clean(&emulator);
        }
        if has_ffmpeg() {
            let pictures = luma(&output, 1344, 752);
            assert_eq!(pictures.len(), 39);
            for (k, picture) in pictures.iter().enumerate() {
                let shown = [(672 + 64, 0), (672 + 64, 376)];
                let shown = shown.map(|at| u64::from(barcode(picture, 1344, at, 16)));
                let expected = [1, 3].map(|camera| tiles[k][camera].as_u64().unwrap());
                assert_eq!(shown, expected, "output frame {k}");
            }
            assert_eq!(
                probe(&output, "stream=codec_tag_string,nb_frames"),
                ["avc1,39"]
            );
        }
        assert_eq!(names(dir.path()), ["grid.mp4"]);
    }
}
