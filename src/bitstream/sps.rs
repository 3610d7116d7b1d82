//! The few fields of a sequence parameter set that somebody here needs: the picture's size and
//! form, profile and level, and the signalled colours.
//!
//! Both parsers take the whole NAL unit, header included and emulation prevention still in
//! place, and stop reading behind the colours.

use super::BitstreamError;
use super::rbsp::BitReader;

/// H.264 section 7.3.2.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct H264Sps {
    pub profile_idc: u8,
    /// The byte behind `profile_idc`: constraint_set0_flag is its highest bit.
    pub constraint_flags: u8,
    pub level_idc: u8,
    /// 0 monochrome, 1 4:2:0, 2 4:2:2, 3 4:4:4.
    pub chroma_format_idc: u8,
    pub bit_depth_luma: u8,
    pub bit_depth_chroma: u8,
    /// Pixels that are shown, cropping taken off.
    pub width: u32,
    pub height: u32,
    pub colour: Option<Colour>,
}

/// H.265 section 7.3.2.2.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct H265Sps {
    /// `general_profile_space` to `general_level_idc`, which is bytes 1 to 12 of an `hvcC`.
    pub profile_tier_level: [u8; 12],
    /// `sps_max_sub_layers_minus1` + 1; 1 to 7.
    pub temporal_layers: u8,
    pub temporal_id_nesting: bool,
    /// 0 monochrome, 1 4:2:0, 2 4:2:2, 3 4:4:4.
    pub chroma_format_idc: u8,
    pub bit_depth_luma: u8,
    pub bit_depth_chroma: u8,
    /// Pixels that are shown, the conformance window applied.
    pub width: u32,
    pub height: u32,
    pub colour: Option<Colour>,
}

/// `video_signal_type` of the VUI (H.264 and H.265 section E.2.1). The three codes are those of
/// ITU-T H.273; 2 is "unspecified".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour {
    pub full_range: bool,
    pub primaries: u8,
    pub transfer: u8,
    pub matrix: u8,
}

impl H264Sps {
    /// # Errors
    ///
    /// If `nal` is no SPS, ends early or holds values that the standard forbids.
    pub fn parse(nal: &[u8]) -> Result<Self, BitstreamError> {
        if nal.first().is_none_or(|header| header & 0x1F != 7) {
            return Err(wrong("H.264 SPS", "is not of NAL unit type 7"));
        }
        let mut r = BitReader::new(&nal[1..]);
        let profile_idc = r.bits(8)? as u8;
        let constraint_flags = r.bits(8)? as u8;
        let level_idc = r.bits(8)? as u8;
        r.ue_up_to(31, "seq_parameter_set_id")?;
        let (mut chroma, mut luma_depth, mut chroma_depth) = (1, 8, 8);
        if HIGH_PROFILES.contains(&profile_idc) {
            chroma = r.ue_up_to(3, "chroma_format_idc")?;
            if chroma == 3 {
                r.skip(1)?; // separate_colour_plane_flag
            }
            luma_depth = 8 + r.ue_up_to(6, "bit_depth_luma_minus8")?;
            chroma_depth = 8 + r.ue_up_to(6, "bit_depth_chroma_minus8")?;
            r.skip(1)?; // qpprime_y_zero_transform_bypass_flag
            if r.flag()? {
                for list in 0..if chroma == 3 { 12 } else { 8 } {
                    if r.flag()? {
                        skip_scaling_list(&mut r, if list < 6 { 16 } else { 64 })?;
                    }
                }
            }
        }
        r.ue_up_to(12, "log2_max_frame_num_minus4")?;
        match r.ue_up_to(2, "pic_order_cnt_type")? {
            0 => {
                r.ue_up_to(12, "log2_max_pic_order_cnt_lsb_minus4")?;
            }
            1 => {
                r.skip(1)?; // delta_pic_order_always_zero_flag
                r.se()?;
                r.se()?;
                for _ in 0..r.ue_up_to(255, "num_ref_frames_in_pic_order_cnt_cycle")? {
                    r.se()?;
                }
            }
            _ => {}
        }
        r.ue()?; // max_num_ref_frames
        r.skip(1)?; // gaps_in_frame_num_value_allowed_flag
        let width = 16 * (r.ue_up_to(LARGEST_SIDE / 16, "pic_width_in_mbs_minus1")? + 1);
        let map_units = r.ue_up_to(LARGEST_SIDE / 16, "pic_height_in_map_units_minus1")? + 1;
        let frame_mbs_only = r.flag()?;
        let fields = if frame_mbs_only { 1 } else { 2 };
        if !frame_mbs_only {
            r.skip(1)?; // mb_adaptive_frame_field_flag
        }
        r.skip(1)?; // direct_8x8_inference_flag
        let height = 16 * map_units * fields;
        // section 7.4.2.1.1, CropUnitX and CropUnitY
        let (unit_x, unit_y) = chroma_units(chroma);
        let (width, height) = cropped(&mut r, (width, height), (unit_x, unit_y * fields))?;
        Ok(Self {
            profile_idc,
            constraint_flags,
            level_idc,
            chroma_format_idc: chroma as u8,
            bit_depth_luma: luma_depth as u8,
            bit_depth_chroma: chroma_depth as u8,
            width,
            height,
            colour: colour(&mut r)?,
        })
    }
}

