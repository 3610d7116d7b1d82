//! `onMetaData` (FLV 10.1 section E.5), as a publisher sends it: behind `@setDataFrame`, which
//! servers strip.

use crate::rtmp::amf0;

use super::Packaging;

/// What players are told before the first picture. There is no audio, so no key speaks of it:
/// some servers and players wait for a track that metadata promises (contract section 13).
#[derive(Debug, Clone, PartialEq)]
pub struct Metadata<'a> {
    pub packaging: Packaging,
    pub width: u32,
    pub height: u32,
    /// Pictures per second; left out if unknown.
    pub frame_rate: Option<f64>,
    /// Bits per second; left out if unknown.
    pub bitrate: Option<u32>,
    pub encoder: &'a str,
}

impl Metadata<'_> {
    /// Appends the body of the data message.
    pub fn append(&self, out: &mut Vec<u8>) {
        let numbers = [
            ("width", Some(f64::from(self.width))),
            ("height", Some(f64::from(self.height))),
            ("framerate", self.frame_rate),
            (
                "videodatarate",
                self.bitrate.map(|bits| f64::from(bits) / 1000.0),
            ),
            ("videocodecid", Some(f64::from(self.packaging.codec_id()))),
        ];
        let present = numbers.iter().filter(|(_, value)| value.is_some()).count();
        let mut amf = amf0::Writer(out);
        amf.string("@setDataFrame")
            .string("onMetaData")
            .ecma_array(present as u32 + 1);
        for (key, value) in numbers {
            if let Some(value) = value {
                amf.key(key).number(value);
            }
        }
        amf.key("encoder").string(self.encoder).end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_small_one() {
        let mut out = Vec::new();
        Metadata {
            packaging: Packaging::EnhancedHevc,
            width: 640,
            height: 360,
            frame_rate: None,
            bitrate: Some(2_500_000),
            encoder: "e",
        }
        .append(&mut out);
        let number = |value: f64| [&[0][..], &value.to_be_bytes()].concat();
        let expected = [
            &[2, 0, 13][..],
            b"@setDataFrame",
            &[2, 0, 10],
            b"onMetaData",
            &[8, 0, 0, 0, 5],
            &[0, 5],
            b"width",
            &number(640.0),
            &[0, 6],
            b"height",
            &number(360.0),
            &[0, 13],
            b"videodatarate",
            &number(2500.0),
            &[0, 12],
            b"videocodecid",
            &number(1_752_589_105.0),
            &[0, 7],
            b"encoder",
            &[2, 0, 1, b'e'],
            &[0, 0, 9],
        ]
        .concat();
        assert_eq!(out, expected);
    }
}
