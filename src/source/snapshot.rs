//! The coherent read of one frame, in one pass, straight into an encoder's surface.
//!
//! The producer gives no lock and no sequence counter: it writes payload, then metadata, then
//! announces. So a reader can only look before and after and compare:
//!
//! ```text
//! metadata a │ sentinels │ the one pass over the payload │ sentinels │ metadata b │ clock
//! ```
//!
//! Metadata that changed means that the next frame is complete; a changed sentinel means that it
//! is being written. Both can miss a writer that has only just started, at places where nobody
//! looked: hence the clock. A read that ends late in the frame interval is refused, because the
//! producer is writing by then (contract section 4.5).

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Instant;

use super::contract::{Metadata, Refusal, same_frame};
use super::notices::FrameNotice;
use super::region::{Region, read_line};
use super::{SourceCounters, SurfaceSource};
use crate::frame::{FillError, FrameInfo, FrameView, PixelFormat, SurfaceLease};

/// Reads frames; keeps room for the sentinels.
#[derive(Debug, Default)]
pub struct SnapshotReader {
    sentinels: Sentinels,
    /// Of the pictures that were announced last.
    size: Option<(u32, u32, PixelFormat)>,
    resized: bool,
}

/// A frame that was found coherent.
#[derive(Debug)]
pub struct Coherent {
    pub info: FrameInfo,
    pub surface: SurfaceLease,
    /// Just before the first byte of payload was read.
    pub start: Instant,
    /// After the last comparison.
    pub end: Instant,
}

/// Why a frame was not taken. All of it is normal and counted.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("the segment is too short for metadata or payload")]
    NotReady,
    #[error(transparent)]
    Metadata(#[from] Refusal),
    #[error("the segment holds frame {found} in place of {announced}")]
    OtherFrame { announced: u32, found: u32 },
    #[error("no surface is free")]
    NoSurface,
    #[error(transparent)]
    Unfilled(#[from] FillError),
    #[error("the segment shrank under the read")]
    Shrunk,
    #[error("the metadata changed under the read")]
    TornMetadata,
    #[error("the payload changed under the read")]
    TornPayload,
    #[error("the read ended too late in the frame interval")]
    TooLate,
}

impl SnapshotReader {
    /// Reads the frame that `notice` announced, if it is there and stays there.
    ///
    /// The read has to end before `latest_end`, where the frame interval is known.
    ///
    /// # Errors
    ///
    /// If any of that cannot be shown. The surface goes back to its pool.
    pub fn read(
        &mut self,
        region: &mut Region,
        notice: &FrameNotice,
        latest_end: Option<Instant>,
        surfaces: &mut dyn SurfaceSource,
        counters: &SourceCounters,
    ) -> Result<Coherent, Refused> {
        self.resized = false;
        let before = region.metadata().ok_or(Refused::NotReady)?;
        let metadata = Metadata::parse(&before, region.len())?;
        // A frame that was not announced is not taken, even a newer one: its own notice is on its
        // way. What a producer writes while it initialises the segment looks like a frame, too,
        // and is never announced (contract section 2).
        if (metadata.frame_id, metadata.capture_ts_ns) != (notice.frame_id, notice.timestamp_ns) {
            return Err(Refused::OtherFrame {
                announced: notice.frame_id,
                found: metadata.frame_id,
            });
        }
        let info = metadata.frame_info().map_err(Refusal::from)?;
        let size = (info.left.width, info.left.height, info.format);
        self.resized = self.size.replace(size).is_some_and(|before| before != size);
        let mut surface = surfaces.surface_for(&info).ok_or(Refused::NoSurface)?;
        let view = region.view(info).ok_or(Refused::NotReady)?;

        let start = Instant::now();
        if latest_end.is_some_and(|latest| start > latest) {
            return Err(Refused::TooLate);
        }
        // No payload read may move in front of the first metadata read: if it did, it could see
        // the frame before this one, under metadata that stays the same from here on. The reads
        // on both sides are volatile, assembly or system calls, which the compiler keeps in
        // order by itself; the fence keeps the processor to it (load-load, an acquire).
        fence(Ordering::Acquire);
        self.sentinels.note(&view);
        // The first sentinels before the pass: one that was read behind its line in the pass
        // would miss a change between the two.
        fence(Ordering::Acquire);
        let filled = surface.fill(&view);
        // The pass before the second sentinels and those before the second metadata read: a
        // payload read that moved behind the comparison could see the next frame unnoticed.
        fence(Ordering::Acquire);
        let untouched = self.sentinels.still_there(&view);
        fence(Ordering::Acquire);
        let after = region.metadata();
        let end = Instant::now();
        // Relaxed: a counter for reports.
        counters
            .sentinel_lines
            .fetch_add(self.sentinels.lines_read(), Ordering::Relaxed);

        if region.faulted() {
            return Err(Refused::Shrunk);
        }
        let after = after.ok_or(Refused::Shrunk)?;
        if !same_frame(&before, &after) {
            return Err(Refused::TornMetadata);
        }
        if !untouched {
            return Err(Refused::TornPayload);
        }
        filled?;
        if latest_end.is_some_and(|latest| end > latest) {
            return Err(Refused::TooLate);
        }
        Ok(Coherent {
            info,
            surface,
            start,
            end,
        })
    }

    /// Whether the last picture that was looked at, taken or not, has another size or format than the one before.
    pub fn resized(&self) -> bool {
        self.resized
    }
}

impl Refused {
    /// The counter that this belongs to.
    pub fn counter<'a>(&self, counters: &'a SourceCounters) -> &'a AtomicU64 {
        match self {
            Self::NotReady | Self::Metadata(Refusal::NotReady) => &counters.not_ready,
            Self::Metadata(Refusal::Invalid(_)) => &counters.bad_metadata,
            Self::Metadata(Refusal::Unsupported(_)) => &counters.unsupported,
            Self::OtherFrame { .. } => &counters.skipped,
            Self::NoSurface => &counters.no_surface,
            Self::Unfilled(_) => &counters.unfilled,
            Self::Shrunk => &counters.shrunk,
            Self::TornMetadata => &counters.torn_metadata,
            Self::TornPayload => &counters.torn_payload,
            Self::TooLate => &counters.too_late,
        }
    }
}

