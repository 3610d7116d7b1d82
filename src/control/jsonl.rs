//! Bodies as JSON, one packet a line (`--body-output jsonl:PATH`), written on a thread of its own:
//! a slow disk costs lines, which are counted, and never a frame.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use serde::Serialize;

use super::body::{BodyFormat, BodyFrame, CoordinateSystem, ReferenceFrame, TrackingState};
use super::pose::{PictureRef, Pose};
use crate::replace::is_strangers_link;

#[derive(Debug, Default)]
pub struct JsonlCounters {
    pub written: AtomicU64,
    /// The thread did not keep up.
    pub overflows: AtomicU64,
    /// Lines that the file system did not take, for example because the disk is full.
    pub failed: AtomicU64,
}

type Line = (Box<Pose>, Option<PictureRef>);

#[derive(Debug, Clone)]
pub struct JsonlSender {
    lines: SyncSender<Line>,
    counters: Arc<JsonlCounters>,
}

impl JsonlSender {
    /// Never waits; what does not fit is counted.
    pub fn send(&self, pose: Box<Pose>, picture: Option<PictureRef>) {
        if self.lines.try_send((pose, picture)).is_err() {
            self.counters.overflows.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The thread that writes. It ends when every [`JsonlSender`] is gone.
#[derive(Debug)]
pub struct JsonlWriter {
    finished: Receiver<()>,
}

impl JsonlWriter {
    /// Opens the file, which is emptied, and starts the thread.
    ///
    /// # Errors
    ///
    /// If it cannot be written. A named pipe needs its reader first: opening never waits for one. A
    /// stranger's link is not followed: the file that it leads to would be emptied.
    pub fn start(
        path: &Path,
        counters: &Arc<JsonlCounters>,
    ) -> std::io::Result<(Self, JsonlSender)> {
        if is_strangers_link(path) {
            return Err(std::io::Error::other(
                "a link of another user is there: remove it, or write into a folder of your own",
            ));
        }
        // Unless it is a link now, it must not become one.
        let no_link = if path.is_symlink() {
            0
        } else {
            libc::O_NOFOLLOW
        };
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(libc::O_NONBLOCK | no_link)
            .open(path)?;
        // Only opening must not wait: a slow pipe takes its lines whole.
        fcntl_setfl(&file, fcntl_getfl(&file)?.difference(OFlags::NONBLOCK))?;
        let (lines, incoming) = sync_channel(WAITING);
        let (done, finished) = sync_channel(1);
        let name = path.display().to_string();
        let own = Arc::clone(counters);
        std::thread::Builder::new()
            .name("body-jsonl".to_owned())
            .spawn(move || {
                write_all(file, &incoming, &name, &own);
                // Whoever waited may have given up.
                let _ = done.send(());
            })?;
        let sender = JsonlSender {
            lines,
            counters: Arc::clone(counters),
        };
        Ok((Self { finished }, sender))
    }

    /// Waits until everything is written, but not for a disk that hangs.
    pub fn finish(self) {
        if self.finished.recv_timeout(LONGEST_GOODBYE) == Err(RecvTimeoutError::Timeout) {
            log::warn!("--body-output: the file takes nothing any more; its end is lost");
        }
    }
}

/// A write for each line: a reader sees it when it is there, and each is counted for itself.
fn write_all(mut file: File, incoming: &Receiver<Line>, path: &str, counters: &JsonlCounters) {
    let mut text = Vec::new();
    let mut failing = false;
    // The file ends within a line: what follows begins a new one.
    let mut torn = false;
    while let Ok((pose, picture)) = incoming.recv() {
        text.clear();
        if torn {
            text.push(b'\n');
        }
        let line = JsonLine::of(&pose.frame, picture);
        let result = match serde_json::to_writer(&mut text, &line) {
            Ok(()) => {
                text.push(b'\n');
                let (taken, result) = write_most(&mut file, &text);
                if let Some(last) = taken.last() {
                    torn = *last != b'\n';
                }
                result
            }
            Err(error) => Err(error.into()),
        };
        match result {
            Ok(()) => {
                counters.written.fetch_add(1, Ordering::Relaxed);
                if std::mem::take(&mut failing) {
                    log::info!("--body-output: {path} takes lines again");
                }
            }
            Err(error) => {
                counters.failed.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(&mut failing, true) {
                    log::warn!("--body-output: {path}: {error}; lines are left out and counted");
                }
            }
        }
    }
}

/// As [`Write::write_all`], with what was taken before an error.
fn write_most<'a>(file: &mut File, text: &'a [u8]) -> (&'a [u8], std::io::Result<()>) {
    let mut taken = 0;
    while taken < text.len() {
        match file.write(&text[taken..]) {
            Ok(0) => return (&text[..taken], Err(ErrorKind::WriteZero.into())),
            Ok(more) => taken += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (&text[..taken], Err(error)),
        }
    }
    (text, Ok(()))
}

/// A line's fields; a keypoint is `[x, y, confidence]`. JSON has no NaN: it stands as null.
#[derive(Serialize)]
struct JsonLine<'a> {
    frame_count: u32,
    timestamp_ns: u64,
    sdk_timestamp_ns: u64,
    label: &'a str,
    format: BodyFormat,
    coordinate_system: CoordinateSystem,
    reference_frame: ReferenceFrame,
    /// The picture that it went with, if any.
    picture: Option<PictureRef>,
    bodies: Vec<JsonBody>,
}

#[derive(Serialize)]
struct JsonBody {
    id: i32,
    tracking: TrackingState,
    moving: bool,
    confidence: f32,
    position: [f32; 3],
    velocity: [f32; 3],
    dimensions: [f32; 3],
    box_2d: [[f32; 2]; 4],
    keypoints_2d: Vec<[f32; 3]>,
    keypoints_3d: Vec<[f32; 3]>,
}

impl<'a> JsonLine<'a> {
    fn of(frame: &'a BodyFrame, picture: Option<PictureRef>) -> Self {
        let bodies = frame.bodies.iter().map(|body| JsonBody {
            id: body.id,
            tracking: body.tracking,
            moving: body.moving,
            confidence: body.confidence,
            position: body.position,
            velocity: body.velocity,
            dimensions: body.dimensions,
            box_2d: body.box_2d,
            keypoints_2d: body
                .keypoints_2d
                .iter()
                .zip(&body.keypoint_confidence)
                .map(|(point, confidence)| [point[0], point[1], *confidence])
                .collect(),
            keypoints_3d: body.keypoints_3d.clone(),
        });
        Self {
            frame_count: frame.frame_count,
            timestamp_ns: frame.timestamp_ns,
            sdk_timestamp_ns: frame.sdk_timestamp_ns,
            label: &frame.label,
            format: frame.format,
            coordinate_system: frame.coordinate_system,
            reference_frame: frame.reference_frame,
            picture,
            bodies: bodies.collect(),
        }
    }
}

/// Lines that may wait for the disk: some seconds of them.
const WAITING: usize = 128;
const LONGEST_GOODBYE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use std::fs::OpenOptions;
    use std::io::Read;
    use std::path::PathBuf;
    use std::time::Instant;

