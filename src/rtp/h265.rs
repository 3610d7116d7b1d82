//! Payload headers of H.265 (RFC 7798), one stream (SRST), no DONL.

use crate::bitstream::NalUnit;

/// Types of NAL unit that may be sent as they are; 48 and above name packets (section 4.4).
pub(super) fn is_sendable(nal: NalUnit<'_>) -> bool {
    nal.bytes().len() >= 2 && (nal.bytes()[0] >> 1) & 0x3F <= 47
}

/// Payload header of an aggregation packet (section 4.4.2): F is the OR, layer and temporal id
/// are the lowest of all.
///
/// ```text
/// |F|   48    | LayerId |TID| size 16 | NAL unit | size 16 | NAL unit | ...
/// ```
pub(super) fn aggregation_header<'a>(nals: impl Iterator<Item = NalUnit<'a>>) -> [u8; 2] {
    let (mut f, mut layer, mut tid) = (0, 63, 7);
    for nal in nals {
        let header = u16::from_be_bytes([nal.bytes()[0], nal.bytes()[1]]);
        f |= header & 0x8000;
        layer = layer.min((header >> 3) & 0x3F);
        tid = tid.min(header & 7);
    }
    (f | (AP << 9) | (layer << 3) | tid).to_be_bytes()
}

/// Payload header and FU header without S and E (section 4.4.3).
///
/// ```text
/// |F|   49    | LayerId |TID|S|E|  type   |
/// ```
pub(super) fn fragment_header(nal: NalUnit<'_>) -> [u8; 3] {
    let (first, second) = (nal.bytes()[0], nal.bytes()[1]);
    [(first & 0x81) | (FU << 1), second, (first >> 1) & 0x3F]
}

const AP: u16 = 48;
const FU: u8 = 49;
