//! The colours of a recording, which pass through unchanged: no conversion lies between decoder
//! and encoder.

use super::svo::{FrameReader, PayloadKind, Recording};
use crate::bitstream::annexb::nal_ranges;
use crate::bitstream::sps::{Colour, H264Sps, H265Sps};
use crate::bitstream::{NalKind, NalUnit};
use crate::encode::Codec;

/// ITU-T H.273 codes for HDTV in limited range, and for H.26x that says nothing.
pub const BT709: Colour = Colour {
    full_range: false,
    primaries: 1,
    transfer: 1,
    matrix: 1,
};
/// 525-line SD in limited range: what the JPEG strips of a recording hold (contract section 2).
pub const BT601: Colour = Colour {
    full_range: false,
    primaries: 6,
    transfer: 6,
    matrix: 6,
};

/// As its first sequence parameter set says; what that leaves open is BT.709, limited.
pub fn colour_of(recording: &Recording) -> Colour {
    let codec = match recording.kind() {
        PayloadKind::JpegStrips => return BT601,
        PayloadKind::H264 => Codec::H264,
        PayloadKind::H265 => Codec::H265,
    };
    let mut reader = FrameReader::new(recording);
    let looked_at = recording.frames().len().min(LOOKED_AT_FRAMES);
    let found = (0..looked_at).find_map(|index| colour_in(codec, reader.payload(index).ok()?));
    complete(found)
}

fn colour_in(codec: Codec, payload: &[u8]) -> Option<Colour> {
    let mut nals = nal_ranges(payload).map(|range| &payload[range]);
    let sps = nals.find(|nal| NalUnit(nal).kind(codec) == NalKind::Sps)?;
    match codec {
        Codec::H264 => H264Sps::parse(sps).ok()?.colour,
        Codec::H265 => H265Sps::parse(sps).ok()?.colour,
    }
}

fn complete(found: Option<Colour>) -> Colour {
    let Some(colour) = found else { return BT709 };
    let or = |code: u8, default: u8| {
        if matches!(code, 0 | UNSPECIFIED) {
            default
        } else {
            code
        }
    };
    // Matrix 0 is RGB, which no 4:2:0 stream can be.
    Colour {
        full_range: colour.full_range,
        primaries: or(colour.primaries, BT709.primaries),
        transfer: or(colour.transfer, BT709.transfer),
        matrix: or(colour.matrix, BT709.matrix),
    }
}

const UNSPECIFIED: u8 = 2;
/// Parameter sets come in front of every key frame.
const LOOKED_AT_FRAMES: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn what_is_left_open_is_bt709_and_the_rest_is_kept() {
        assert_eq!(complete(None), BT709);
        let open = Colour {
            full_range: true,
            primaries: 2,
            transfer: 2,
            matrix: 2,
        };
        assert_eq!(
            complete(Some(open)),
            Colour {
                full_range: true,
                ..BT709
            }
        );
        assert_eq!(complete(Some(BT601)), BT601);
    }

    #[test]
    fn strips_are_bt601() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/svo2/jpeg_strips_vga.svo2"
        );
        assert_eq!(colour_of(&Recording::open(Path::new(path)).unwrap()), BT601);
    }
}
