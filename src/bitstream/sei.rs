//! User data of our own inside the stream: `user_data_unregistered` SEI messages (H.264 section
//! D.1.7, H.265 section D.2.7), and the time stamps of `--embed-timestamps` in them.

use crate::encode::Codec;

use super::NalUnit;
use super::rbsp::{RbspWriter, unescaped};

/// Appends a whole SEI NAL unit, header and emulation prevention included, with one
/// `user_data_unregistered` message.
pub fn write_user_data(codec: Codec, uuid: &[u8; 16], payload: &[u8], out: &mut Vec<u8>) {
    write_user_data_parts(codec, uuid, &[payload], out);
}

/// As [`write_user_data`], of a payload that lies in several places.
pub fn write_user_data_parts(codec: Codec, uuid: &[u8; 16], parts: &[&[u8]], out: &mut Vec<u8>) {
    match codec {
        Codec::H264 => out.push(H264_SEI),
        Codec::H265 => out.extend(H265_PREFIX_SEI),
    }
    let mut rbsp = RbspWriter::new(out);
    rbsp.push(USER_DATA_UNREGISTERED);
    let mut size = uuid.len() + parts.iter().map(|part| part.len()).sum::<usize>();
    while size >= 255 {
        rbsp.push(255);
        size -= 255;
    }
    rbsp.push(size as u8);
    rbsp.extend(uuid);
    for part in parts {
        rbsp.extend(part);
    }
    rbsp.push(0x80); // rbsp_trailing_bits
}

/// Finds the first `user_data_unregistered` message with this UUID in a NAL unit and puts what
/// stands behind the UUID into `out`. False if there is none, or the SEI is malformed before it.
pub fn read_user_data(codec: Codec, nal: NalUnit<'_>, uuid: &[u8; 16], out: &mut Vec<u8>) -> bool {
    out.clear();
    let is_sei = match codec {
        Codec::H264 => nal.type_code(codec) == 6,
        Codec::H265 => nal.type_code(codec) == 39,
    };
    if !is_sei || nal.bytes().len() < NalUnit::header_len(codec) {
        return false;
    }
    let mut rbsp = unescaped(&nal.bytes()[NalUnit::header_len(codec)..]);
    loop {
        let (Some(kind), Some(size)) = (sei_number(&mut rbsp), sei_number(&mut rbsp)) else {
            return false;
        };
        let ours = kind == u32::from(USER_DATA_UNREGISTERED)
            && size >= 16
            && rbsp.clone().take(16).eq(uuid.iter().copied());
        if ours {
            out.extend(rbsp.by_ref().skip(16).take(size as usize - 16));
            return out.len() == size as usize - 16;
        }
        if size > 0 && rbsp.nth(size as usize - 1).is_none() {
            return false;
        }
    }
}

/// How many pictures behind this one a decoder that starts here shows all of the picture: the
/// `recovery_frame_cnt` of H.264 (section D.1.8) or the `recovery_poc_cnt` of H.265 (section
/// D.2.8, where one picture is taken as one count), of the first recovery point message.
pub fn read_recovery_point(codec: Codec, nal: NalUnit<'_>) -> Option<u32> {
    let is_sei = match codec {
        Codec::H264 => nal.type_code(codec) == 6,
        Codec::H265 => nal.type_code(codec) == 39,
    };
    let mut rbsp = unescaped(nal.bytes().get(NalUnit::header_len(codec)..)?);
    if !is_sei {
        return None;
    }
    loop {
        let (kind, size) = (sei_number(&mut rbsp)?, sei_number(&mut rbsp)?);
        if kind == RECOVERY_POINT {
            // The number is the first of the message: an Exp-Golomb code of up to 63 bits.
            let mut word = [0; 8];
            let have = word.len().min(size as usize);
            for byte in &mut word[..have] {
                *byte = rbsp.next()?;
            }
            let word = u64::from_be_bytes(word);
            let zeros = word.leading_zeros();
            let code = word.checked_shr(63_u32.checked_sub(2 * zeros)?)? - 1;
            let code = u32::try_from(code).ok()?;
            return Some(match codec {
                Codec::H264 => code,
                // se(v): 1, -1, 2, -2, ...; a negative one is shown whole already.
                Codec::H265 if code % 2 == 1 => code.div_ceil(2),
                Codec::H265 => 0,
            });
        }
        if size > 0 {
            rbsp.nth(size as usize - 1)?;
        }
    }
}

