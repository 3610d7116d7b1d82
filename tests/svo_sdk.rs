//! The SDK backend with an imitation of the SDK's C wrapper, which is built here and checks every
//! structure that it is handed.

#[path = "common/svo.rs"]
mod common;

use std::path::Path;
use std::process::Command;

use common::*;

/// A folder with the imitation as `libsl_zed_c.so`; `None`, and a line, without a C compiler.
fn sdk(more: &[&str]) -> Option<tempfile::TempDir> {
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fake_sl_zed_c.c");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(dir.path().join("libsl_zed_c.so"))
        .args(more)
        .arg(source)
        .output();
    match built {
        Ok(output) => {
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            Some(dir)
        }
        Err(error) => {
            eprintln!("NOT CHECKED: no C compiler: {error}");
            None
        }
    }
}

fn with_sdk(sdk: &Path, input: &Path, output: &Path, more: &[&str]) -> Run {
    run(single()
        .env("LD_LIBRARY_PATH", sdk)
        .arg("--input")
        .arg(input)
        .arg("--output")
        .arg(output)
        .args([
            "--codec",
            "h264",
            "--encoder-device",
            "software",
            "--quality",
            "10",
        ])
        .args(more))
}

#[test]
fn a_recording_of_version_1_is_read_through_either_generation_of_the_sdk() {
    let older = ["-DOLDER", "-DVERSION=\"4.2.5\""];
    for flags in [&[][..], &older[..]] {
        let Some(sdk) = sdk(flags) else { return };
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("a.mp4");
        let run = with_sdk(
            sdk.path(),
            &fixture("svo1_head.svo"),
            &output,
            &["--start-frame", "2"],
        );
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert!(
            run.stdout.contains(": 10 frames, 672 x 376"),
            "{}",
            run.stdout
        );
        if has_ffmpeg() {
            let pictures = luma(&output, 672, 376);
            let shown: Vec<_> = pictures
                .iter()
                .map(|p| barcode(p, 672, (64, 0), 16))
                .collect();
            assert_eq!(shown, (2..12).collect::<Vec<_>>());
            // Pure red is luma 63 in BT.709 limited range.
            assert!(
                pictures[0][200 * 672 + 300].abs_diff(63) < 4,
                "{}",
                pictures[0][200 * 672 + 300]
            );
            let times: Vec<String> = (0..10).map(|n| (n * 3600).to_string()).collect();
            assert_eq!(probe(&output, "packet=pts"), times);
        }
    }
}

#[test]
fn the_backend_can_be_asked_for_and_gives_single_eyes_only() {
    let Some(sdk) = sdk(&[]) else { return };
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("a.mp4");
    let input = fixture("h264_svga.svo2");
    let run = with_sdk(
        sdk.path(),
        &input,
        &output,
        &["--backend", "sdk", "--view", "right", "--end-frame", "0"],
    );
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    if has_ffmpeg() {
        assert_eq!(barcode(&luma(&output, 672, 376)[0], 672, (64, 0), 16), 100);
    }
    let raw = with_sdk(
        sdk.path(),
        &input,
        &output,
        &["--backend", "sdk", "--view", "left-raw"],
    );
    assert_eq!(raw.code, Some(2), "{}", raw.stderr);
    // Left to itself it reads version 2 on its own.
    let own = with_sdk(
        sdk.path(),
        &input,
        &output,
        &["--view", "left-raw", "--end-frame", "0"],
    );
    assert!(own.stdout.contains("960 x 600"), "{}", own.stdout);
}

#[test]
fn what_the_sdk_refuses_is_said_in_words() {
    let Some(sdk) = sdk(&[]) else { return };
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("broken.svo", "not a recording that it can read"),
        ("nogpu.svo", "no NVIDIA GPU"),
    ] {
        let input = dir.path().join(name);
        std::fs::copy(fixture("svo1_head.svo"), &input).unwrap();
        let output = dir.path().join("a.mp4");
        let run = with_sdk(sdk.path(), &input, &output, &[]);
        assert_eq!(run.code, Some(1), "{}", run.stderr);
        assert!(run.stderr.contains(text), "{}", run.stderr);
        assert!(!output.exists());
    }
    let absent = with_sdk(
        Path::new("/nonexistent"),
        &fixture("svo1_head.svo"),
        &dir.path().join("a.mp4"),
        &[],
    );
    assert_eq!(absent.code, Some(1));
    assert!(absent.stderr.contains("can only be read with the ZED SDK (libsl_zed_c.so was not found). Install the SDK and use --backend sdk."), "{}", absent.stderr);
}

#[test]
fn a_library_without_a_function_is_refused_with_its_name() {
    let Some(sdk) = sdk(&["-Dsl_grab=sl_grab_renamed"]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let run = with_sdk(
        sdk.path(),
        &fixture("svo1_head.svo"),
        &dir.path().join("a.mp4"),
        &[],
    );
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("it has no sl_grab"), "{}", run.stderr);
}
