//! The bytes of the cv-mmap wire, written: the 256-byte metadata block and the 48-byte sync message
//! (contract `cv-mmap.md` sections 2.1, 2.2 and 3). Little-endian throughout.

use crate::bitstream::Codec;
use crate::names::LABEL_BYTES;
use crate::pattern::PixelFormat;

pub const METADATA_BYTES: usize = 256;
pub const SYNC_BYTES: usize = 48;
const MAGIC: &[u8; 8] = b"CV-MMAP\0";
const DESCRIPTORS_OFFSET: usize = 64;
const DESCRIPTOR_BYTES: usize = 24;
const DESCRIPTOR_SLOTS: usize = 4;
const DEPTH_U8: u8 = 0;
const DEPTH_F32: u8 = 5;
const BITSTREAM_ANNEX_B: u8 = 1;
const FLAG_KEY_FRAME: u16 = 1;

/// Sizes of one plane, in bytes where not said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plane {
    /// In pixels; in bytes for the encoded plane.
    pub width: u32,
    pub height: u32,
    pub stride: u32,
    pub size: u32,
}

/// The encoded plane of v2.1 and the fields that go with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodedPlane {
    pub size: u32,
    pub codec: Codec,
    pub key_frame: bool,
    pub pts_ns: u64,
}

/// One frame, as the metadata block tells it.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    pub frame_id: u32,
    pub capture_ns: u64,
    pub format: PixelFormat,
    pub left: Plane,
    pub depth: Option<Plane>,
    pub confidence: Option<Plane>,
    pub encoded: Option<EncodedPlane>,
    /// Minor version 1, whether or not there is an encoded plane.
    pub sparse: bool,
    /// Numerator and denominator; written only with minor version 1.
    pub frame_rate: (u16, u16),
}

impl Description {
    pub fn payload_bytes(&self) -> u64 {
        let planes = [Some(self.left), self.depth, self.confidence];
        let raw: u64 = planes
            .into_iter()
            .flatten()
            .map(|plane| u64::from(plane.size))
            .sum();
        raw + self.encoded.map_or(0, |unit| u64::from(unit.size))
    }
}

/// What a region looks like while its producer rebuilds it: the magic, and version 0.0.
pub fn initialising() -> [u8; METADATA_BYTES] {
    let mut block = [0; METADATA_BYTES];
    block[..8].copy_from_slice(MAGIC);
    block
}

/// Version 1: LEFT only, rows told by the buffer size.
pub fn metadata_v1(frame: &Description) -> [u8; METADATA_BYTES] {
    let mut block = initialising();
    block[0x08] = 1;
    put_u32(&mut block, 0x0C, frame.frame_id);
    put_u64(&mut block, 0x10, frame.capture_ns);
    put_u16(&mut block, 0x18, frame.left.width as u16);
    put_u16(&mut block, 0x1A, frame.left.height as u16);
    block[0x1C] = frame.format.channels() as u8;
    block[0x1D] = DEPTH_U8;
    block[0x1E] = frame.format as u8;
    put_u32(&mut block, 0x20, frame.left.size);
    block
}

/// Version 2, with minor version 1 exactly when it is asked for or an encoded plane needs it.
pub fn metadata_v2(frame: &Description) -> [u8; METADATA_BYTES] {
    let mut block = initialising();
    let minor = u8::from(frame.sparse || frame.encoded.is_some());
    let gray = PixelFormat::Gray as u8;
    let encoded = frame.encoded.map(|unit| Plane {
        width: unit.size,
        height: 1,
        stride: unit.size,
        size: unit.size,
    });
    let slots = [
        (Some(frame.left), frame.format as u8, DEPTH_U8),
        (frame.depth, gray, DEPTH_F32),
        (frame.confidence, gray, DEPTH_F32),
        (encoded, gray, DEPTH_U8),
    ];
    let (mut mask, mut offset) = (0_u8, 0_u32);
    for (slot, (plane, format, depth)) in slots.into_iter().enumerate() {
        let Some(plane) = plane else { continue };
        mask |= 1 << slot;
        let at = DESCRIPTORS_OFFSET + slot * DESCRIPTOR_BYTES;
        block[at] = slot as u8;
        block[at + 1] = format;
        block[at + 2] = depth;
        for (field, value) in [plane.width, plane.height, plane.stride, offset, plane.size]
            .into_iter()
            .enumerate()
        {
            put_u32(&mut block, at + 4 + 4 * field, value);
        }
        offset += plane.size;
    }
    block[0x08] = 2;
    block[0x09] = minor;
    put_u32(&mut block, 0x0C, frame.frame_id);
    put_u64(&mut block, 0x10, frame.capture_ns);
    // The real producer copies the frame id: this is no sequence of its own.
    put_u64(&mut block, 0x18, u64::from(frame.frame_id));
    block[0x20] = mask.count_ones() as u8;
    block[0x21] = mask;
    put_u16(&mut block, 0x22, DESCRIPTORS_OFFSET as u16);
    put_u16(&mut block, 0x24, DESCRIPTOR_BYTES as u16);
    put_u16(&mut block, 0x26, DESCRIPTOR_SLOTS as u16);
    put_u32(&mut block, 0x28, offset);
    block[0x2C] = u8::from(frame.depth.is_some()); // millimetre
    if minor >= 1 {
        put_extension(&mut block, frame);
    }
    block
}

fn put_extension(block: &mut [u8; METADATA_BYTES], frame: &Description) {
    put_u16(block, 0x31, frame.frame_rate.0);
    put_u16(block, 0x33, frame.frame_rate.1);
    let Some(unit) = frame.encoded else { return };
    block[0x2D] = match unit.codec {
        Codec::H264 => 1,
        Codec::H265 => 2,
    };
    block[0x2E] = BITSTREAM_ANNEX_B;
    put_u16(block, 0x2F, if unit.key_frame { FLAG_KEY_FRAME } else { 0 });
    put_u64(block, 0x35, unit.pts_ns);
}

/// The sync message. `noise` fills the reserved bytes: the real producer leaves whatever its memory
/// held there, and a consumer that reads them must be found out.
pub fn sync(frame_id: u32, timestamp_ns: u64, label: &str, noise: u64) -> [u8; SYNC_BYTES] {
    let mut message = [0; SYNC_BYTES];
    message[0] = 0x7D;
    message[1] = (noise >> 56) as u8;
    message[2] = 1;
    message[4..8].copy_from_slice(&frame_id.to_le_bytes());
    message[8..16].copy_from_slice(&noise.to_le_bytes());
    message[16..24].copy_from_slice(&timestamp_ns.to_le_bytes());
    let bytes = label.as_bytes();
    let length = bytes.len().min(LABEL_BYTES);
    message[24..24 + length].copy_from_slice(&bytes[..length]);
    message
}

fn put_u16(block: &mut [u8], at: usize, value: u16) {
    block[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put_u32(block: &mut [u8], at: usize, value: u32) {
    block[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64(block: &mut [u8], at: usize, value: u64) {
    block[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests;
