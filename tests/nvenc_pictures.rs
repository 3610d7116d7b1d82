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

/// Red, green, blue, white, black in BT.709 limited range (ITU-R BT.709).
const BARS: [[u8; 3]; 5] = [
    [63, 102, 240],
    [173, 42, 26],
    [32, 240, 118],
    [235, 128, 128],
    [16, 128, 128],
];

/// A decoded 4:2:0 picture.
struct Decoded {
    width: usize,
    height: usize,
    planes: Vec<u8>,
}

impl Decoded {
    /// The last one of those that were decoded.
    #[track_caller]
    fn last((width, height): (usize, usize), pictures: &[u8]) -> Self {
        let bytes = width * height * 3 / 2;
        assert_eq!(pictures.len(), 3 * bytes, "three pictures {width}x{height}");
        Self {
            width,
            height,
            planes: pictures[2 * bytes..].to_vec(),
        }
    }

    fn luma(&self, x: usize, y: usize) -> u8 {
        self.planes[y * self.width + x]
    }

    /// Luma and both chromas there.
    fn at(&self, x: usize, y: usize) -> [u8; 3] {
        let luma = self.width * self.height;
        let chroma = luma + y / 2 * (self.width / 2) + x / 2;
        [
            self.luma(x, y),
            self.planes[chroma],
            self.planes[chroma + luma / 4],
        ]
    }

    /// The middle of a bar, away from its edges.
    fn bar(&self, bar: usize) -> [u8; 3] {
        self.at(self.width * (2 * bar + 1) / 10, self.height / 4)
    }
}

/// Luma of the grey ramp, whose greys go from 0 to 255 over `width` columns.
fn ramp(x: usize, width: usize) -> u8 {
    (16.0 + (x * 256 / width) as f64 * 219.0 / 255.0).round() as u8
}

fn near<const N: usize>(got: [u8; N], wanted: [u8; N], most: u8) -> bool {
    got.iter().zip(wanted).all(|(a, b)| a.abs_diff(b) <= most)
}

#[test]
fn bars_and_greys_decode_to_bt_709_and_as_software_does_in_every_format() {
    if !have("ffmpeg") {
        return;
    }
    let (width, height) = (640, 360);
    for codec in ["h264", "h265"] {
        for format in 0..4 {
            let [pinned, staged, software] = ["", "--no-mapping", "--through software"].map(|path| {
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
                Decoded::last((width, height), &decode(&file))
            });
            let far = pinned
                .planes
                .iter()
                .zip(&staged.planes)
                .map(|(a, b)| a.abs_diff(*b))
                .max();
            assert!(far <= Some(4), "{codec} {format}: paths differ by {far:?}");
            for (bar, colour) in BARS.into_iter().enumerate() {
                let got = pinned.bar(bar);
                for wanted in [colour, software.bar(bar)] {
                    let near = near(got, wanted, 2);
                    assert!(near, "{codec} {format} bar {bar}: {got:?}, not {wanted:?}");
                }
            }
            for x in (8..width - 8).step_by(16) {
                let got = pinned.luma(x, height * 3 / 4);
                for wanted in [ramp(x, width), software.luma(x, height * 3 / 4)] {
                    assert!(
                        got.abs_diff(wanted) <= 2,
                        "{codec} {format} column {x}: {got}, not {wanted}"
                    );
                }
            }
        }
    }
}

/// What is coded was read before `fill` returned, however slow the copy: the coherence check that follows it in the
/// streamer looks behind the last read.
#[test]
fn what_is_written_after_a_frame_counts_as_read_is_not_in_its_picture() {
    if !have("ffmpeg") {
        return;
    }
    for path in ["", "--no-mapping"] {
        let emulator = Emulator::new();
        let file = emulator.path("out.bin");
        let arguments = format!(
            "--bars --scribble --frames 3 --bitrate 8000000 {path} --out {}",
            file.display()
        );
        let slow = [("COPY_DELAY_US", "20000")];
        let outcome = emulator.drive(&arguments, &slow).succeeded().clean();
        assert_eq!(outcome.number("submitted"), 3, "{}", outcome.log);
        let picture = Decoded::last((640, 360), &decode(&file));
        for (bar, wanted) in BARS.into_iter().enumerate() {
            let got = picture.bar(bar);
            let near = near(got, wanted, 2);
            assert!(near, "{path} bar {bar}: {got:?}, not {wanted:?}");
        }
    }
}

#[test]
fn odd_sizes_are_coded_as_the_next_even_ones_with_their_edges_repeated() {
    const GRAY: u8 = 4;
    if !have("ffmpeg") {
        return;
    }
    for (width, height) in [(641, 361), (640, 361), (333, 222)] {
        let even = |n: usize| n.next_multiple_of(2);
        for format in 0..7 {
            for path in ["", "--no-mapping"] {
                let emulator = Emulator::new();
                let file = emulator.path("out.bin");
                let arguments = format!(
                    "--bars --frames 3 --bitrate 8000000 --format {format} --width {width} --height {height} {path} --out {}",
                    file.display()
                );
                let outcome = emulator.drive(&arguments, &[]);
                let _ = outcome.succeeded().clean().no_leak();
                let picture = Decoded::last((even(width), even(height)), &decode(&file));
                let what = format!("{width}x{height}, format {format} {path}");
                // openh264 fills up its last row of macroblocks with something darker, which shines through, as it does
                // when it codes the same picture without a driver.
                let most = |y: usize| if y + 2 < even(height) { 3 } else { 12 };
                let check = |x: usize, y: usize, luma: u8| {
                    let (got, wanted) = (picture.at(x, y), [luma, 128, 128]);
                    let near = near(got, wanted, most(y));
                    assert!(near, "{what}, ({x}, {y}): {got:?}, not {wanted:?}");
                };
                if format > GRAY {
                    // Not RGB: the drive fills these with 128.
                    for y in 0..even(height) {
                        (0..even(width)).for_each(|x| check(x, y, 128));
                    }
                    continue;
                }
                if format < GRAY {
                    for (bar, wanted) in BARS.into_iter().enumerate() {
                        let got = picture.bar(bar);
                        let near = near(got, wanted, 2);
                        assert!(near, "{what}, bar {bar}: {got:?}, not {wanted:?}");
                    }
                }
                // Along the ramp, in its middle and in the last row, which may be a repeated one; and in the last
                // column, likewise.
                for y in [height * 3 / 4, even(height) - 1] {
                    for x in (8..width - 8).step_by(16).chain([even(width) - 1]) {
                        check(x, y, ramp(x.min(width - 1), width));
                    }
                }
            }
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
