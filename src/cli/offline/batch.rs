//! `zed_batch_svo_to_mp4`: many recordings, one process of `zed_svo_to_mp4` for each, so that a
//! crash or a lost GPU costs one file only.

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Parser;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{EncoderArgs, RangeArgs, ViewArgs};
use crate::cli::say;
use crate::offline::error::exit;
use crate::offline::output::names_of;
use crate::offline::progress::{Progress, ProgressChoice};
use crate::offline::svo::version_of;
use crate::pipeline::stop::StopToken;

/// Converts folders of ZED recordings to MP4, each beside its recording
#[derive(Debug, Clone, Parser)]
#[command(name = "zed_batch_svo_to_mp4", version)]
pub struct BatchArgs {
    /// Folders to look in; a file is taken as it is
    #[arg(required = true, value_name = "FOLDER")]
    pub folders: Vec<PathBuf>,

    /// Which file names are recordings
    #[arg(long, value_name = "GLOB", default_value = "*.svo2")]
    pub pattern: String,

    /// Look in folders inside the folders too
    #[arg(long)]
    pub recursive: bool,

    /// Conversions at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub jobs: u32,

    #[command(flatten)]
    pub range: RangeArgs,

    #[command(flatten)]
    pub encoder: EncoderArgs,

    #[command(flatten)]
    pub view: ViewArgs,

    /// CUDA_VISIBLE_DEVICES of the conversions
    #[arg(long, value_name = "STR")]
    pub cuda_visible_devices: Option<String>,

    /// Convert again what has its MP4 already; else it is skipped
    #[arg(long)]
    pub overwrite: bool,

    /// Start nothing more after a failure
    #[arg(long)]
    pub fail_fast: bool,

    /// The converter; default: zed_svo_to_mp4 beside this program, else on PATH
    #[arg(long, value_name = "PATH")]
    pub zed_bin: Option<PathBuf>,

    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,

    /// A bar on standard error
    #[arg(long, value_enum, default_value_t)]
    pub progress: ProgressChoice,
}

/// What is to be done with one recording.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    input: PathBuf,
    output: PathBuf,
    plan: Plan,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Plan {
    Convert,
    Skip,
    /// Another recording before it has the same MP4.
    Clash(PathBuf),
    /// A recording has the place of its MP4.
    Recording(PathBuf),
    /// A folder that cannot be read.
    Unreadable(String),
}

impl Plan {
    /// Why nothing can be done.
    fn failure(&self) -> Option<String> {
        match self {
            Self::Convert | Self::Skip => None,
            Self::Clash(other) => Some(format!("its MP4 is that of {}", other.display())),
            Self::Recording(other) => Some(format!(
                "its MP4 would take the place of the recording {}",
                other.display()
            )),
            Self::Unreadable(why) => Some(why.clone()),
        }
    }
}

/// Runs the tool and gives its exit code; errors go to standard error.
pub fn run(args: &BatchArgs, stop: &StopToken) -> u8 {
    let (items, converter) = match discover(args).and_then(|items| Ok((items, converter(args)?))) {
        Ok(found) => found,
        Err(error) => {
            eprintln!("error: {error}");
            return exit::USAGE;
        }
    };
    if items.is_empty() {
        eprintln!(
            "error: nothing matches {} in the given folders",
            args.pattern
        );
        return exit::USAGE;
    }
    if args.dry_run {
        for item in &items {
            let input = item.input.display();
            let verb = match item.plan {
                Plan::Skip => "skip",
                Plan::Convert => "convert",
                _ => "fail",
            };
            say(&match &item.plan {
                Plan::Unreadable(why) => format!("{verb} {input}: {why}"),
                _ => format!("{verb} {input} -> {}", item.output.display()),
            });
        }
        return exit::SUCCESS;
    }
    let progress = Progress::new(args.progress, "batch", "file", items.len() as u64);
    let batch = Batch {
        args,
        converter,
        progress: &progress,
        stop,
        state: Mutex::new(State {
            queue: items.into(),
            ..State::default()
        }),
    };
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(|| batch.work());
        }
        scope.spawn(|| batch.forward_stop());
    });
    let state = batch
        .state
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    let counts = format!(
        "converted={} skipped={} failed={}",
        state.converted, state.skipped, state.failed
    );
    progress.end(&counts);
    say(&counts);
    if stop.is_stopped() {
        exit::INTERRUPTED
    } else if state.failed > 0 {
        exit::FAILED
    } else {
        exit::SUCCESS
    }
}

struct Batch<'a> {
    args: &'a BatchArgs,
    converter: PathBuf,
    progress: &'a Progress,
    stop: &'a StopToken,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Item>,
    /// The conversions that are running, by process id.
    running: HashMap<u32, Arc<std::os::fd::OwnedFd>>,
    workers_done: u32,
    converted: usize,
    skipped: usize,
    failed: usize,
}

