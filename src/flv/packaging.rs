//! Which of the three forms video takes inside RTMP.

use std::ops::Deref;

use crate::encode::Codec;

use super::{domestic, enhanced, legacy};

/// What `--rtmp-mode` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RtmpMode {
    /// Enhanced RTMP: H.265 under the FourCC `hvc1`. H.264 stays codec id 7 in this mode too.
    Enhanced,
    /// H.265 under codec id 12, which many servers in China and SRS take.
    Domestic,
}

/// How video is wrapped: one row each of the compatibility matrix. A combination that no server
/// takes has no value here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Packaging {
    /// H.264 as codec id 7.
    LegacyAvc,
    /// H.265 as `hvc1`.
    EnhancedHevc,
    /// H.265 as codec id 12.
    DomesticHevc,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PackagingError {
    #[error(
        "--codec h264 has no form with --rtmp-mode domestic, which is for H.265 only: leave \
         --rtmp-mode out, or choose --codec h265"
    )]
    H264Domestic,
    #[error(
        "--codec h265 over RTMP needs --rtmp-mode enhanced or --rtmp-mode domestic: servers take \
         one or the other, and none says which"
    )]
    H265NeedsMode,
}

impl Packaging {
    /// # Errors
    ///
    /// For H.264 in domestic mode, and for H.265 without a mode.
    pub const fn new(codec: Codec, mode: Option<RtmpMode>) -> Result<Self, PackagingError> {
        match (codec, mode) {
            (Codec::H264, None | Some(RtmpMode::Enhanced)) => Ok(Self::LegacyAvc),
            (Codec::H264, Some(RtmpMode::Domestic)) => Err(PackagingError::H264Domestic),
            (Codec::H265, Some(RtmpMode::Enhanced)) => Ok(Self::EnhancedHevc),
            (Codec::H265, Some(RtmpMode::Domestic)) => Ok(Self::DomesticHevc),
            (Codec::H265, None) => Err(PackagingError::H265NeedsMode),
        }
    }

    pub const fn codec(self) -> Codec {
        match self {
            Self::LegacyAvc => Codec::H264,
            Self::EnhancedHevc | Self::DomesticHevc => Codec::H265,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::LegacyAvc => "h264",
            Self::EnhancedHevc => "h265-enhanced",
            Self::DomesticHevc => "h265-domestic",
        }
    }

    /// `videocodecid` of the metadata (contract section 13).
    pub const fn codec_id(self) -> u32 {
        match self {
            Self::LegacyAvc => legacy::CODEC_ID as u32,
            Self::EnhancedHevc => u32::from_be_bytes(enhanced::HVC1),
            Self::DomesticHevc => domestic::CODEC_ID as u32,
        }
    }

    /// In front of the configuration record, which ends the body.
    pub fn sequence_start(self) -> TagHeader {
        match self {
            Self::LegacyAvc => legacy::sequence_start(),
            Self::EnhancedHevc => enhanced::sequence_start(),
            Self::DomesticHevc => domestic::sequence_start(),
        }
    }

    /// In front of a picture's length-prefixed NAL units. `composition` is presentation minus
    /// decoding time in milliseconds.
    pub fn picture(self, key: bool, composition: i32) -> TagHeader {
        match self {
            Self::LegacyAvc => legacy::picture(key, composition),
            Self::EnhancedHevc => enhanced::picture(key, composition),
            Self::DomesticHevc => domestic::picture(key, composition),
        }
    }

    /// The whole body of the message that ends the stream.
    pub fn sequence_end(self) -> TagHeader {
        match self {
            Self::LegacyAvc => legacy::sequence_end(),
            Self::EnhancedHevc => enhanced::sequence_end(),
            Self::DomesticHevc => domestic::sequence_end(),
        }
    }
}

/// The first 5 or 8 bytes of a video message body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TagHeader {
    bytes: [u8; 8],
    len: u8,
}

impl TagHeader {
    pub(super) fn new(parts: &[&[u8]]) -> Self {
        let mut header = Self {
            bytes: [0; 8],
            len: 0,
        };
        for byte in parts.iter().copied().flatten() {
            header.bytes[usize::from(header.len)] = *byte;
            header.len += 1;
        }
        header
    }
}

