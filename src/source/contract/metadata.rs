//! The metadata block in front of the payload (contract section 2): v1, v2.0 and v2.1.

use std::fmt;

use super::bytes::{u16_at, u32_at, u64_at};
use super::refusal::{Invalid, Refusal, SLOTS, Slot, Unsupported};
use crate::encode::Codec;
use crate::frame::{EncodedPlane, FrameInfo, PixelFormat, PlaneLayout};

/// Bytes of the block, whatever its version; the payload follows.
pub const METADATA_LEN: usize = 256;

/// The block as it was read.
pub type MetadataBlock = [u8; METADATA_LEN];

/// What a block says, every plane of it validated against the region.
///
/// ```text
/// v1  0 magic  8 u8 major=1, u8 minor  0c u32 frame_count  10 u64 timestamp_ns
///     18 u16 width, u16 height  1c u8 channels, u8 depth, u8 pixel_format  20 u32 buffer_size
///
/// v2  0 magic  8 u8 major=2, u8 minor  0c u32 frame_id  10 u64 capture_ts_ns  18 u64 publish_seq
///     20 u8 plane_count, u8 presence_mask  22 u16 64, u16 24, u16 4 (descriptor offset, size, count)
///     28 u32 payload_size  2c u8 depth_unit
///     2d u8 codec, u8 bitstream  2f u16 flags  31 u16 fps_num, u16 fps_den  35 u64 pts    (minor >= 1)
///     40 four descriptors: u8 plane_type, u8 pixel_format, u8 depth, u8 reserved,
///        u32 width, height, stride, offset, size
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    pub major: u8,
    pub minor: u8,
    pub frame_id: u32,
    pub capture_ts_ns: u64,
    pub left: Plane,
    pub depth: Option<Plane>,
    pub confidence: Option<Plane>,
    pub depth_unit: DepthUnit,
    pub encoded: Option<Encoded>,
    /// Bytes of payload that belong to the frame.
    pub payload_size: u32,
}

/// A plane of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plane {
    /// The number on the wire: v1 does not check it.
    pub format_code: u8,
    pub channels: u8,
    pub depth: Depth,
    pub layout: PlaneLayout,
}

/// The producer's own access unit, of v2.1, always Annex B.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    pub codec: Codec,
    pub flags: u16,
    /// Either may be 0: unknown.
    pub frame_rate: (u16, u16),
    pub pts_ns: u64,
    pub layout: PlaneLayout,
}

/// The type of a sample, numbered as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Depth {
    U8 = 0,
    S8 = 1,
    U16 = 2,
    S16 = 3,
    S32 = 4,
    F32 = 5,
    F64 = 6,
    F16 = 7,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DepthUnit {
    Unknown = 0,
    Millimetre = 1,
    Metre = 2,
}

impl Metadata {
    /// What `block` says, in a region (block included) of `region_len` bytes.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotReady`] or [`Refusal::Invalid`], by the verdicts of the producer's own
    /// parser, except that version 0.0 is never taken for a frame.
    pub fn parse(block: &MetadataBlock, region_len: u64) -> Result<Self, Refusal> {
        let (major, minor) = (block[8], block[9]);
        let magic: [u8; 8] = *block.first_chunk().expect("8 of 256 bytes");
        // Growing the file gives zeros before the magic is written: that is "not ready" too.
        let blank = magic == [0; 8] && (major, minor) == (0, 0);
        if magic != MAGIC && !blank {
            return Err(Invalid::Magic(magic).into());
        }
        let capacity = region_len.saturating_sub(METADATA_LEN as u64);
        match (major, minor) {
            (0, 0) => Err(Refusal::NotReady),
            (1, _) => Ok(parse_v1(block, capacity)?),
            (2, _) => Ok(parse_v2(block, capacity)?),
            _ => Err(Invalid::Version(major, minor).into()),
        }
    }

    /// The frame as the rest of the streamer knows it.
    ///
    /// # Errors
    ///
    /// If LEFT is valid but nothing that can be encoded.
    pub fn frame_info(&self) -> Result<FrameInfo, Unsupported> {
        let Plane {
            format_code,
            channels,
            depth,
            layout,
        } = self.left;
        let format = PixelFormat::from_wire(format_code).ok_or(Unsupported::Format(format_code))?;
        if depth != Depth::U8 {
            return Err(Unsupported::Depth(depth));
        }
        // v1 has its own channel count, which nothing ties to the format.
        if usize::from(channels) != format.bytes_per_pixel() {
            return Err(Unsupported::Channels { format, channels });
        }
        Ok(FrameInfo {
            frame_id: self.frame_id,
            capture_ts_ns: self.capture_ts_ns,
            format,
            left: layout,
            encoded: self.encoded.map(|unit| EncodedPlane {
                codec: unit.codec,
                keyframe: unit.flags & FLAG_KEYFRAME != 0,
                offset: unit.layout.offset,
                size: unit.layout.size,
                pts_ns: unit.pts_ns,
            }),
            frame_rate: self
                .encoded
                .map(|unit| unit.frame_rate)
                .filter(|(num, den)| *num != 0 && *den != 0),
            payload_size: self.payload_size,
        })
    }

