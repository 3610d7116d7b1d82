//! A real `nats-server`, a producer that speaks to it, and a streamer beside them.
#![allow(dead_code)] // every test file uses its own part

/// The referees' own client: no code of the streamer's.
#[path = "../testkit/src/nats.rs"]
pub mod nats;

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::common::{LIMIT, finish_child, streamer, testkit};

/// A child that does not outlive its test.
pub struct Guard(pub Option<Child>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Guard {
    pub fn spawn(command: &mut Command) -> Self {
        let child = command.spawn();
        Self(Some(child.unwrap_or_else(|e| panic!("{command:?}: {e}"))))
    }

    pub fn id(&self) -> u32 {
        self.0.as_ref().expect("it runs").id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(self.0.as_ref().expect("it runs"));
        kill_process(pid, signal).expect("a running child");
    }

    /// Waits for the end.
    pub fn finish(mut self) -> Output {
        finish_child(self.0.take().expect("it runs"))
    }

    pub fn interrupt(self) -> Output {
        self.signal(Signal::INT);
        self.finish()
    }

    pub fn kill(mut self) {
        let mut child = self.0.take().expect("it runs");
        child.kill().expect("a running child");
        child.wait().expect("its end");
    }
}

/// Debian's `nats-server` on a port of its own.
pub struct Server {
    child: Option<Guard>,
    pub port: u16,
}

impl Server {
    /// A port, and nobody there yet.
    pub fn absent() -> Self {
        Self {
            child: None,
            port: crate::common::free_tcp_port(),
        }
    }

    pub fn running() -> Self {
        let mut server = Self::absent();
        server.start();
        server
    }

    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Until it greets: something that only takes the connection is not the server, and one that has
    /// ended since is started again.
    pub fn start_with(&mut self, more: &[&str]) {
        let start = || {
            Guard::spawn(
                Command::new("nats-server")
                    .args(["-a", "127.0.0.1", "-p", &self.port.to_string()])
                    .args(more)
                    .stdout(Stdio::null())
                    .stderr(Stdio::null()),
            )
        };
        let mut child = start();
        wait_for("the NATS server", || {
            let ended = child.0.as_mut()?.try_wait();
            if let Some(status) = ended.expect("a child of ours") {
                eprintln!(
                    "nats-server at port {} ended by itself: {status}",
                    self.port
                );
                child = start();
                return None;
            }
            (greets(self.port) && greets(self.port)).then_some(())
        });
        self.child = Some(child);
    }

    pub fn kill(&mut self) {
        self.child.take().expect("it runs").kill();
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn client(&self) -> (nats::Nats, Receiver<nats::Message>) {
        nats::Nats::connect(&self.url()).expect("the server is there")
    }
}

/// Whether a NATS server says its first line there (client protocol documentation, INFO).
fn greets(port: u16) -> bool {
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let mut line = String::new();
    let read = BufReader::new(stream).read_line(&mut line);
    read.is_ok() && line.starts_with("INFO ")
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Names of one producer that nobody else uses.
pub struct Stage {
    pub folder: tempfile::TempDir,
    pub label: String,
}

impl Default for Stage {
    fn default() -> Self {
        Self::new()
    }
}

impl Stage {
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            label: format!("n{}x{number}", std::process::id()),
        }
    }

    pub fn uri(&self) -> String {
        format!("cvmmap://{}@{}", self.label, self.folder.path().display())
    }

    /// Of the NATS subjects (contract section 1).
    pub fn key(&self) -> String {
        format!("cvmmap_{}", self.label)
    }

    pub fn segment(&self) -> PathBuf {
        Path::new("/dev/shm").join(format!("cvmmap_{}", self.label))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A producer: `cvmmap_sim` with this stage's names.
    pub fn sim(&self, server: &Server, arguments: &str) -> Guard {
        Guard::spawn(
            testkit("cvmmap_sim")
                .args(["--label", &self.label, "--nats-url", &server.url()])
                .arg("--prefix")
                .arg(self.folder.path())
                .args(arguments.split_whitespace())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        )
    }

    /// A streamer that attaches to this stage's producer, with a report.
    pub fn streamer(&self, server: &Server, arguments: &str) -> Guard {
        Guard::spawn(
            streamer()
                .args(["--input-uri", &self.uri(), "--nats-url", &server.url()])
                .arg("--report-json")
                .arg(self.path("report.json"))
                .args(arguments.split_whitespace())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        )
    }

    /// `rtp_receiver_tester`, which writes `got.h264` and `tester.json`, and needs `frames`.
    pub fn receiver(&self, port: u16, frames: u32) -> Guard {
        Guard::spawn(
            testkit("rtp_receiver_tester")
                .args(
                    "--bind 127.0.0.1 --monotonic --codec h264 --timeout-ms 110000 \
                     --silence-ms 60000 --frame-threshold"
                        .split_whitespace(),
                )
                .args([&frames.to_string(), "--port", &port.to_string()])
                .arg("--dump")
                .arg(self.path("got.h264"))
                .arg("--json")
                .arg(self.path("tester.json"))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        )
    }

    pub fn report(&self) -> Value {
        json(&self.path("report.json"))
    }

    /// The report of a running streamer, through its own service.
    pub fn live(&self, client: &(nats::Nats, Receiver<nats::Message>)) -> Option<Value> {
        let subject = format!("cvmmap.{}.streamer.stats", self.key());
        let answer = client
            .0
            .request(&client.1, &subject, b"", Duration::from_secs(5))?;
        let value: Value = serde_json::from_slice(&answer.data).ok()?;
        (value["ok"] == true).then(|| value["stats"].clone())
    }

    /// Waits until the running streamer has taken so many frames.
    pub fn wait_for_frames(&self, client: &(nats::Nats, Receiver<nats::Message>), frames: u64) {
        wait_for(&format!("{frames} frames"), || {
            let frames_now = self.live(client)?["frames"].as_u64()?;
            (frames_now >= frames).then_some(())
        });
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A test that failed, or one that kills its producer, leaves the segment behind.
        let _ = std::fs::remove_file(self.segment());
    }
}

pub fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

/// The built-in producer's frames were all coded, but for a few that a busy machine was too slow
/// for: each of those is counted where it was left out.
#[track_caller]
pub fn expect_frames(report: &Value, announced: u64) {
    let number = |value: &Value| value.as_u64().expect("a number");
    let read = number(&report["frames"]);
    let late: u64 = [
        "skipped",
        "too_late",
        "torn_metadata",
        "torn_payload",
        "no_surface",
    ]
    .map(|name| number(&report["source"][name]))
    .iter()
    .sum();
    assert_eq!(read + late, announced, "{report:#}");
    let coded = number(&report["encode"]["access_units"]);
    assert_eq!(coded + number(&report["evicted"]), read, "{report:#}");
    assert!(coded >= announced / 2, "{report:#}");
    println!("{coded} of {announced} frames coded");
}

/// Looks again and again until there is something.
#[track_caller]
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// KiB that a process has resident.
pub fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .expect("VmRSS")
}

/// A picture of a dump, with what its embedded time stamp says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Picture {
    pub id: u32,
    /// Nanoseconds of Unix time; 0 is unknown.
    pub capture_ns: u64,
    pub encoded_ns: u64,
    pub key: bool,
}

