//! 2. Pixels, and the surfaces they land in.

#[allow(unsafe_code)] // vector loads from the producer's mapping; each block says why it may
pub mod convert;
#[allow(unsafe_code)] // copies bytes that another process may write
mod foreign;
pub mod surface;
#[allow(unsafe_code)] // carries a pointer to bytes that another process may write
mod view;

pub use surface::{FillError, Surface, SurfaceLease, SurfaceMemory, SurfacePool};
pub use view::{FrameView, MappedMemory};

use crate::time::MediaTime;
use crate::trace::FrameTrace;

/// The pixel layouts of cv-mmap (contract section 2.2), all packed and interleaved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PixelFormat {
    Rgb = 0,
    Bgr = 1,
    Rgba = 2,
    Bgra = 3,
    Gray = 4,
    /// Packed 4:4:4, taken as Y, U, V in BT.709 limited range: no producer emits it and the
    /// contract leaves its order undefined.
    Yuv = 5,
    /// 4:2:2 as Y0 U Y1 V.
    Yuyv = 6,
}

impl PixelFormat {
    pub const ALL: [Self; 7] = [
        Self::Rgb,
        Self::Bgr,
        Self::Rgba,
        Self::Bgra,
        Self::Gray,
        Self::Yuv,
        Self::Yuyv,
    ];

    /// The format with this number on the wire.
    pub fn from_wire(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|format| *format as u8 == code)
    }

    /// Bytes of one pixel at depth U8.
    pub const fn bytes_per_pixel(self) -> usize {
        match self {
            Self::Rgb | Self::Bgr | Self::Yuv => 3,
            Self::Rgba | Self::Bgra => 4,
            Self::Gray => 1,
            Self::Yuyv => 2,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Rgb => "rgb",
            Self::Bgr => "bgr",
            Self::Rgba => "rgba",
            Self::Bgra => "bgra",
            Self::Gray => "gray",
            Self::Yuv => "yuv",
            Self::Yuyv => "yuyv",
        }
    }
}

/// A plane of the payload: `height` rows of `stride` bytes, the first at `offset` bytes behind
/// the metadata block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlaneLayout {
    pub width: u32,
    pub height: u32,
    /// Bytes from one row to the next; at least `width * bytes_per_pixel`.
    pub stride: u32,
    pub offset: u32,
    /// Bytes of the plane; at least `stride * height`.
    pub size: u32,
}

/// The producer's own encoded access unit beside the picture (metadata v2.1, slot 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EncodedPlane {
    pub codec: crate::encode::Codec,
    pub keyframe: bool,
    /// Where it lies behind the metadata block, and its length in bytes.
    pub offset: u32,
    pub size: u32,
    pub pts_ns: u64,
}

/// What the metadata says about one frame, in either version; a value that exists is valid
/// against the region it was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FrameInfo {
    pub frame_id: u32,
    /// On the producer's clock, which may be Unix time or media time; 0 is legal.
    pub capture_ts_ns: u64,
    pub format: PixelFormat,
    pub left: PlaneLayout,
    pub encoded: Option<EncodedPlane>,
    /// Numerator and denominator of the v2.1 field, where the producer knows them.
    pub frame_rate: Option<(u16, u16)>,
    /// Bytes of the whole payload that belong to this frame.
    pub payload_size: u32,
}

/// What an encoder must be opened for; a change of any of it reopens the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PictureShape {
    pub width: u32,
    pub height: u32,
    pub format: PixelFormat,
    /// The codec of the producer's access units, where there are any.
    pub encoded: Option<crate::encode::Codec>,
}

impl PictureShape {
    /// Width and height as coded: 4:2:0 has no odd ones, so both are rounded up.
    pub fn coded_size(&self) -> (u32, u32) {
        (
            self.width.next_multiple_of(2),
            self.height.next_multiple_of(2),
        )
    }
}

impl FrameInfo {
    pub fn shape(&self) -> PictureShape {
        PictureShape {
            width: self.left.width,
            height: self.left.height,
            format: self.format,
            encoded: self.encoded.map(|plane| plane.codec),
        }
    }
}

/// One frame, proven coherent, in a surface of the encoder's pool.
#[derive(Debug)]
pub struct Snapshot {
    pub info: FrameInfo,
    pub surface: SurfaceLease,
    /// Counts the discontinuities before this frame.
    pub epoch: u32,
    /// True if a frame before this one was lost or left out, by anyone up to here.
    pub gap: bool,
    pub time: MediaTime,
    pub trace: FrameTrace,
}