    /// LEFT, and the depth and confidence planes that there are.
    pub fn planes(&self) -> impl Iterator<Item = &Plane> {
        [
            Some(&self.left),
            self.depth.as_ref(),
            self.confidence.as_ref(),
        ]
        .into_iter()
        .flatten()
    }
}

/// Id and capture time of the frame that `block` describes, valid or not; `None` while it is being
/// initialised. Both versions keep them at the same place.
pub fn frame_of(block: &MetadataBlock) -> Option<(u32, u64)> {
    let ready = block[..8] == MAGIC && block[8] != 0;
    ready.then(|| (u32_at(block, 0x0C), u64_at(block, 0x10)))
}

/// Whether two readings of one block describe the same frame: in v1 its fields, in v2 the whole
/// header and every descriptor (contract section 4.3). What lies behind is padding.
pub fn same_frame(a: &MetadataBlock, b: &MetadataBlock) -> bool {
    let end = if a[8] == 1 { V1_END } else { V2_END };
    a[..end] == b[..end]
}

/// A block of v2.0 with LEFT alone, U8 in `format`, rows tight: what a dummy producer writes.
pub fn v2_left_only(
    frame_id: u32,
    capture_ts_ns: u64,
    format: PixelFormat,
    width: u32,
    height: u32,
) -> MetadataBlock {
    let stride = width * format.bytes_per_pixel() as u32;
    let size = stride * height;
    let mut block = [0; METADATA_LEN];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x00, &MAGIC);
    put(0x08, &[2, 0]);
    put(0x0C, &frame_id.to_le_bytes());
    put(0x10, &capture_ts_ns.to_le_bytes());
    // publish_seq: producers copy the frame id (contract section 2.2)
    put(0x18, &u64::from(frame_id).to_le_bytes());
    put(0x20, &[1, 1]);
    put(0x22, &(DESCRIPTORS_AT as u16).to_le_bytes());
    put(0x24, &(DESCRIPTOR_LEN as u16).to_le_bytes());
    put(0x26, &(SLOTS.len() as u16).to_le_bytes());
    put(0x28, &size.to_le_bytes());
    put(DESCRIPTORS_AT + 1, &[format as u8, Depth::U8 as u8]);
    put(DESCRIPTORS_AT + 4, &width.to_le_bytes());
    put(DESCRIPTORS_AT + 8, &height.to_le_bytes());
    put(DESCRIPTORS_AT + 12, &stride.to_le_bytes());
    put(DESCRIPTORS_AT + 20, &size.to_le_bytes());
    block
}

fn parse_v1(block: &MetadataBlock, capacity: u64) -> Result<Metadata, Invalid> {
    let (width, height) = (u16_at(block, 0x18), u16_at(block, 0x1A));
    let channels = block[0x1C];
    let buffer_size = u32_at(block, 0x20);
    let zero = |what| Invalid::Zero(Slot::Left, what);
    let depth =
        Depth::from_wire(block[0x1D]).ok_or(Invalid::UnknownDepth(Slot::Left, block[0x1D]))?;
    for (value, what) in [
        (u32::from(width), "width"),
        (u32::from(height), "height"),
        (u32::from(channels), "channels"),
        (buffer_size, "buffer"),
    ] {
        if value == 0 {
            return Err(zero(what));
        }
    }
    // 65535 * 255 * 8 < 2^27
    let row = u32::from(width) * u32::from(channels) * depth.bytes_per_sample() as u32;
    let need = u64::from(row) * u64::from(height);
    if u64::from(buffer_size) < need {
        return Err(Invalid::SmallBuffer {
            need,
            size: buffer_size,
        });
    }
    if u64::from(buffer_size) > capacity {
        return Err(Invalid::BeyondRegion {
            payload: buffer_size,
            capacity,
        });
    }
    // v1 has no stride: the writers' rule (contract section 2.3) read backwards.
    let padded = buffer_size / u32::from(height);
    let stride = match buffer_size % u32::from(height) {
        0 => padded.max(row),
        _ => row,
    };
    Ok(Metadata {
        major: 1,
        minor: block[9],
        frame_id: u32_at(block, 0x0C),
        capture_ts_ns: u64_at(block, 0x10),
        left: Plane {
            format_code: block[0x1E],
            channels,
            depth,
            layout: PlaneLayout {
                width: u32::from(width),
                height: u32::from(height),
                stride,
                offset: 0,
                size: buffer_size,
            },
        },
        depth: None,
        confidence: None,
        depth_unit: DepthUnit::Unknown,
        encoded: None,
        payload_size: buffer_size,
    })
}

