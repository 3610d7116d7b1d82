//! What the tests that drive binaries share.
#![allow(dead_code)] // every test file uses its own part

mod child;
mod ports;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

#[allow(unused_imports)] // as above
pub use child::{LIMIT, Program, finish, finish_child};
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
