//! The order that NAL units must keep within an access unit (ITU-T H.264 7.4.1.2.3, H.265 7.4.2.4.4).

use super::{Codec, NalClass};

/// What is wrong with the order of an access unit's NAL units; `None` if nothing is.
pub fn violation(codec: Codec, nals: &[&[u8]]) -> Option<String> {
    let mut slice_class = None;
    for (index, nal) in nals.iter().enumerate() {
        if nal.len() < codec.header_bytes() {
            return Some(format!("NAL unit {index} is shorter than its header"));
        }
        if Codec::forbidden_bit(nal) {
            return Some(format!("NAL unit {index} has forbidden_zero_bit set"));
        }
        if codec == Codec::H265 && nal[1] & 7 == 0 {
            return Some(format!("NAL unit {index} has a temporal id of -1"));
        }
        let class = codec.classify(nal);
        match (class, slice_class) {
            (NalClass::AccessUnitDelimiter, _) if index != 0 => {
                return Some("an access unit delimiter that is not the first NAL unit".into());
            }
            (NalClass::Vps | NalClass::Sps | NalClass::Pps | NalClass::PrefixSei, Some(_)) => {
                return Some(format!("{class:?} after a slice of the same access unit"));
            }
            (NalClass::SuffixSei, None) => {
                return Some("a suffix SEI ahead of the first slice".into());
            }
            (NalClass::KeySlice | NalClass::Slice, Some(first)) if first != class => {
                return Some("slices of a key picture and of another in one access unit".into());
            }
            (NalClass::KeySlice | NalClass::Slice, Some(_)) if codec.is_first_slice(nal) => {
                return Some("two first slices in one access unit".into());
            }
            (NalClass::KeySlice | NalClass::Slice, None) if !codec.is_first_slice(nal) => {
                return Some("a picture that begins with a later slice".into());
            }
            (NalClass::KeySlice | NalClass::Slice, _) => slice_class = Some(class),
            _ => {}
        }
    }
    slice_class
        .is_none()
        .then(|| "an access unit without a slice".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_checked_for_both_codecs() {
        let (sps, pps, sei) = (&[0x67, 1][..], &[0x68, 1][..], &[0x06, 5][..]);
        let (idr, p, aud) = (&[0x65, 0x80][..], &[0x41, 0x80][..], &[0x09, 0xF0][..]);
        let idr_rest = &[0x65, 0x40][..];
        let fine = |nals: &[&[u8]]| violation(Codec::H264, nals).is_none();
        assert!(fine(&[aud, sps, pps, sei, idr, idr_rest]));
        assert!(fine(&[p]));
        assert!(!fine(&[idr, sps]), "parameter set behind a slice");
        assert!(!fine(&[sps, aud, pps, idr]), "delimiter not first");
        assert!(!fine(&[idr, p]), "two kinds of picture");
        assert!(!fine(&[idr, idr]), "two pictures");
        assert!(!fine(&[idr_rest]), "the first slice is missing");
        assert!(!fine(&[sps, pps]), "no picture");
        assert!(!fine(&[&[0xE5, 0x80]]), "forbidden bit");

        let (idr, suffix) = (&[0x26, 1, 0x80][..], &[0x50, 1, 5][..]);
        assert_eq!(violation(Codec::H265, &[idr, suffix]), None);
        assert!(violation(Codec::H265, &[suffix, idr]).is_some());
        assert!(
            violation(Codec::H265, &[&[0x26, 0, 0x80]]).is_some(),
            "temporal id"
        );
    }
}