/// Cache lines spread over what the pass reads, as they were before it.
///
/// They are read beside the one pass over the payload and counted apart. A line costs a cache
/// miss that the pass would pay for anyway.
#[derive(Debug)]
struct Sentinels {
    lines: Box<[[u64; 8]; Self::LINES]>,
    read: u64,
}

impl Default for Sentinels {
    fn default() -> Self {
        Self {
            lines: Box::new([[0; 8]; Self::LINES]),
            read: 0,
        }
    }
}

impl Sentinels {
    const LINES: usize = 64;
    /// Of these, for the producer's access unit where there is one.
    const FOR_UNIT: usize = 16;

    fn note(&mut self, view: &FrameView<'_>) {
        self.read = 0;
        for (line, at) in self.lines.iter_mut().zip(places(view.info())) {
            *line = [0; 8];
            read_line(view, at, line);
            self.read += 1;
        }
    }

    fn still_there(&mut self, view: &FrameView<'_>) -> bool {
        let mut same = true;
        for (line, at) in self.lines.iter().zip(places(view.info())) {
            let mut now = [0; 8];
            read_line(view, at, &mut now);
            self.read += 1;
            same &= now == *line;
        }
        same
    }

    fn lines_read(&self) -> u64 {
        self.read
    }
}

/// Where the sentinels are: offsets into the payload, multiples of eight.
fn places(info: &FrameInfo) -> impl Iterator<Item = usize> {
    let left = info.left;
    // Up to the last pixel: behind it there may be room that no frame ever changes.
    let used = left.stride as usize * (left.height as usize - 1)
        + left.width as usize * info.format.bytes_per_pixel();
    let unit = info.encoded.map_or((0, 0), |unit| (unit.offset, unit.size));
    let for_unit = if info.encoded.is_some() {
        Sentinels::FOR_UNIT
    } else {
        0
    };
    spread(left.offset as usize, used, Sentinels::LINES - for_unit).chain(spread(
        unit.0 as usize,
        unit.1 as usize,
        for_unit,
    ))
}

