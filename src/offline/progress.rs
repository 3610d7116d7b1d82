//! The bar on standard error, in the manner of tqdm, and the lines that stand in for it.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle, TermLike};

/// `--progress`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ProgressChoice {
    /// Where standard error is a terminal
    #[default]
    Auto,
    Always,
    Never,
}

/// What a run shows of itself: a bar, or a line at its start and one at its end.
#[derive(Debug, Clone)]
pub struct Progress {
    bar: Option<ProgressBar>,
    name: String,
    moved: Arc<Mutex<Moved>>,
}

/// The bar's own limit lets bursts through; a state is handed to it only when it may be drawn.
#[derive(Debug, Default)]
struct Moved {
    at: Option<Instant>,
    done: u64,
}

impl Progress {
    /// A bar, or its lines, for `total` things called `unit`.
    pub fn new(choice: ProgressChoice, name: &str, unit: &'static str, total: u64) -> Self {
        let terminal = io::stderr().is_terminal();
        let target = match choice {
            ProgressChoice::Never => None,
            ProgressChoice::Auto if !terminal => None,
            ProgressChoice::Always if !terminal => Some(ProgressDrawTarget::term_like_with_hz(
                Box::new(PlainTerm),
                REDRAWS_PER_SECOND,
            )),
            _ => Some(ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_SECOND)),
        };
        let bar = target.map(|target| {
            ProgressBar::with_draw_target(Some(total), target)
                .with_style(style(unit))
                .with_prefix(name.to_owned())
        });
        if bar.is_none() {
            let _ = writeln!(io::stderr(), "{name}: {total} {unit}s");
        }
        Self {
            bar,
            name: name.to_owned(),
            moved: Arc::default(),
        }
    }

    /// Nothing at all, for tests and for the inside of others.
    pub fn hidden() -> Self {
        Self {
            bar: Some(ProgressBar::hidden()),
            name: String::new(),
            moved: Arc::default(),
        }
    }

    /// Whether there is a bar to look at.
    pub fn is_bar(&self) -> bool {
        self.bar.as_ref().is_some_and(|bar| !bar.is_hidden())
    }

    pub fn set(&self, done: u64) {
        if let Some(bar) = &self.bar {
            let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
            let due = moved.at.is_none_or(|at| at.elapsed() >= REDRAW);
            if moved.done != done && due {
                moved.at = Some(Instant::now());
                bar.set_position(done);
            }
            moved.done = done;
        }
    }

    /// A line above the bar.
    pub fn say(&self, text: &str) {
        let line = || {
            let _ = writeln!(io::stderr(), "{text}");
        };
        match &self.bar {
            Some(bar) => bar.suspend(line),
            None => line(),
        }
    }

    pub fn warn(&self, text: &str) {
        self.say(&format!("warning: {text}"));
    }

    /// Leaves the bar as it stands, or says how it ended.
    pub fn end(&self, how: &str) {
        match &self.bar {
            Some(bar) => {
                let moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
                bar.set_position(moved.done);
                bar.abandon();
            }
            None => {
                let _ = writeln!(io::stderr(), "{}: {how}", self.name);
            }
        }
    }
}

/// `name: 45%|####      | 41/90 [00:01<00:01, 30.2 frame/s]`
fn style(unit: &'static str) -> ProgressStyle {
    ProgressStyle::with_template("{prefix}: {part}|{cells}| {pos}/{len} [{spent}<{left}, {speed}]")
        .expect("the template is a constant")
        .with_key(
            "part",
            |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let _ = out.write_fmt(format_args!("{:>3}%", share(state, 100)));
            },
        )
        .with_key(
            "cells",
            |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let cells = "#".repeat(share(state, 10) as usize);
                let _ = out.write_fmt(format_args!("{cells:<10}"));
            },
        )
        .with_key(
            "spent",
            |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let _ = out.write_str(&clock(state.elapsed()));
            },
        )
        .with_key(
            "left",
            |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let _ = out.write_str(&clock(state.eta()));
            },
        )
        .with_key(
            "speed",
            move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let _ = out.write_fmt(format_args!("{:.1} {unit}/s", state.per_sec()));
            },
        )
}

/// How much is done, in `parts`, cut: 100 % is shown only when it is.
fn share(state: &ProgressState, parts: u64) -> u64 {
    let len = state.len().unwrap_or(0);
    if len == 0 {
        return 0;
    }
    (state.pos().saturating_mul(parts) / len).min(parts)
}

/// `mm:ss`, or `h:mm:ss` from an hour on.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let mut text = String::new();
    if hours > 0 {
        let _ = write!(text, "{hours}:");
    }
    let _ = write!(text, "{minutes:02}:{seconds:02}");
    text
}

/// Standard error where it is no terminal but a bar was asked for: each state begins with `\r`.
#[derive(Debug)]
struct PlainTerm;

impl TermLike for PlainTerm {
    fn width(&self) -> u16 {
        100
    }

    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        writeln!(io::stderr(), "{text}")
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        write!(io::stderr(), "{}", text.trim_end())
    }

    fn clear_line(&self) -> io::Result<()> {
        write!(io::stderr(), "\r")
    }

    fn flush(&self) -> io::Result<()> {
        io::stderr().flush()
    }
}

const REDRAWS_PER_SECOND: u8 = 10;
const REDRAW: Duration = Duration::from_millis(1000 / REDRAWS_PER_SECOND as u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_minutes_and_seconds() {
        let shown = [0, 59, 61, 3599, 3600, 36_061].map(|s| clock(Duration::from_secs(s)));
        assert_eq!(
            shown,
            ["00:00", "00:59", "01:01", "59:59", "1:00:00", "10:01:01"]
        );
    }

    /// Keeps what is drawn.
    #[derive(Debug, Clone, Default)]
    struct Drawn(std::sync::Arc<std::sync::Mutex<String>>);

    impl TermLike for Drawn {
        fn width(&self) -> u16 {
            100
        }

        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text.trim_end());
            Ok(())
        }

        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A thousand states in a row, which take far less than a second: the first, those that are due
    /// and the last.
    #[test]
    fn the_bar_is_drawn_ten_times_a_second_and_at_the_end() {
        let drawn = Drawn::default();
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(drawn.clone()), 10);
        let bar = ProgressBar::with_draw_target(Some(1000), target)
            .with_style(style("frame"))
            .with_prefix("a.svo2");
        let progress = Progress {
            bar: Some(bar),
            name: "a.svo2".to_owned(),
            moved: Arc::default(),
        };
        let started = Instant::now();
        for done in 0..=1000 {
            progress.set(done);
            progress.set(done);
        }
        progress.end("done");
        let tenths = started.elapsed().as_millis() as usize / 100;
        let shown = drawn.0.lock().unwrap().clone();
        let times = shown.matches("a.svo2: ").count();
        assert!((2..=tenths + 4).contains(&times), "{times}: {shown}");
        assert!(shown.contains("100%|##########| 1000/1000 ["), "{shown}");
    }

    #[test]
    fn the_bar_looks_like_tqdm() {
        let drawn = Drawn::default();
        let target = ProgressDrawTarget::term_like(Box::new(drawn.clone()));
        let bar = ProgressBar::with_draw_target(Some(90), target)
            .with_style(style("frame"))
            .with_prefix("a.svo2");
        bar.set_position(41);
        bar.abandon();
        let shown = drawn.0.lock().unwrap().clone();
        assert!(
            shown.contains("a.svo2:  45%|####      | 41/90 [00:00<"),
            "{shown}"
        );
        assert!(shown.ends_with("frame/s]"), "{shown}");
    }
}
