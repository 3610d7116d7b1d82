//! 4. Pictures to bits.

use std::collections::VecDeque;
use std::fmt;

use crate::frame::{PictureShape, Snapshot, SurfacePool};
use crate::time::MediaTime;
use crate::trace::FrameTrace;

pub mod fallback;
#[cfg(feature = "nvenc")]
pub mod nvenc;
pub mod openh264;
pub mod passthrough;
pub mod registry;
#[cfg(feature = "x265")]
pub mod x265;

pub use fallback::{Encoder, EncoderCounters, Outcome};
pub use registry::{EncoderChoice, default_bitrate};

/// The two codecs of the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    H264,
    H265,
}

impl Codec {
    pub const fn name(self) -> &'static str {
        match self {
            Self::H264 => "h264",
            Self::H265 => "h265",
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Pictures per second as a fraction; neither part is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRate {
    pub num: u32,
    pub den: u32,
}

impl FrameRate {
    pub const THIRTY: Self = Self { num: 30, den: 1 };

    pub fn per_second(self) -> f64 {
        f64::from(self.num) / f64::from(self.den)
    }
}

/// How many bits to spend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateControl {
    /// Constant bit rate, in bit/s.
    Bitrate(u32),
    /// Constant quality, 0 (best) to 51.
    Quality(u8),
}

/// Speed against quality, the same four words for every encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    #[default]
    Fastest,
    Fast,
    Balanced,
    Quality,
}

/// What the encoder is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tuning {
    /// One access unit out for each picture in; nothing is looked at ahead.
    LowLatency,
    /// Offline: delay does not matter.
    Quality,
}

/// Everything an encoder is opened with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncoderConfig {
    pub codec: Codec,
    /// The pictures that ingest will fill the surfaces with. The coded size is the next even one.
    pub shape: PictureShape,
    pub frame_rate: FrameRate,
    pub rate: RateControl,
    /// Pictures from one IDR to the next; 0 means never again without being asked.
    pub gop: u32,
    pub b_frames: u32,
    /// Each `gop` pictures code the whole area anew, a strip at a time, in place of an IDR each
    /// `gop` pictures. Only the first picture and those with [`Picture::force_key`] are IDRs.
    /// A backend that has no such thing warns and makes key frames.
    pub intra_refresh: bool,
    pub preset: Preset,
    pub tuning: Tuning,
    /// Surfaces that ingest and the queue may hold at once, beside those the encoder keeps.
    pub surfaces_in_flight: usize,
}

impl EncoderConfig {
    /// [`PictureShape::coded_size`].
    pub fn coded_size(&self) -> (u32, u32) {
        self.shape.coded_size()
    }
}

/// What a backend is given: one coherent frame, and how to code it.
#[derive(Debug)]
pub struct Picture {
    pub snapshot: Snapshot,
    /// Make it an IDR picture with its parameter sets.
    pub force_key: bool,
}

/// What a backend gives back: the Annex B bytes of exactly one access unit.
#[derive(Debug, Default)]
pub struct EncodedPicture {
    pub data: Vec<u8>,
    /// Echoed from the picture, never invented.
    pub pts: MediaTime,
    /// Never after `pts`; strictly increasing. Equal to `pts` without B-frames.
    pub dts: MediaTime,
    pub key: bool,
    pub frame_id: u32,
    pub epoch: u32,
    pub capture_ts_ns: u64,
    pub trace: FrameTrace,
}

impl EncodedPicture {
    /// An empty one that carries the identity and time of the picture it will hold.
    pub fn of(snapshot: &Snapshot, buffer: Vec<u8>) -> Self {
        Self {
            data: buffer,
            pts: snapshot.time,
            dts: snapshot.time,
            key: false,
            frame_id: snapshot.info.frame_id,
            epoch: snapshot.epoch,
            capture_ts_ns: snapshot.info.capture_ts_ns,
            trace: snapshot.trace,
        }
    }
}

/// Where a backend puts what it has coded, and where it gets its buffers from: they come back
/// from the access units, so that nothing is allocated once all are large enough.
#[derive(Debug, Default)]
pub struct EncodedQueue {
    ready: VecDeque<EncodedPicture>,
    spare: Vec<Vec<u8>>,
    left_out: u64,
}

impl EncodedQueue {
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty buffer that keeps the capacity it grew to earlier.
    pub fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.spare.push(buffer);
    }

    pub fn push(&mut self, picture: EncodedPicture) {
        self.ready.push_back(picture);
    }

    /// Says that a picture gets no access unit, on purpose: a passthrough that waits for a key
    /// frame. A backend that gives nothing and does not say so is broken.
    pub fn leave_out(&mut self) {
        self.left_out += 1;
    }

    /// Pictures left out so far.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    pub fn pop(&mut self) -> Option<EncodedPicture> {
        self.ready.pop_front()
    }

    /// The pictures that are ready, oldest first.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut EncodedPicture> {
        self.ready.iter_mut()
    }

    pub fn len(&self) -> usize {
        self.ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }
}

/// An open encoder.
///
/// The contract, held by `tests/encoder_contract.rs` for every candidate: Annex B; parameter sets
/// in front of every IDR; no access unit delimiters; exactly one access unit per picture; times
/// echoed; the first picture is an IDR; no B-frames unless asked; without B-frames and with
/// [`Tuning::LowLatency`] the access unit of a picture is out when `encode` returns.
pub trait EncoderBackend {
    /// As the operator knows it, for example `openh264`.
    fn name(&self) -> &'static str;

    /// The surfaces that ingest fills.
    fn surfaces(&self) -> SurfacePool;

    /// Codes one picture and puts what is ready into `out`.
    ///
    /// # Errors
    ///
    /// [`EncodeError::ForeignSurface`] concerns this picture only; after any other error the
    /// backend is lost.
    fn encode(&mut self, picture: Picture, out: &mut EncodedQueue) -> Result<(), EncodeError>;

    /// Gives out what is still held back. Nothing may be encoded afterwards.
    ///
    /// # Errors
    ///
    /// The backend is lost.
    fn flush(&mut self, out: &mut EncodedQueue) -> Result<(), EncodeError>;

    /// Changes the bit rate from the next picture on.
    ///
    /// # Errors
    ///
    /// If the backend cannot, or was opened for a constant quality.
    fn set_bitrate(&mut self, bits_per_second: u32) -> Result<(), EncodeError>;

    /// B-frames really in use, after clamping.
    fn b_frames(&self) -> u32;

    /// Whether [`EncoderConfig::intra_refresh`] is really in use.
    fn intra_refresh(&self) -> bool {
        false
    }

    /// Pictures that it may hold back without being broken.
    fn delay(&self) -> usize;

    /// Why the thread that fills its surfaces does not come back from one, if that is so: the backend is
    /// lost, and so is that thread.
    fn keeps_the_reader(&self) -> Option<EncodeError> {
        None
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("{encoder}: cannot be opened: {reason}")]
    Open {
        encoder: &'static str,
        reason: String,
    },
    /// What it runs on does not even refuse: a driver that hangs. Not asked again in this run.
    #[error("{encoder}: cannot be opened: {reason}")]
    NoAnswer {
        encoder: &'static str,
        reason: String,
    },
    #[error("{encoder}: a surface of another encoder was handed in")]
    ForeignSurface { encoder: &'static str },
    #[error("{encoder}: {call} failed with {status}: {detail}")]
    Failed {
        encoder: &'static str,
        call: &'static str,
        status: i64,
        detail: String,
    },
    #[error("{encoder}: {what} is not supported")]
    Unsupported { encoder: &'static str, what: String },
}