/// When a picture was captured and when the encoder was done with it, as
/// `docs/embedded-timestamps.md` lays it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameStamp {
    /// Nanoseconds since the Unix epoch; 0 is unknown.
    pub capture_unix_ns: u64,
    /// Nanoseconds since the Unix epoch.
    pub encoded_unix_ns: u64,
    pub frame_id: u32,
}

impl FrameStamp {
    /// "cvmmap-stream-ts" in ASCII.
    pub const UUID: [u8; 16] = *b"cvmmap-stream-ts";
    pub const VERSION: u8 = 1;
    /// Bytes behind the UUID.
    pub const LEN: usize = 1 + 8 + 8 + 4;

    /// Appends the stamp as an SEI NAL unit; meant for
    /// [`AccessUnit::insert_before_picture`](super::AccessUnit::insert_before_picture).
    pub fn write(&self, codec: Codec, out: &mut Vec<u8>) {
        let mut record = [0; Self::LEN];
        record[0] = Self::VERSION;
        record[1..9].copy_from_slice(&self.capture_unix_ns.to_be_bytes());
        record[9..17].copy_from_slice(&self.encoded_unix_ns.to_be_bytes());
        record[17..21].copy_from_slice(&self.frame_id.to_be_bytes());
        write_user_data(codec, &Self::UUID, &record, out);
    }

    /// The stamp in a NAL unit, if it holds one of this version.
    pub fn read(codec: Codec, nal: NalUnit<'_>) -> Option<Self> {
        let mut record = Vec::new();
        if !read_user_data(codec, nal, &Self::UUID, &mut record) {
            return None;
        }
        let (&version, rest) = record.split_first()?;
        let (capture, rest) = rest.split_first_chunk::<8>()?;
        let (encoded, rest) = rest.split_first_chunk::<8>()?;
        let frame_id = rest.first_chunk::<4>()?;
        (version == Self::VERSION).then(|| Self {
            capture_unix_ns: u64::from_be_bytes(*capture),
            encoded_unix_ns: u64::from_be_bytes(*encoded),
            frame_id: u32::from_be_bytes(*frame_id),
        })
    }
}

/// `payloadType` or `payloadSize`: bytes of 255 and a last one, added up (section 7.3.2.3.1 of
/// H.264, 7.3.5 of H.265).
fn sei_number(rbsp: &mut impl Iterator<Item = u8>) -> Option<u32> {
    let mut sum = 0_u32;
    loop {
        let byte = rbsp.next()?;
        sum = sum.checked_add(u32::from(byte))?;
        if byte != 255 {
            return Some(sum);
        }
    }
}

