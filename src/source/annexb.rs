//! An elementary stream from a file, as if a producer sent its access units.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::bitstream::AccessUnitPool;
use crate::bitstream::split::Splitter;
use crate::encode::passthrough::AccessUnitSurface;
use crate::encode::{Codec, FrameRate};
use crate::frame::{EncodedPlane, FrameInfo, PixelFormat, PlaneLayout, Snapshot};
use crate::time::MediaTime;
use crate::trace::{FrameTrace, Stage};

use super::{FrameSource, SourceCounters, SourceError, SourceEvent, SurfaceSource};

/// Replays an Annex B file, one access unit after the other, to the passthrough encoder.
///
/// Access units get evenly spaced times in the order of the file, which is decoding order: an
/// elementary stream carries no times, and with B-frames the order of presentation is another.
/// Frames have no picture; their size is 0x0.
///
/// It never drops: while no surface is free it waits. The file is read as it is needed.
pub struct AnnexBSource {
    name: String,
    codec: Codec,
    pace: Option<FrameRate>,
    file: File,
    /// What was read and not given out yet starts at `start`.
    window: Vec<u8>,
    start: usize,
    at_end: bool,
    splitter: Splitter,
    /// Bytes of the access unit that is next, once known.
    ready: Option<usize>,
    frame: u32,
    began: Option<Instant>,
    gap: bool,
    counters: Arc<SourceCounters>,
}

impl AnnexBSource {
    /// Opens the file. With a rate, access units come at that pace; without, as fast as they are
    /// taken, with times as at [`FrameRate::THIRTY`].
    ///
    /// # Errors
    ///
    /// [`SourceError::File`] if the file cannot be opened.
    pub fn open(path: &Path, codec: Codec, fps: Option<FrameRate>) -> Result<Self, SourceError> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|error| SourceError::File {
            path: name.clone(),
            reason: error.to_string(),
        })?;
        Ok(Self {
            name,
            codec,
            pace: fps,
            file,
            window: Vec::new(),
            start: 0,
            at_end: false,
            splitter: Splitter::new(codec),
            ready: None,
            frame: 0,
            began: None,
            gap: false,
            counters: Arc::default(),
        })
    }

    /// Bytes of the next access unit in the window; `None` at the end of the file.
    fn find(&mut self) -> Result<Option<usize>, SourceError> {
        if self.ready.is_some() {
            return Ok(self.ready);
        }
        loop {
            let there = &self.window[self.start..];
            self.ready = self.splitter.next_len(there, self.at_end);
            if self.ready.is_some() || self.at_end {
                return Ok(self.ready);
            }
            if there.len() > AccessUnitPool::LARGEST {
                return Err(self.wrong(format!(
                    "no end of an access unit within {} bytes from number {} on: is it {} in \
                     Annex B?",
                    AccessUnitPool::LARGEST,
                    self.frame,
                    self.codec
                )));
            }
            self.read_more()?;
        }
    }

    fn read_more(&mut self) -> Result<(), SourceError> {
        self.window.drain(..self.start);
        self.start = 0;
        let len = self.window.len();
        self.window.resize(len + CHUNK, 0);
        let read = loop {
            match self.file.read(&mut self.window[len..]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.window.truncate(len + *read.as_ref().unwrap_or(&0));
        self.at_end = read.map_err(|error| self.wrong(error.to_string()))? == 0;
        Ok(())
    }

    fn wrong(&self, reason: String) -> SourceError {
        SourceError::File {
            path: self.name.clone(),
            reason,
        }
    }

    /// Nanoseconds from the first access unit to the next one.
    fn media_nanos(&self) -> u64 {
        let rate = self.pace.unwrap_or(FrameRate::THIRTY);
        let nanos =
            u128::from(self.frame) * 1_000_000_000 * u128::from(rate.den) / u128::from(rate.num);
        nanos as u64
    }

    fn info(&self, len: usize) -> FrameInfo {
        let rate = self.pace.unwrap_or(FrameRate::THIRTY);
        FrameInfo {
            frame_id: self.frame,
            capture_ts_ns: self.media_nanos(),
            format: PixelFormat::Gray,
            left: PlaneLayout {
                width: 0,
                height: 0,
                stride: 0,
                offset: 0,
                size: 0,
            },
            encoded: Some(EncodedPlane {
                codec: self.codec,
                // Whoever takes it looks into the bytes.
                keyframe: false,
                offset: 0,
                size: len as u32,
                pts_ns: self.media_nanos(),
            }),
            frame_rate: u16::try_from(rate.num)
                .ok()
                .zip(u16::try_from(rate.den).ok()),
            payload_size: len as u32,
        }
    }
}

/// What one read asks for.
const CHUNK: usize = 256 * 1024;

/// How long it waits before it asks for a surface again.
const RETRY: Duration = Duration::from_micros(200);

impl FrameSource for AnnexBSource {
    fn next(
        &mut self,
        deadline: Instant,
        surfaces: &mut dyn SurfaceSource,
    ) -> Result<SourceEvent, SourceError> {
        loop {
            let Some(len) = self.find()? else {
                return Ok(SourceEvent::End);
            };
            let began = *self.began.get_or_insert_with(Instant::now);
            let due = match self.pace {
                None => began,
                Some(_) => began + Duration::from_nanos(self.media_nanos()),
            };
            let wait = due.saturating_duration_since(Instant::now());
            let limit = deadline.saturating_duration_since(Instant::now());
            if wait > limit {
                sleep(limit);
                return Ok(SourceEvent::Idle);
            }
            sleep(wait);
            let mut trace = FrameTrace::default();
            trace.stamp(Stage::Notice, Instant::now());
            let info = self.info(len);
            let mut surface = loop {
                match surfaces.surface_for(&info) {
                    Some(surface) => break surface,
                    None if Instant::now() >= deadline => return Ok(SourceEvent::Idle),
                    None => sleep(RETRY),
                }
            };
            add(&self.counters.notices);
            trace.stamp(Stage::SnapshotStart, Instant::now());
            let unit = &self.window[self.start..self.start + len];
            let filled = surface
                .get_mut::<AccessUnitSurface>()
                .is_some_and(|surface| surface.set(self.codec, unit).is_ok());
            let time = MediaTime(self.media_nanos() as i64);
            self.start += len;
            self.ready = None;
            self.frame = self.frame.wrapping_add(1);
            if !filled {
                add(&self.counters.unfilled);
                self.gap = true;
                continue;
            }
            trace.stamp(Stage::SnapshotEnd, Instant::now());
            add(&self.counters.frames);
            return Ok(SourceEvent::Frame(Snapshot {
                info,
                surface,
                epoch: 0,
                gap: std::mem::take(&mut self.gap),
                time,
                trace,
            }));
        }
    }

    fn counters(&self) -> &Arc<SourceCounters> {
        &self.counters
    }
}

fn add(counter: &AtomicU64) {
    // Relaxed: counters are read for reports only.
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
