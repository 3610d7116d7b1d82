//! What the tests of the binaries share.
#![allow(dead_code)] // each test binary uses its part

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// No test waits longer than this for anything.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A child that does not outlive its test.
pub struct Guard(pub Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Guard {
    pub fn spawn(command: &mut Command) -> Self {
        Guard(
            command
                .spawn()
                .unwrap_or_else(|e| panic!("{command:?}: {e}")),
        )
    }

    /// Exit status and what is left of standard output and error.
    pub fn finish(mut self) -> Output {
        let start = Instant::now();
        while self.0.try_wait().expect("a child").is_none() {
            assert!(start.elapsed() < LIMIT, "the child does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut output = Output {
            status: self.0.wait().expect("a child that has ended"),
            stdout: Vec::new(),
            stderr: Vec::new(),
        };
        if let Some(mut stdout) = self.0.stdout.take() {
            stdout.read_to_end(&mut output.stdout).expect("a pipe");
        }
        if let Some(mut stderr) = self.0.stderr.take() {
            stderr.read_to_end(&mut output.stderr).expect("a pipe");
        }
        output
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).expect("a running child");
    }
}

/// Runs a binary to its end.
pub fn run(binary: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Guard::spawn(&mut command).finish()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads standard error up to the line that holds `needle`, and gives that line.
pub fn wait_for_line(stderr: &mut BufReader<ChildStderr>, needle: &str) -> String {
    let mut line = String::new();
    loop {
        line.clear();
        let bytes = stderr.read_line(&mut line).expect("a pipe");
        assert!(bytes > 0, "the child ended without saying '{needle}'");
        if line.contains(needle) {
            return line;
        }
    }
}

/// Runs ffmpeg to its end; a test without it must say so, not pass.
pub fn ffmpeg(arguments: &[&str]) {
    let output = Command::new("ffmpeg")
        .args(["-hide_banner", "-loglevel", "error", "-nostdin", "-y"])
        .args(arguments)
        .output()
        .expect("ffmpeg is installed (Debian package ffmpeg)");
    assert!(
        output.status.success(),
        "ffmpeg {arguments:?}: {}",
        text(&output.stderr)
    );
}

/// An elementary stream of `frames` pictures, 320x180, with a key frame each 10.
pub fn clip(folder: &Path, codec: &str, frames: u32) -> std::path::PathBuf {
    let path = folder.join(format!("clip.{codec}"));
    let encoder: &[&str] = match codec {
        "h264" => &[
            "-c:v",
            "libx264",
            "-preset",
            "ultrafast",
            "-tune",
            "zerolatency",
            "-x264-params",
            "keyint=10:scenecut=0",
        ],
        _ => &[
            "-c:v",
            "libx265",
            "-preset",
            "ultrafast",
            "-tune",
            "zerolatency",
            "-x265-params",
            "keyint=10:scenecut=0:log-level=none:repeat-headers=1",
        ],
    };
    let frames = frames.to_string();
    let path_text = path.to_str().expect("UTF-8");
    let mut arguments = vec![
        "-f",
        "lavfi",
        "-i",
        "testsrc2=size=320x180:rate=25",
        "-frames:v",
        &frames,
        "-pix_fmt",
        "yuv420p",
    ];
    arguments.extend(encoder);
    arguments.extend(["-g", "10", "-bf", "0", path_text]);
    ffmpeg(&arguments);
    path
}

/// The NAL units of an Annex B stream, cut by the plainest of loops.
pub fn nal_units(stream: &[u8]) -> Vec<Vec<u8>> {
    let mut units = Vec::new();
    let mut unit: Option<Vec<u8>> = None;
    let mut at = 0;
    while at < stream.len() {
        if stream[at..].starts_with(&[0, 0, 1]) {
            units.extend(unit.replace(Vec::new()));
            at += 3;
        } else {
            if let Some(unit) = &mut unit {
                unit.push(stream[at]);
            }
            at += 1;
        }
    }
    units.extend(unit);
    for unit in &mut units {
        while unit.last() == Some(&0) {
            unit.pop();
        }
    }
    units
}