impl H265Sps {
    /// # Errors
    ///
    /// If `nal` is no SPS, ends early or holds values that the standard forbids.
    pub fn parse(nal: &[u8]) -> Result<Self, BitstreamError> {
        if nal.len() < 2 || (nal[0] >> 1) & 0x3F != 33 {
            return Err(wrong("H.265 SPS", "is not of NAL unit type 33"));
        }
        let mut r = BitReader::new(&nal[2..]);
        r.skip(4)?; // sps_video_parameter_set_id
        let sub_layers_minus1 = r.bits(3)?;
        if sub_layers_minus1 > 6 {
            return Err(wrong("sps_max_sub_layers_minus1", "is 7"));
        }
        let temporal_id_nesting = r.flag()?;
        let mut profile_tier_level = [0; 12];
        for byte in &mut profile_tier_level {
            *byte = r.bits(8)? as u8;
        }
        skip_sub_layer_profiles(&mut r, sub_layers_minus1)?;
        r.ue_up_to(15, "sps_seq_parameter_set_id")?;
        let chroma = r.ue_up_to(3, "chroma_format_idc")?;
        if chroma == 3 {
            r.skip(1)?; // separate_colour_plane_flag
        }
        let width = r.ue_up_to(LARGEST_SIDE, "pic_width_in_luma_samples")?;
        let height = r.ue_up_to(LARGEST_SIDE, "pic_height_in_luma_samples")?;
        let (width, height) = cropped(&mut r, (width, height), chroma_units(chroma))?;
        let bit_depth_luma = 8 + r.ue_up_to(8, "bit_depth_luma_minus8")? as u8;
        let bit_depth_chroma = 8 + r.ue_up_to(8, "bit_depth_chroma_minus8")? as u8;
        skip_to_vui(&mut r, sub_layers_minus1)?;
        Ok(Self {
            profile_tier_level,
            temporal_layers: sub_layers_minus1 as u8 + 1,
            temporal_id_nesting,
            chroma_format_idc: chroma as u8,
            bit_depth_luma,
            bit_depth_chroma,
            width,
            height,
            colour: colour(&mut r)?,
        })
    }

    /// `general_profile_idc`: 1 Main, 2 Main 10, 4 range extensions.
    pub fn profile_idc(&self) -> u8 {
        self.profile_tier_level[0] & 0x1F
    }

    /// `general_tier_flag`: false Main, true High.
    pub fn high_tier(&self) -> bool {
        self.profile_tier_level[0] & 0x20 != 0
    }

    /// `general_level_idc`: thirty times the level.
    pub fn level_idc(&self) -> u8 {
        self.profile_tier_level[11]
    }
}

fn wrong(what: &'static str, detail: &str) -> BitstreamError {
    BitstreamError::Syntax {
        what,
        detail: detail.to_owned(),
    }
}

/// SubWidthC and SubHeightC (table 6-1 of both); 1 and 1 for 4:4:4 and where there is no chroma
/// array, which monochrome and separate colour planes have in common.
fn chroma_units(chroma_format_idc: u32) -> (u32, u32) {
    match chroma_format_idc {
        1 => (2, 2),
        2 => (2, 1),
        _ => (1, 1),
    }
}

