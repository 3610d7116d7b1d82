//! The colours that a sequence parameter set signals, set after the encoder made it: the encoders
//! sign everything as BT.709, and a recording's own colours pass through unconverted.

use crate::bitstream::sps::{Colour, H264Sps, H265Sps};
use crate::encode::Codec;

/// `sps` with `colour` in place of the colours that it signals; unchanged if it already signals
/// them, signals none, or cannot be understood.
///
/// The fields have fixed sizes (H.264 and H.265 section E.2.1): `video_full_range_flag` u(1),
/// `colour_description_present_flag` u(1), and three codes u(8). They are found as the one place
/// whose change makes the parsed colours the wanted ones and changes nothing else.
pub fn with_colour(codec: Codec, sps: &[u8], colour: Colour) -> Vec<u8> {
    let Some(old) = colour_of(codec, sps).filter(|old| *old != colour) else {
        return sps.to_vec();
    };
    let plain = unescape(sps);
    let (from, to) = (field(old), field(colour));
    for at in 0..(plain.len() * 8).saturating_sub(FIELD_BITS) {
        if read(&plain, at) != from {
            continue;
        }
        let mut changed = plain.clone();
        write(&mut changed, at, to);
        let changed = escape(&changed);
        if same_but_for_colour(codec, sps, &changed) && colour_of(codec, &changed) == Some(colour) {
            return changed;
        }
    }
    sps.to_vec()
}

fn colour_of(codec: Codec, sps: &[u8]) -> Option<Colour> {
    match codec {
        Codec::H264 => H264Sps::parse(sps).ok()?.colour,
        Codec::H265 => H265Sps::parse(sps).ok()?.colour,
    }
}

fn same_but_for_colour(codec: Codec, one: &[u8], other: &[u8]) -> bool {
    match codec {
        Codec::H264 => match (H264Sps::parse(one), H264Sps::parse(other)) {
            (Ok(one), Ok(other)) => {
                H264Sps {
                    colour: other.colour,
                    ..one
                } == other
            }
            _ => false,
        },
        Codec::H265 => match (H265Sps::parse(one), H265Sps::parse(other)) {
            (Ok(one), Ok(other)) => {
                H265Sps {
                    colour: other.colour,
                    ..one
                } == other
            }
            _ => false,
        },
    }
}

fn field(colour: Colour) -> u32 {
    u32::from(colour.full_range) << 25
        | 1 << 24
        | u32::from(colour.primaries) << 16
        | u32::from(colour.transfer) << 8
        | u32::from(colour.matrix)
}

fn read(bytes: &[u8], at: usize) -> u32 {
    (at..at + FIELD_BITS).fold(0, |value, bit| {
        value << 1 | u32::from(bytes[bit / 8] >> (7 - bit % 8) & 1)
    })
}

fn write(bytes: &mut [u8], at: usize, value: u32) {
    for (n, bit) in (at..at + FIELD_BITS).enumerate() {
        let mask = 1 << (7 - bit % 8);
        if value >> (FIELD_BITS - 1 - n) & 1 == 1 {
            bytes[bit / 8] |= mask;
        } else {
            bytes[bit / 8] &= !mask;
        }
    }
}

/// Without emulation prevention bytes (H.264 section 7.4.1, H.265 section 7.4.2).
fn unescape(nal: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(nal.len());
    let mut zeros = 0;
    for byte in nal {
        if zeros >= 2 && *byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if *byte == 0 { zeros + 1 } else { 0 };
        out.push(*byte);
    }
    out
}

fn escape(plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(plain.len() + 8);
    let mut zeros = 0;
    for byte in plain {
        if zeros >= 2 && *byte <= 3 {
            out.push(3);
            zeros = 0;
        }
        zeros = if *byte == 0 { zeros + 1 } else { 0 };
        out.push(*byte);
    }
    out
}

/// Range, presence and three codes.
const FIELD_BITS: usize = 26;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::colour::{BT601, BT709};

    /// An SPS of H.264, Baseline, 640x480, written bit by bit from section 7.3.2.1.1, whose VUI
    /// has nothing but the colours.
    fn sps(colour: Colour) -> Vec<u8> {
        let mut bits = String::new();
        let mut put = |value: u32, n: usize| bits.push_str(&format!("{value:0n$b}"));
        put(66, 8); // profile_idc
        put(0, 8); // constraint flags
        put(30, 8); // level_idc
        put(1, 1); // seq_parameter_set_id 0
        put(1, 1); // log2_max_frame_num_minus4 0
        put(0b011, 3); // pic_order_cnt_type 2
        put(0b010, 3); // max_num_ref_frames 1
        put(0, 1); // gaps
        put(40, 11); // pic_width_in_mbs_minus1 39
        put(30, 9); // pic_height_in_map_units_minus1 29
        put(1, 1); // frame_mbs_only_flag
        put(1, 1); // direct_8x8_inference_flag
        put(0, 1); // frame_cropping_flag
        put(1, 1); // vui_parameters_present_flag
        put(0, 1); // aspect_ratio_info_present_flag
        put(0, 1); // overscan_info_present_flag
        put(1, 1); // video_signal_type_present_flag
        put(5, 3); // video_format
        put(u32::from(colour.full_range), 1);
        put(1, 1); // colour_description_present_flag
        for code in [colour.primaries, colour.transfer, colour.matrix] {
            put(u32::from(code), 8);
        }
        put(0, 8); // no chroma location, timing, HRD, picture structure or restrictions
        put(1, 1); // rbsp_stop_one_bit
        while bits.len() % 8 != 0 {
            bits.push('0');
        }
        let byte = |at: usize| u8::from_str_radix(&bits[at..at + 8], 2).unwrap();
        let plain: Vec<u8> = [0x67]
            .into_iter()
            .chain((0..bits.len()).step_by(8).map(byte))
            .collect();
        escape(&plain)
    }

    #[test]
    fn only_the_colours_change() {
        let full = Colour {
            full_range: true,
            ..BT601
        };
        for wanted in [BT601, BT709, full] {
            assert_eq!(with_colour(Codec::H264, &sps(BT709), wanted), sps(wanted));
        }
    }

    #[test]
    fn what_cannot_be_understood_stays_as_it_is() {
        for bytes in [&[][..], &[0x67], &[0x67, 66, 0, 30], &[0x42, 1, 1, 2, 3]] {
            assert_eq!(with_colour(Codec::H264, bytes, BT601), bytes);
            assert_eq!(with_colour(Codec::H265, bytes, BT601), bytes);
        }
    }

    #[test]
    fn emulation_prevention_comes_and_goes() {
        for plain in [
            &[0, 0, 0, 0, 1, 0, 0, 3, 0, 0][..],
            &[1, 2, 0, 0],
            &[0, 0, 2, 0, 0, 4],
        ] {
            let escaped = escape(plain);
            assert!(
                !escaped
                    .windows(3)
                    .any(|three| three[..2] == [0, 0] && three[2] < 3)
            );
            assert_eq!(unescape(&escaped), plain);
        }
    }
}
