//! A real `nats-server`, a producer that speaks to it, and a streamer beside them.
#![allow(dead_code)] // every test file uses its own part

/// The referees' own client: no code of the streamer's.
#[path = "../testkit/src/nats.rs"]
pub mod nats;

use std::net::{TcpListener, TcpStream};
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
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a TCP port")
            .port();
        Self { child: None, port }
    }

    pub fn running() -> Self {
        let mut server = Self::absent();
        server.start();
        server
    }

    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    pub fn start_with(&mut self, more: &[&str]) {
        let child = Guard::spawn(
            Command::new("nats-server")
                .args(["-a", "127.0.0.1", "-p", &self.port.to_string()])
                .args(more)
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        );
        self.child = Some(child);
        wait_for("the NATS server", || {
            TcpStream::connect(("127.0.0.1", self.port)).ok()
        });
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
