//! RTP payloads to NAL units: RFC 6184 (H.264, non-interleaved) and RFC 7798 (H.265, no DON fields).

use thiserror::Error;

use crate::bitstream::Codec;

/// What a sender did wrong. None of these can come from loss: a fragment cut by a gap is dropped and counted instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PayloadError {
    #[error("an empty payload")]
    Empty,
    #[error("a payload shorter than its header")]
    Short,
    #[error("packet type {0}, which packetization mode 1 does not have")]
    PacketType(u8),
    #[error("an aggregation packet whose sizes do not fit")]
    AggregateSize,
    #[error("an aggregation packet that holds a packet of type {0}")]
    NestedType(u8),
    #[error("an aggregation packet of {0} NAL units; H.265 asks for two")]
    AggregateCount(usize),
    #[error("an aggregation packet whose header does not sum up its NAL units")]
    AggregateHeader,
    #[error("a fragment that is both first and last")]
    StartAndEnd,
    #[error("a fragment with its reserved bit set")]
    ReservedBit,
    #[error("a fragment without payload")]
    EmptyFragment,
    #[error("a fragment of NAL type {0}")]
    FragmentType(u8),
    #[error("a fragment that continues nothing")]
    NotStarted,
    #[error("a new NAL unit while one is in fragments")]
    NotEnded,
    #[error("a fragment whose NAL header differs from its first one's")]
    FragmentHeader,
    #[error("the marker on a fragment that is not the last")]
    MarkerWithin,
}

/// Puts NAL units together from the payloads of one source, in sequence order.
#[derive(Debug)]
pub struct Depacketizer {
    codec: Codec,
    fragment: Vec<u8>,
    open: bool,
    /// The fragments up to the next start belong to a NAL unit that a gap has cut.
    skipping: bool,
    cut: u64,
}

impl Depacketizer {
    pub fn new(codec: Codec) -> Self {
        Depacketizer {
            codec,
            fragment: Vec::new(),
            open: false,
            skipping: false,
            cut: 0,
        }
    }

    /// Says that packets are missing ahead of the next one (or that it is the first that was received).
    pub fn gap(&mut self) {
        if self.open {
            self.cut += 1;
        }
        self.open = false;
        self.skipping = true;
    }

    /// NAL units lost to gaps in the middle of them.
    pub fn cut(&self) -> u64 {
        self.cut
    }

    /// Gives each NAL unit that the payload completes to `nal`, without start code.
    ///
    /// # Errors
    ///
    /// What the sender did wrong. The payload is then ignored, except with
    /// [`PayloadError::AggregateHeader`]: the NAL units are whole, and given.
    pub fn push(
        &mut self,
        payload: &[u8],
        marker: bool,
        mut nal: impl FnMut(&[u8]),
    ) -> Result<(), PayloadError> {
        if payload.is_empty() {
            return Err(PayloadError::Empty);
        }
        let kind = self.codec.nal_type(payload).ok_or(PayloadError::Short)?;
        let fragment = match (self.codec, kind) {
            (Codec::H264, 28) | (Codec::H265, 49) => return self.fragment(payload, marker, nal),
            (Codec::H264, 24) | (Codec::H265, 48) => Ok(true),
            (Codec::H264, 1..=23) | (Codec::H265, 0..=47) => Ok(false),
            _ => Err(PayloadError::PacketType(kind)),
        };
        self.skipping = false;
        if self.open {
            self.open = false;
            return Err(PayloadError::NotEnded);
        }
        if fragment? {
            aggregate(self.codec, payload, nal)
        } else if payload.len() <= self.codec.header_bytes() {
            // A header alone is a NAL unit only where it ends a sequence (H.264 10, 11; H.265 36, 37).
            match (self.codec, kind) {
                (Codec::H264, 10 | 11) | (Codec::H265, 36 | 37) => {
                    nal(payload);
                    Ok(())
                }
                _ => Err(PayloadError::Short),
            }
        } else {
            nal(payload);
            Ok(())
        }
    }

    fn fragment(
        &mut self,
        payload: &[u8],
        marker: bool,
        mut nal: impl FnMut(&[u8]),
    ) -> Result<(), PayloadError> {
        let header = self.codec.header_bytes();
        let fu = *payload.get(header).ok_or(PayloadError::Short)?;
        let body = &payload[header + 1..];
        let (start, end) = (fu & 0x80 != 0, fu & 0x40 != 0);
        let (kind, rebuilt) = rebuilt_header(self.codec, payload, fu);
        let fault = match self.codec {
            _ if start && end => Some(PayloadError::StartAndEnd),
            Codec::H264 if fu & 0x20 != 0 => Some(PayloadError::ReservedBit),
            Codec::H264 if kind == 0 || kind > 23 => Some(PayloadError::FragmentType(kind)),
            Codec::H265 if kind > 47 => Some(PayloadError::FragmentType(kind)),
            _ if body.is_empty() => Some(PayloadError::EmptyFragment),
            _ if marker && !end => Some(PayloadError::MarkerWithin),
            _ if start && self.open => Some(PayloadError::NotEnded),
            _ if !start && !self.open && !self.skipping => Some(PayloadError::NotStarted),
            _ if !start && self.open && self.fragment[..header] != rebuilt[..header] => {
                Some(PayloadError::FragmentHeader)
            }
            _ => None,
        };
        if let Some(fault) = fault {
            self.open = false;
            // One broken fragment is one finding, not one for each that follows it.
            self.skipping = !end;
            return Err(fault);
        }
        if start {
            self.fragment.clear();
            self.fragment.extend_from_slice(&rebuilt[..header]);
            self.open = true;
            self.skipping = false;
        }
        if self.open {
            self.fragment.extend_from_slice(body);
        }
        if end {
            if self.open {
                nal(&self.fragment);
            }
            self.open = false;
            self.skipping = false;
        }
        Ok(())
    }
}