/// `frame_cropping_flag` or `conformance_window_flag` and the four offsets, left, right, top,
/// bottom, in units of `unit`.
fn cropped(
    r: &mut BitReader<'_>,
    size: (u32, u32),
    unit: (u32, u32),
) -> Result<(u32, u32), BitstreamError> {
    let (mut across, mut down) = (0_u64, 0_u64);
    if r.flag()? {
        across = (u64::from(r.ue()?) + u64::from(r.ue()?)) * u64::from(unit.0);
        down = (u64::from(r.ue()?) + u64::from(r.ue()?)) * u64::from(unit.1);
    }
    if across >= u64::from(size.0) || down >= u64::from(size.1) {
        return Err(wrong("SPS", "leaves no pixel of the picture"));
    }
    Ok((size.0 - across as u32, size.1 - down as u32))
}

/// `vui_parameters_present_flag` and the VUI up to the colours, which begins alike in both.
fn colour(r: &mut BitReader<'_>) -> Result<Option<Colour>, BitstreamError> {
    if !r.flag()? {
        return Ok(None);
    }
    // aspect_ratio_info_present_flag, aspect_ratio_idc; 255 is Extended_SAR
    if r.flag()? && r.bits(8)? == 255 {
        r.skip(32)?;
    }
    if r.flag()? {
        r.skip(1)?; // overscan_appropriate_flag
    }
    if !r.flag()? {
        return Ok(None);
    }
    r.skip(3)?; // video_format
    let full_range = r.flag()?;
    let described = r.flag()?;
    let mut code = || if described { r.bits(8) } else { Ok(2) };
    Ok(Some(Colour {
        full_range,
        primaries: code()? as u8,
        transfer: code()? as u8,
        matrix: code()? as u8,
    }))
}

/// H.264 section 7.3.2.1.1.1.
fn skip_scaling_list(r: &mut BitReader<'_>, size: u32) -> Result<(), BitstreamError> {
    let mut scale = 8_i32;
    for _ in 0..size {
        let next = scale.wrapping_add(r.se()?).rem_euclid(256);
        if next == 0 {
            break; // the rest repeats the last scale and is not coded
        }
        scale = next;
    }
    Ok(())
}

/// The sub-layer part of `profile_tier_level` (H.265 section 7.3.3).
fn skip_sub_layer_profiles(
    r: &mut BitReader<'_>,
    sub_layers_minus1: u32,
) -> Result<(), BitstreamError> {
    if sub_layers_minus1 == 0 {
        return Ok(());
    }
    let mut present = [(false, false); 6];
    for layer in &mut present[..sub_layers_minus1 as usize] {
        *layer = (r.flag()?, r.flag()?);
    }
    r.skip(2 * (8 - sub_layers_minus1))?; // reserved_zero_2bits
    for (profile, level) in present {
        r.skip(88 * u32::from(profile) + 8 * u32::from(level))?;
    }
    Ok(())
}

/// Everything between the bit depths and `vui_parameters_present_flag` (H.265 section 7.3.2.2.1).
fn skip_to_vui(r: &mut BitReader<'_>, sub_layers_minus1: u32) -> Result<(), BitstreamError> {
    let poc_bits = 4 + r.ue_up_to(12, "log2_max_pic_order_cnt_lsb_minus4")?;
    let all_sub_layers = r.flag()?; // sps_sub_layer_ordering_info_present_flag
    let ordered = if all_sub_layers {
        sub_layers_minus1 + 1
    } else {
        1
    };
    // three per sub-layer, then six sizes and depths of blocks
    for _ in 0..3 * ordered + 6 {
        r.ue()?;
    }
    // scaling_list_enabled_flag, sps_scaling_list_data_present_flag
    if r.flag()? && r.flag()? {
        skip_scaling_list_data(r)?;
    }
    r.skip(2)?; // amp_enabled_flag, sample_adaptive_offset_enabled_flag
    if r.flag()? {
        r.skip(8)?; // pcm sample bit depths
        r.ue()?;
        r.ue()?;
        r.skip(1)?; // pcm_loop_filter_disabled_flag
    }
    let mut deltas = 0;
    for index in 0..r.ue_up_to(64, "num_short_term_ref_pic_sets")? {
        deltas = skip_short_term_set(r, index, deltas)?;
    }
    if r.flag()? {
        for _ in 0..r.ue_up_to(32, "num_long_term_ref_pics_sps")? {
            r.skip(poc_bits + 1)?;
        }
    }
    r.skip(2) // sps_temporal_mvp_enabled_flag, strong_intra_smoothing_enabled_flag
}

