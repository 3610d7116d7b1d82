//! 1. Where frames come from.

pub mod annexb;
mod capture_time;
mod captures;
pub mod contract;
pub mod cvmmap;
pub mod dummy;
#[allow(unsafe_code)] // the SIGBUS handler, and the page that it puts in place of a lost one
mod guard;
mod hearing;
pub mod hints;
mod lately;
pub mod notices;
#[allow(unsafe_code)] // maps the producer's segment and reads it through raw pointers
pub mod region;
pub mod snapshot;
pub mod sync;
pub mod target;
#[cfg(test)]
mod test_support;
mod writers;

use std::time::Instant;

pub use cvmmap::{CvMmapConfig, CvMmapSource};
pub use dummy::{DummyConfig, DummyProducer, ProducerEnd};
pub use hints::{Clock, Nature, StatusHint, StatusHints};
pub use target::Target;

use crate::frame::{FrameInfo, Snapshot, SurfaceLease};

/// A place that frames come from, driven by the ingest thread.
pub trait FrameSource {
    /// Waits for the next thing to happen, until `deadline`.
    ///
    /// A frame is read into a surface that `surfaces` gives. Whatever is wrong with one frame is
    /// counted and the frame left out; an error ends the run.
    ///
    /// # Errors
    ///
    /// If the source can never work: no permission, an impossible name.
    fn next(
        &mut self,
        deadline: Instant,
        surfaces: &mut dyn SurfaceSource,
    ) -> Result<SourceEvent, SourceError>;

    /// Whether the last frame of a recording was announced, as its producer says. Another
    /// recording may follow.
    fn at_end(&self) -> bool {
        false
    }

    /// When the producer was heard last, whether its frame was taken or not; `None` if that is never
    /// another time than a frame's.
    fn last_heard(&self) -> Option<Instant> {
        None
    }

    /// What the source has counted so far.
    fn counters(&self) -> &std::sync::Arc<SourceCounters>;
}

/// Who knows which surfaces a frame can be read into: the ingest stage, which has them from the
/// encoder.
pub trait SurfaceSource {
    /// A free surface for such a frame. May wait for an encoder to open when the shape is new.
    /// `None` is counted as [`SourceCounters::no_surface`].
    fn surface_for(&mut self, info: &FrameInfo) -> Option<SurfaceLease>;

    /// Whether whoever takes the surfaces opens, or has just opened, and is slower than it will be.
    fn is_starting(&self) -> bool {
        false
    }
}

/// What `FrameSource::next` saw.
#[derive(Debug)]
// A frame is the ordinary event; boxing it would allocate on the path.
#[allow(clippy::large_enum_variant)]
pub enum SourceEvent {
    Frame(Snapshot),
    /// A new epoch has begun (its first frame follows as an event of its own).
    Reset,
    /// The producer is not there (any more); it may come back.
    Offline,
    /// Nothing until the deadline.
    Idle,
    /// No more frames, ever.
    End,
}

macro_rules! counters {
    ($(#[$outer:meta])* $name:ident { $($(#[$meta:meta])* $field:ident,)* }) => {
        $(#[$outer])*
        #[derive(Debug, Default)]
        pub struct $name { $($(#[$meta])* pub $field: std::sync::atomic::AtomicU64,)* }
        impl $name {
            /// Name and value of every counter, in the order of the path.
            pub fn values(&self) -> impl Iterator<Item = (&'static str, u64)> {
                // Relaxed: read for reports only.
                [$((stringify!($field), self.$field.load(std::sync::atomic::Ordering::Relaxed)),)*]
                    .into_iter()
            }
        }
    };
}
#[allow(unused_imports)] // for the other stages' counters
pub(crate) use counters;

counters! {
    /// Everything that can become of an announced frame before it is queued.
    SourceCounters {
        /// Sync messages that arrived, of whatever kind.
        notices,
        /// Not a sync message: length, magic or version.
        bad_notices,
        /// Sync messages of another producer's label.
        foreign_labels,
        /// Frames read coherently and handed on.
        frames,
        /// Frame ids that were never looked at: newer ones were there first, or notices were lost.
        skipped,
        /// The frame was already taken with an earlier notice.
        duplicates,
        /// Metadata that cannot be parsed or does not fit the region.
        bad_metadata,
        /// A format that is valid but cannot be encoded (depth other than U8).
        unsupported,
        /// Region not there, empty, or being initialised (version 0.0).
        not_ready,
        /// Metadata changed while the payload was read.
        torn_metadata,
        /// A tear sentinel changed while the payload was read.
        torn_payload,
        /// The read ended so late in the frame interval that it proves nothing.
        too_late,
        /// The region shrank under the read.
        shrunk,
        /// No surface was free, or the encoder is not open.
        no_surface,
        /// A surface refused the frame.
        unfilled,
        /// Discontinuities: resets, ids or times going back, producers restarted.
        epochs,
        /// Times the segment was opened anew.
        reopens,
        /// Times the subscription was made anew, as frames were written and none was announced.
        resubscribed,
        /// Cache lines read for tear detection, beside the one pass over the payload.
        sentinel_lines,
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("{flag} {value}: {reason}")]
    Name {
        flag: &'static str,
        value: String,
        reason: String,
    },
    #[error("{flag} exceeds 24 bytes")]
    LabelTooLong { flag: &'static str },
    #[error("shared memory segment {name}: {reason}")]
    Segment { name: String, reason: String },
    #[error("sync socket {endpoint}: {reason}")]
    Sync { endpoint: String, reason: String },
    #[error("{path}: {reason}")]
    File { path: String, reason: String },
}
