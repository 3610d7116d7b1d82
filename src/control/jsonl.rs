//! Bodies as JSON, one packet a line (`--body-output jsonl:PATH`), written on a thread of its own:
//! a slow disk costs lines, which are counted, and never a frame.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use serde::Serialize;

use super::body::{BodyFormat, BodyFrame, CoordinateSystem, ReferenceFrame, TrackingState};
use super::pose::{PictureRef, Pose};

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
    /// If it cannot be written. A named pipe needs its reader first: opening never waits for one.
    pub fn start(
        path: &Path,
        counters: &Arc<JsonlCounters>,
    ) -> std::io::Result<(Self, JsonlSender)> {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        let (lines, incoming) = sync_channel(WAITING);
        let (done, finished) = sync_channel(1);
        let name = path.display().to_string();
        let own = Arc::clone(counters);
        std::thread::Builder::new()
            .name("body-jsonl".to_owned())
            .spawn(move || {
                write_all(BufWriter::new(file), &incoming, &name, &own);
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

fn write_all(
    mut file: BufWriter<File>,
    incoming: &Receiver<Line>,
    path: &str,
    counters: &JsonlCounters,
) {
    let mut text = Vec::new();
    let mut failing = false;
    while let Ok((pose, picture)) = incoming.recv() {
        let mut next = Some((pose, picture));
        let mut lines = 0;
        let mut result = Ok(());
        // Everything that waits, then one flush: a reader sees lines when they are there.
        while let Some((pose, picture)) = next.take() {
            text.clear();
            let line = JsonLine::of(&pose.frame, picture);
            if serde_json::to_writer(&mut text, &line).is_ok() {
                text.push(b'\n');
                lines += 1;
                result = result.and_then(|()| file.write_all(&text));
            }
            next = incoming.try_recv().ok();
        }
        result = result.and_then(|()| file.flush());
        let Err(error) = result else {
            counters.written.fetch_add(lines, Ordering::Relaxed);
            if std::mem::take(&mut failing) {
                log::info!("--body-output: {path} takes lines again");
            }
            continue;
        };
        counters.failed.fetch_add(lines, Ordering::Relaxed);
        if !std::mem::replace(&mut failing, true) {
            log::warn!("--body-output: {path}: {error}; lines are left out and counted");
        }
        // What the buffer holds would be tried again before every new line, and grow stale.
        let (inner, _) = file.into_parts();
        file = BufWriter::new(inner);
    }
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
