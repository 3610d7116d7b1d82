//! NAL units and the two tables of their types.

use crate::encode::Codec;

/// Header and payload of one NAL unit, without start code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NalUnit<'a>(pub &'a [u8]);

/// What a NAL unit is for; the finer types matter to nobody here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NalKind {
    /// H.265 only.
    Vps,
    Sps,
    Pps,
    /// A slice of a picture from which decoding can start (H.264 type 5; H.265 types 16 to 21).
    KeySlice,
    /// A slice of any other picture.
    Slice,
    Sei,
    AccessUnitDelimiter,
    Filler,
    Other,
}

impl NalKind {
    /// Carries picture data.
    pub const fn is_vcl(self) -> bool {
        matches!(self, Self::KeySlice | Self::Slice)
    }

    pub const fn is_parameter_set(self) -> bool {
        matches!(self, Self::Vps | Self::Sps | Self::Pps)
    }
}

impl<'a> NalUnit<'a> {
    /// Bytes of the NAL unit header: 1 in H.264 (section 7.3.1), 2 in H.265 (section 7.3.1.2).
    pub const fn header_len(codec: Codec) -> usize {
        match codec {
            Codec::H264 => 1,
            Codec::H265 => 2,
        }
    }

    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// `nal_unit_type`: five bits in H.264, six in H.265. 0 for an empty NAL unit.
    pub fn type_code(self, codec: Codec) -> u8 {
        let first = self.0.first().copied().unwrap_or(0);
        match codec {
            Codec::H264 => first & 0x1F,
            Codec::H265 => (first >> 1) & 0x3F,
        }
    }

    pub fn kind(self, codec: Codec) -> NalKind {
        match (codec, self.type_code(codec)) {
            // H.264 table 7-1
            (Codec::H264, 1..=4) => NalKind::Slice,
            (Codec::H264, 5) => NalKind::KeySlice,
            (Codec::H264, 6) => NalKind::Sei,
            (Codec::H264, 7) => NalKind::Sps,
            (Codec::H264, 8) => NalKind::Pps,
            (Codec::H264, 9) => NalKind::AccessUnitDelimiter,
            (Codec::H264, 12) => NalKind::Filler,
            // H.265 table 7-1
            (Codec::H265, 0..=9) => NalKind::Slice,
            (Codec::H265, 16..=21) => NalKind::KeySlice,
            (Codec::H265, 32) => NalKind::Vps,
            (Codec::H265, 33) => NalKind::Sps,
            (Codec::H265, 34) => NalKind::Pps,
            (Codec::H265, 35) => NalKind::AccessUnitDelimiter,
            (Codec::H265, 38) => NalKind::Filler,
            (Codec::H265, 39 | 40) => NalKind::Sei,
            _ => NalKind::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_the_two_tables() {
        let kind = |byte, codec| NalUnit(&[byte, 1]).kind(codec);
        assert_eq!(kind(0x67, Codec::H264), NalKind::Sps);
        assert_eq!(kind(0x68, Codec::H264), NalKind::Pps);
        assert_eq!(kind(0x65, Codec::H264), NalKind::KeySlice);
        assert_eq!(kind(0x41, Codec::H264), NalKind::Slice);
        assert_eq!(kind(0x06, Codec::H264), NalKind::Sei);
        assert_eq!(kind(0x40, Codec::H265), NalKind::Vps);
        assert_eq!(kind(0x42, Codec::H265), NalKind::Sps);
        assert_eq!(kind(0x44, Codec::H265), NalKind::Pps);
        assert_eq!(kind(0x26, Codec::H265), NalKind::KeySlice); // IDR_W_RADL, 19
        assert_eq!(kind(0x2A, Codec::H265), NalKind::KeySlice); // CRA, 21
        assert_eq!(kind(0x02, Codec::H265), NalKind::Slice); // TRAIL_R, 1
        assert_eq!(kind(0x4E, Codec::H265), NalKind::Sei);
    }
}
