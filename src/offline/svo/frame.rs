//! One `side_by_side` message: its layout, and what its payload holds (contract section 2).

use memchr::memmem;

use crate::bitstream::NalUnit;
use crate::bitstream::sei::read_recovery_point;
use crate::encode::Codec;

/// The parts of one message.
///
/// ```text
/// u32 total = 4 + n + 56 | u32 n | u8[n] payload | 56 bytes frame footer      (little-endian)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameMessage<'a> {
    pub payload: &'a [u8],
    /// Absent where fewer than 56 bytes follow the payload.
    pub footer: Option<FrameFooter>,
}

/// What is used of the 56 bytes behind the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameFooter {
    pub timestamp_ns: u64,
    /// Position of the frame in the recording as its writer counted.
    pub index: u32,
}

impl<'a> FrameMessage<'a> {
    /// `None` if the payload's length does not fit into the message.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let n = payload_len(data)?;
        let (payload, rest) = data[PREFIX..].split_at_checked(n)?;
        Some(Self {
            payload,
            footer: FrameFooter::parse(rest),
        })
    }
}

/// The length of the payload that starts at byte [`PREFIX`] of a message.
pub fn payload_len(data: &[u8]) -> Option<usize> {
    Some(le_u32(data.get(4..8)?) as usize)
}

/// Whether the two length words at the start of a message of `len` bytes agree with it and with
/// each other; a strong sign that the bytes really are a frame.
pub fn lengths_agree(start: &[u8], len: u64) -> bool {
    let (Some(total), Some(n)) = (start.get(..4), start.get(4..8)) else {
        return false;
    };
    let (total, n) = (u64::from(le_u32(total)), u64::from(le_u32(n)));
    total + 4 == len && n + (4 + FOOTER as u64) == total
}

impl FrameFooter {
    /// Reads the fields that matter; the meaning of the others is not known well enough.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < FOOTER {
            return None;
        }
        Some(Self {
            timestamp_ns: u64::from_le_bytes(bytes[0x18..0x20].try_into().expect("8 bytes")),
            index: le_u32(&bytes[0x2C..0x30]),
        })
    }
}

/// What the payloads of a recording hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadKind {
    H264,
    H265,
    /// Four grayscale JPEG images which, stacked, are packed YUYV rows.
    JpegStrips,
}

impl PayloadKind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::H264 => "h264",
            Self::H265 => "h265",
            Self::JpegStrips => "jpeg",
        }
    }
}

/// What a look at one payload tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sniffed {
    Is(PayloadKind),
    /// Annex B, but only NAL units that both codecs could have.
    AnnexB,
    Unknown,
}

/// Tells what a payload is by its content; the header field of the file is not trusted.
pub fn sniff(payload: &[u8]) -> Sniffed {
    if strip_ranges(payload).is_some() {
        return Sniffed::Is(PayloadKind::JpegStrips);
    }
    if !(payload.starts_with(&[0, 0, 1]) || payload.starts_with(&[0, 0, 0, 1])) {
        return Sniffed::Unknown;
    }
    for nal in nal_starts(payload) {
        let (first, second) = (nal[0], nal.get(1).copied().unwrap_or(0));
        // VPS, SPS, PPS, AUD, SEI and the three IDR and CRA slice types of H.265, layer 0,
        // temporal layer 0. No H.264 parameter set starts with such a pair of bytes.
        if second == 1 && matches!(first, 0x40 | 0x42 | 0x44 | 0x46 | 0x4E | 0x26 | 0x28 | 0x2A) {
            return Sniffed::Is(PayloadKind::H265);
        }
        // H.264 section 7.4.1: nal_ref_idc is 0 for SEI and AUD, and not 0 for SPS and PPS.
        let reference = first & 0x60 != 0;
        match first & 0x9F {
            7 | 8 if reference => return Sniffed::Is(PayloadKind::H264),
            6 | 9 if !reference => return Sniffed::Is(PayloadKind::H264),
            _ => {}
        }
    }
    Sniffed::AnnexB
}

/// Whether decoding can start at a payload, for each kind that it might be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KeySigns {
    h264: bool,
    h265: bool,
    /// Of a recovery point message: how many frames later the picture is whole again.
    h264_recovery: Option<u16>,
    h265_recovery: Option<u16>,
}

