//! What the tests that drive binaries share.
#![allow(dead_code)] // every test file uses its own part

mod ports;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

#[allow(unused_imports)] // as above
pub use ports::{Reserved, free_port_pair, reserve_tcp};

/// The streamer as built for this test run.
pub fn streamer() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cvmmap_streamer"));
    for variable in ["RUST_LOG", "CVMMAP_RTMP_URL", "CVMMAP_NATS_URL"] {
        command.env_remove(variable);
    }
    command
}

/// A binary of the test kit, which cargo puts beside the streamer.
pub fn testkit(name: &str) -> Command {
    let path = Path::new(env!("CARGO_BIN_EXE_cvmmap_streamer")).with_file_name(name);
    assert!(
        path.exists(),
        "{} is not built: run `cargo test --workspace`, or `cargo build --workspace` first",
        path.display()
    );
    Command::new(path)
}

/// Names and ports that no other test uses at the same time.
pub struct Scene {
    pub folder: tempfile::TempDir,
    pub shm_name: String,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Scene {
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            shm_name: format!("cvmmap_test_{}_{number}", std::process::id()),
        }
    }

    pub fn zmq_endpoint(&self) -> String {
        format!("ipc://{}", self.folder.path().join("sync").display())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `--shm-name` and `--zmq-endpoint` of this scene.
    pub fn names(&self) -> [String; 4] {
        [
            "--shm-name".to_owned(),
            self.shm_name.clone(),
            "--zmq-endpoint".to_owned(),
            self.zmq_endpoint(),
        ]
    }

    pub fn segment(&self) -> PathBuf {
        Path::new("/dev/shm").join(&self.shm_name)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // A test that failed may have left its segment behind.
        let _ = std::fs::remove_file(self.segment());
    }
}

/// Runs to the end, but no longer than a generous limit.
pub fn finish(command: &mut Command) -> Output {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    finish_child(child)
}

/// A program that does not outlive its test, also when that fails.
pub struct Program(Option<Child>);

impl Program {
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let child = command.spawn();
        Self(Some(child.unwrap_or_else(|e| panic!("{command:?}: {e}"))))
    }
}

impl std::ops::Deref for Program {
    type Target = Child;

    fn deref(&self) -> &Child {
        self.0.as_ref().expect("until it is taken out")
    }
}

impl std::ops::DerefMut for Program {
    fn deref_mut(&mut self) -> &mut Child {
        self.0.as_mut().expect("until it is taken out")
    }
}

impl From<Program> for Child {
    fn from(mut program: Program) -> Self {
        program.0.take().expect("taken out once")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub fn finish_child(child: impl Into<Child>) -> Output {
    use std::io::Read;
    let mut child = child.into();
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let readers = std::thread::spawn(move || {
        let errors = std::thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(err) = &mut err {
                let _ = err.read_to_end(&mut text);
            }
            text
        });
        let mut text = Vec::new();
        if let Some(out) = &mut out {
            let _ = out.read_to_end(&mut text);
        }
        (text, errors.join().expect("reader"))
    });
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            let (out, err) = readers.join().expect("readers");
            panic!(
                "still running after {LIMIT:?}:\n{}\n{}",
                String::from_utf8_lossy(&out),
                String::from_utf8_lossy(&err)
            );
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let (stdout, stderr) = readers.join().expect("readers");
    Output {
        status,
        stdout,
        stderr,
    }
}

pub const LIMIT: Duration = Duration::from_secs(120);

pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The exit code, with all that was printed as the reason if it is another.
#[track_caller]
pub fn expect_exit(output: &Output, code: i32) -> String {
    let text = text(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}