const USER_DATA_UNREGISTERED: u8 = 5;
const RECOVERY_POINT: u32 = 6;
/// Not used for reference, type 6.
const H264_SEI: u8 = 6;
/// PREFIX_SEI_NUT (39), layer 0, temporal id 0.
const H265_PREFIX_SEI: [u8; 2] = [39 << 1, 1];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Codes written by hand after section 9.1: 0 is `1`, 5 is `00110`, 29 is `000011110`.
    #[test]
    fn a_recovery_point_tells_when_the_picture_is_whole() {
        let h264 = |sei: &[u8]| read_recovery_point(Codec::H264, NalUnit(sei));
        // recovery_frame_cnt, exact_match 1, broken_link 0, changing_slice_group 00, stop bit
        assert_eq!(h264(&[6, 6, 1, 0b1100_0100, 0x80]), Some(0));
        assert_eq!(h264(&[6, 6, 1, 0b0011_0100, 0x80]), Some(5));
        assert_eq!(h264(&[6, 6, 2, 0b0000_1111, 0b0100_0100, 0x80]), Some(29));
        // Behind another message, and none at all.
        assert_eq!(h264(&[6, 5, 2, 9, 9, 6, 1, 0b0011_0100, 0x80]), Some(5));
        assert_eq!(h264(&[6, 5, 2, 9, 9, 0x80]), None);
        for end in 0..4 {
            assert_eq!(h264(&[6, 6, 1, 0b0011_0100][..end]), None);
        }
        assert_eq!(h264(&[6, 6, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0x80]), None);
        assert_eq!(h264(&[0x67, 6, 1, 0b0011_0100, 0x80]), None);
        // se(v): 3 is the code number 5, -1 is 2 (`011`).
        let h265 = |byte| read_recovery_point(Codec::H265, NalUnit(&[39 << 1, 1, 6, 1, byte]));
        assert_eq!(h265(0b0011_0100), Some(3));
        assert_eq!(h265(0b0110_1000), Some(0));
    }

    const STAMP: FrameStamp = FrameStamp {
        capture_unix_ns: 0x0000_0001_0203_0405,
        encoded_unix_ns: 0x1112_1314_1516_1718,
        frame_id: 2,
    };

    #[rustfmt::skip]
    const RECORD: &[u8] = &[
        0x05,                   // payloadType: user_data_unregistered
        0x25,                   // payloadSize: 16 + 21
        0x63, 0x76, 0x6D, 0x6D, 0x61, 0x70, 0x2D, 0x73, // uuid_iso_iec_11578
        0x74, 0x72, 0x65, 0x61, 0x6D, 0x2D, 0x74, 0x73,
        0x01,                   // version
        0x00, 0x00, 0x03, 0x00, 0x01, 0x02, 0x03, 0x04, 0x05, // capture, one byte escaped
        0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, // encoded
        0x00, 0x00, 0x03, 0x00, 0x02, // frame id, one byte escaped
        0x80,                   // rbsp_trailing_bits
    ];

    #[test]
    fn a_stamp_is_written_field_by_field_for_both_codecs() {
        for (codec, header) in [(Codec::H264, &[0x06][..]), (Codec::H265, &[0x4E, 0x01][..])] {
            let mut nal = Vec::new();
            STAMP.write(codec, &mut nal);
            assert_eq!(nal, [header, RECORD].concat());
            assert_eq!(FrameStamp::read(codec, NalUnit(&nal)), Some(STAMP));
        }
    }

    #[test]
    fn a_message_behind_another_one_is_found() {
        // buffering_period (0) of two bytes comes first
        let nal = [&[0x06, 0x00, 0x02, 0xAA, 0xBB], RECORD].concat();
        assert_eq!(FrameStamp::read(Codec::H264, NalUnit(&nal)), Some(STAMP));
    }

    #[test]
    fn other_uuids_versions_and_nal_units_hold_no_stamp() {
        let whole = [&[0x06], RECORD].concat();
        let read = |at: usize, value: u8| {
            let mut nal = whole.clone();
            nal[at] = value;
            FrameStamp::read(Codec::H264, NalUnit(&nal))
        };
        assert_eq!(read(0, 0x06), Some(STAMP));
        assert_eq!(read(0, 0x65), None);
        assert_eq!(read(1, 4), None);
        assert_eq!(read(3, b'x'), None);
        assert_eq!(read(19, 2), None);
        for len in 0..whole.len() - 1 {
            let short = NalUnit(&whole[..len]);
            assert_eq!(FrameStamp::read(Codec::H264, short), None, "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn user_data_of_any_length_reads_back(
            payload in prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..600),
            h265 in any::<bool>(),
        ) {
            let codec = if h265 { Codec::H265 } else { Codec::H264 };
            let (mut nal, mut read) = (Vec::new(), Vec::new());
            write_user_data(codec, &[7; 16], &payload, &mut nal);
            prop_assert!(read_user_data(codec, NalUnit(&nal), &[7; 16], &mut read));
            prop_assert_eq!(read, payload);
        }

        #[test]
        fn any_bytes_are_read_or_refused(mut nal in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut out = Vec::new();
            read_user_data(Codec::H264, NalUnit(&nal), &[7; 16], &mut out);
            if let Some(first) = nal.first_mut() { *first = 6 }
            FrameStamp::read(Codec::H264, NalUnit(&nal));
            if let Some(first) = nal.first_mut() { *first = 78 }
            FrameStamp::read(Codec::H265, NalUnit(&nal));
        }
    }
}
