//! Payload headers of H.264 (RFC 6184), packetization mode 1.

use crate::bitstream::NalUnit;

/// Types of NAL unit that may be sent as they are; 24 and above name packets (section 5.2).
pub(super) fn is_sendable(nal: NalUnit<'_>) -> bool {
    nal.bytes()
        .first()
        .is_some_and(|header| matches!(header & 0x1F, 1..=23))
}

/// STAP-A NAL unit header (section 5.7.1): F is the OR, NRI the highest of all.
///
/// ```text
/// |F|NRI|  24   | size 16 | NAL unit | size 16 | NAL unit | ...
/// ```
pub(super) fn aggregation_header<'a>(nals: impl Iterator<Item = NalUnit<'a>>) -> u8 {
    let (f, nri) = nals.fold((0, 0), |(f, nri), nal| {
        let header = nal.bytes()[0];
        (f | (header & 0x80), nri.max(header & 0x60))
    });
    f | nri | STAP_A
}

/// FU-A indicator and FU header without S and E (section 5.8).
///
/// ```text
/// |F|NRI|  28   |S|E|0|  type   |
/// ```
pub(super) fn fragment_header(nal: NalUnit<'_>) -> [u8; 2] {
    let header = nal.bytes()[0];
    [(header & 0xE0) | FU_A, header & 0x1F]
}

const STAP_A: u8 = 24;
const FU_A: u8 = 28;