impl Batch<'_> {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let mut state = self.state();
            let refused = self.stop.is_stopped() || (self.args.fail_fast && state.failed > 0);
            let Some(item) = state.queue.pop_front().filter(|_| !refused) else {
                state.workers_done += 1;
                return;
            };
            drop(state);
            match &item.plan {
                Plan::Skip => {
                    self.state().skipped += 1;
                    self.tell("skipped", &item, "the MP4 exists");
                }
                Plan::Clash(_) | Plan::Recording(_) | Plan::Unreadable(_) => {
                    self.state().failed += 1;
                    let why = item.plan.failure().unwrap_or_default();
                    self.tell("failed", &item, &why);
                }
                Plan::Convert => match self.convert(&item) {
                    Ok(line) => {
                        self.state().converted += 1;
                        self.tell("converted", &item, &line);
                    }
                    Err(why) => {
                        self.state().failed += 1;
                        self.tell("failed", &item, &why);
                    }
                },
            }
        }
    }

    /// Runs one conversion; its last line, or the last lines of what it complained about.
    fn convert(&self, item: &Item) -> Result<String, String> {
        let mut command = Command::new(&self.converter);
        command
            .arg("--input")
            .arg(&item.input)
            .arg("--output")
            .arg(&item.output)
            .args(self.args.range.words())
            .args(self.args.encoder.words())
            .args(self.args.view.words())
            .args(["--progress", "never"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C of the terminal must reach it once, and that is through us.
            .process_group(0);
        if let Some(devices) = &self.args.cuda_visible_devices {
            command.env("CUDA_VISIBLE_DEVICES", devices);
        }
        let name = self.converter.display();
        let child = command
            .spawn()
            .map_err(|error| format!("{name} cannot be started: {error}"))?;
        let id = child.id();
        let handle =
            Pid::from_raw(id as i32).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        if let Some(handle) = handle {
            self.state().running.insert(id, Arc::new(handle));
        }
        if self.stop.is_stopped() {
            // It came between the two: the watcher may have missed this one.
            self.interrupt_all();
        }
        let output = child.wait_with_output();
        self.state().running.remove(&id);
        let output = output.map_err(|error| format!("{name}: {error}"))?;
        if output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout);
            return Ok(text.lines().last().unwrap_or("").to_owned());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n    ");
        Err(format!("{}\n    {last}", output.status))
    }

    fn tell(&self, what: &str, item: &Item, detail: &str) {
        let (done, all) = {
            let state = self.state();
            let done = state.converted + state.skipped + state.failed;
            (done, done + state.running.len() + state.queue.len())
        };
        self.progress.set(done as u64);
        if what == "failed" || !self.progress.is_bar() {
            let input = item.input.display();
            self.progress
                .say(&format!("[{done}/{all}] {what} {input}: {detail}"));
        }
    }

    /// Waits for the end of the workers, and hands a signal on to what is running.
    fn forward_stop(&self) {
        loop {
            if self.stop.wait(Duration::from_millis(50)) {
                self.interrupt_all();
                return;
            }
            if self.state().workers_done >= self.args.jobs {
                return;
            }
        }
    }

    fn interrupt_all(&self) {
        // Each once: a second signal would end a conversion without closing its file.
        let running = std::mem::take(&mut self.state().running);
        for process in running.into_values() {
            let _ = pidfd_send_signal(&process, Signal::TERM);
        }
    }
}

/// The recordings in the folders, by path, and what is to be done with each.
fn discover(args: &BatchArgs) -> Result<Vec<Item>, String> {
    let pattern = glob::Pattern::new(&args.pattern)
        .map_err(|error| format!("--pattern {}: {error}", args.pattern))?;
    let mut found = Found::default();
    for given in &args.folders {
        if given.is_file() {
            found.recordings.push(given.clone());
        } else if given.is_dir() {
            found.look_in(given, &pattern, args.recursive);
        } else {
            return Err(format!("{}: there is no such folder", given.display()));
        }
    }
    found.recordings.sort();
    let mut seen = HashSet::new();
    found
        .recordings
        .retain(|path| seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())));
    let inputs: HashMap<(u64, u64), PathBuf> = found
        .recordings
        .iter()
        .filter_map(|path| Some((identity(path)?, path.clone())))
        .collect();
    // What the pattern matches but is no recording, as an MP4 of an earlier run, may be replaced.
    let recording_at = |name: &Path| {
        let input = inputs.get(&identity(name)?)?;
        version_of(input).is_ok().then(|| input.clone())
    };
    let mut taken: HashMap<PathBuf, PathBuf> = HashMap::new();
    let recordings = found.recordings.iter().map(|input| {
        let output = input.with_extension("mp4");
        let plan = if let Some(other) = names_of(&output).iter().find_map(|n| recording_at(n)) {
            Plan::Recording(other)
        } else if let Some(other) = taken.get(&output) {
            Plan::Clash(other.clone())
        } else if output.exists() && !args.overwrite {
            Plan::Skip
        } else {
            Plan::Convert
        };
        taken.entry(output.clone()).or_insert_with(|| input.clone());
        Item {
            input: input.clone(),
            output,
            plan,
        }
    });
    let mut items: Vec<Item> = recordings.collect();
    items.extend(found.unreadable.into_iter().map(|(folder, error)| Item {
        output: folder.clone(),
        input: folder,
        plan: Plan::Unreadable(format!("the folder cannot be read: {error}")),
    }));
    items.sort_by(|one, other| one.input.cmp(&other.input));
    Ok(items)
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

