//! What a run leaves behind: a folder of its own with every log, and the two files of the latest run
//! (contract `cli.md` section 4).

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::suite::Row;
use super::{plot, timeline};

/// The folders of one run.
#[derive(Debug)]
pub struct Evidence {
    root: PathBuf,
    pub run: PathBuf,
    started: String,
    start: Instant,
    /// `timeline.csv`.
    points: File,
}

/// How many passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub pass: usize,
    pub fail: usize,
    pub skip: usize,
}

impl Totals {
    pub fn of(rows: &[Row]) -> Self {
        let count = |status| rows.iter().filter(|row| row.status == status).count();
        Totals {
            pass: count("pass"),
            fail: count("fail"),
            skip: count("skip"),
        }
    }

    pub fn total(self) -> usize {
        self.pass + self.fail + self.skip
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Totals { pass, fail, skip } = self;
        write!(
            f,
            "total={} pass={pass} fail={fail} skip={skip}",
            self.total()
        )
    }
}

impl Evidence {
    /// Makes a folder for a run that starts now.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn open(root: &Path, unix_seconds: u64) -> io::Result<Self> {
        let started = utc(unix_seconds);
        let stamp = started.replace(['-', ':'], "");
        let run = root.join(format!("fault-suite-{stamp}-{}", std::process::id()));
        std::fs::create_dir_all(&run)?;
        let mut points = File::create(run.join("timeline.csv"))?;
        points.write_all(timeline::CSV_HEAD.as_bytes())?;
        Ok(Evidence {
            root: root.to_owned(),
            run,
            started,
            start: Instant::now(),
            points,
        })
    }

    /// Writes summary, metadata and timeline after each row: a run that is stopped leaves what it had.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn write(&mut self, rows: &[Row], facts: &Value) -> io::Result<()> {
        if let Some(last) = rows.last() {
            let points = timeline::csv(last, self.start);
            self.points.write_all(points.as_bytes())?;
        }
        plot::write(rows, self.start, &self.run.join("timeline.png"))?;
        let totals = Totals::of(rows);
        let summary = json!({
            "total": totals.total(),
            "pass": totals.pass,
            "fail": totals.fail,
            "skip": totals.skip,
            "started": self.started,
            "run_folder": self.run,
            "facts": facts,
            "scenarios": rows,
        });
        let text = serde_json::to_string_pretty(&summary)? + "\n";
        std::fs::write(self.run.join("summary.json"), &text)?;
        std::fs::write(self.root.join("task-15-fault-suite-summary.json"), &text)?;
        let mut lines = format!(
            "run_folder={}\nstarted={}\n",
            self.run.display(),
            self.started
        );
        for (name, value) in facts.as_object().into_iter().flatten() {
            let _ = writeln!(lines, "{name}={value}");
        }
        for row in rows {
            let counts = Value::from(row.counts.clone());
            let _ = writeln!(
                lines,
                "{} {} {:.1}s control={} {counts} {}",
                row.status, row.name, row.seconds, row.control.ok, row.reason
            );
        }
        let _ = writeln!(lines, "{totals}");
        std::fs::write(self.root.join("task-15-fault-suite.txt"), lines)
    }
}

/// ISO 8601, from the days by the calendar's own arithmetic.
fn utc(unix_seconds: u64) -> String {
    let (days, second) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let mut year = 1970;
    let mut left = days;
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    format!(
        "{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}Z",
        left + 1,
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected values from date(1): date -u -d @N +%FT%TZ
    #[test]
    fn seconds_become_dates() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_790_000_000, "2026-09-21T14:13:20Z"),
        ] {
            assert_eq!(utc(seconds), date);
        }
    }
}