fn parse_v2(block: &MetadataBlock, capacity: u64) -> Result<Metadata, Invalid> {
    let minor = block[9];
    let payload_size = u32_at(block, 0x28);
    let active = active_slots(minor, block[0x20], block[0x21])?;
    let geometry = (
        u16_at(block, 0x22),
        u16_at(block, 0x24),
        u16_at(block, 0x26),
    );
    if geometry != (DESCRIPTORS_AT as u16, DESCRIPTOR_LEN as u16, 4) {
        return Err(Invalid::Descriptors(geometry.0, geometry.1, geometry.2));
    }
    if payload_size == 0 {
        return Err(Invalid::Zero(Slot::Left, "payload"));
    }
    if u64::from(payload_size) > capacity {
        return Err(Invalid::BeyondRegion {
            payload: payload_size,
            capacity,
        });
    }
    let depth_unit = DepthUnit::from_wire(block[0x2C]).ok_or(Invalid::DepthUnit(block[0x2C]))?;
    // A v2.0 block with four planes is valid, but its fourth is not exposed.
    let extension = if minor >= 1 {
        Extension::parse(block, active[Slot::Encoded as usize])?
    } else {
        None
    };

    let mut planes = [None; 4];
    let mut expected = 0;
    for slot in SLOTS {
        let descriptor = Descriptor::of(block, slot);
        if !active[slot as usize] {
            descriptor.must_be_empty(slot)?;
            continue;
        }
        let plane = descriptor.validate(slot, payload_size, expected)?;
        expected = u64::from(plane.layout.offset) + u64::from(plane.layout.size);
        planes[slot as usize] = Some(plane);
    }
    let [left, depth, confidence, unit] = planes;
    Ok(Metadata {
        major: 2,
        minor,
        frame_id: u32_at(block, 0x0C),
        capture_ts_ns: u64_at(block, 0x10),
        left: left.expect("active_slots always has LEFT"),
        depth,
        confidence,
        depth_unit,
        encoded: extension.zip(unit).map(|(extension, plane)| Encoded {
            codec: extension.codec,
            flags: extension.flags,
            frame_rate: extension.frame_rate,
            pts_ns: extension.pts_ns,
            layout: plane.layout,
        }),
        payload_size,
    })
}

/// Which slots are in use: in v2.0 the first `count` and nothing else in the mask, later those in
/// the mask.
fn active_slots(minor: u8, count: u8, mask: u8) -> Result<[bool; 4], Invalid> {
    let consistent = if minor == 0 {
        (1..=4).contains(&count) && u32::from(mask) == (1 << count) - 1
    } else {
        mask & 0xF1 == 0x01 && u32::from(count) == mask.count_ones()
    };
    if !consistent {
        return Err(Invalid::Planes { count, mask });
    }
    Ok(SLOTS.map(|slot| mask & (1 << slot as u8) != 0))
}

struct Extension {
    codec: Codec,
    flags: u16,
    frame_rate: (u16, u16),
    pts_ns: u64,
}

impl Extension {
    /// Numbers above the enums are refused even where nothing uses them; "unknown" only where
    /// there is an access unit.
    fn parse(block: &MetadataBlock, in_use: bool) -> Result<Option<Self>, Invalid> {
        let codec = match block[0x2D] {
            0 => None,
            1 => Some(Codec::H264),
            2 => Some(Codec::H265),
            other => return Err(Invalid::Codec(other)),
        };
        let annexb = match block[0x2E] {
            0 => false,
            1 => true,
            other => return Err(Invalid::Bitstream(other)),
        };
        if !in_use {
            return Ok(None);
        }
        if !annexb {
            return Err(Invalid::Bitstream(0));
        }
        Ok(Some(Self {
            codec: codec.ok_or(Invalid::Codec(0))?,
            flags: u16_at(block, 0x2F),
            frame_rate: (u16_at(block, 0x31), u16_at(block, 0x33)),
            pts_ns: u64_at(block, 0x35),
        }))
    }
}

struct Descriptor {
    plane_type: u8,
    format_code: u8,
    depth_code: u8,
    layout: PlaneLayout,
}

