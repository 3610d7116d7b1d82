//! The backend and the fallback around it in a child process, which finds the emulator where it looks for the
//! driver's libraries.
#![allow(dead_code)] // every test file uses its own part

#[allow(dead_code)] // its main is the example's
#[path = "../gpu/nvenc_drive.rs"]
mod nvenc_drive;

use std::process::Command;

use serde_json::Value;

use crate::nvenc_support::Emulator;

/// Not a test of its own: what the others start.
#[test]
fn drive_child() {
    if let Ok(arguments) = std::env::var("NVENC_DRIVE") {
        let arguments = ["nvenc_drive"]
            .into_iter()
            .chain(arguments.split_whitespace());
        let _ = nvenc_drive::drive::main(arguments.map(str::to_owned));
        // Not a return: the handlers of the emulator run at exit, and threads may hang on purpose.
        std::process::exit(0);
    }
}

pub struct Outcome {
    pub report: Value,
    pub stats: Value,
    pub log: String,
}

impl Emulator {
    pub fn drive_command(
        &self,
        arguments: &str,
        stats: &str,
        switches: &[(&str, &str)],
    ) -> Command {
        let mut command = self.command(&std::env::current_exe().unwrap(), stats, switches);
        command
            .args(["--exact", "drive::drive_child", "--nocapture"])
            .env("NVENC_DRIVE", arguments);
        command
    }

    pub fn drive(&self, arguments: &str, switches: &[(&str, &str)]) -> Outcome {
        let output = self
            .drive_command(arguments, "stats.json", switches)
            .output()
            .unwrap();
        self.outcome(&output, "stats.json")
    }

    pub fn outcome(&self, output: &std::process::Output, stats: &str) -> Outcome {
        let text = String::from_utf8_lossy(&output.stdout);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let report = text
            .lines()
            .find_map(|line| line.strip_prefix(nvenc_drive::drive::MARK))
            .unwrap_or_else(|| panic!("no report\n{text}\n{log}"));
        Outcome {
            report: serde_json::from_str(report).unwrap(),
            stats: self.stats(stats).unwrap_or(Value::Null),
            log,
        }
    }
}

impl Outcome {
    #[track_caller]
    pub fn clean(self) -> Self {
        assert_eq!(
            self.stats["violations"],
            Value::Array(vec![]),
            "{}",
            self.log
        );
        self
    }

    #[track_caller]
    pub fn no_leak(self) -> Self {
        assert_eq!(self.stats["leaks"], Value::Array(vec![]), "{}", self.log);
        assert_eq!(self.stats["finished"], true, "{}", self.log);
        self
    }

    #[track_caller]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.report["error"], Value::Null, "{}", self.log);
        self
    }

    pub fn number(&self, name: &str) -> u64 {
        self.report[name].as_u64().unwrap()
    }

    pub fn keys(&self) -> Vec<u64> {
        let units = self.report["units"].as_array().unwrap();
        units
            .iter()
            .filter(|unit| unit[3] == true)
            .map(|unit| unit[0].as_u64().unwrap())
            .collect()
    }
}
