//! H.265 under its FourCC (Enhanced RTMP v2, "Enhanced Video").
//!
//! ```text
//! 0  1: extended header(1)  frame type(3): 1 key, 2 inter  packet type(4)
//! 1  "hvc1"
//! 5  HEVCDecoderConfigurationRecord              SequenceStart
//!    composition time(24, signed), NAL units     CodedFrames
//!    NAL units; the composition time is 0        CodedFramesX
//!    nothing                                     SequenceEnd
//! ```

use super::packaging::{TagHeader, si24};

pub fn sequence_start() -> TagHeader {
    TagHeader::new(&[&[first(true, PacketType::SequenceStart)], &HVC1])
}

pub fn picture(key: bool, composition: i32) -> TagHeader {
    match composition {
        0 => TagHeader::new(&[&[first(key, PacketType::CodedFramesX)], &HVC1]),
        _ => TagHeader::new(&[
            &[first(key, PacketType::CodedFrames)],
            &HVC1,
            &si24(composition),
        ]),
    }
}

pub fn sequence_end() -> TagHeader {
    TagHeader::new(&[&[first(true, PacketType::SequenceEnd)], &HVC1])
}

#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum PacketType {
    SequenceStart = 0,
    CodedFrames = 1,
    SequenceEnd = 2,
    CodedFramesX = 3,
}

fn first(key: bool, packet: PacketType) -> u8 {
    let frame_type: u8 = if key { 1 } else { 2 };
    0x80 | frame_type << 4 | packet as u8
}

pub const HVC1: [u8; 4] = *b"hvc1";
