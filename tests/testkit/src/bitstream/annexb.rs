//! Annex B: NAL units between start codes, and access units from NAL units.

use std::ops::Range;

use super::{Codec, NalClass};

/// Ranges of the NAL units of an Annex B stream, without start codes and without the zero bytes that
/// trail a NAL unit (ITU-T H.264 B.1). Bytes ahead of the first start code are left out.
pub fn nal_ranges(stream: &[u8]) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut start = None;
    let mut at = 0;
    while let Some(code) = next_start_code(stream, at) {
        push_trimmed(stream, start, code, &mut ranges);
        start = Some(code + 3);
        at = code + 3;
    }
    push_trimmed(stream, start, stream.len(), &mut ranges);
    ranges
}

/// One access unit of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessUnitRange {
    /// From its first start code (with the zero ahead of it) to the next unit's.
    pub bytes: Range<usize>,
    pub key_frame: bool,
}

/// Cuts an Annex B stream into access units.
///
/// A unit begins with the first slice of a picture or with what must precede one (ITU-T H.264
/// 7.4.1.2.3, H.265 7.4.2.4.4). Arbitrary slice order (H.264 Extended profile) is not known here. What follows the last
/// slice without a picture of its own stays with the last unit.
pub fn access_units(codec: Codec, stream: &[u8]) -> Vec<AccessUnitRange> {
    let mut units: Vec<AccessUnitRange> = Vec::new();
    let mut open: Option<(usize, bool, bool)> = None; // start, has slice, key
    for range in nal_ranges(stream) {
        let nal = &stream[range.clone()];
        let class = codec.classify(nal);
        let begins = match class {
            NalClass::KeySlice | NalClass::Slice => codec.is_first_slice(nal),
            _ => leads_a_picture(codec, nal, class),
        };
        let start = start_code_of(stream, range.start);
        match &mut open {
            Some((from, has_slice @ true, key)) if begins => {
                units.push(AccessUnitRange {
                    bytes: *from..start,
                    key_frame: *key,
                });
                (*from, *has_slice, *key) = (start, class.is_slice(), class == NalClass::KeySlice);
            }
            Some((_, has_slice, key)) => {
                *has_slice |= class.is_slice();
                *key |= class == NalClass::KeySlice;
            }
            None => open = Some((start, class.is_slice(), class == NalClass::KeySlice)),
        }
    }
    if let Some((from, has_slice, key_frame)) = open {
        match units.last_mut() {
            Some(last) if !has_slice => last.bytes.end = stream.len(),
            _ if has_slice => units.push(AccessUnitRange {
                bytes: from..stream.len(),
                key_frame,
            }),
            _ => {}
        }
    }
    units
}

fn leads_a_picture(codec: Codec, nal: &[u8], class: NalClass) -> bool {
    let kind = codec.nal_type(nal).unwrap_or(0);
    match class {
        NalClass::AccessUnitDelimiter
        | NalClass::Vps
        | NalClass::Sps
        | NalClass::Pps
        | NalClass::PrefixSei => true,
        NalClass::Other => match codec {
            Codec::H264 => (14..=18).contains(&kind),
            Codec::H265 => (41..=44).contains(&kind) || (48..=55).contains(&kind),
        },
        _ => false,
    }
}

fn next_start_code(stream: &[u8], from: usize) -> Option<usize> {
    stream
        .get(from..)?
        .windows(3)
        .position(|w| w == [0, 0, 1])
        .map(|at| from + at)
}

fn push_trimmed(stream: &[u8], start: Option<usize>, end: usize, ranges: &mut Vec<Range<usize>>) {
    let Some(start) = start else { return };
    let length = stream[start..end]
        .iter()
        .rposition(|&b| b != 0)
        .map_or(0, |last| last + 1);
    if length > 0 {
        ranges.push(start..start + length);
    }
}

/// Where the start code of the NAL unit at `nal` begins, its leading zero byte included.
fn start_code_of(stream: &[u8], nal: usize) -> usize {
    let code = nal - 3;
    if code > 0 && stream[code - 1] == 0 {
        code - 1
    } else {
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPS: &[u8] = &[0, 0, 0, 1, 0x67, 0x42];
    const PPS: &[u8] = &[0, 0, 0, 1, 0x68, 0xCE];
    const IDR: &[u8] = &[0, 0, 1, 0x65, 0x88, 0x11];
    const IDR_REST: &[u8] = &[0, 0, 1, 0x65, 0x44, 0x11];
    const P: &[u8] = &[0, 0, 0, 1, 0x41, 0x9A, 0x22];

    #[test]
    fn nal_units_lose_start_codes_and_trailing_zeros() {
        let stream = [&[0xFF][..], SPS, &[0], PPS, &[0, 0], IDR].concat();
        let nals: Vec<_> = nal_ranges(&stream)
            .into_iter()
            .map(|r| stream[r].to_vec())
            .collect();
        assert_eq!(
            nals,
            [vec![0x67, 0x42], vec![0x68, 0xCE], vec![0x65, 0x88, 0x11]]
        );
    }

    #[test]
    fn h264_units_are_cut_at_first_slices_and_parameter_sets() {
        let units = [
            [SPS, PPS, IDR, IDR_REST].concat(),
            P.to_vec(),
            [SPS, PPS, IDR].concat(),
            P.to_vec(),
        ];
        let stream = units.concat();
        let found = access_units(Codec::H264, &stream);
        let bytes: Vec<_> = found
            .iter()
            .map(|u| stream[u.bytes.clone()].to_vec())
            .collect();
        assert_eq!(bytes, units);
        assert_eq!(
            found.iter().map(|u| u.key_frame).collect::<Vec<_>>(),
            [true, false, true, false]
        );
    }

    #[test]
    fn h265_units_are_cut_likewise_and_suffix_sei_stays() {
        let vps = [0, 0, 0, 1, 0x40, 1, 0x0C];
        let idr = [0, 0, 1, 0x26, 1, 0x80, 0x55];
        let suffix = [0, 0, 1, 0x50, 1, 0x05, 0x80];
        let p = [0, 0, 1, 0x02, 1, 0x80, 0x55];
        let p_rest = [0, 0, 1, 0x02, 1, 0x40, 0x55];
        let units = [[&vps[..], &idr, &suffix].concat(), [p, p_rest].concat()];
        let stream = units.concat();
        let found = access_units(Codec::H265, &stream);
        let bytes: Vec<_> = found
            .iter()
            .map(|u| stream[u.bytes.clone()].to_vec())
            .collect();
        assert_eq!(bytes, units);
    }

    proptest! {
        #[test]
        fn any_bytes_give_disjoint_units_in_order(bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..400)) {
            for codec in [Codec::H264, Codec::H265] {
                let mut end = 0;
                for unit in access_units(codec, &bytes) {
                    prop_assert!(unit.bytes.start >= end && unit.bytes.end <= bytes.len());
                    end = unit.bytes.end;
                }
            }
        }

        #[test]
        fn nal_units_hold_no_start_code(bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..400)) {
            for range in nal_ranges(&bytes) {
                prop_assert!(!bytes[range].windows(3).any(|w| w == [0, 0, 1]));
            }
        }
    }
}
