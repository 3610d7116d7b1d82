//! The fields of sequence parameter sets that a decoder configuration record repeats
//! (ITU-T H.264 7.3.2.1.1, H.265 7.3.2.2.1).

use super::Codec;
use super::rbsp::{BitReader, unescape};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sps {
    pub width: u32,
    pub height: u32,
    pub chroma_format: u8,
    pub bit_depth_luma: u8,
    pub bit_depth_chroma: u8,
    /// H.264: profile, constraints, level. H.265: the twelve bytes of general profile, tier and level.
    pub profile: [u8; 12],
    /// H.265 only, 1 for H.264.
    pub temporal_layers: u8,
    pub temporal_id_nested: bool,
}

/// Profiles of H.264 whose SPS tells chroma format and bit depth.
const HIGH_PROFILES: [u8; 13] = [100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135];

/// Reads an SPS NAL unit, header included. `None` if it is cut off or absurd.
pub fn parse(codec: Codec, nal: &[u8]) -> Option<Sps> {
    let rbsp = unescape(nal);
    match codec {
        Codec::H264 => h264(&rbsp),
        Codec::H265 => h265(&rbsp),
    }
}

pub fn is_high_profile(profile_idc: u8) -> bool {
    HIGH_PROFILES.contains(&profile_idc)
}

fn h264(rbsp: &[u8]) -> Option<Sps> {
    let mut profile = [0; 12];
    profile[..3].copy_from_slice(rbsp.get(1..4)?);
    let mut bits = BitReader::new(&rbsp[4..]);
    bits.ue()?; // seq_parameter_set_id
    let (mut chroma_format, mut luma, mut chroma) = (1, 8, 8);
    if is_high_profile(profile[0]) {
        chroma_format = bits.ue()?;
        if chroma_format == 3 {
            bits.skip(1)?; // separate_colour_plane_flag
        }
        luma = bits.ue()? + 8;
        chroma = bits.ue()? + 8;
        bits.skip(1)?; // qpprime_y_zero_transform_bypass_flag
        if bits.bit()? == 1 {
            for list in 0..if chroma_format == 3 { 12 } else { 8 } {
                if bits.bit()? == 1 {
                    skip_scaling_list(&mut bits, if list < 6 { 16 } else { 64 })?;
                }
            }
        }
    }
    bits.ue()?; // log2_max_frame_num_minus4
    match bits.ue()? {
        0 => drop(bits.ue()?),
        1 => {
            bits.skip(1)?;
            bits.se()?;
            bits.se()?;
            let cycle = bits.ue()?;
            if cycle > 255 {
                return None;
            }
            for _ in 0..cycle {
                bits.se()?;
            }
        }
        _ => {}
    }
    bits.ue()?; // max_num_ref_frames
    bits.skip(1)?; // gaps_in_frame_num_value_allowed_flag
    let width_mbs = u64::from(bits.ue()?) + 1;
    let height_units = u64::from(bits.ue()?) + 1;
    let frames_only = u64::from(bits.bit()?);
    if frames_only == 0 {
        bits.skip(1)?; // mb_adaptive_frame_field_flag
    }
    bits.skip(1)?; // direct_8x8_inference_flag
    let (mut crop_x, mut crop_y) = (0, 0);
    if bits.bit()? == 1 {
        crop_x = u64::from(bits.ue()?) + u64::from(bits.ue()?);
        crop_y = u64::from(bits.ue()?) + u64::from(bits.ue()?);
    }
    let (unit_x, unit_y) = chroma_units(chroma_format);
    Some(Sps {
        width: size(width_mbs * 16, crop_x * unit_x)?,
        height: size(
            height_units * 16 * (2 - frames_only),
            crop_y * unit_y * (2 - frames_only),
        )?,
        chroma_format: u8::try_from(chroma_format).ok().filter(|&c| c <= 3)?,
        bit_depth_luma: u8::try_from(luma).ok()?,
        bit_depth_chroma: u8::try_from(chroma).ok()?,
        profile,
        temporal_layers: 1,
        temporal_id_nested: false,
    })
}