/// H.265 section 7.3.4.
fn skip_scaling_list_data(r: &mut BitReader<'_>) -> Result<(), BitstreamError> {
    for size_id in 0..4 {
        for _ in 0..if size_id == 3 { 2 } else { 6 } {
            if !r.flag()? {
                r.ue()?; // scaling_list_pred_matrix_id_delta
                continue;
            }
            if size_id > 1 {
                r.se()?; // scaling_list_dc_coef_minus8
            }
            for _ in 0..if size_id == 0 { 16 } else { 64 } {
                r.se()?;
            }
        }
    }
    Ok(())
}

/// One `st_ref_pic_set` (H.265 section 7.3.7); takes NumDeltaPocs of the set before, which is the
/// one that a set in an SPS is predicted from, and gives its own.
fn skip_short_term_set(
    r: &mut BitReader<'_>,
    index: u32,
    deltas_before: u32,
) -> Result<u32, BitstreamError> {
    let mut deltas = 0;
    if index != 0 && r.flag()? {
        r.skip(1)?; // delta_rps_sign
        r.ue()?; // abs_delta_rps_minus1
        for _ in 0..=deltas_before {
            let used = r.flag()?; // used_by_curr_pic_flag
            // use_delta_flag is inferred to be 1 where it is not coded
            if used || r.flag()? {
                deltas += 1;
            }
        }
    } else {
        // sps_max_dec_pic_buffering_minus1 limits both, and is at most 15
        deltas = r.ue_up_to(16, "num_negative_pics")? + r.ue_up_to(16, "num_positive_pics")?;
        for _ in 0..deltas {
            r.ue()?;
            r.skip(1)?;
        }
    }
    if deltas > 32 {
        return Err(wrong("short-term reference picture set", "is too long"));
    }
    Ok(deltas)
}