impl Descriptor {
    fn of(block: &MetadataBlock, slot: Slot) -> Self {
        let at = DESCRIPTORS_AT + DESCRIPTOR_LEN * slot as usize;
        Self {
            plane_type: block[at],
            format_code: block[at + 1],
            depth_code: block[at + 2],
            layout: PlaneLayout {
                width: u32_at(block, at + 4),
                height: u32_at(block, at + 8),
                stride: u32_at(block, at + 12),
                offset: u32_at(block, at + 16),
                size: u32_at(block, at + 20),
            },
        }
    }

    fn must_be_empty(&self, slot: Slot) -> Result<(), Invalid> {
        let PlaneLayout {
            width,
            height,
            stride,
            offset,
            size,
        } = self.layout;
        if [width, height, stride, offset, size] == [0; 5] {
            Ok(())
        } else {
            Err(Invalid::NotEmpty(slot))
        }
    }

    fn validate(&self, slot: Slot, payload: u32, expected: u64) -> Result<Plane, Invalid> {
        if self.plane_type != slot as u8 {
            return Err(Invalid::PlaneType(slot, self.plane_type));
        }
        let fixed = match slot {
            Slot::Left => None,
            Slot::Depth | Slot::Confidence => Some((PixelFormat::Gray, Depth::F32)),
            Slot::Encoded => Some((PixelFormat::Gray, Depth::U8)),
        };
        if fixed.is_some_and(|(format, depth)| {
            (self.format_code, self.depth_code) != (format as u8, depth as u8)
        }) {
            return Err(Invalid::FixedFormat(
                slot,
                self.format_code,
                self.depth_code,
            ));
        }
        let format = PixelFormat::from_wire(self.format_code)
            .ok_or(Invalid::UnknownFormat(slot, self.format_code))?;
        let depth = Depth::from_wire(self.depth_code)
            .ok_or(Invalid::UnknownDepth(slot, self.depth_code))?;
        let PlaneLayout {
            width,
            height,
            stride,
            offset,
            size,
        } = self.layout;
        for (value, what) in [
            (width, "width"),
            (height, "height"),
            (stride, "stride"),
            (size, "bytes"),
        ] {
            if value == 0 {
                return Err(Invalid::Zero(slot, what));
            }
        }
        let end = u64::from(offset) + u64::from(size);
        if end > u64::from(payload) {
            return Err(Invalid::BeyondPayload { slot, end, payload });
        }
        // At depth U8 a pixel has as many bytes as channels. 2^32 * 4 * 8 fits 64 bits.
        let row = u64::from(width) * (format.bytes_per_pixel() * depth.bytes_per_sample()) as u64;
        if u64::from(stride) < row {
            return Err(Invalid::SmallStride {
                slot,
                stride,
                need: row,
            });
        }
        let need = u64::from(stride) * u64::from(height);
        if u64::from(size) < need {
            return Err(Invalid::SmallPlane { slot, size, need });
        }
        if u64::from(offset) != expected {
            return Err(Invalid::Gap {
                slot,
                offset,
                expected,
            });
        }
        // The producer's library keeps picture sizes in 16 bits. An access unit is as wide as it
        // has bytes and is not a picture.
        if slot != Slot::Encoded && width.max(height) > u32::from(u16::MAX) {
            return Err(Invalid::TooLarge {
                slot,
                width,
                height,
            });
        }
        Ok(Plane {
            format_code: self.format_code,
            channels: format.bytes_per_pixel() as u8,
            depth,
            layout: self.layout,
        })
    }
}

impl Depth {
    const ALL: [Self; 8] = [
        Self::U8,
        Self::S8,
        Self::U16,
        Self::S16,
        Self::S32,
        Self::F32,
        Self::F64,
        Self::F16,
    ];

    fn from_wire(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    pub const fn bytes_per_sample(self) -> usize {
        match self {
            Self::U8 | Self::S8 => 1,
            Self::U16 | Self::S16 | Self::F16 => 2,
            Self::S32 | Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

impl fmt::Display for Depth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::U8 => "u8",
            Self::S8 => "s8",
            Self::U16 => "u16",
            Self::S16 => "s16",
            Self::S32 => "s32",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::F16 => "f16",
        })
    }
}

impl DepthUnit {
    fn from_wire(code: u8) -> Option<Self> {
        [Self::Unknown, Self::Millimetre, Self::Metre]
            .get(usize::from(code))
            .copied()
    }
}

const MAGIC: [u8; 8] = *b"CV-MMAP\0";
const DESCRIPTORS_AT: usize = 64;
const DESCRIPTOR_LEN: usize = 24;
const V1_END: usize = 0x24;
const V2_END: usize = DESCRIPTORS_AT + DESCRIPTOR_LEN * SLOTS.len();
const FLAG_KEYFRAME: u16 = 0x0001;