fn h265(rbsp: &[u8]) -> Option<Sps> {
    let profile: [u8; 12] = rbsp.get(3..15)?.try_into().ok()?;
    let mut bits = BitReader::new(&rbsp[2..]);
    bits.skip(4)?; // sps_video_parameter_set_id
    let sub_layers = bits.bits(3)?;
    let nested = bits.bit()? == 1;
    bits.skip(96)?; // general profile, tier and level
    skip_sub_layers(&mut bits, sub_layers)?;
    bits.ue()?; // sps_seq_parameter_set_id
    let chroma_format = bits.ue()?;
    if chroma_format == 3 {
        bits.skip(1)?; // separate_colour_plane_flag
    }
    let (width, height) = (u64::from(bits.ue()?), u64::from(bits.ue()?));
    let (mut crop_x, mut crop_y) = (0, 0);
    if bits.bit()? == 1 {
        crop_x = u64::from(bits.ue()?) + u64::from(bits.ue()?);
        crop_y = u64::from(bits.ue()?) + u64::from(bits.ue()?);
    }
    let (unit_x, unit_y) = chroma_units(chroma_format);
    let luma = bits.ue()?.checked_add(8)?;
    let chroma = bits.ue()?.checked_add(8)?;
    Some(Sps {
        width: size(width, crop_x * unit_x)?,
        height: size(height, crop_y * unit_y)?,
        chroma_format: u8::try_from(chroma_format).ok().filter(|&c| c <= 3)?,
        bit_depth_luma: u8::try_from(luma).ok()?,
        bit_depth_chroma: u8::try_from(chroma).ok()?,
        profile,
        temporal_layers: sub_layers as u8 + 1,
        temporal_id_nested: nested,
    })
}

/// The per-layer part of `profile_tier_level` (H.265 7.3.3).
fn skip_sub_layers(bits: &mut BitReader, sub_layers: u32) -> Option<()> {
    if sub_layers == 0 {
        return Some(());
    }
    let mut present = Vec::new();
    for _ in 0..8 {
        present.push((bits.bit()?, bits.bit()?));
    }
    for (profile, level) in present.into_iter().take(sub_layers as usize) {
        bits.skip(if profile == 1 { 88 } else { 0 })?;
        bits.skip(if level == 1 { 8 } else { 0 })?;
    }
    Some(())
}

fn skip_scaling_list(bits: &mut BitReader, entries: u32) -> Option<()> {
    let (mut last, mut next) = (8_i64, 8_i64);
    for _ in 0..entries {
        if next != 0 {
            next = (last + bits.se()? + 256).rem_euclid(256);
        }
        last = if next == 0 { last } else { next };
    }
    Some(())
}

/// Luma samples per cropping unit.
fn chroma_units(chroma_format: u32) -> (u64, u64) {
    match chroma_format {
        1 => (2, 2),
        2 => (2, 1),
        _ => (1, 1),
    }
}

fn size(coded: u64, cropped: u64) -> Option<u32> {
    let size = coded.checked_sub(cropped)?;
    u32::try_from(size)
        .ok()
        .filter(|&size| (1..=65_535).contains(&size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // The SPS of x265 for 320x180 at 25 Hz and of x264 likewise are read in the tests of the binaries;
    // here, one by hand: Baseline, 2 x 2 macroblocks cropped by 2 x 4 samples.
    #[test]
    fn a_hand_made_sps_gives_its_size() {
        #[rustfmt::skip]
        let text = concat!(
            "1",     // sps id 0
            "1",     // log2_max_frame_num - 4 = 0
            "011",   // pic_order_cnt_type 2
            "010",   // max_num_ref_frames 1
            "0",     // no gaps
            "010",   // 2 macroblocks wide
            "010",   // 2 high
            "1",     // frames only
            "1",     // direct 8x8
            "1", "1", "010", "1", "011", // crop right 1, bottom 2
            "0", "1", // no VUI, stop bit
        );
        let mut nal = vec![0x67, 66, 0xC0, 30];
        for byte in text.as_bytes().chunks(8) {
            let bits = byte.iter().enumerate().map(|(i, b)| (b - b'0') << (7 - i));
            nal.push(bits.sum());
        }
        let sps = parse(Codec::H264, &nal).expect("an SPS");
        assert_eq!((sps.width, sps.height), (30, 28));
        assert_eq!(sps.profile[..3], [66, 0xC0, 30]);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), profile in prop::sample::select(vec![66_u8, 100, 244])) {
            let _ = parse(Codec::H265, &bytes);
            let _ = parse(Codec::H264, &[&[0x67, profile, 0, 30], &bytes[..]].concat());
        }
    }
}