/// The pictures of a dump (H.264, start codes of four bytes), by their embedded time stamps
/// (`docs/embedded-timestamps.md`).
pub fn pictures(dump: &[u8]) -> Vec<Picture> {
    const UUID: &[u8] = b"cvmmap-stream-ts";
    let starts: Vec<_> = (0..dump.len().saturating_sub(4))
        .filter(|at| dump[*at..*at + 4] == [0, 0, 0, 1])
        .collect();
    let mut all = Vec::new();
    let mut stamp = None;
    for (n, start) in starts.iter().enumerate() {
        let end = starts.get(n + 1).copied().unwrap_or(dump.len());
        let nal = &dump[start + 4..end];
        match nal[0] & 0x1F {
            6 => {
                // Emulation prevention out: two zeros of the stream and a 3 lose the 3.
                let (mut bytes, mut zeros) = (Vec::new(), 0);
                for byte in nal {
                    if *byte == 3 && zeros >= 2 {
                        zeros = 0;
                        continue;
                    }
                    zeros = if *byte == 0 { zeros + 1 } else { 0 };
                    bytes.push(*byte);
                }
                if let Some(at) = bytes.windows(16).position(|window| window == UUID) {
                    let field = |from: usize| bytes[at + from..at + from + 8].try_into().unwrap();
                    let id = bytes[at + 33..at + 37].try_into().unwrap();
                    stamp = Some((
                        u32::from_be_bytes(id),
                        u64::from_be_bytes(field(17)),
                        u64::from_be_bytes(field(25)),
                    ));
                }
            }
            // The first slice of a picture: first_mb_in_slice is 0, ue(v) "1".
            kind @ (1 | 5) if nal[1] & 0x80 != 0 => {
                let stamp = stamp.take();
                let (id, capture_ns, encoded_ns) = stamp.expect("a stamp before each picture");
                all.push(Picture {
                    id,
                    capture_ns,
                    encoded_ns,
                    key: kind == 5,
                });
            }
            _ => {}
        }
    }
    all
}