impl KeySigns {
    /// By the first slice of the payload: H.264 type 5, H.265 types 16 to 21.
    pub fn of(payload: &[u8]) -> Self {
        let mut signs = (None, None);
        let mut recovery = (None, None);
        for nal in nal_starts(payload).take(LOOKED_AT_NALS) {
            let (h264, h265) = (nal[0] & 0x1F, (nal[0] >> 1) & 0x3F);
            if matches!(h264, 1..=5) {
                signs.0.get_or_insert(h264 == 5);
            }
            if h265 < 32 {
                signs.1.get_or_insert(matches!(h265, 16..=21));
            }
            if signs.0.is_some() && signs.1.is_some() {
                break;
            }
            if h264 == H264_SEI || h265 == H265_PREFIX_SEI {
                let end = memmem::find(nal, &[0, 0, 1]).unwrap_or(nal.len());
                let sei = NalUnit(&nal[..end]);
                let point = |codec| u16::try_from(read_recovery_point(codec, sei)?).ok();
                recovery.0 = recovery.0.or_else(|| point(Codec::H264));
                recovery.1 = recovery.1.or_else(|| point(Codec::H265));
            }
        }
        Self {
            h264: signs.0.unwrap_or(false),
            h265: signs.1.unwrap_or(false),
            h264_recovery: recovery.0,
            h265_recovery: recovery.1,
        }
    }

    /// How many frames behind this one the picture is whole, whatever was lost before it.
    pub fn recovery(self, kind: PayloadKind) -> Option<u16> {
        match kind {
            PayloadKind::H264 => self.h264_recovery,
            PayloadKind::H265 => self.h265_recovery,
            PayloadKind::JpegStrips => None,
        }
    }

    pub fn is_key(self, kind: PayloadKind) -> bool {
        match kind {
            PayloadKind::H264 => self.h264,
            PayloadKind::H265 => self.h265,
            PayloadKind::JpegStrips => true,
        }
    }
}

/// Where the four strips of a payload lie: four u64 lengths, then the images without padding.
pub fn strip_ranges(payload: &[u8]) -> Option<[std::ops::Range<usize>; 4]> {
    let images = payload.len().checked_sub(STRIP_TABLE)?;
    if images < 4 || payload[STRIP_TABLE..STRIP_TABLE + 3] != [0xFF, 0xD8, 0xFF] {
        return None;
    }
    let mut at = STRIP_TABLE;
    let mut ranges = [const { 0..0 }; 4];
    for (range, word) in ranges.iter_mut().zip(payload.chunks_exact(8)) {
        let len = u64::from_le_bytes(word.try_into().expect("8 bytes"));
        let end = at.checked_add(usize::try_from(len).ok()?)?;
        *range = at..end;
        at = end;
    }
    (at == payload.len()).then_some(ranges)
}

/// The bytes behind each start code, never empty, up to the end of the payload: only their first
/// bytes are looked at, so that a picture is not searched for its end.
fn nal_starts(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    memmem::find_iter(payload, &[0, 0, 1])
        .filter_map(|at| payload.get(at + 3..)?.get(0..))
        .filter(|nal| !nal.is_empty())
}

fn le_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("four bytes"))
}