    /// A writer into a named pipe, and a reader that reads at the end only.
    struct Pipe {
        folder: tempfile::TempDir,
        reader: File,
        counters: Arc<JsonlCounters>,
        writer: JsonlWriter,
        sender: JsonlSender,
    }

    impl Pipe {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("pipe");
            mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
            let reader = open(&path, OpenOptions::new().read(true));
            let counters = Arc::new(JsonlCounters::default());
            let (writer, sender) = JsonlWriter::start(&path, &counters).unwrap();
            Self {
                folder,
                reader,
                counters,
                writer,
                sender,
            }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("pipe")
        }

        fn send(&self, lines: u64) {
            for _ in 0..lines {
                self.sender.send(pose(), None);
            }
        }

        fn wait_until_full(&self) {
            let probe = open(&self.path(), OpenOptions::new().write(true));
            wait_for(|| {
                let mut end = [PollFd::new(&probe, PollFlags::OUT)];
                poll(&mut end, Some(&Timespec::default())).unwrap();
                !end[0].revents().contains(PollFlags::OUT)
            });
        }

        /// What comes until the end, and how many lines were counted as written and as failed.
        fn read(mut self) -> (String, u64, u64) {
            drop(self.sender);
            let mut text = String::new();
            self.reader.read_to_string(&mut text).unwrap();
            self.writer.finish();
            let (written, failed) = counted(&self.counters);
            (text, written, failed)
        }
    }

    /// Without waiting for the other end.
    fn open(path: &Path, options: &mut OpenOptions) -> File {
        let pipe = options.custom_flags(libc::O_NONBLOCK).open(path).unwrap();
        fcntl_setfl(&pipe, OFlags::empty()).unwrap();
        pipe
    }

    fn counted(counters: &JsonlCounters) -> (u64, u64) {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (of(&counters.written), of(&counters.failed))
    }

    /// The fixture's body many times over: a line of some pages.
    fn pose() -> Box<Pose> {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/control/body_tracking_valid.bin"
        );
        let mut frame = BodyFrame::parse(&std::fs::read(path).unwrap()).unwrap();
        let body = frame.bodies[0].clone();
        frame.bodies = vec![body; 40];
        let record = Vec::new();
        Box::new(Pose { frame, record })
    }

    fn wait_for(mut happened: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !happened() {
            assert!(Instant::now() < deadline, "not within a minute");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn is_whole(line: &str) -> bool {
        let line = serde_json::from_str::<serde_json::Value>(line);
        line.is_ok_and(|line| line["frame_count"] == 42)
    }

    /// Far more than a pipe takes: 64 KiB (pipe(7)).
    const LINES: u64 = 50;

    #[test]
    fn a_slow_pipe_gets_every_line_whole() {
        let pipe = Pipe::new();
        pipe.send(LINES);
        pipe.wait_until_full();
        let (text, written, failed) = pipe.read();
        assert!(text.len() > 4 * 65_536, "{} bytes", text.len());
        assert!(text.lines().all(is_whole));
        assert_eq!((written, failed), (LINES, 0));
        assert_eq!(text.lines().count() as u64, LINES);
    }

    #[test]
    fn what_follows_a_line_that_broke_off_is_whole_and_each_line_is_counted() {
        let mut pipe = Pipe::new();
        pipe.send(LINES);
        pipe.wait_until_full();
        // The reader goes away within a line. The pipe keeps what it has for the next one.
        let nobody = File::open("/dev/null").unwrap();
        drop(std::mem::replace(&mut pipe.reader, nobody));
        let counters = Arc::clone(&pipe.counters);
        wait_for(|| {
            let (written, failed) = counted(&counters);
            written + failed == LINES
        });
        pipe.reader = open(&pipe.path(), OpenOptions::new().read(true));
        pipe.send(1);
        let (text, written, failed) = pipe.read();
        let whole = text.lines().filter(|line| is_whole(line)).count() as u64;
        assert_eq!((written, failed), (whole, LINES + 1 - whole));
        assert_eq!(text.lines().count() as u64, whole + 1, "one broke off");
        assert!(text.lines().next_back().is_some_and(is_whole));
    }
}
