//! H.264 as FLV codec id 7 (FLV 10.1 section E.4.3, VIDEODATA and AVCVIDEOPACKET).
//!
//! ```text
//! 0  frame type(4): 1 key, 2 inter; codec id(4)
//! 1  packet type: 0 sequence header, 1 NAL units, 2 end of sequence
//! 2  composition time(24, signed), milliseconds
//! 5  AVCDecoderConfigurationRecord, or length-prefixed NAL units, or nothing
//! ```

use super::packaging::{TagHeader, si24};

pub fn sequence_start() -> TagHeader {
    tag(CODEC_ID, true, PacketType::SequenceHeader, 0)
}

pub fn picture(key: bool, composition: i32) -> TagHeader {
    tag(CODEC_ID, key, PacketType::Nalus, composition)
}

pub fn sequence_end() -> TagHeader {
    tag(CODEC_ID, true, PacketType::EndOfSequence, 0)
}

#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(super) enum PacketType {
    SequenceHeader = 0,
    Nalus = 1,
    EndOfSequence = 2,
}

/// The layout above for any codec id: the domestic form shares it.
pub(super) fn tag(codec_id: u8, key: bool, packet: PacketType, composition: i32) -> TagHeader {
    let frame_type: u8 = if key { 1 } else { 2 };
    TagHeader::new(&[
        &[frame_type << 4 | codec_id, packet as u8],
        &si24(composition),
    ])
}

pub(super) const CODEC_ID: u8 = 7;
