//! NAL units of H.264 and H.265 as a receiver must know them: classes, order, access units.

pub mod annexb;
pub mod order;
pub mod rbsp;
pub mod sps;

use std::str::FromStr;

use thiserror::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    H264,
    H265,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("codec '{0}' is neither h264 nor h265")]
pub struct UnknownCodec(String);

impl FromStr for Codec {
    type Err = UnknownCodec;

    fn from_str(name: &str) -> Result<Self, UnknownCodec> {
        match name.to_ascii_lowercase().as_str() {
            "h264" | "avc" => Ok(Codec::H264),
            "h265" | "hevc" => Ok(Codec::H265),
            _ => Err(UnknownCodec(name.to_owned())),
        }
    }
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Codec::H264 => "h264",
            Codec::H265 => "h265",
        })
    }
}

/// What a NAL unit is for, in the words common to both codecs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NalClass {
    AccessUnitDelimiter,
    Vps,
    Sps,
    Pps,
    /// SEI that precedes the picture; in H.264 every SEI.
    PrefixSei,
    SuffixSei,
    /// A slice of an IDR picture, in H.265 of any IRAP picture (types 16 to 21).
    KeySlice,
    Slice,
    /// Ends, filler, and everything reserved.
    Other,
}

impl NalClass {
    pub fn is_slice(self) -> bool {
        matches!(self, NalClass::KeySlice | NalClass::Slice)
    }
}

impl Codec {
    /// Bytes of the NAL unit header.
    pub fn header_bytes(self) -> usize {
        match self {
            Codec::H264 => 1,
            Codec::H265 => 2,
        }
    }

    /// `nal_unit_type`; `None` if the header is not whole.
    pub fn nal_type(self, nal: &[u8]) -> Option<u8> {
        match self {
            Codec::H264 => nal.first().map(|b| b & 0x1F),
            Codec::H265 => nal.get(..2).map(|b| (b[0] >> 1) & 0x3F),
        }
    }

    /// Class of a NAL unit by ITU-T H.264 table 7-1 and H.265 table 7-1.
    pub fn classify(self, nal: &[u8]) -> NalClass {
        let Some(kind) = self.nal_type(nal) else {
            return NalClass::Other;
        };
        match (self, kind) {
            (Codec::H264, 5) | (Codec::H265, 16..=21) => NalClass::KeySlice,
            // 2 to 4 are data partitions: slices all the same.
            (Codec::H264, 1..=4) | (Codec::H265, 0..=9) => NalClass::Slice,
            (Codec::H264, 6) | (Codec::H265, 39) => NalClass::PrefixSei,
            (Codec::H265, 40) => NalClass::SuffixSei,
            (Codec::H265, 32) => NalClass::Vps,
            (Codec::H264, 7) | (Codec::H265, 33) => NalClass::Sps,
            (Codec::H264, 8) | (Codec::H265, 34) => NalClass::Pps,
            (Codec::H264, 9) | (Codec::H265, 35) => NalClass::AccessUnitDelimiter,
            _ => NalClass::Other,
        }
    }

    /// Whether the first bit of the header is set, which no NAL unit may have.
    pub fn forbidden_bit(nal: &[u8]) -> bool {
        nal.first().is_some_and(|b| b & 0x80 != 0)
    }

    /// Whether a slice is the first of its picture: `first_mb_in_slice` is 0, that is ue(v) "1", or
    /// `first_slice_segment_in_pic_flag`. Both are the first bit after the header.
    pub fn is_first_slice(self, nal: &[u8]) -> bool {
        nal.get(self.header_bytes()).is_some_and(|b| b & 0x80 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Contract rtp-rtmp.md, tables of sections 3 and 4.
    #[test]
    fn nal_classes_follow_the_tables() {
        for (codec, header, class) in [
            (Codec::H264, [0x67, 0], NalClass::Sps),
            (Codec::H264, [0x68, 0], NalClass::Pps),
            (Codec::H264, [0x65, 0], NalClass::KeySlice),
            (Codec::H264, [0x41, 0], NalClass::Slice),
            (Codec::H264, [0x06, 0], NalClass::PrefixSei),
            (Codec::H264, [0x09, 0], NalClass::AccessUnitDelimiter),
            (Codec::H264, [0x0C, 0], NalClass::Other),
            (Codec::H265, [0x40, 1], NalClass::Vps),
            (Codec::H265, [0x42, 1], NalClass::Sps),
            (Codec::H265, [0x44, 1], NalClass::Pps),
            (Codec::H265, [0x26, 1], NalClass::KeySlice),
            (Codec::H265, [0x28, 1], NalClass::KeySlice),
            (Codec::H265, [0x2A, 1], NalClass::KeySlice),
            (Codec::H265, [0x02, 1], NalClass::Slice),
            (Codec::H265, [0x4E, 1], NalClass::PrefixSei),
            (Codec::H265, [0x50, 1], NalClass::SuffixSei),
            (Codec::H265, [0x46, 1], NalClass::AccessUnitDelimiter),
        ] {
            assert_eq!(codec.classify(&header), class, "{codec} {header:02x?}");
        }
        assert_eq!(
            Codec::H265.classify(&[0x40]),
            NalClass::Other,
            "half a header"
        );
    }
}
