//! The emulator of the driver's libraries, for programs that are started with it in their place.
#![cfg(feature = "nvenc")]
#![allow(dead_code)] // every test file uses its own part

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// The emulator in place of the driver's libraries.
pub struct Emulator {
    pub folder: tempfile::TempDir,
}

impl Emulator {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let library = std::env::current_exe()
            .unwrap()
            .with_file_name("libnvenc_emu.so");
        assert!(
            library.is_file(),
            "{} is built with the tests",
            library.display()
        );
        // One file under three names: the loader maps it once, and both fakes share their state.
        for name in ["libcuda.so", "libcuda.so.1", "libnvidia-encode.so.1"] {
            std::os::unix::fs::symlink(&library, folder.path().join(name)).unwrap();
        }
        Self { folder }
    }

    pub fn without(self, library: &str) -> Self {
        std::fs::remove_file(self.folder.path().join(library)).unwrap();
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, program: &Path, stats: &str, switches: &[(&str, &str)]) -> Command {
        let mut command = Command::new(program);
        command
            .env("LD_LIBRARY_PATH", self.folder.path())
            .env("NVENC_EMU_STATS", self.path(stats))
            .env("NVENC_EMU_LOCKS", self.folder.path())
            .env("RUST_LOG", "info")
            .stdin(Stdio::null());
        for (name, value) in switches {
            command.env(format!("NVENC_EMU_{name}"), value);
        }
        command
    }

    pub fn stats(&self, name: &str) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.path(name)).ok()?).ok()
    }
}

/// Whether an independent program is there; says so if not.
pub fn have(program: &str) -> bool {
    let found = Command::new(program).arg("-version").output().is_ok();
    if !found {
        eprintln!("not run: no {program}");
    }
    found
}
