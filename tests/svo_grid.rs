//! `zed_svo_grid_to_mp4` as a program: the frames and the clock are read back from its pictures.

#[path = "common/svo.rs"]
mod common;

use std::path::Path;
use std::process::Command;

use common::*;
use cvmmap_streamer::offline::overlay::{GLYPH_HEIGHT, GLYPH_WIDTH, MARGIN, glyph, scale_for};

const SEGMENT: &str = "2026-03-18T11-59-41";

fn grid(more: &[&str], output: &Path) -> Run {
    run(Command::new(env!("CARGO_BIN_EXE_zed_svo_grid_to_mp4"))
        .args([
            "--codec",
            "h264",
            "--encoder-device",
            "software",
            "--quality",
            "8",
            "--view",
            "left-raw",
        ])
        .args(["--output", output.to_str().unwrap()])
        .args(more))
}

/// The clock of a picture, each cell compared with the font; `?` for what is no character.
fn clock(luma: &[u8], width: usize, height: usize) -> String {
    let scale = scale_for(height);
    let cell = |n: usize, character: u8| {
        (0..GLYPH_HEIGHT).all(|row| {
            (0..GLYPH_WIDTH).all(|column| {
                let x = MARGIN + (n * GLYPH_WIDTH + column) * scale + scale / 2;
                let y = MARGIN + row * scale + scale / 2;
                let lit = glyph(character)[row] >> (7 - column) & 1 == 1;
                (luma[y * width + x] > 125) == lit
            })
        })
    };
    let read = |n| {
        b"0123456789."
            .iter()
            .find(|c| cell(n, **c))
            .map_or('?', |c| char::from(*c))
    };
    (0.."SSSSSSSSSS.mmm".len()).map(read).collect()
}

#[test]
fn every_tile_shows_the_frame_of_the_manifest_under_the_right_time() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("grid.mp4");
    let segment = fixture(SEGMENT);
    // Whole tiles: the bar code starts beside the clock only from the second camera on, so the
    // first one is read where the clock does not reach, in a run with larger tiles.
    let run = grid(
        &[
            "--segment-dir",
            segment.to_str().unwrap(),
            "--tile-scale",
            "1",
        ],
        &output,
    );
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(
        run.stdout
            .contains(": 39 frames, 1344 x 752, h264, software (openh264)"),
        "{}",
        run.stdout
    );
    if !has_ffmpeg() {
        return;
    }
    let manifest = manifest();
    let tiles = &manifest["segment"]["frame_index_per_tile"];
    let tiles: Vec<[u32; 4]> = serde_json::from_value(tiles.clone()).unwrap();
    let start = manifest["segment"]["common_start_ns"].as_u64().unwrap();
    let pictures = luma(&output, 1344, 752);
    assert_eq!(pictures.len(), tiles.len());
    for (k, (picture, expected)) in pictures.iter().zip(&tiles).enumerate() {
        // The clock's box covers the first camera's bar code from row 8 on: its upper half is free.
        let above = |x: usize| {
            let bit = |bit: usize| u32::from(picture[3 * 1344 + x + bit * 16 + 8] > 128);
            (0..16).fold(0, |number, at| number << 1 | bit(at))
        };
        let shown = [
            above(64),
            barcode(picture, 1344, (672 + 64, 0), 16),
            barcode(picture, 1344, (64, 376), 16),
            barcode(picture, 1344, (672 + 64, 376), 16),
        ];
        // Camera 3 was written without six frames; its bar code counts them.
        let numbers = numbers_of_camera_3();
        let expected = [
            expected[0],
            expected[1],
            numbers[expected[2] as usize],
            expected[3],
        ];
        assert_eq!(shown, expected, "output frame {k}");
        let time = start + (k as f64 * 1e9 / 30.0).round() as u64;
        let text = format!("{}.{:03}", time / 1_000_000_000, time / 1_000_000 % 1000);
        assert_eq!(clock(picture, 1344, 752), text, "output frame {k}");
    }
    let times: Vec<String> = (0..39).map(|k| (k * 3000).to_string()).collect();
    assert_eq!(probe(&output, "packet=pts"), times);
}

/// The bar codes of the third camera's own frames, read from its MP4.
fn numbers_of_camera_3() -> Vec<u32> {
    use std::sync::OnceLock;
    static NUMBERS: OnceLock<Vec<u32>> = OnceLock::new();
    let read = || {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("a.mp4");
        let input = fixture(&format!("{SEGMENT}/{SEGMENT}_zed3.svo2"));
        assert_eq!(
            convert(&input, &output, &["--view", "left-raw"]).code,
            Some(0)
        );
        luma(&output, 672, 376)
            .iter()
            .map(|p| barcode(p, 672, (64, 0), 16))
            .collect()
    };
    NUMBERS.get_or_init(read).clone()
}

#[test]
fn half_size_tiles_and_a_duration_by_four_inputs() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("grid.mp4");
    let inputs: Vec<String> = [2, 1, 4, 3]
        .iter()
        .map(|n| {
            fixture(&format!("{SEGMENT}/{SEGMENT}_zed{n}.svo2"))
                .display()
                .to_string()
        })
        .collect();
    let mut words: Vec<&str> = inputs.iter().flat_map(|path| ["--input", path]).collect();
    words.extend(["--duration-seconds", "0.5"]);
    let run = grid(&words, &output);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(
        run.stdout.contains(": 15 frames, 672 x 376, h264"),
        "{}",
        run.stdout
    );
    if has_ffmpeg() {
        let pictures = luma(&output, 672, 376);
        // Row-major in the order given: the third tile is camera 4.
        let tiles = &manifest()["segment"]["frame_index_per_tile"];
        for (k, picture) in pictures.iter().enumerate() {
            let shown = barcode(picture, 672, (32, 188), 8);
            assert_eq!(
                u64::from(shown),
                tiles[k][3].as_u64().unwrap(),
                "output frame {k}"
            );
        }
    }
}

#[test]
fn what_is_no_segment_is_a_usage_error_and_recordings_apart_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("grid.mp4");
    let run = grid(&["--segment-dir", dir.path().to_str().unwrap()], &output);
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    assert!(run.stderr.contains("found: none"), "{}", run.stderr);
    let (one, other) = (
        fixture(&format!("{SEGMENT}/{SEGMENT}_zed1.svo2")),
        fixture("h265_svga.svo2"),
    );
    let (one, other) = (one.to_str().unwrap(), other.to_str().unwrap());
    let run = grid(&["--input", one, "--input", other], &output);
    assert_eq!(run.code, Some(2), "{}", run.stderr);
    // The fourth camera ended 0.7 s before this cut one began.
    let apart = dir.path().join("late.svo2");
    let jpeg = fixture("jpeg_strips_vga.svo2");
    std::fs::copy(&jpeg, &apart).unwrap();
    let run = grid(
        &[
            "--input",
            one,
            "--input",
            one,
            "--input",
            one,
            "--input",
            apart.to_str().unwrap(),
        ],
        &output,
    );
    assert_eq!(run.code, Some(0), "they do overlap: {}", run.stderr);
    assert_eq!(
        grid(&["--segment-dir", "x", "--tile-scale", "0"], &output).code,
        Some(2)
    );
}
