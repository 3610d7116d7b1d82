//! A real `nats-server`, a producer that speaks to it, and a streamer beside them.
#![allow(dead_code)] // every test file uses its own part

/// The referees' own client: no code of the streamer's.
#[path = "../testkit/src/nats.rs"]
pub mod nats;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::common::{LIMIT, Reserved, Scene, finish_child, reserve_tcp, streamer, testkit};

/// A child that does not outlive its test.
pub struct Guard {
    child: Option<Child>,
    /// Where its standard error goes, if that is a file.
    log: Option<PathBuf>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Guard {
    pub fn spawn(command: &mut Command) -> Self {
        let child = command.spawn();
        Self {
            child: Some(child.unwrap_or_else(|e| panic!("{command:?}: {e}"))),
            log: None,
        }
    }

    /// Without any input or output but standard error, which goes to a file.
    pub fn spawn_with_log(command: &mut Command, log: PathBuf) -> Self {
        let file = File::create(&log).expect("a file");
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut guard = Self::spawn(quiet.stderr(file));
        guard.log = Some(log);
        guard
    }

    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(self.child.as_ref().expect("it runs"));
        kill_process(pid, signal).expect("a running child");
    }

    /// As [`wait_for`], for what this program has to bring about: if it ends before that, its own
    /// words say why.
    #[track_caller]
    pub fn wait_for<T>(&mut self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        wait_for(what, || {
            let found = look();
            if found.is_none() {
                self.expect_running(what);
            }
            found
        })
    }

    fn expect_running(&mut self, what: &str) {
        let child = self.child.as_mut().expect("not taken out");
        if let Some(status) = child.try_wait().expect("a child of ours") {
            panic!(
                "waiting for {what}: the program ended, {status}\n{}",
                self.said()
            );
        }
    }

    /// What it has written to its log.
    fn said(&self) -> String {
        let log = self.log.as_ref().map(std::fs::read);
        let bytes = log.and_then(Result::ok).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for the end.
    pub fn finish(mut self) -> Output {
        let mut output = finish_child(self.child.take().expect("it runs"));
        output.stderr.extend(self.said().into_bytes());
        output
    }

    pub fn interrupt(self) -> Output {
        self.signal(Signal::INT);
        self.finish()
    }

    pub fn kill(mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("a running child");
        child.wait().expect("its end");
    }
}

/// Debian's `nats-server` on a port of its own.
pub struct Server {
    child: Option<Guard>,
    pub port: u16,
    /// None where a test listens there itself.
    _hold: Option<Reserved>,
    folder: tempfile::TempDir,
}

impl Server {
    /// A port, and nobody there yet.
    pub fn absent() -> Self {
        let hold = reserve_tcp();
        Self::at(hold.port, Some(hold))
    }

    /// A test that listens there in the server's place.
    pub fn played(listener: &TcpListener) -> Self {
        Self::at(listener.local_addr().expect("an address").port(), None)
    }

    fn at(port: u16, hold: Option<Reserved>) -> Self {
        Self {
            child: None,
            port,
            _hold: hold,
            folder: tempfile::tempdir().expect("a temporary folder"),
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

    /// Until it greets by its name: whoever else is there is not the server.
    pub fn start_with(&mut self, more: &[&str]) {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test_{}_{number}", std::process::id());
        let mut child = Guard::spawn_with_log(
            Command::new("nats-server")
                .args(["-a", "127.0.0.1", "-p", &self.port.to_string()])
                .args(["--name", &name])
                .args(more),
            self.folder.path().join(format!("{name}.log")),
        );
        child.wait_for("the NATS server", || greets(self.port, &name).then_some(()));
        self.child = Some(child);
    }

    pub fn kill(&mut self) {
        self.child.take().expect("it runs").kill();
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn client(&self) -> (nats::Nats, Receiver<nats::Message>) {
        let what = "a client of the NATS server";
        wait_for(what, || nats::Nats::connect(&self.url()).ok())
    }
}

/// Whether the NATS server of that name says its first line there (client protocol documentation,
/// INFO).
fn greets(port: u16, name: &str) -> bool {
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let limit = stream.set_read_timeout(Some(Duration::from_secs(1)));
    limit.expect("a socket takes a limit");
    let mut line = String::new();
    let read = BufReader::new(stream).read_line(&mut line);
    let named = format!("\"server_name\":\"{name}\"");
    read.is_ok() && line.starts_with("INFO ") && line.contains(&named)
}

/// The next connection that is made to `listener`.
pub fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).expect("a socket");
    let (stream, _) = wait_for("a connection", || listener.accept().ok());
    stream.set_nonblocking(false).expect("a socket");
    stream
}

/// The built-in producer at a rate that a loaded machine keeps up with; 0 frames are no limit.
pub fn dummy(scene: &Scene, frames: u32, arguments: &[&str]) -> Guard {
    Guard::spawn(
        streamer()
            .args(scene.names())
            .args(["--dummy-frames", &frames.to_string()])
            .args(
                "--input-mode dummy --dummy-label cam --dummy-width 160 --dummy-height 96 \
                 --dummy-fps 10 --codec h264 --encoder software --no-status"
                    .split_whitespace(),
            )
            .args(arguments)
            .arg("--report-json")
            .arg(scene.path("report.json"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    )
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
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Guard::spawn_with_log(
            testkit("cvmmap_sim")
                .args(["--label", &self.label, "--nats-url", &server.url()])
                .arg("--prefix")
                .arg(self.folder.path())
                .args(arguments.split_whitespace()),
            self.path(&format!("sim_{number}.log")),
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
    let (read, evicted) = (number(&report["frames"]), number(&report["evicted"]));
    let late = left_out(report) - evicted;
    assert_eq!(read + late, announced, "{report:#}");
    let coded = number(&report["encode"]["access_units"]);
    assert_eq!(coded + evicted, read, "{report:#}");
    assert!(coded >= announced / 2, "{report:#}");
    println!("{coded} of {announced} frames coded");
}

/// The same of two runs at the same time: the one with NATS lost no more than the one without, but
/// for one frame in twenty, by which two runs on a busy machine differ.
#[track_caller]
pub fn expect_no_more_lost(with_nats: &Value, without: &Value, announced: u64) {
    expect_frames(with_nats, announced);
    expect_frames(without, announced);
    let (lost, lost_without) = (left_out(with_nats), left_out(without));
    println!("{lost} frames left out, {lost_without} without NATS");
    assert!(
        lost <= lost_without + announced / 20,
        "{lost} frames left out, {lost_without} without NATS: {with_nats:#}"
    );
}

/// Frames that a streamer was too slow for.
fn left_out(report: &Value) -> u64 {
    let source = &report["source"];
    [
        &source["skipped"],
        &source["too_late"],
        &source["torn_metadata"],
        &source["torn_payload"],
        &source["no_surface"],
        &report["evicted"],
    ]
    .map(|count| count.as_u64().expect("a number"))
    .iter()
    .sum()
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

/// KiB that a process has resident; none once it has ended.
pub fn resident_kib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
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
