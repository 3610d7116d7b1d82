//! The decoder configuration records of FLV and MP4 (ISO/IEC 14496-15 sections 5.3.3.1 and
//! 8.3.3.1), made of parameter sets.

use crate::encode::Codec;

use super::sps::{H264Sps, H265Sps};
use super::{BitstreamError, ParameterSets};

/// A record, and the size of the pictures it describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigRecord {
    pub bytes: Vec<u8>,
    /// Pixels that are shown.
    pub width: u32,
    pub height: u32,
}

impl ConfigRecord {
    /// `avcC` or `hvcC` for `sets`, for NAL units with lengths of 4 bytes.
    ///
    /// # Errors
    ///
    /// If a set is missing, there are more than the record can count, or the SPS cannot be read:
    /// servers close the connection over such a record, so it is better not to be sent.
    pub fn new(codec: Codec, sets: &ParameterSets) -> Result<Self, BitstreamError> {
        if !sets.is_complete(codec) {
            return Err(BitstreamError::NoParameterSets);
        }
        match codec {
            Codec::H264 => avcc(sets),
            Codec::H265 => hvcc(sets),
        }
    }
}

/// ```text
/// 0  1, profile_idc, constraint flags, level_idc
/// 4  0xFC | length size - 1
/// 5  0xE0 | number of SPS;  each: length(16), NAL unit
/// .  number of PPS(8);      each: length(16), NAL unit
/// .  high profiles: 0xFC | chroma_format, 0xF8 | luma depth - 8, 0xF8 | chroma depth - 8, 0
/// ```
fn avcc(sets: &ParameterSets) -> Result<ConfigRecord, BitstreamError> {
    let sps = H264Sps::parse(&sets.sps[0])?;
    let mut bytes = vec![
        1,
        sps.profile_idc,
        sps.constraint_flags,
        sps.level_idc,
        0xFC | LENGTH_SIZE_MINUS_ONE,
        0xE0 | count(&sets.sps, 31, "SPS")?,
    ];
    append_sets(&sets.sps, &mut bytes)?;
    bytes.push(count(&sets.pps, 255, "PPS")?);
    append_sets(&sets.pps, &mut bytes)?;
    // 244 is not in the text but in every writer (contract section 15).
    if matches!(sps.profile_idc, 100 | 110 | 122 | 144 | 244) {
        bytes.extend([
            0xFC | sps.chroma_format_idc,
            0xF8 | (sps.bit_depth_luma - 8),
            0xF8 | (sps.bit_depth_chroma - 8),
            0, // SPS extensions
        ]);
    }
    Ok(ConfigRecord {
        bytes,
        width: sps.width,
        height: sps.height,
    })
}

/// ```text
///  0  1
///  1  profile_tier_level without its emulation bytes: profile(8), compatibility(32),
///     constraints(48), level(8)
/// 13  0xF000 | min_spatial_segmentation_idc, 0 = unknown
/// 15  0xFC | parallelismType, 0 = unknown
/// 16  0xFC | chroma_format_idc, 0xF8 | luma depth - 8, 0xF8 | chroma depth - 8
/// 19  avgFrameRate(16), 0 = unknown
/// 21  constantFrameRate(2) temporal layers(3) nested(1) length size - 1(2)
/// 22  3 arrays: VPS, SPS, PPS; each: 0x80 | NAL type, number(16), (length(16), NAL unit)*
/// ```
fn hvcc(sets: &ParameterSets) -> Result<ConfigRecord, BitstreamError> {
    let sps = H265Sps::parse(&sets.sps[0])?;
    let mut bytes = vec![1];
    bytes.extend(sps.profile_tier_level);
    bytes.extend([
        0xF0,
        0,
        0xFC,
        0xFC | sps.chroma_format_idc,
        0xF8 | (sps.bit_depth_luma - 8),
        0xF8 | (sps.bit_depth_chroma - 8),
        0,
        0,
        sps.temporal_layers << 3 | u8::from(sps.temporal_id_nesting) << 2 | LENGTH_SIZE_MINUS_ONE,
        3,
    ]);
    for (nal_type, name, list) in [
        (32, "VPS", &sets.vps),
        (33, "SPS", &sets.sps),
        (34, "PPS", &sets.pps),
    ] {
        // array_completeness: `hvc1` says that no sets come in the stream.
        bytes.push(0x80 | nal_type);
        bytes.extend([0, count(list, 255, name)?]);
        append_sets(list, &mut bytes)?;
    }
    Ok(ConfigRecord {
        bytes,
        width: sps.width,
        height: sps.height,
    })
}

fn count(list: &[Vec<u8>], most: u8, what: &'static str) -> Result<u8, BitstreamError> {
    u8::try_from(list.len())
        .ok()
        .filter(|count| *count <= most)
        .ok_or_else(|| BitstreamError::Syntax {
            what,
            detail: format!(
                "{} of them, a configuration record holds {most}",
                list.len()
            ),
        })
}

