//! What NVENC on the emulator shows: colours on both upload paths, odd sizes, and an independent client of the same
//! emulator. None of this has met an encode engine.

#![cfg(feature = "nvenc")]

#[path = "nvenc_support/drive.rs"]
mod drive;
mod nvenc_support;

use std::path::Path;
use std::process::Command;

use nvenc_support::{Emulator, have};

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

#[test]
fn bars_and_greys_decode_to_bt_709_and_as_software_does_in_every_format() {
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
            for path in ["", "--no-mapping", "--through software"] {
                let emulator = Emulator::new();
                let file = emulator.path("out.bin");
                let arguments = format!(
                    "--bars --frames 3 --bitrate 8000000 --codec {codec} --format {format} {path} --out {}",
                    file.display()
                );
                let outcome = emulator.drive(&arguments, &[]).succeeded();
                // Software asks no driver for anything.
                if !path.contains("software") {
                    let _ = outcome.clean();
                }
                pictures.push(decode(&file));
            }
            let frame = width * height * 3 / 2;
            assert_eq!(pictures[0].len(), 3 * frame);
            let last = |picture: &[u8]| picture[2 * frame..].to_vec();
            let (pinned, staged) = (last(&pictures[0]), last(&pictures[1]));
            let software = last(&pictures[2]);
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
                let samples = |picture: &[u8]| {
                    let (u, v) = (picture[chroma], picture[chroma + frame / 6]);
                    [picture[row * width + x], u, v]
                };
                let got = samples(&pinned);
                for wanted in [[y, u, v], samples(&software)] {
                    let near = got.iter().zip(wanted).all(|(a, b)| a.abs_diff(b) <= 2);
                    assert!(near, "{codec} {format} bar {at}: {got:?}, not {wanted:?}");
                }
            }
            for x in (8..width - 8).step_by(16) {
                let grey = (x * 256 / width) as f64;
                let wanted = 16.0 + grey * 219.0 / 255.0;
                let at = height * 3 / 4 * width + x;
                let got = f64::from(pinned[at]);
                for wanted in [wanted, f64::from(software[at])] {
                    assert!(
                        (got - wanted).abs() <= 2.0,
                        "{codec} {format} grey {grey}: {got}, not {wanted}"
                    );
                }
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
