//! Capture times that travel inside of a stream, in a `user_data_unregistered` SEI message.
//!
//! ```text
//! UUID  63 76 6d 6d 61 70 2d 73 74 72 65 61 6d 2d 74 73   "cvmmap-stream-ts"
//! u8    version = 1
//! u64   capture, ns since 1970; 0 = unknown               big-endian
//! u64   end of encoding, ns since 1970
//! u32   frame id
//! ```

use crate::bitstream::{Codec, NalClass, rbsp};

pub const UUID: [u8; 16] = *b"cvmmap-stream-ts";
const USER_DATA_UNREGISTERED: u32 = 5;
const VERSION: u8 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// `None` when the sender does not know it.
    pub capture_ns: Option<u64>,
    pub encoded_ns: u64,
    pub frame_id: u32,
}

/// The stamp in a NAL unit, if this is an SEI that carries one.
pub fn find(codec: Codec, nal: &[u8]) -> Option<Stamp> {
    if codec.classify(nal) != NalClass::PrefixSei {
        return None;
    }
    let rbsp = rbsp::unescape(nal.get(codec.header_bytes()..)?);
    let mut rest = &rbsp[..];
    // Messages until the stop bit's byte (ITU-T H.264 7.3.2.3).
    while rest.len() > 2 {
        let kind = take_ff_coded(&mut rest)?;
        let size = take_ff_coded(&mut rest)?;
        let payload = rest.get(..size as usize)?;
        if kind == USER_DATA_UNREGISTERED
            && let Some(stamp) = parse(payload)
        {
            return Some(stamp);
        }
        rest = &rest[size as usize..];
    }
    None
}

fn parse(payload: &[u8]) -> Option<Stamp> {
    let body = payload.strip_prefix(&UUID)?;
    let (&version, body) = body.split_first()?;
    if version != VERSION {
        return None;
    }
    let (capture, body) = body.split_first_chunk::<8>()?;
    let (encoded, body) = body.split_first_chunk::<8>()?;
    let (frame_id, _) = body.split_first_chunk::<4>()?;
    let capture = u64::from_be_bytes(*capture);
    Some(Stamp {
        capture_ns: (capture != 0).then_some(capture),
        encoded_ns: u64::from_be_bytes(*encoded),
        frame_id: u32::from_be_bytes(*frame_id),
    })
}

/// A number as `FF` bytes of 255 each and a last byte.
fn take_ff_coded(rest: &mut &[u8]) -> Option<u32> {
    let mut value = 0_u32;
    loop {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        value = value.checked_add(u32::from(byte))?;
        if byte != 0xFF {
            return Some(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_stamp_is_read_through_emulation_prevention() {
        // The capture bytes are those of the live sync message in the contract's wire samples.
        let mut body = vec![5, 37]; // type, size
        body.extend([0x63, 0x76, 0x6d, 0x6d, 0x61, 0x70, 0x2d, 0x73]); // UUID
        body.extend([0x74, 0x72, 0x65, 0x61, 0x6d, 0x2d, 0x74, 0x73]);
        body.push(1); // version
        body.extend([0x18, 0xEA, 0x58, 0x29, 0xAE, 0x5D, 0x8A, 0x15]); // capture
        body.extend([0, 0, 3, 0, 0, 3, 0, 0, 3, 0, 2]); // encoded: seven zeros and 2, escaped
        body.extend([0, 0, 3, 0, 7]); // frame id: three zeros and 7, escaped
        body.push(0x80); // stop bit
        for (codec, header) in [(Codec::H264, &[0x06][..]), (Codec::H265, &[0x4E, 1][..])] {
            let nal = [header, &body].concat();
            let stamp = find(codec, &nal).expect("a stamp");
            assert_eq!(stamp.capture_ns, Some(0x18EA_5829_AE5D_8A15));
            assert_eq!(stamp.encoded_ns, 2);
            assert_eq!(stamp.frame_id, 7);
        }
    }

    #[test]
    fn other_messages_are_passed_over() {
        let mut nal = vec![0x06, 0xFF, 0x01, 2, 0xAA, 0xBB, 5, 3, 1, 2, 3];
        nal.extend([5, 37]);
        nal.extend(UUID);
        nal.push(1);
        nal.extend([0xFF; 20]);
        nal.push(0x80);
        assert_eq!(find(Codec::H264, &nal).map(|s| s.frame_id), Some(u32::MAX));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(5), Just(0xFF), any::<u8>()], 0..100)) {
            for header in [&[0x06][..], &[0x4E, 1]] {
                let nal = [header, &bytes].concat();
                let _ = find(Codec::H264, &nal);
                let _ = find(Codec::H265, &nal);
            }
        }
    }
}