/// Type and header of the NAL unit that a fragment belongs to.
fn rebuilt_header(codec: Codec, payload: &[u8], fu: u8) -> (u8, [u8; 2]) {
    match codec {
        Codec::H264 => (fu & 0x1F, [payload[0] & 0xE0 | fu & 0x1F, 0]),
        Codec::H265 => (
            fu & 0x3F,
            [payload[0] & 0x81 | (fu & 0x3F) << 1, payload[1]],
        ),
    }
}

/// STAP-A (RFC 6184 section 5.7.1) and AP (RFC 7798 section 4.4.2): sizes of 16 bits ahead of NAL units.
fn aggregate(codec: Codec, payload: &[u8], mut nal: impl FnMut(&[u8])) -> Result<(), PayloadError> {
    let header = codec.header_bytes();
    let mut count = 0;
    let (mut forbidden, mut nri, mut layer, mut tid) = (0, 0, u16::MAX, u8::MAX);
    for unit in Sizes(&payload[header..]) {
        let unit = unit?;
        let kind = codec.nal_type(unit).ok_or(PayloadError::Short)?;
        match (codec, kind) {
            (Codec::H264, 0 | 24..) | (Codec::H265, 48..) => {
                return Err(PayloadError::NestedType(kind));
            }
            _ => {}
        }
        forbidden |= unit[0] & 0x80;
        nri = nri.max(unit[0] & 0x60);
        if codec == Codec::H265 {
            layer = layer.min(u16::from(unit[0] & 1) << 5 | u16::from(unit[1] >> 3));
            tid = tid.min(unit[1] & 7);
        }
        count += 1;
    }
    let agrees = match codec {
        Codec::H264 => payload[0] & 0xE0 == forbidden | nri,
        Codec::H265 => {
            let found_layer = u16::from(payload[0] & 1) << 5 | u16::from(payload[1] >> 3);
            payload[0] & 0x80 == forbidden && found_layer == layer && payload[1] & 7 == tid
        }
    };
    match codec {
        _ if count == 0 => return Err(PayloadError::AggregateCount(count)),
        Codec::H265 if count < 2 => return Err(PayloadError::AggregateCount(count)),
        _ => {}
    }
    // Given out only when all sizes are sound.
    for unit in Sizes(&payload[header..]) {
        nal(unit?);
    }
    if agrees {
        Ok(())
    } else {
        Err(PayloadError::AggregateHeader)
    }
}

/// NAL units behind 16-bit sizes.
struct Sizes<'a>(&'a [u8]);

impl<'a> Iterator for Sizes<'a> {
    type Item = Result<&'a [u8], PayloadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let whole = self.0.split_first_chunk::<2>().and_then(|(size, rest)| {
            let size = usize::from(u16::from_be_bytes(*size));
            (size > 0 && size <= rest.len()).then(|| rest.split_at(size))
        });
        match whole {
            Some((unit, rest)) => {
                self.0 = rest;
                Some(Ok(unit))
            }
            None => {
                self.0 = &[];
                Some(Err(PayloadError::AggregateSize))
            }
        }
    }
}

/// Recognises the codec from one payload, when the payload can only be one of the two.
///
/// An H.265 header of the base layer has an even first byte and a second byte of 1 to 7. H.264 NAL types 0, 2 to 4 and
/// 10 to 23 are not sent by anyone who uses mode 1, and its SEI and delimiter always have
/// `nal_ref_idc` 0 (ITU-T H.264 7.4.1), so most first bytes decide.
pub fn recognise(payload: &[u8]) -> Option<Codec> {
    let [first, second, ..] = *payload else {
        return None;
    };
    let h264 = matches!(
        (first & 0x1F, first >> 5),
        (1 | 24 | 28, 0..=3) | (5 | 7 | 8, 1..=3) | (6 | 9, 0)
    );
    let h265 = first & 0x81 == 0
        && (1..=7).contains(&second)
        && matches!(first >> 1, 0..=9 | 16..=21 | 32..=40 | 48 | 49);
    match (h264, h265) {
        (true, false) => Some(Codec::H264),
        (false, true) => Some(Codec::H265),
        // An SEI of H.264, or a temporal sublayer picture of H.265, whose temporal id is not 0: 06 01.
        (true, true) if first == 0x06 => (second == 1).then_some(Codec::H264),
        // A PPS of H.264 that begins with seven zero bits would name PPS 127 or more.
        (true, true) if second == 1 => Some(Codec::H265),
        _ => None,
    }
}

#[cfg(test)]
#[path = "depacketize_tests.rs"]
mod tests;