/// Bytes in front of the payload.
pub const PREFIX: usize = 8;
/// Bytes of the frame footer.
pub const FOOTER: usize = 56;
/// A payload that says it is longer is damaged: a raw picture of two 4K eyes has 33 MiB.
pub const LARGEST_PAYLOAD: u64 = 256 << 20;
const STRIP_TABLE: usize = 32;
const H264_SEI: u8 = 6;
const H265_PREFIX_SEI: u8 = 39;
/// A slice comes after a few parameter sets and SEI messages, or not at all.
const LOOKED_AT_NALS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(payload: &[u8]) -> Vec<u8> {
        let n = payload.len() as u32;
        let mut data = Vec::new();
        data.extend((4 + n + 56).to_le_bytes()); // total
        data.extend(n.to_le_bytes()); // payload bytes
        data.extend(payload);
        let footer = data.len();
        data.resize(footer + 56, 0);
        data[footer + 0x18..footer + 0x20]
            .copy_from_slice(&1_773_806_381_000_000_000_u64.to_le_bytes());
        data[footer + 0x2C..footer + 0x30].copy_from_slice(&41_u32.to_le_bytes());
        data
    }

    #[test]
    fn a_message_is_two_lengths_a_payload_and_a_footer() {
        let data = message(&[9; 100]);
        let parsed = FrameMessage::parse(&data).unwrap();
        assert_eq!(parsed.payload, [9; 100]);
        let footer = parsed.footer.unwrap();
        assert_eq!(
            (footer.timestamp_ns, footer.index),
            (1_773_806_381_000_000_000, 41)
        );
        assert!(lengths_agree(&data, data.len() as u64));
        assert!(!lengths_agree(&data, data.len() as u64 + 1));
    }

    #[test]
    fn a_short_footer_is_absent_and_a_short_payload_is_damage() {
        let data = message(&[9; 100]);
        assert_eq!(FrameMessage::parse(&data[..108 + 55]).unwrap().footer, None);
        assert_eq!(FrameMessage::parse(&data[..107]), None);
        assert_eq!(FrameMessage::parse(&data[..7]), None);
    }

    #[test]
    fn payloads_are_told_apart_by_content() {
        let is = |kind| Sniffed::Is(kind);
        assert_eq!(sniff(&[0, 0, 0, 1, 0x40, 1, 0x0C]), is(PayloadKind::H265));
        assert_eq!(sniff(&[0, 0, 0, 1, 0x67, 0x64, 0]), is(PayloadKind::H264));
        assert_eq!(sniff(&[0, 0, 0, 1, 0x09, 0xF0]), is(PayloadKind::H264));
        // An IDR_W_RADL slice of H.265 has the five bits of an H.264 SEI message.
        assert_eq!(sniff(&[0, 0, 0, 1, 0x26, 1, 0xAF]), is(PayloadKind::H265));
        assert_eq!(sniff(&[0, 0, 0, 1, 0x02, 1, 0xD0]), Sniffed::AnnexB);
        assert_eq!(sniff(&[0, 0, 0, 1, 0x41, 0x9A]), Sniffed::AnnexB);
        assert_eq!(sniff(&[0xDE, 0xAD, 0xBE, 0xEF]), Sniffed::Unknown);
        assert_eq!(sniff(&[]), Sniffed::Unknown);
    }

    #[test]
    fn the_first_slice_tells_a_key_frame() {
        let key = [
            &[0, 0, 0, 1, 0x40, 1, 9][..],
            &[0, 0, 0, 1, 0x42, 1, 9],
            &[0, 0, 1, 0x26, 1, 0xAF],
        ]
        .concat();
        assert!(KeySigns::of(&key).is_key(PayloadKind::H265));
        assert!(!KeySigns::of(&[0, 0, 0, 1, 0x02, 1, 0xD0]).is_key(PayloadKind::H265));
        assert!(KeySigns::of(&[0, 0, 0, 1, 0x67, 9, 0, 0, 1, 0x65, 9]).is_key(PayloadKind::H264));
        assert!(!KeySigns::of(&[0, 0, 0, 1, 0x67, 9, 0, 0, 1, 0x41, 9]).is_key(PayloadKind::H264));
    }

    #[test]
    fn a_recovery_point_stands_in_front_of_the_slice() {
        // Message 6 of one byte: recovery_frame_cnt 5 (`00110`), exact match.
        let sei = [0, 0, 0, 1, 0x06, 6, 1, 0b0011_0100, 0x80, 0, 0, 1];
        let unit = [&sei[..], &[0x41, 0x9A]].concat();
        let signs = KeySigns::of(&unit);
        assert_eq!(signs.recovery(PayloadKind::H264), Some(5));
        assert!(!signs.is_key(PayloadKind::H264));
        // A message 5 whose bytes look like one, and none at all.
        let other = [0, 0, 1, 0x06, 5, 2, 6, 1, 0x80, 0, 0, 1, 0x41, 0x9A];
        assert_eq!(KeySigns::of(&other).recovery(PayloadKind::H264), None);
        assert_eq!(
            KeySigns::of(&[0, 0, 1, 0x41]).recovery(PayloadKind::H264),
            None
        );
    }

    #[test]
    fn four_strip_lengths_must_fill_the_payload() {
        let mut payload = Vec::new();
        for len in [4_u64, 5, 6, 7] {
            payload.extend(len.to_le_bytes());
        }
        payload.extend([0xFF, 0xD8, 0xFF, 0xE0]);
        payload.resize(32 + 22, 1);
        assert_eq!(
            strip_ranges(&payload),
            Some([32..36, 36..41, 41..47, 47..54])
        );
        assert_eq!(sniff(&payload), Sniffed::Is(PayloadKind::JpegStrips));
        payload.push(0);
        assert_eq!(strip_ranges(&payload), None);
        payload[0..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(strip_ranges(&payload), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_lie_inside(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(message) = FrameMessage::parse(&data) {
                prop_assert!(message.payload.len() + PREFIX <= data.len());
            }
            let _ = sniff(&data);
            let _ = KeySigns::of(&data);
            if let Some(ranges) = strip_ranges(&data) {
                prop_assert_eq!(ranges[3].end, data.len());
            }
        }
    }
}