/// The profiles whose SPS says chroma format and bit depth (H.264 section 7.3.2.1.1).
const HIGH_PROFILES: [u8; 13] = [100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135];
/// No level allows more (H.265 level 6.2: sqrt(8 * 35651584) = 16888).
const LARGEST_SIDE: u32 = 16_888;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BT709: Option<Colour> = Some(Colour {
        full_range: false,
        primaries: 1,
        transfer: 1,
        matrix: 1,
    });

    fn hex(text: &str) -> Vec<u8> {
        text.split_whitespace()
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect()
    }

    // Each SPS was made by ffmpeg 5.1 with libx264 or libx265 from the arguments in its comment;
    // the expected values are those arguments, and ffmpeg's trace_headers agrees.

    /// 1918x1078, yuv420p, -preset ultrafast, bt709, range tv
    const X264_BASELINE: &str = "67 42 c0 28 da 01 e0 08 9e a6 c0 5a 80 80 80 a0 00 00 03 00 20 00
        00 07 81 e3 06 54";
    /// 640x360, yuv444p, -color_range pc
    const X264_444: &str = "67 f4 00 1e 91 9b 28 14 05 ff 13 80 b6 40 00 00 03 00 40 00 00 0f 03 c5
        8b 65 80";
    /// 640x360, yuv420p10le, interlaced=1: height in field units
    const X264_FIELDS: &str = "67 6e 00 1e a6 cd 94 0a 06 3f 3e 02 20 00 00 03 00 20 00 00 07 83 e2
        85 32 c0";
    /// 1918x1078, yuv420p, bt709, range=limited
    const X265_MAIN: &str =
        "42 01 01 01 60 00 00 03 00 90 00 00 03 00 00 03 00 78 a0 03 c0 80 11 07
        53 65 95 95 29 30 bc 05 a8 08 08 08 20 00 00 03 00 20 00 00 03 03 c1";
    /// 640x360, yuv422p10le, temporal-layers=1 (two sub-layers), scaling-list=default
    const X265_LAYERS: &str = "42 01 02 04 08 00 00 03 00 9d 08 00 00 03 00 00 3f 00 00 b0 05 02 01
        69 36 59 59 8a cd 24 9c af 01 68 08 00 00 03 00 08 00 00 03 00 f0 40";

    #[test]
    fn h264_sps_of_x264_are_understood() {
        assert_eq!(
            H264Sps::parse(&hex(X264_BASELINE)).unwrap(),
            H264Sps {
                profile_idc: 66,
                constraint_flags: 0xC0,
                level_idc: 40,
                chroma_format_idc: 1,
                bit_depth_luma: 8,
                bit_depth_chroma: 8,
                width: 1918,
                height: 1078,
                colour: BT709,
            }
        );
        let sps = H264Sps::parse(&hex(X264_444)).unwrap();
        assert_eq!((sps.profile_idc, sps.chroma_format_idc), (244, 3));
        assert_eq!((sps.width, sps.height), (640, 360));
        assert!(sps.colour.unwrap().full_range);
        let sps = H264Sps::parse(&hex(X264_FIELDS)).unwrap();
        assert_eq!((sps.profile_idc, sps.bit_depth_luma), (110, 10));
        assert_eq!((sps.width, sps.height), (640, 360));
    }

    #[test]
    fn h265_sps_of_x265_are_understood() {
        let sps = H265Sps::parse(&hex(X265_MAIN)).unwrap();
        assert_eq!(
            sps,
            H265Sps {
                profile_tier_level: [0x01, 0x60, 0, 0, 0, 0x90, 0, 0, 0, 0, 0, 0x78],
                temporal_layers: 1,
                temporal_id_nesting: true,
                chroma_format_idc: 1,
                bit_depth_luma: 8,
                bit_depth_chroma: 8,
                width: 1918,
                height: 1078,
                colour: BT709,
            }
        );
        assert_eq!(
            (sps.profile_idc(), sps.high_tier(), sps.level_idc()),
            (1, false, 120)
        );
        let sps = H265Sps::parse(&hex(X265_LAYERS)).unwrap();
        assert_eq!((sps.temporal_layers, sps.temporal_id_nesting), (2, false));
        assert_eq!(
            (sps.chroma_format_idc, sps.bit_depth_luma, sps.profile_idc()),
            (2, 10, 4)
        );
        assert_eq!((sps.width, sps.height), (640, 360));
    }

    #[test]
    fn every_shorter_sps_is_refused_or_loses_only_the_colours() {
        for (text, h264) in [(X264_BASELINE, true), (X265_MAIN, false)] {
            let nal = hex(text);
            for len in 0..8 {
                let short = &nal[..len];
                let refused = if h264 {
                    H264Sps::parse(short).is_err()
                } else {
                    H265Sps::parse(short).is_err()
                };
                assert!(refused, "{len} bytes");
            }
        }
    }

    #[test]
    fn a_window_that_leaves_no_pixel_is_refused() {
        let mut nal = hex(X264_BASELINE);
        // 1920 wide: frame_crop_right_offset 001 0000 00010 ... replaced by ones and zeros at will
        for byte in 8..14 {
            for value in 0..=255 {
                nal[byte] = value;
                if let Ok(sps) = H264Sps::parse(&nal) {
                    assert!(sps.width > 0 && sps.height > 0);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 2..200)) {
            bytes[0] = 0x67;
            let _ = H264Sps::parse(&bytes);
            bytes[0] = 0x42;
            let _ = H265Sps::parse(&bytes);
        }

        #[test]
        fn a_real_sps_with_flipped_bits_is_parsed_or_refused(
            at in 0_usize..1000, flips in prop::collection::vec(any::<u8>(), 1..6)
        ) {
            for text in [X264_BASELINE, X264_444, X264_FIELDS, X265_MAIN, X265_LAYERS] {
                let mut nal = hex(text);
                let len = nal.len();
                for (index, flip) in flips.iter().enumerate() {
                    nal[1 + (at + index * 7) % (len - 1)] ^= flip;
                }
                let _ = H264Sps::parse(&nal);
                let _ = H265Sps::parse(&nal);
            }
        }
    }
}
