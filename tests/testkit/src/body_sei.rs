//! Poses that travel inside of a stream, in a `user_data_unregistered` SEI message. The layout is
//! that of `docs/body-sei.md`, read a second time.
//!
//! ```text
//! UUID  63 76 6d 6d 61 70 2d 62 6f 64 79 2d 70 6f 73 65   "cvmmap-body-pose"
//! u8    version = 1
//! u8    body format: 0, 1, 2 are 18, 34, 38 keypoints
//! u8    coordinate system
//! u8    bodies that follow
//! u16   bodies that were tracked                          all big-endian
//! u32   frame count, u64 timestamp in ns: of the packet
//!       per body: i32 id, u8 tracking state, u8 moving, u8 keypoints, f32 confidence,
//!       f32 left, top, right, bottom, and per keypoint f32 x, y, confidence
//! u8    flags: 1 = the timestamp is the picture's
//! ```

use serde::Serialize;

use crate::bitstream::{Codec, NalClass, rbsp};

pub const UUID: [u8; 16] = *b"cvmmap-body-pose";

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pose {
    pub format: u8,
    pub coordinate_system: u8,
    pub bodies_tracked: u16,
    pub frame_count: u32,
    pub timestamp_ns: u64,
    pub exact: bool,
    pub bodies: Vec<Body>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Body {
    pub id: i32,
    pub tracking: u8,
    pub moving: bool,
    pub confidence: f32,
    /// Left, top, right, bottom.
    #[serde(rename = "box")]
    pub bounds: [f32; 4],
    /// x, y, confidence.
    pub keypoints: Vec<[f32; 3]>,
}

/// The pose in a NAL unit, if this is an SEI that carries one.
pub fn find(codec: Codec, nal: &[u8]) -> Option<Pose> {
    if codec.classify(nal) != NalClass::PrefixSei {
        return None;
    }
    let rbsp = rbsp::unescape(nal.get(codec.header_bytes()..)?);
    let mut rest = Reader(&rbsp);
    // Messages until the stop bit's byte (ITU-T H.264 7.3.2.3); 5 is user_data_unregistered.
    while rest.0.len() > 2 {
        let kind = rest.ff_coded()?;
        let size = rest.ff_coded()?;
        let payload = rest.take(size)?;
        if kind == 5
            && let Some(record) = payload.strip_prefix(&UUID)
        {
            return parse(record);
        }
    }
    None
}

fn parse(record: &[u8]) -> Option<Pose> {
    let mut rest = Reader(record);
    if rest.u8()? != 1 {
        return None;
    }
    let (format, coordinate_system, count) = (rest.u8()?, rest.u8()?, rest.u8()?);
    let mut pose = Pose {
        format,
        coordinate_system,
        bodies_tracked: u16::from_be_bytes(rest.array()?),
        frame_count: u32::from_be_bytes(rest.array()?),
        timestamp_ns: u64::from_be_bytes(rest.array()?),
        exact: false,
        bodies: Vec::new(),
    };
    for _ in 0..count {
        let id = i32::from_be_bytes(rest.array()?);
        let (tracking, moving, keypoints) = (rest.u8()?, rest.u8()?, rest.u8()?);
        let confidence = rest.f32()?;
        let bounds = [rest.f32()?, rest.f32()?, rest.f32()?, rest.f32()?];
        let mut points = Vec::with_capacity(keypoints.into());
        for _ in 0..keypoints {
            points.push([rest.f32()?, rest.f32()?, rest.f32()?]);
        }
        pose.bodies.push(Body {
            id,
            tracking,
            moving: moving == 1,
            confidence,
            bounds,
            keypoints: points,
        });
    }
    pose.exact = rest.u8()? & 1 != 0;
    Some(pose)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn f32(&mut self) -> Option<f32> {
        self.array().map(f32::from_be_bytes)
    }

    /// A number as `FF` bytes of 255 each and a last byte.
    fn ff_coded(&mut self) -> Option<usize> {
        let mut value = 0;
        loop {
            let byte = self.u8()?;
            value += usize::from(byte);
            if byte != 0xFF {
                return Some(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_record_is_read_field_by_field() {
        let mut body = vec![5, 16 + 18 + 39 + 1]; // type, size
        body.extend(UUID);
        body.extend([1, 0, 2, 1]); // version, BODY_18, Y up, one body
        body.extend([0, 3]); // three were tracked
        body.extend([0, 0, 3, 0, 42]); // frame count: three zeros and 42, escaped
        body.extend([0x18, 0xEA, 0x58, 0x29, 0xAE, 0x5D, 0x8A, 0x15]); // timestamp
        body.extend([0xFF, 0xFF, 0xFF, 0xFE]); // id -2
        body.extend([1, 1, 1]); // ok, moving, one keypoint
        body.extend([0x42, 0xB1, 0x11, 0x11]); // confidence 88.53333
        for side in [0x3F80_1111_u32, 0x4000_1111, 0x4040_1111, 0x4080_1111] {
            body.extend(side.to_be_bytes());
        }
        for value in [0x40A0_1111_u32, 0xC0C0_1111, 0x42C8_1111] {
            body.extend(value.to_be_bytes());
        }
        body.extend([1, 0x80]); // exact; stop bit
        for (codec, header) in [(Codec::H264, &[0x06][..]), (Codec::H265, &[0x4E, 1][..])] {
            let nal = [header, &body].concat();
            let pose = find(codec, &nal).expect("a pose");
            assert_eq!((pose.frame_count, pose.bodies_tracked), (42, 3));
            assert_eq!(pose.timestamp_ns, 0x18EA_5829_AE5D_8A15);
            assert!(pose.exact);
            let [body] = &pose.bodies[..] else {
                panic!("one body")
            };
            assert_eq!((body.id, body.tracking, body.moving), (-2, 1, true));
            assert_eq!(body.bounds[0], f32::from_bits(0x3F80_1111));
            assert_eq!(body.keypoints[0][1], f32::from_bits(0xC0C0_1111));
            for len in 0..nal.len() - 2 {
                assert_eq!(find(codec, &nal[..len]), None, "{len} bytes");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(record in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&record);
            let nal = [&[0x06, 5, record.len() as u8][..], &UUID, &record].concat();
            let _ = find(Codec::H264, &nal);
        }
    }
}
