//! Why a metadata block gives no frame, in words.

use std::fmt;

use super::metadata::Depth;
use crate::frame::PixelFormat;

/// Why a block gives no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Version 0.0: the producer is just (re)making the segment. Normal, and short.
    #[error("the segment is being initialised (metadata version 0.0)")]
    NotReady,
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
}

/// A block that breaks the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("the metadata starts with {0:02x?} in place of CV-MMAP")]
    Magic([u8; 8]),
    #[error("metadata version {0}.{1} is unknown; 1 and 2 are known")]
    Version(u8, u8),
    #[error("the {0} plane has no {1}")]
    Zero(Slot, &'static str),
    #[error("the {0} plane has the unknown sample depth {1}")]
    UnknownDepth(Slot, u8),
    #[error("the {0} plane has the unknown pixel format {1}")]
    UnknownFormat(Slot, u8),
    #[error("the picture needs {need} bytes, its buffer has {size}")]
    SmallBuffer { need: u64, size: u32 },
    #[error("the payload of {payload} bytes exceeds the region's {capacity}")]
    BeyondRegion { payload: u32, capacity: u64 },
    #[error("plane count {count} and presence mask {mask:#04x} contradict each other")]
    Planes { count: u8, mask: u8 },
    #[error("descriptors at {0}, {1} bytes each, {2} of them: 64, 24 and 4 are known")]
    Descriptors(u16, u16, u16),
    #[error("depth unit {0} is unknown")]
    DepthUnit(u8),
    #[error("encoded codec {0} is unknown")]
    Codec(u8),
    #[error("encoded bitstream format {0} is unknown")]
    Bitstream(u8),
    #[error("the {0} descriptor has plane type {1}")]
    PlaneType(Slot, u8),
    #[error("the {0} plane has pixel format {1} and depth {2}, which its place forbids")]
    FixedFormat(Slot, u8, u8),
    #[error("the {slot} plane of {width}x{height} exceeds 65535 pixels")]
    TooLarge { slot: Slot, width: u32, height: u32 },
    #[error("the {slot} plane has a stride of {stride} bytes, its rows have {need}")]
    SmallStride { slot: Slot, stride: u32, need: u64 },
    #[error("the {slot} plane has {size} bytes, its rows need {need}")]
    SmallPlane { slot: Slot, size: u32, need: u64 },
    #[error("the {slot} plane starts at {offset} in place of {expected}")]
    Gap {
        slot: Slot,
        offset: u32,
        expected: u64,
    },
    #[error("the {slot} plane ends at {end}, behind the payload of {payload} bytes")]
    BeyondPayload { slot: Slot, end: u64, payload: u32 },
    #[error("the {0} descriptor is not empty although the plane is absent")]
    NotEmpty(Slot),
}

/// Valid, but nothing that can be encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    #[error("the left plane has {0} samples; only u8 can be encoded")]
    Depth(Depth),
    #[error("the left plane has the unknown pixel format {0}")]
    Format(u8),
    #[error("the left plane is {} with {channels} channels; {} has {}",
        .format.name(), .format.name(), .format.bytes_per_pixel())]
    Channels { format: PixelFormat, channels: u8 },
}

/// The four places of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Slot {
    Left = 0,
    Depth = 1,
    Confidence = 2,
    Encoded = 3,
}

pub(super) const SLOTS: [Slot; 4] = [Slot::Left, Slot::Depth, Slot::Confidence, Slot::Encoded];

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Left => "left",
            Self::Depth => "depth",
            Self::Confidence => "confidence",
            Self::Encoded => "encoded",
        })
    }
}
