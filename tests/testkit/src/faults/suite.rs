//! The order of a run: each scenario, then its control.

use std::io;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use serde_json::{Map, Value};

use super::case::{Case, Check, Run, Settings};
use super::rig::Fail;
use super::timeline::Timeline;

/// A fault, what is promised, and how both are brought about.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    pub promise: &'static str,
    pub play: fn(&mut Case) -> Result<(), Fail>,
    /// Checks that have to fail in the control.
    pub control_fails: &'static [&'static str],
}

/// What became of one scenario.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub name: &'static str,
    pub promise: &'static str,
    /// `pass`, `fail` or `skip`.
    pub status: &'static str,
    pub reason: String,
    pub seconds: f64,
    pub exit_codes: Map<String, Value>,
    pub counts: Map<String, Value>,
    pub checks: Vec<Check>,
    pub control: Control,
    pub log: String,
    #[serde(skip)]
    pub began: Instant,
    #[serde(skip)]
    pub timeline: Timeline,
}

/// The run that shows that the check can fail.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Control {
    pub ran: bool,
    /// Every check that had to fail has failed.
    pub ok: bool,
    pub must_fail: Vec<&'static str>,
    pub failed: Vec<&'static str>,
    pub counts: Map<String, Value>,
}

impl Scenario {
    /// Plays the fault and the control in folders below `run`.
    ///
    /// # Errors
    ///
    /// If the folders cannot be made.
    pub fn run(
        &self,
        settings: &Settings,
        run: &Path,
        number: usize,
        with_control: bool,
    ) -> io::Result<Row> {
        println!("=== {}: {}", self.name, self.promise);
        let began = Instant::now();
        let folder = run.join(self.name);
        let mut case = Case::new(settings, self.name, Run::Fault, &folder, number * 2)?;
        self.play(&mut case);
        let mut control = Control {
            must_fail: self.control_fails.to_vec(),
            ..Control::default()
        };
        if with_control && case.skipped.is_none() {
            let folder = folder.join("control");
            let mut case = Case::new(settings, self.name, Run::Control, &folder, number * 2 + 1)?;
            self.play(&mut case);
            control.ran = true;
            control.ok = self.control_fails.iter().all(|name| case.failed(name));
            control.failed = case
                .checks
                .iter()
                .filter(|c| !c.ok)
                .map(|c| c.name)
                .collect();
            control.counts = std::mem::take(&mut case.numbers);
        }
        let (status, reason) = match &case.skipped {
            Some(reason) => ("skip", reason.clone()),
            None if !case.passed() => {
                let failed = case.checks.iter().filter(|c| !c.ok);
                let texts: Vec<_> = failed.map(|c| format!("{}: {}", c.name, c.text)).collect();
                ("fail", texts.join("; "))
            }
            None if control.ran && !control.ok => (
                "fail",
                format!("the control did not fail {:?}", self.control_fails),
            ),
            None => ("pass", String::new()),
        };
        let seconds = began.elapsed().as_secs_f64();
        let numbers = Value::from(case.numbers.clone());
        println!("      numbers {numbers}");
        println!(
            "{:<4}  {:<20} {seconds:.1} s {reason}",
            status.to_uppercase(),
            self.name
        );
        Ok(Row {
            name: self.name,
            promise: self.promise,
            status,
            reason,
            seconds,
            exit_codes: std::mem::take(&mut case.exit_codes),
            counts: std::mem::take(&mut case.numbers),
            checks: std::mem::take(&mut case.checks),
            control,
            log: case.path("scenario.log").display().to_string(),
            began,
            timeline: std::mem::take(&mut case.timeline),
        })
    }

    fn play(&self, case: &mut Case) {
        if let Err(error) = (self.play)(case) {
            case.check(
                "played",
                false,
                format!("could not be played to its end: {error}"),
            );
        }
    }
}