/// Each with its length; emulation prevention stays.
fn append_sets(list: &[Vec<u8>], out: &mut Vec<u8>) -> Result<(), BitstreamError> {
    for set in list {
        let len = u16::try_from(set.len()).map_err(|_| BitstreamError::Syntax {
            what: "parameter set",
            detail: format!("{} bytes, a configuration record holds 65535", set.len()),
        })?;
        out.extend(len.to_be_bytes());
        out.extend_from_slice(set);
    }
    Ok(())
}

/// NAL units are preceded by 4 bytes of length.
const LENGTH_SIZE_MINUS_ONE: u8 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(vps: &[&[u8]], sps: &[&[u8]], pps: &[&[u8]]) -> ParameterSets {
        let list = |sets: &[&[u8]]| sets.iter().map(|set| set.to_vec()).collect();
        ParameterSets {
            generation: 1,
            vps: list(vps),
            sps: list(sps),
            pps: list(pps),
        }
    }

    fn hex(text: &str) -> Vec<u8> {
        text.split_whitespace()
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect()
    }

    // The sets are x264's and x265's, the records are those that ffmpeg 5.1's MP4 writer made of
    // them (`-c copy out.mp4`, `-tag:v hvc1` for H.265), taken out of the file.
    const HIGH_SPS: &str = "67 64 00 1e ac d9 40 a0 2f f9 70 11 00 00 03 00 01 00 00 03 00 32 0f \
                            16 2d 96";
    const HIGH_PPS: &str = "68 eb e3 cb 22 c0";
    const BASELINE_SPS: &str = "67 42 c0 1e d9 00 a0 2f f9 70 11 00 00 03 00 01 00 00 03 00 32 0f \
                                16 2e 48";
    const BASELINE_PPS: &str = "68 cb 83 cb 20";
    const VPS: &str = "40 01 0c 01 ff ff 01 60 00 00 03 00 90 00 00 03 00 00 03 00 3c 95 98 09";
    const SPS: &str = "42 01 01 01 60 00 00 03 00 90 00 00 03 00 00 03 00 3c a0 0a 08 0b 96 59 59 \
                       a4 93 2b c0 5a 02 00 00 03 00 02 00 00 03 00 32 10";
    const PPS: &str = "44 01 c1 72 b4 62 40";

    #[test]
    fn avcc_of_a_high_profile_equals_ffmpegs() {
        let (sps, pps) = (hex(HIGH_SPS), hex(HIGH_PPS));
        let record = ConfigRecord::new(Codec::H264, &sets(&[], &[&sps], &[&pps])).unwrap();
        let expected = [
            hex("01 64 00 1e ff e1 00 1a"),
            sps,
            hex("01 00 06"),
            pps,
            hex("fd f8 f8 00"),
        ]
        .concat();
        assert_eq!(record.bytes, expected);
        assert_eq!((record.width, record.height), (640, 360));
    }

    #[test]
    fn avcc_of_the_baseline_profile_has_no_last_row() {
        let (sps, pps) = (hex(BASELINE_SPS), hex(BASELINE_PPS));
        let record = ConfigRecord::new(Codec::H264, &sets(&[], &[&sps], &[&pps])).unwrap();
        let head = hex("01 42 c0 1e ff e1 00 19");
        assert_eq!(record.bytes, [head, sps, hex("01 00 05"), pps].concat());
    }

    /// Bytes 1 to 12 are without the emulation bytes of the SPS, the SPS itself keeps them.
    #[test]
    fn hvcc_equals_ffmpegs() {
        let (vps, sps, pps) = (hex(VPS), hex(SPS), hex(PPS));
        let record = ConfigRecord::new(Codec::H265, &sets(&[&vps], &[&sps], &[&pps])).unwrap();
        let expected = [
            hex("01 01 60 00 00 00 90 00 00 00 00 00 3c f0 00 fc fd f8 f8 00 00 0f 03"),
            hex("a0 00 01 00 18"),
            vps,
            hex("a1 00 01 00 2a"),
            sps,
            hex("a2 00 01 00 07"),
            pps,
        ]
        .concat();
        assert_eq!(record.bytes, expected);
        assert_eq!((record.width, record.height), (320, 184));
    }

    #[test]
    fn several_sets_are_counted_and_too_many_refused() {
        let (sps, pps) = (hex(BASELINE_SPS), hex(BASELINE_PPS));
        let two = sets(&[], &[&sps], &[&pps, &pps]);
        let record = ConfigRecord::new(Codec::H264, &two).unwrap();
        assert_eq!(record.bytes[6 + 2 + 25], 2);
        let many = sets(&[], &vec![&sps[..]; 32], &[&pps]);
        assert!(ConfigRecord::new(Codec::H264, &many).is_err());
        assert!(ConfigRecord::new(Codec::H264, &sets(&[], &[&sps], &[])).is_err());
        assert!(ConfigRecord::new(Codec::H264, &sets(&[], &[&[0x67]], &[&pps])).is_err());
    }
}
