//! One scenario's run: its folder, its checks and its numbers.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};

use super::leftovers::Leftover;
use super::timeline::Timeline;
use crate::names::Names;
use crate::noise::Noise;

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
    /// Its frames per second; empty: all that it knows.
    pub torn_fps: Vec<u32>,
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
    /// What the streamers used meanwhile, and how late their pictures were.
    pub timeline: Timeline,
    log: File,
    noise: Noise,
    /// What a killed producer leaves.
    _segment: Leftover,
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
        let tag = format!("fs{}_{number}", std::process::id());
        Self::named(settings, scenario, run, folder, &tag)
    }

    /// `tag`: at most 23 bytes, an instance name.
    fn named(
        settings: &Settings,
        scenario: &str,
        run: Run,
        folder: &Path,
        tag: &str,
    ) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let shm_name = format!("cvmmap_{tag}");
        Ok(Case {
            _segment: Leftover::segment(&shm_name),
            settings: settings.clone(),
            run,
            folder: folder.to_owned(),
            names: Names {
                label: tag.to_owned(),
                shm_name,
                zmq_endpoint: format!("ipc://{}/cvmmap_{tag}", settings.sockets.display()),
                nats_key: format!("cvmmap_{tag}"),
            },
            checks: Vec::new(),
            numbers: Map::new(),
            exit_codes: Map::new(),
            skipped: None,
            timeline: Timeline::default(),
            log: File::create(folder.join("scenario.log"))?,
            noise: Noise::new(settings.seed ^ hash(scenario)),
        })
    }

    /// A run beside this one, with a producer and a folder of its own.
    ///
    /// # Errors
    ///
    /// As [`Case::new`].
    pub fn beside(&self, tag: &str, folder: &str) -> io::Result<Self> {
        let tag = format!("{}_{tag}", self.names.label);
        Self::named(&self.settings, folder, self.run, &self.path(folder), &tag)
    }

    /// What a run beside this one came to is part of this one.
    pub fn take_in(&mut self, beside: Case) {
        self.checks.extend(beside.checks);
        for (name, value) in beside.numbers {
            note(&mut self.numbers, &name, value);
        }
        let tag = beside.folder.file_name().unwrap_or_default();
        let codes = Value::from(beside.exit_codes);
        self.exit_codes
            .insert(tag.to_string_lossy().into_owned(), codes);
        self.timeline.0.extend(beside.timeline.0);
        self.timeline.0.sort_by_key(|point| point.at);
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

    /// Notes a number. One that is noted again, as by a fault that is played several times, becomes a list.
    pub fn number(&mut self, name: &str, value: impl Into<Value>) {
        note(&mut self.numbers, name, value.into());
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
        self.noise.next_u64() >> 11
    }
}

fn note(numbers: &mut Map<String, Value>, name: &str, value: Value) {
    match numbers.get_mut(name) {
        None => {
            numbers.insert(name.to_owned(), value);
        }
        Some(Value::Array(all)) if !value.is_array() => all.push(value),
        Some(before) => *before = Value::Array(vec![before.take(), value]),
    }
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_number_that_comes_again_loses_none() {
        let mut numbers = Map::new();
        for value in [36, 40, 35] {
            note(&mut numbers, "recovery_ms", json!(value));
        }
        note(&mut numbers, "once", json!(7));
        for value in [json!([1]), json!([2])] {
            note(&mut numbers, "table", value);
        }
        let expected = json!({ "recovery_ms": [36, 40, 35], "once": 7, "table": [[1], [2]] });
        assert_eq!(Value::from(numbers), expected);
    }
}
