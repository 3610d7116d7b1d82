//! One scenario's run: its folder, its checks and its numbers.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::names::Names;

/// What holds for the whole run of the suite.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder of the binaries under test.
    pub binaries: PathBuf,
    /// This program, for producers that are killed.
    pub itself: PathBuf,
    /// Short path for sockets: theirs are limited to 107 bytes.
    pub sockets: PathBuf,
    /// Verified pictures per rate of the torn-read scenario.
    pub torn_frames: u64,
    /// `--encoder` of every streamer.
    pub encoder: String,
    pub seed: u64,
}

/// Whether the fault is that of the scenario, or one that its check has to complain about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    Fault,
    Control,
}

/// A claim, and whether it held.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub ok: bool,
    pub text: String,
}

/// One run of a scenario.
#[derive(Debug)]
pub struct Case {
    pub settings: Settings,
    pub run: Run,
    pub folder: PathBuf,
    pub names: Names,
    pub checks: Vec<Check>,
    pub numbers: Map<String, Value>,
    pub exit_codes: Map<String, Value>,
    /// Set when this machine does not allow the fault.
    pub skipped: Option<String>,
    log: File,
    noise: u64,
}

impl Case {
    /// # Errors
    ///
    /// If the folder or the log cannot be made.
    pub fn new(
        settings: &Settings,
        scenario: &str,
        run: Run,
        folder: &Path,
        number: usize,
    ) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        // At most 23 bytes: an instance name.
        let tag = format!("fs{}_{number}", std::process::id());
        Ok(Case {
            settings: settings.clone(),
            run,
            folder: folder.to_owned(),
            names: Names {
                label: tag.clone(),
                shm_name: format!("cvmmap_{tag}"),
                zmq_endpoint: format!("ipc://{}/cvmmap_{tag}", settings.sockets.display()),
                nats_key: format!("cvmmap_{tag}"),
            },
            checks: Vec::new(),
            numbers: Map::new(),
            exit_codes: Map::new(),
            skipped: None,
            log: File::create(folder.join("scenario.log"))?,
            // Never 0, or xorshift stands still.
            noise: settings.seed ^ hash(scenario) | 1,
        })
    }

    pub fn is_control(&self) -> bool {
        self.run == Run::Control
    }

    pub fn say(&mut self, text: impl Display) {
        let who = if self.is_control() { "control | " } else { "" };
        println!("      {who}{text}");
        let _ = writeln!(self.log, "{text}");
    }

    /// Notes a claim.
    pub fn check(&mut self, name: &'static str, ok: bool, text: impl Display) {
        let text = text.to_string();
        self.say(format!(
            "{} {name}: {text}",
            if ok { "ok  " } else { "FAIL" }
        ));
        self.checks.push(Check { name, ok, text });
    }

    pub fn number(&mut self, name: &str, value: impl Into<Value>) {
        self.numbers.insert(name.to_owned(), value.into());
    }

    /// Whether there were checks and none failed.
    pub fn passed(&self) -> bool {
        !self.checks.is_empty() && self.checks.iter().all(|check| check.ok)
    }

    pub fn failed(&self, name: &str) -> bool {
        self.checks
            .iter()
            .any(|check| check.name == name && !check.ok)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn binary(&self, name: &str) -> PathBuf {
        self.settings.binaries.join(name)
    }

    /// The next number of the scenario's own sequence; the same for the same seed.
    pub fn random(&mut self) -> u64 {
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 7;
        self.noise ^= self.noise << 17;
        self.noise.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        // What a killed producer has left.
        let _ = rustix::shm::unlink(self.names.shm_name.as_str());
        if let Some(path) = self.names.zmq_endpoint.strip_prefix("ipc://") {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}