impl Deref for TagHeader {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// A signed 24-bit composition time (FLV 10.1 section E.4.3.1). What does not fit is cut to the
/// nearest value that does: 2 h 19 min.
pub(super) fn si24(composition: i32) -> [u8; 3] {
    let [_, bytes @ ..] = composition.clamp(-(1 << 23), (1 << 23) - 1).to_be_bytes();
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn impossible_combinations_name_the_flags() {
        use RtmpMode::{Domestic, Enhanced};
        assert_eq!(Packaging::new(Codec::H264, None), Ok(Packaging::LegacyAvc));
        assert_eq!(
            Packaging::new(Codec::H264, Some(Enhanced)),
            Ok(Packaging::LegacyAvc)
        );
        assert_eq!(
            Packaging::new(Codec::H265, Some(Enhanced)),
            Ok(Packaging::EnhancedHevc)
        );
        assert_eq!(
            Packaging::new(Codec::H265, Some(Domestic)),
            Ok(Packaging::DomesticHevc)
        );
        for error in [
            Packaging::new(Codec::H264, Some(Domestic)).unwrap_err(),
            Packaging::new(Codec::H265, None).unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(
                text.contains("--codec") && text.contains("--rtmp-mode"),
                "{text}"
            );
        }
    }

    /// Contract section 14, one row per body that is sent.
    #[test]
    fn the_first_bytes_of_every_body() {
        let hvc1 = |first: u8| [first, 0x68, 0x76, 0x63, 0x31].to_vec();
        let with = |mut head: Vec<u8>, tail: [u8; 3]| {
            head.extend(tail);
            head
        };
        use Packaging::{DomesticHevc, EnhancedHevc, LegacyAvc};
        let rows: [(TagHeader, Vec<u8>); 17] = [
            (LegacyAvc.sequence_start(), vec![0x17, 0, 0, 0, 0]),
            (LegacyAvc.picture(true, 0), vec![0x17, 1, 0, 0, 0]),
            (LegacyAvc.picture(false, 0), vec![0x27, 1, 0, 0, 0]),
            (LegacyAvc.picture(false, 66), vec![0x27, 1, 0, 0, 0x42]),
            (
                LegacyAvc.picture(false, -1),
                vec![0x27, 1, 0xFF, 0xFF, 0xFF],
            ),
            (LegacyAvc.sequence_end(), vec![0x17, 2, 0, 0, 0]),
            (DomesticHevc.sequence_start(), vec![0x1C, 0, 0, 0, 0]),
            (DomesticHevc.picture(true, 0), vec![0x1C, 1, 0, 0, 0]),
            (DomesticHevc.picture(false, 0), vec![0x2C, 1, 0, 0, 0]),
            (
                DomesticHevc.picture(false, 70_000),
                vec![0x2C, 1, 1, 0x11, 0x70],
            ),
            (DomesticHevc.sequence_end(), vec![0x1C, 2, 0, 0, 0]),
            (EnhancedHevc.sequence_start(), hvc1(0x90)),
            (EnhancedHevc.picture(true, 0), hvc1(0x93)),
            (EnhancedHevc.picture(false, 0), hvc1(0xA3)),
            (EnhancedHevc.picture(true, 40), with(hvc1(0x91), [0, 0, 40])),
            (
                EnhancedHevc.picture(false, 40),
                with(hvc1(0xA1), [0, 0, 40]),
            ),
            (EnhancedHevc.sequence_end(), hvc1(0x92)),
        ];
        for (row, (header, expected)) in rows.iter().enumerate() {
            assert_eq!(header[..], expected[..], "row {row}");
        }
    }

    #[test]
    fn codec_ids_of_the_metadata() {
        assert_eq!(Packaging::LegacyAvc.codec_id(), 7);
        assert_eq!(Packaging::DomesticHevc.codec_id(), 12);
        assert_eq!(Packaging::EnhancedHevc.codec_id(), 1_752_589_105);
    }

    /// A reader of the same tables: frame type is key, packet type, composition time.
    fn read(body: &[u8]) -> (bool, u8, i32) {
        let si24 = |b: &[u8]| i32::from_be_bytes([b[0], b[1], b[2], 0]) >> 8;
        if body[0] & 0x80 != 0 {
            assert_eq!(body[1..5], *b"hvc1");
            let kind = body[0] & 0x0F;
            let composition = if kind == 1 { si24(&body[5..8]) } else { 0 };
            ((body[0] >> 4) & 7 == 1, kind, composition)
        } else {
            (body[0] >> 4 == 1, body[1], si24(&body[2..5]))
        }
    }

    proptest! {
        #[test]
        fn composition_times_survive_in_every_form(key: bool, composition in -(1 << 23)..(1 << 23)) {
            for packaging in [Packaging::LegacyAvc, Packaging::EnhancedHevc, Packaging::DomesticHevc] {
                let (k, kind, c) = read(&packaging.picture(key, composition));
                prop_assert_eq!((k, c), (key, composition));
                let x = packaging == Packaging::EnhancedHevc && composition == 0;
                prop_assert_eq!(kind, if x { 3 } else { 1 });
            }
        }
    }
}