/// Up to `count` lines over `len` bytes at `start`: the first, the last, and one somewhere in
/// each of equal parts between. Equal distances would hit the same column of every row at
/// common picture widths.
fn spread(start: usize, len: usize, count: usize) -> impl Iterator<Item = usize> {
    let lines = len.div_ceil(LINE);
    let count = count.min(lines);
    (0..count).map(move |n| {
        let (low, high) = (n * lines / count, (n + 1) * lines / count);
        let line = match n {
            0 => 0,
            n if n == count - 1 => lines - 1,
            // Multiples of the golden ratio fall everywhere in the part.
            n => low + ((n as u32).wrapping_mul(0x9E37_79B9) >> 8) as usize % (high - low),
        };
        (start & !7) + line * LINE
    })
}

const LINE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{EncodedPlane, PixelFormat, PlaneLayout};

    fn info(width: u32, height: u32, stride: u32, unit: Option<(u32, u32)>) -> FrameInfo {
        let size = stride * height;
        FrameInfo {
            frame_id: 0,
            capture_ts_ns: 0,
            format: PixelFormat::Bgr,
            left: PlaneLayout {
                width,
                height,
                stride,
                offset: 0,
                size,
            },
            encoded: unit.map(|(offset, size)| EncodedPlane {
                codec: crate::encode::Codec::H264,
                keyframe: false,
                offset,
                size,
                pts_ns: 0,
            }),
            frame_rate: None,
            payload_size: unit.map_or(size, |(offset, size)| offset + size),
        }
    }

    #[test]
    fn sentinels_reach_from_the_first_line_to_the_last() {
        let places: Vec<_> = places(&info(1920, 1080, 5760, None)).collect();
        assert_eq!((places.len(), places[0]), (64, 0));
        assert_eq!(*places.last().unwrap(), 1920 * 1080 * 3 - 64);
        assert!(places.is_sorted_by(|a, b| a < b));
        let largest = places.windows(2).map(|p| p[1] - p[0]).max().unwrap();
        assert!(
            largest < 2 * 1920 * 1080 * 3 / 64 + 64,
            "a gap of {largest}"
        );
        let columns: std::collections::HashSet<_> = places.iter().map(|at| at % 5760).collect();
        assert!(columns.len() > 32, "{} columns", columns.len());
    }

    #[test]
    fn tiny_pictures_have_fewer_and_access_units_their_own() {
        assert_eq!(places(&info(2, 2, 6, None)).collect::<Vec<_>>(), [0]);
        let of_unit: Vec<_> = places(&info(64, 64, 192, Some((12_288, 5000)))).collect();
        assert_eq!(of_unit.len(), 64);
        assert_eq!(of_unit[48], 12_288);
        assert_eq!(of_unit[63], 12_288 + 78 * 64);
    }

    #[test]
    fn every_byte_of_a_small_payload_is_watched() {
        let info = info(31, 3, 96, None);
        let mut payload = vec![7_u8; info.payload_size as usize];
        let watched = 96 * 2 + 31 * 3;
        for byte in 0..watched {
            let mut sentinels = Sentinels::default();
            sentinels.note(&FrameView::from_slice(info, &payload));
            assert!(sentinels.still_there(&FrameView::from_slice(info, &payload)));
            payload[byte] ^= 0x80;
            let view = FrameView::from_slice(info, &payload);
            assert!(!sentinels.still_there(&view), "byte {byte}");
            assert_eq!(sentinels.lines_read(), 3 * 5);
            payload[byte] ^= 0x80;
        }
    }
}