#[derive(Default)]
struct Found {
    recordings: Vec<PathBuf>,
    unreadable: Vec<(PathBuf, std::io::Error)>,
}

impl Found {
    fn look_in(&mut self, folder: &Path, pattern: &glob::Pattern, recursive: bool) {
        // One folder that cannot be read does not keep the others from being looked at.
        if let Err(error) = self.read(folder, pattern, recursive) {
            self.unreadable.push((folder.to_owned(), error));
        }
    }

    fn read(
        &mut self,
        folder: &Path,
        pattern: &glob::Pattern,
        recursive: bool,
    ) -> std::io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            // Links to folders are not followed: they can lead in a circle.
            if entry.file_type()?.is_dir() {
                if recursive {
                    self.look_in(&path, pattern, recursive);
                }
                continue;
            }
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let unfinished = name.ends_with(".part") || name.ends_with(".partial.mp4");
            if pattern.matches(&name) && !unfinished && path.is_file() {
                self.recordings.push(path);
            }
        }
        Ok(())
    }
}

fn converter(args: &BatchArgs) -> Result<PathBuf, String> {
    if let Some(given) = &args.zed_bin {
        return match given.is_file() {
            true => Ok(given.clone()),
            false => Err(format!(
                "--zed-bin {}: there is no such file",
                given.display()
            )),
        };
    }
    let beside = std::env::current_exe()
        .ok()
        .map(|path| path.with_file_name(CONVERTER));
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&paths).map(|folder| folder.join(CONVERTER));
    let mut places = beside.into_iter().chain(on_path);
    places.find(|path| path.is_file()).ok_or_else(|| {
        format!("{CONVERTER} is neither beside this program nor on PATH: name it with --zed-bin")
    })
}

const CONVERTER: &str = "zed_svo_to_mp4";
/// Lines of a failed conversion's complaints that are shown.
const SHOWN_LINES: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> BatchArgs {
        BatchArgs::try_parse_from([&["zed_batch_svo_to_mp4"], words].concat()).unwrap()
    }

    fn found(args: &BatchArgs, root: &Path) -> Vec<(String, Plan)> {
        let items = discover(args).unwrap();
        items
            .into_iter()
            .map(|item| {
                (
                    item.input.strip_prefix(root).unwrap().display().to_string(),
                    item.plan,
                )
            })
            .collect()
    }

    #[test]
    fn folders_are_searched_as_asked_and_finished_files_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir_all(root.join("b/c")).unwrap();
        for name in [
            "z.svo2",
            "a.svo2",
            "a.mp4",
            "a.svo",
            "x.svo2.part",
            "b/c/d.svo2",
            "n.txt",
            "q.partial.mp4",
        ] {
            std::fs::write(root.join(name), "").unwrap();
        }
        let folder = root.to_str().unwrap();
        let of = |name: &str, plan| (name.to_owned(), plan);
        assert_eq!(
            found(&args(&[folder]), root),
            [of("a.svo2", Plan::Skip), of("z.svo2", Plan::Convert)]
        );
        assert_eq!(
            found(&args(&[folder, "--recursive", "--overwrite"]), root),
            [
                of("a.svo2", Plan::Convert),
                of("b/c/d.svo2", Plan::Convert),
                of("z.svo2", Plan::Convert)
            ]
        );
        let both = found(&args(&[folder, "--pattern", "a.svo*", "--overwrite"]), root);
        assert_eq!(
            both,
            [
                of("a.svo", Plan::Convert),
                of("a.svo2", Plan::Clash(root.join("a.svo")))
            ]
        );
        let one = root.join("n.txt");
        assert_eq!(
            found(&args(&[one.to_str().unwrap(), folder, folder]), root).len(),
            3
        );
        assert!(discover(&args(&["/nonexistent"])).is_err());
        assert!(discover(&args(&[folder, "--pattern", "[a"])).is_err());
        let all = found(&args(&[folder, "--pattern", "*"]), root);
        assert!(
            all.iter().all(|(name, _)| !name.contains("part")),
            "{all:?}"
        );
    }
}
