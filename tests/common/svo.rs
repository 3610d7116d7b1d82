//! What the tests of the recording tools share.

#![allow(dead_code)] // each test uses its part

mod child;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc;

#[allow(unused_imports)] // as above
pub use child::{LIMIT, Program, finish, finish_child};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/svo2")
        .join(name)
}

pub fn manifest() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(fixture("manifest.json")).unwrap()).unwrap()
}

/// The payloads of a fixture, found by their own lengths and not by the reader under test.
pub fn payloads(name: &str) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(fixture(name)).unwrap();
    let stream = mcap::MessageStream::new(&bytes).unwrap();
    stream
        .map(Result::unwrap)
        .filter(|message| message.channel.topic.ends_with("/side_by_side"))
        .map(|message| {
            let n = u32::from_le_bytes(message.data[4..8].try_into().unwrap()) as usize;
            message.data[8..8 + n].to_vec()
        })
        .collect()
}

/// What a program left behind.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

pub fn single() -> Command {
    Command::new(env!("CARGO_BIN_EXE_zed_svo_to_mp4"))
}

pub fn run(command: &mut Command) -> Run {
    finish(command).into()
}

/// `zed_svo_to_mp4` in H.264 software at a high quality, so that pictures can be compared.
pub fn convert(input: &Path, output: &Path, more: &[&str]) -> Run {
    run(single()
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

/// Whether `ffmpeg` and `ffprobe` are there; says so if not.
pub fn has_ffmpeg() -> bool {
    let found = ["ffmpeg", "ffprobe"].iter().all(|name| {
        Command::new(name)
            .arg("-version")
            .output()
            .is_ok_and(|output| output.status.success())
    });
    if !found {
        eprintln!("NOT CHECKED: ffmpeg and ffprobe are not installed");
    }
    found
}

/// Lines of `ffprobe`; its own warnings fail the test.
pub fn probe(path: &Path, entries: &str) -> Vec<String> {
    let output: Run = Command::new("ffprobe")
        .args(["-v", "warning", "-of", "csv=p=0", "-show_entries", entries])
        .arg(path)
        .output()
        .unwrap()
        .into();
    assert_eq!(
        (output.code, output.stderr.as_str()),
        (Some(0), ""),
        "{}",
        path.display()
    );
    let lines = output
        .stdout
        .lines()
        .map(|line| line.trim_end_matches(',').to_owned());
    lines.filter(|line| !line.is_empty()).collect()
}

/// The luma planes of all pictures, decoded by another program.
pub fn luma(path: &Path, width: usize, height: usize) -> Vec<Vec<u8>> {
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(path)
        .args([
            "-fps_mode",
            "passthrough",
            "-f",
            "rawvideo",
            "-pix_fmt",
            "yuv420p",
            "pipe:1",
        ])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let size = width * height + 2 * width.div_ceil(2) * height.div_ceil(2);
    assert_eq!(output.stdout.len() % size, 0);
    output
        .stdout
        .chunks(size)
        .map(|picture| picture[..width * height].to_vec())
        .collect()
}

/// The luma of the first picture at or behind `seconds`, as a player that jumps there decodes it.
pub fn sought(path: &Path, seconds: &str) -> Vec<u8> {
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-ss", seconds, "-i"])
        .arg(path)
        .args("-frames:v 1 -f rawvideo -pix_fmt gray pipe:1".split(' '))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    output.stdout
}

/// The frame number in the bar code of a picture: 16 blocks from (`x`, `y`), each `block` pixels
/// wide and high, most significant bit first.
pub fn barcode(luma: &[u8], width: usize, (x, y): (usize, usize), block: usize) -> u32 {
    (0..16).fold(0, |number, bit| {
        let at = (y + block / 2) * width + x + bit * block + block / 2;
        number << 1 | u32::from(luma[at] > 128)
    })
}

/// The frame numbers of all pictures.
pub fn shown(path: &Path, (width, height): (usize, usize)) -> Vec<u32> {
    let pictures = luma(path, width, height);
    let numbers = pictures.iter();
    numbers
        .map(|picture| barcode(picture, width, (64, 0), 16))
        .collect()
}

/// The bar of a program, read on a thread of its own: one that shows nothing is not waited for without a limit.
pub struct Bar {
    pieces: mpsc::Receiver<Vec<u8>>,
    shown: String,
}

impl Bar {
    /// Of a program whose standard error is piped.
    pub fn of(child: &mut Program) -> Self {
        let mut bar = BufReader::new(child.stderr.take().unwrap());
        let (sender, pieces) = mpsc::channel();
        std::thread::spawn(move || {
            let mut piece = Vec::new();
            while bar
                .read_until(b'\r', &mut piece)
                .is_ok_and(|bytes| bytes > 0)
                && sender.send(std::mem::take(&mut piece)).is_ok()
            {}
        });
        let shown = String::new();
        Self { pieces, shown }
    }

    /// Waits until it shows more than `frames`: so many have been written.
    pub fn wait_past(&mut self, frames: u32) {
        let count = |piece: &str| -> Option<u32> {
            piece.split("| ").nth(1)?.split('/').next()?.parse().ok()
        };
        loop {
            let piece = self.pieces.recv_timeout(LIMIT);
            let piece = piece.unwrap_or_else(|error| panic!("{error}, shown: {}", self.shown));
            let piece = String::from_utf8_lossy(&piece);
            self.shown.push_str(&piece);
            if count(&piece).is_some_and(|shown| shown > frames) {
                return;
            }
        }
    }

    /// All that was shown, to the end of the program.
    pub fn all(mut self) -> String {
        for piece in self.pieces {
            self.shown.push_str(&String::from_utf8_lossy(&piece));
        }
        self.shown
    }
}

pub fn interrupt(child: &Program) {
    let mut kill = Command::new("kill");
    let killed = kill.args(["-INT", &child.id().to_string()]).status();
    assert!(killed.unwrap().success());
}

pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
