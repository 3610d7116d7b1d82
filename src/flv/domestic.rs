//! H.265 as FLV codec id 12: the table of codec id 7 with an HEVC record (contract section 14).
//! No document of Adobe's has it; SRS, ZLMediaKit and FFmpeg from 8 on read it.

use super::legacy::{PacketType, tag};
use super::packaging::TagHeader;

pub fn sequence_start() -> TagHeader {
    tag(CODEC_ID, true, PacketType::SequenceHeader, 0)
}

pub fn picture(key: bool, composition: i32) -> TagHeader {
    tag(CODEC_ID, key, PacketType::Nalus, composition)
}

pub fn sequence_end() -> TagHeader {
    tag(CODEC_ID, true, PacketType::EndOfSequence, 0)
}

pub(super) const CODEC_ID: u8 = 12;
